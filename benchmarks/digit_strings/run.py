"""Strings of spoken digits (CTC): teacher, student alone, distilled and int8, over seeds, as files in onnxruntime.

    DIGITS_DATA=/path/to/fsdd python benchmarks/digit_strings/run.py [--seeds 0 1 2]
    python benchmarks/digit_strings/run.py --tables

DIGITS_DATA: a folder with train.npz and test.npz, see digits.py. A seed takes some five minutes of one core. What is
finished is found in the store. RESULTS.md is made from result.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
POINTS = {"teacher": "teacher", "alone": "alone", "distill": "distilled", "alone-quantize": "int8 of alone",
          "quantize": "int8"}  # fmt: skip
WANTED = ("word_error_rate", "agreement", "file_bytes", "macs")


def run(seeds: list[int]) -> None:
    import edgekd
    from edgekd import environment

    sys.path.insert(0, str(HERE))
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as place:
            outcome = edgekd.compress(HERE / "recipe.toml", sets=[f"sweep.seed=[{seed}]"], out=place, quiet=False)
        found = {
            POINTS[c.point]: {m.name: m.value for m in c.measurements if m.name in WANTED and m.split in (None, "test")}
            for c in outcome.result.candidates
        }
        result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"schema": "edgekd.benchmark/1", "seeds": {}}
        result["seeds"][str(seed)] = found
        result |= {"environment": environment.describe()}
        result["command"] = (
            f"DIGITS_DATA=... python benchmarks/digit_strings/run.py --seeds {' '.join(map(str, seeds))}"
        )
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def tables() -> None:
    from edgekd import intervals

    result = json.loads(RESULT.read_text())
    each = list(result["seeds"].values())
    lines = [
        "# Strings of spoken digits: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. Word error rate (substitutions, deletions and "
        "insertions of digits, in per cent of the digits of 300 test strings of recordings that nothing was trained or "
        "chosen on), best path decoding, of the exported file in onnxruntime. Means over seeds; differences are "
        "paired by seed, with their 95 % interval by Student's t.",
        "",
        f"| | {' | '.join(POINTS.values())} |",
        "|---|" + "---:|" * len(POINTS),
    ]
    for seed, found in result["seeds"].items():
        lines.append(
            f"| seed {seed} | " + " | ".join(f"{found[p]['word_error_rate']:.2f}" for p in POINTS.values()) + " |"
        )
    mean = lambda point, name: sum(found[point].get(name, 0) for found in each) / len(each)
    lines.append("| mean | " + " | ".join(f"{mean(p, 'word_error_rate'):.2f}" for p in POINTS.values()) + " |")
    lines.append("| bytes | " + " | ".join(f"{mean(p, 'file_bytes'):,.0f}" for p in POINTS.values()) + " |")
    lines.append("")
    for a, b in (("distilled", "alone"), ("int8", "distilled"), ("int8", "int8 of alone")):
        gaps = [found[a]["word_error_rate"] - found[b]["word_error_rate"] for found in each]
        value, low, high = intervals.mean(gaps)
        lines.append(f"- {a} - {b}: {value:+.2f} [{low:+.2f}, {high:+.2f}]")
    facts = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()))
    lines += ["", f"Again: `{result['command']}`. {facts['cpu']}, {versions}."]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true")
    asked = parser.parse_args()
    if not asked.tables:
        run(asked.seeds)
    tables()


if __name__ == "__main__":
    main()
