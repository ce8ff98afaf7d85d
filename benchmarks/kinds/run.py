"""Every kind of output and of input, from the examples: teacher, student alone, distilled, pruned, int8, over
seeds, each an exported file scored in its runtime on the test split.

    python benchmarks/kinds/run.py [--seeds 0 1 2 3 4] [--only NAME ...] [--times 4] [--jobs 1]
    python benchmarks/kinds/run.py --tables

The recipes are those of `benchmarks/examples`, with `--times` as many epochs. Student alone and distilled have equal
epochs, starts and batches. What is finished is found in the store, so a killed run goes on. RESULTS.md is made from
result.json alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
COLUMNS = ("teacher", "alone", "distilled", "int8 of alone", "int8", "pruned", "int8 of pruned")
PRUNE = {"use": "prune", "macs": "max 0.6", "multiple_of": 2}


def kinds() -> list[str]:
    """The examples whose task says what its outputs or its sequences are."""
    found = [p.parent for p in sorted(EXAMPLES.glob("*/recipe.toml"))]
    return [
        p.name
        for p in found
        if any({"outputs=", "lengths="} & {*re.findall(r"\w+=", f.read_text())} for f in p.glob("*.py"))
    ]


def recipe(name: str, seed: int, times: int, pruned: bool) -> dict[str, Any]:
    """An example's recipe with more epochs, all ways in which its student is made, and no gate."""
    with (EXAMPLES / name / "recipe.toml").open("rb") as file:
        given = tomllib.load(file)
    given = {k: v for k, v in given.items() if k not in ("gate", "sweep")}
    longer = lambda table: {**table, "epochs": table["epochs"] * times} if "epochs" in table else table
    stages = [longer(s) for s in given["stage"] if s["use"] != "prune"]
    if pruned:
        shared = {k: stages[0][k] for k in ("batch", "losses") if k in stages[0]}
        stages[1:1] = [{**PRUNE, **shared, "epochs": max(1, stages[0]["epochs"] // 2)}]
    models = {m: {k: longer(v) if isinstance(v, dict) else v for k, v in t.items()} for m, t in given["model"].items()}
    return given | {"stage": stages, "model": models, "control": not pruned, "sweep": {"seed": [seed]}}


def figures(given: dict[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """{candidate's point: its test metrics and bytes} of a run."""
    import edgekd

    edgekd.compress(given, out=out)
    result = json.loads((out / "result.json").read_text())
    return {c["point"]: _of(c["measurements"]) for c in result["candidates"]}


def hurry() -> None:
    """Times each file for an instant: no time is among the figures."""
    from edgekd.measure import jobs

    briefly = {"warmup_s": 0.001, "warmup_cap_s": 0.01, "warmup_runs": 3, "steady_s": 0.002, "cap_s": 1.0}
    jobs.EFFORTS["quick"] = dataclasses.replace(jobs.EFFORTS["quick"], runs=3, memory=2, **briefly)


def _of(measurements: list[dict[str, Any]]) -> dict[str, Any]:
    told = {m["name"]: m["value"] for m in measurements if m["split"] == "test"}
    return told | {m["name"]: m["value"] for m in measurements if m["name"] in ("file_bytes", "macs")}


def one(name: str, seed: int, times: int) -> dict[str, Any]:
    """All figures of an example and a seed; `refused`: why nothing is pruned."""
    from edgekd.errors import UsageError

    hurry()

    sys.path.insert(0, str(EXAMPLES / name))
    with tempfile.TemporaryDirectory(prefix="edgekd-") as place:
        found = figures(recipe(name, seed, times, pruned=False), Path(place) / "plain")
        named = {"teacher": "teacher", "alone": "alone", "distill": "distilled", "alone-quantize": "int8 of alone",
                 "quantize": "int8"}  # fmt: skip
        told: dict[str, Any] = {column: found[point] for point, column in named.items() if point in found}
        try:
            found = figures(recipe(name, seed, times, pruned=True), Path(place) / "pruned")
        except UsageError as error:
            return told | {"refused": str(error)}
        return told | {"pruned": found["prune"], "int8 of pruned": found["quantize"]}


def run(names: list[str], seeds: list[int], times: int, jobs: int) -> None:
    from edgekd import environment

    def asked(job: tuple[str, int]) -> None:
        name, seed = job
        words = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--times", str(times)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=EXAMPLES / name)
        if done.returncode:
            print(name, seed, done.stderr[-2000:], flush=True)
            return
        told = json.loads(done.stdout.splitlines()[-1])
        result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"schema": "edgekd.benchmark.kinds/1"}
        result.setdefault("kinds", {}).setdefault(name, {})[str(seed)] = told
        result |= {"environment": environment.describe(), "times": times}
        result |= {"command": f"python benchmarks/kinds/run.py --seeds {' '.join(map(str, seeds))} --times {times}"}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(name, seed, json.dumps(told)[:400], flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(asked, (name, seed)) for name in names for seed in seeds]
        for future in futures:
            future.result()


def tables() -> None:
    from edgekd import intervals

    result = json.loads(RESULT.read_text())

    def gap(each: dict[str, Any], a: str, b: str, metric: str) -> str:
        both = [s for s in each.values() if a in s and b in s]
        values = [s[a][metric] - s[b][metric] for s in both]
        if len(values) < 2:
            return ""
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*intervals.mean(values))

    lines = [
        "# Kinds of outputs and inputs: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. Means over seeds, of the exported file on "
        "the test split, in its runtime; differences are paired by seed, with their 95 % interval by Student's t. "
        f"The recipes are those of `benchmarks/examples` with {result['times']} times the epochs.",
        "",
        f"| example | metric | seeds | {' | '.join(COLUMNS)} | distilled - alone | int8 - distilled |",
        "|---|---|---:|" + "---:|" * (len(COLUMNS) + 2),
    ]
    notes = []
    for name, each in sorted(result["kinds"].items()):
        metrics = [m for m in next(iter(each.values()))["teacher"] if m not in ("file_bytes", "macs")]
        for metric in [*metrics, "file_bytes"]:
            cells = []
            for column in COLUMNS:
                values = [s[column][metric] for s in each.values() if metric in s.get(column, {})]
                cells.append(f"{sum(values) / len(values):,.{0 if metric == 'file_bytes' else 2}f}" if values else "")
            gaps = [gap(each, "distilled", "alone", metric), gap(each, "int8", "distilled", metric)]
            gaps = ["", ""] if metric == "file_bytes" else gaps
            lines.append(f"| {name} | {metric} | {len(each)} | {' | '.join([*cells, *gaps])} |")
        for reason in sorted({s["refused"] for s in each.values() if "refused" in s}):
            missing = "No module named 'torch_pruning'" in reason
            told = "torch-pruning was not installed there" if missing else " ".join(reason.split())
            notes.append(f"- {name} was not pruned: {told}")
    facts = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()))
    lines += ["", *notes, *([""] if notes else []), f"Again: `{result['command']}`. {facts['cpu']}, {versions}."]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=None)
    parser.add_argument("--times", type=int, default=4, help="the epochs of the examples are multiplied by this")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.seeds[0], given.times)))
        return
    if not given.tables:
        run(given.only or kinds(), given.seeds, given.times, given.jobs)
    tables()


if __name__ == "__main__":
    main()
