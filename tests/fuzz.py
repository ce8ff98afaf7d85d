"""`make fuzz`: the property tests with random examples, round after round, each from a seed of its own that repeats it.

python tests/fuzz.py --minutes 60                                   all properties
python tests/fuzz.py --rounds 1 --seed 17 tests/test_simulate.py    one round again, of one file
"""

import argparse
import secrets
import sys
import time
from functools import wraps

import hypothesis
import pytest


class Fuzz:
    """A plugin of pytest: keeps property tests alone, has each draw `times` as many examples as it asks for, and counts
    what was drawn."""

    def __init__(self, times):
        self.times, self.drawn, self.failed, self.known = times, {}, [], {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if getattr(item.obj, "is_hypothesis_test", False)]
        for item in items:
            test = getattr(item.obj, "__func__", item.obj)
            if item.nodeid not in self.known:
                self.known[item.nodeid] = test
                test.hypothesis.inner_test = self.counted(item.nodeid, test.hypothesis.inner_test)
                mine = test._hypothesis_internal_use_settings
                more = {
                    "max_examples": self.times * mine.max_examples,
                    "suppress_health_check": list(hypothesis.HealthCheck),
                }
                test._hypothesis_internal_use_settings = hypothesis.settings(mine, **more)

    def counted(self, name, inner):
        @wraps(inner)
        def test(*args, **kwargs):
            self.drawn[name] = self.drawn.get(name, 0) + 1
            return inner(*args, **kwargs)

        return test

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="no round begins later (10)")
    parser.add_argument("--rounds", type=int, default=10**9)
    parser.add_argument(
        "--times",
        type=int,
        default=10,
        help="examples of a property in a round, as a multiple of those in `make test` (10)",
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**31), help="of the first round; the next has the next number"
    )
    parser.add_argument("files", nargs="*", help="files or tests, all by default")
    given = parser.parse_args()
    fuzz, end, failed = Fuzz(given.times), time.monotonic() + 60 * given.minutes, False
    for seed in range(given.seed, given.seed + given.rounds):
        if time.monotonic() > end:
            break
        fuzz.failed.clear()
        options = [
            "-q",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--hypothesis-profile=default",
            f"--hypothesis-seed={seed}",
        ]
        code = pytest.main([*options, *given.files], plugins=[fuzz])
        failed |= code != pytest.ExitCode.OK
        print(
            f"seed {seed}: {sum(fuzz.drawn.values()):,} examples drawn so far of {len(fuzz.drawn)} properties",
            flush=True,
        )
        for name in fuzz.failed:
            print(f"again: make fuzz ARGS='--rounds 1 --times {given.times} --seed {seed} {name}'", flush=True)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            break
    for name, count in sorted(fuzz.drawn.items()):
        print(f"{count:>9,}  {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
