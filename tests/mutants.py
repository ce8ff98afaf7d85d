"""`make mutants`: small faults, planted one at a time by mutmut, and which of them the tests of their module don't
notice.

    python tests/mutants.py edgekd/losses edgekd/store/store.py  these of the table; without any, all
    python tests/mutants.py --children 8 --diffs faults.txt  so many at a time; the faults that survived as diffs, by
                                                             default build/mutants/survived.txt

A copy of the tree for each lies in build/mutants: run again, it goes on where it stopped, and what has changed is tried
anew. What mutmut leaves alone are constants of modules, decorated functions and annotations: plant such faults by
hand."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TREE = (
    "edgekd",
    "tests",
    "benchmarks",
    "targets",
    "README.md",
    "LICENSE",
    "Makefile",
    "pyproject.toml",
    ".constraints.txt",
)
TESTS = {
    "edgekd/decisions": "budget capacity front gains one_file",
    "edgekd/ensembles": "modes",
    "edgekd/intervals.py": "intervals budget",
    "edgekd/losses": "losses feature_losses",
    "edgekd/quantization/diagnosis/causes.py": "explain",
    "edgekd/quantization/diagnosis/fixes.py": "fixing",
    "edgekd/quantization/diagnosis/layers.py": "explain fixing",
    "edgekd/quantization/diagnosis/mixed_precision.py": "mixed",
    "edgekd/quantization/diagnosis/noise.py": "explain",
    "edgekd/quantization/diagnosis/regions.py": "never_slower",
    "edgekd/quantization/diagnosis/sensitivity.py": "mixed",
    "edgekd/quantization/diagnosis/signal_to_noise.py": "beside",
    "edgekd/quantization/diagnosis/weight_causes.py": "explain",
    "edgekd/quantization/grid.py": "better_ranges quantization",
    "edgekd/quantization/histogram.py": "ranges",
    "edgekd/quantization/onnx_graph/bias.py": "max_drop",
    "edgekd/quantization/onnx_graph/checks.py": "foreign",
    "edgekd/quantization/onnx_graph/convert.py": "foreign",
    "edgekd/quantization/onnx_graph/draft.py": "foreign",
    "edgekd/quantization/onnx_graph/embeddings.py": "foreign",
    "edgekd/quantization/onnx_graph/byte_inputs.py": "interface_graphs",
    "edgekd/quantization/onnx_graph/equalize.py": "max_drop gates",
    "edgekd/quantization/onnx_graph/gates.py": "gates",
    "edgekd/quantization/onnx_graph/fold_preprocess.py": "interface",
    "edgekd/quantization/onnx_graph/interface.py": "interface",
    "edgekd/quantization/onnx_graph/kernels.py": "int8_or_float",
    "edgekd/quantization/onnx_graph/normalize.py": "foreign",
    "edgekd/quantization/onnx_graph/placement.py": "foreign",
    "edgekd/quantization/onnx_graph/render.py": "foreign",
    "edgekd/quantization/onnx_graph/rewrites.py": "foreign",
    "edgekd/quantization/onnx_graph/scales.py": "foreign",
    "edgekd/quantization/onnx_graph/unfused.py": "foreign_forms",
    "edgekd/quantization/onnx_graph/widened.py": "foreign_forms",
    "edgekd/quantization/torch_graph/cells.py": "streams",
    "edgekd/quantization/parameters.py": "quantization ranges",
    "edgekd/quantization/placement.py": "placement foreign quantization",
    "edgekd/quantization/qdq/compare.py": "qdq_graph simulate saturation",
    "edgekd/quantization/qdq/graph.py": "qdq_graph simulate saturation",
    "edgekd/quantization/qdq/integers.py": "qdq_graph simulate saturation",
    "edgekd/quantization/qdq/kernels.py": "simulate",
    "edgekd/quantization/qdq/operands.py": "saturation explain",
    "edgekd/quantization/qdq/pairing.py": "qdq_graph simulate saturation",
    "edgekd/quantization/qdq/pairs.py": "qdq_graph simulate saturation",
    "edgekd/quantization/qdq/partial.py": "fixing",
    "edgekd/quantization/qdq/saturation.py": "saturation",
    "edgekd/quantization/qdq/simulate.py": "simulate saturation",
    "edgekd/quantization/qdq/values.py": "qdq_graph simulate saturation",
    "edgekd/quantization/torch_graph/adaround.py": "better_ranges",
    "edgekd/quantization/torch_graph/calibrate.py": "ranges better_ranges saturation",
    "edgekd/quantization/torch_graph/capture.py": "quantization speech",
    "edgekd/quantization/torch_graph/check.py": "quantization",
    "edgekd/quantization/torch_graph/correction.py": "better_ranges",
    "edgekd/quantization/torch_graph/equalize.py": "better_ranges",
    "edgekd/quantization/torch_graph/exact.py": "quantization simulate",
    "edgekd/quantization/torch_graph/fake.py": "quantization saturation ranges",
    "edgekd/quantization/torch_graph/integers.py": "quantization",
    "edgekd/quantization/torch_graph/modules.py": "quantization",
    "edgekd/quantization/torch_graph/recurrent.py": "recurrent",
    "edgekd/quantization/torch_graph/rewrite.py": "quantization speech",
    "edgekd/quantization/torch_graph/rounding.py": "quantization ranges",
    "edgekd/quantization/torch_graph/sites.py": "quantization",
    "edgekd/quantization/torch_graph/smooth.py": "better_ranges",
    "edgekd/quantization/torch_graph/ties.py": "quantization",
    "edgekd/quantization/watch.py": "better_ranges modes",
    "edgekd/quantization/weight_blocks/awq.py": "weight_only",
    "edgekd/quantization/weight_blocks/blocks.py": "weight_only",
    "edgekd/quantization/weight_blocks/check.py": "weight_only",
    "edgekd/quantization/weight_blocks/neural_compressor.py": "weight_only",
    "edgekd/ranges": "ranges",
    "edgekd/store/fingerprint.py": "fingerprint",
    "edgekd/store/locks.py": "store",
    "edgekd/store/scratch.py": "scratch",
    "edgekd/store/parsed.py": "parsed fingerprint",
    "edgekd/store/store.py": "store",
    "edgekd/store/syntax.py": "fingerprint",
    "edgekd/teachers": "modes train",
    "edgekd/training/agreement.py": "modes schedules",
    "edgekd/training/balance.py": "modes",
    "edgekd/training/checkpoints.py": "train modes",
    "edgekd/training/learn.py": "train modes schedules",
    "edgekd/training/loop.py": "train modes schedules",
    "edgekd/training/loss_checks.py": "trials modes",
    "edgekd/training/loss_reaction.py": "trials modes",
    "edgekd/training/optimizer.py": "train",
    "edgekd/training/read_terms.py": "recipe modes trials schedules",
    "edgekd/training/settings.py": "train",
    "edgekd/training/supervision.py": "modes train",
    "edgekd/training/terms.py": "losses modes schedules train",
    "edgekd/samples": "samples",
}
SHOW = """
import sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
for name in sys.stdin.read().split():
    print(name, get_diff_for_mutant(name), sep="\\n", end="\\0")
"""
NOTICED = ("killed", "timeout", "segfault", "caught by type check")


def main() -> int:
    options = argparse.ArgumentParser(prog="make mutants", description="Plants faults and says which no test notices.")
    options.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; without any, all")
    options.add_argument(
        "--children", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="faults that are tried at a time"
    )
    options.add_argument(
        "--seconds", type=float, help="the longest for each; the faults that are left are tried by the next call"
    )
    options.add_argument("--diffs", type=Path, default=ROOT / "build" / "mutants" / "survived.txt")
    given = options.parse_args()
    if strange := [m for m in given.modules if m.rstrip("/") not in TESTS]:
        options.error(f"{', '.join(strange)}: not in the table of tests/mutants.py; it has {', '.join(TESTS)}")
    table, diffs = [], []
    for module in [m.rstrip("/") for m in given.modules] or TESTS:
        counts, shown = tried(module, given.children, given.seconds)
        table.append(f"{module:40}{score(counts)}")
        diffs += shown
        print("\n" + table[-1], flush=True)
        given.diffs.parent.mkdir(parents=True, exist_ok=True)
        given.diffs.write_text("\n".join([*table, "", *diffs]) + "\n")
    print("\n".join(["", *table, f"the faults that survived: {given.diffs}"]))
    return 0


def score(counts: dict[str, int]) -> str:
    total, noticed = sum(counts.values()), sum(counts.get(kind, 0) for kind in NOTICED)
    if not total:
        return "  no fault tried: the limit ended it while its tests ran without faults, give more --seconds"
    left = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()) if kind not in NOTICED)
    return f"{noticed:5} of {total:5} noticed ({100 * noticed / total:.1f} %){'; ' * bool(left)}{left}"


def tried(module: str, children: int, seconds: float | None = None) -> tuple[dict[str, int], list[str]]:
    """({what became of them: how many}, diffs of those that survived) of all faults in a module."""
    folder = copied(module)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EDGEKD_STORE": str(folder / "store"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment["PYTHONPATH"] = str(folder / "tests")  # this file is a plugin of pytest there
    call = [sys.executable, "-m", "mutmut"]
    work = subprocess.Popen(
        [*call, "run", "--max-children", str(children)], cwd=folder, env=environment, start_new_session=True
    )
    try:
        failed = work.wait(seconds)
    except subprocess.TimeoutExpired:
        failed = not list(folder.glob("mutants/**/*.meta"))
    finally:
        with contextlib.suppress(ProcessLookupError):  # mutmut and those that it tries: a fault may loop for ever
            os.killpg(work.pid, signal.SIGKILL)
        work.wait()
    if failed:
        print(f"mutmut could not try {module}: the tests of the table must pass in {folder}/mutants", file=sys.stderr)
        return {"not tried": 1}, []
    subprocess.run([*call, "export-cicd-stats"], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    stats = json.loads((folder / "mutants" / "mutmut-cicd-stats.json").read_text())
    counts = {kind.replace("_", " "): n for kind, n in stats.items() if isinstance(n, int) and n and kind != "total"}
    told = subprocess.run(
        [*call, "results"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    names = re.findall(r"^\s*(\S+): (?:survived|no tests|suspicious)", told, re.M)
    show = [sys.executable, "-c", SHOW]
    shown = subprocess.run(
        show, cwd=folder, env=environment, input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return counts, [changed(diff) for diff in shown.split("\0") if diff]


def copied(module: str) -> Path:
    """The tree of a module's own, with mutmut's settings; files that are the same keep their time, so that their faults
    are not tried again."""
    folder = ROOT / "build" / "mutants" / module.replace("/", ".")
    for name in TREE:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(
                source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "_targets")
            )
        else:
            shutil.copy2(source, target)
    selected = [f"tests/test_{name}.py" for name in TESTS[module].split()]
    lines = {
        "source_paths": ["edgekd"],
        "only_mutate": [module if module.endswith(".py") else f"{module}/*"],
        "pytest_add_cli_args_test_selection": selected,
        "pytest_add_cli_args": ["-m", "not slow", "-p", "mutants"],
        "also_copy": [name for name in TREE if name not in ("edgekd", "tests")],
    }
    text = "\n".join(["\n[tool.mutmut]", *(f"{key} = {json.dumps(value)}" for key, value in lines.items()), ""])
    with open(folder / "pyproject.toml", "a") as file:
        file.write(text)
    return folder


def changed(diff: str) -> str:
    """A fault's name, and the lines of its diff that differ."""
    name, *lines = diff.splitlines()
    return "\n".join([name, *(line for line in lines if re.match(r"[-+](?!--|\+\+)", line)), ""])


def pytest_configure(config: Any) -> None:
    """Processes that a test starts see the faults too, but not while mutmut notes which test calls what: they would
    miss its settings elsewhere. Property tests that are methods run in several sessions of one process here, which
    Hypothesis takes for a fault of theirs."""
    import hypothesis

    check = hypothesis.HealthCheck.differing_executors
    hypothesis.settings.register_profile(
        "mutants", hypothesis.settings.get_profile("ci"), suppress_health_check=[check]
    )
    config.option.hypothesis_profile = "mutants"  # as --hypothesis-profile: whichever plugin is configured first
    hypothesis.settings.load_profile("mutants")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent / "mutants")
    begin = subprocess.Popen.__init__

    def begun(self, *arguments, env=None, **more):
        env = dict(os.environ if env is None else env)
        if env.get("MUTANT_UNDER_TEST") == "stats":
            del env["MUTANT_UNDER_TEST"]
        begin(self, *arguments, env=env, **more)

    subprocess.Popen.__init__ = begun


if __name__ == "__main__":
    sys.exit(main())
