"""CIFAR-10 at the size of MLPerf Tiny's ResNet-8: what distillation, quantization and pruning each do to the delivered
file.

    EDGEKD_CIFAR10=/path/to/cifar-10-binary.tar.gz python benchmarks/cifar10/run.py --seed 0
    python benchmarks/cifar10/run.py --safe              the int8 rows again, from the distilled student's weights
                                                         in benchmarks/int8
    python benchmarks/cifar10/run.py --tables            RESULTS.md and the README's table again, from result.json
    python benchmarks/cifar10/run.py --score model.onnx  a file's accuracy on the 10,000 test images, by onnxruntime
    python benchmarks/cifar10/run.py --teacher           trains the teacher again (half an hour) and puts its weights
                                                         beside this file

Runs the recipes of this folder through `edgekd compress` with their variations (what is finished is found, a killed run
goes on), then times all files of the seed against each other in one interleaved run on one thread, and puts the seed's
rows into result.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT, TABLES, README = HERE / "result.json", HERE / "RESULTS.md", HERE.parent.parent / "README.md"
LABELS = 'losses=[{use="cross_entropy"}]'
PRUNED = "pruned to {} with teacher", "pruned to {} without teacher"
# name of a variation: (recipe, settings, {candidate: row})
RUNS = {
    "student": (
        "student.toml",
        (),
        {"teacher": "teacher", "alone": "alone", "distill": "distilled", "quantize": "QAT with teacher"},
    ),
    "labels": ("student.toml", (f"quantize.{LABELS}",), {"quantize": "QAT without teacher"}),
    "ptq": ("student.toml", ("quantize.mode=ptq",), {"quantize": "PTQ"}),
    "alone": ("alone.toml", (), {"quantize": "alone, QAT"}),
    "prune": ("prune.toml", (), {"prune-{}": PRUNED[0], "quantize-{}": f"{PRUNED[0]}, PTQ"}),
    "prune-labels": ("prune.toml", (f"prune.{LABELS}",), {"prune-{}": PRUNED[1], "quantize-{}": f"{PRUNED[1]}, PTQ"}),
}
INT8 = HERE.parent / "int8"
ROWS = ("teacher", "alone", "alone, QAT", "distilled", "PTQ", "QAT without teacher", "QAT with teacher")
SHARES = ("0.7", "0.5", "0.35")
PARENT = "distilled"  # latency ratios are over this file
SAFE = "EDGEKD_CIFAR10=... python benchmarks/cifar10/run.py --safe"
# its figure on these images, float 87.19
REFERENCE = {"row": "MLPerf Tiny ResNet-8, int8 (.tflite)", "file_bytes": 98496, "top1": 86.97}
LIMIT, AIM = 98496, 88.5


def variation(name: str, seed: int) -> tuple[Path, tuple[str, ...], dict[str, str]]:
    recipe, sets, rows = RUNS[name]
    named = {k.format(s): v.format(s) for k, v in rows.items() for s in (SHARES if "{}" in k else ("",))}
    return HERE / recipe, (*sets, f"sweep.seed=[{seed}]"), named


def make(names, seed: int) -> None:
    """Trains what a variation needs, and stops before anything is measured: for filling the store from several
    processes."""
    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    for name in names:
        path, sets, _ = variation(name, seed)
        resolved = resolve.resolved(path, sets)
        run_steps(plan.make(resolved), resolved, Store(), reporter(False), lambda **event: None)


def compress(seed: int, out: Path) -> tuple[dict[str, dict], dict[str, Path]]:
    """({row: its figures}, {row: its file}) of all variations of a seed."""
    import edgekd
    from edgekd.run import plan, resolve
    from edgekd.store.store import Store

    rows, files = {}, {}
    for name in RUNS:
        path, sets, named = variation(name, seed)
        outcome = edgekd.compress(path, sets=sets, out=out / f"{name}-{seed}", quiet=False)
        print(outcome, flush=True)
        resolved, store = resolve.resolved(path, sets), Store()
        exported = {p.id: (p.export, p.step) for p in plan.make(resolved).points}
        for candidate in outcome.result.candidates:
            row = named.get(candidate.id)
            if row is None or row in rows:
                continue
            artifact = artifact_of(store, *exported[candidate.id])
            files[row] = artifact.folder / "model.onnx"
            rows[row] = {"sha256": candidate.sha256} | figures_of(candidate.measurements)
    return rows, files


def figures_of(measurements) -> dict:
    """A file's row by its measurements."""
    figures = {(m.name, m.split): m for m in measurements}
    columns = (
        ("file_bytes", "file_bytes", None), ("parameters", "parameters", None), ("macs", "macs", None),
        ("top1", "top1", "test"), ("validation", "top1", "validation"), ("agreement", "agreement", "test"),
    )  # fmt: skip
    found = {key: (figures[name, split], split) for key, name, split in columns if (name, split) in figures}
    return {key: [m.value, m.low, m.high] if split else m.value for key, (m, split) in found.items()}


def safe(seed: int, out: Path) -> None:
    """The int8 rows again, with weights within pairs, of the distilled student's weights: calibrated by edgekd's own
    run, and the file that `benchmarks/int8/run.py cifar10` fine-tuned with the teacher; timed against each other and
    the float student. Others keep the mark of weights of the full range."""
    import edgekd
    from edgekd import environment
    from edgekd.files import sha256
    from edgekd.measure import jobs
    from edgekd.probes import Subject, measure
    from edgekd.run import plan, resolve
    from edgekd.store.store import Store
    from edgekd.tasks.cifar10 import cifar10

    path, sets, store = INT8 / "cifar10.toml", ("quantize.mode=ptq", f"sweep.seed=[{seed}]"), Store()
    outcome = edgekd.compress(path, sets=sets, out=out / f"safe-{seed}", quiet=False)
    print(outcome, flush=True)
    found, planned = {c.id: c for c in outcome.result.candidates}, plan.make(resolve.resolved(path, sets))
    exported = {p.id: artifact_of(store, p.export, p.step).folder / "model.onnx" for p in planned.points}
    files = {PARENT: exported["student"], "PTQ": exported["quantize"]}
    rows = {"PTQ": {"sha256": found["quantize"].sha256} | figures_of(found["quantize"].measurements)}
    file, task, measured = INT8 / "student.onnx", cifar10(), []
    known = json.loads((INT8 / "result.json").read_text())["models"]["cifar10"]["ways"]["fine-tuned with the teacher"]
    if sha256(file) != known["sha256"]:
        raise SystemExit(f"{file} is not the one of {INT8 / 'result.json'}")
    for split in ("validation", "test"):
        data = task.data(split)
        (answers,) = jobs.score(file, data.inputs, folder=out / f"safe-{seed}" / f"score-{split}").values()
        taught = np.load(outcome.folder / "predictions" / "teacher.npz")["outputs"] if split == "test" else None
        given = {"labels": data.labels, "metrics": task.metrics, "split": split, "teacher": taught}
        measured += measure(Subject(outputs=answers, **given))
    rows["QAT with teacher"] = {"sha256": sha256(file)} | figures_of([*measure(Subject(file=file)), *measured])
    files["QAT with teacher"] = file
    for row, figures in times(files, out / f"timing-safe-{seed}").items():
        if row in rows:
            rows[row] |= figures | {
                "ort_bytes": ort_bytes(files[row], out),
                "environment": environment.describe()["cpu"],
                "command": SAFE,
            }
    result = json.loads(RESULT.read_text())
    old = result["seeds"][str(seed)]["rows"]
    old |= {row: {**figures, "full_range": True} for row, figures in old.items() if "QAT" in row or "PTQ" in row}
    old |= rows
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    shutil.copyfile(file, HERE / "student.onnx")
    tables()


def artifact_of(store, export: str, step: str):
    """The exported artifact of a finished step."""
    folder = store.root / "artifacts" / export[:2] / export
    parents = json.loads((folder / "artifact.json").read_text())["parents"]
    found = store.find(export, parents)
    if found is None or step not in parents:
        raise SystemExit(f"the store lost {export}")
    return found


def teacher(out: Path) -> None:
    """Runs teacher.toml and keeps its weights: kernels and matrices in half precision, norms and biases as they are."""
    import edgekd
    from edgekd.models.saved import read_tensors, write_tensors
    from edgekd.run import plan, resolve
    from edgekd.store.store import Store

    print(edgekd.compress(HERE / "teacher.toml", out=out / "teacher", quiet=False))
    planned, store = plan.make(resolve.resolved(HERE / "teacher.toml")), Store()
    trained = next(step for step in planned.steps.values() if step.stage == "train")
    tensors = read_tensors(store.find(trained.key, {}).folder / "weights.safetensors")
    write_tensors(HERE / "teacher.safetensors", {name: t.half() if t.ndim > 1 else t for name, t in tensors.items()})


def score(path: Path) -> float:
    """Percent of the test images that the file gets right, by onnxruntime and numpy alone."""
    import onnxruntime

    from edgekd.tasks.cifar10 import cifar10

    test = cifar10().data("test")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    answers = np.concatenate(
        [session.run(None, {name: test.inputs[i : i + 100]})[0].argmax(1) for i in range(0, len(test), 100)]
    )
    return 100 * float((answers == test.labels).mean())


def ort_bytes(path: Path, folder: Path) -> int:
    """Size of the file in onnxruntime's own format."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return (folder / "model.ort").stat().st_size


def times(files: dict[str, Path], folder: Path) -> dict[str, dict]:
    """{row: p50 in ms with its interval, ratio to the float student with its interval}, from one interleaved run on one
    thread."""
    from edgekd import intervals
    from edgekd.measure import jobs
    from edgekd.tasks.cifar10 import cifar10

    shutil.rmtree(folder, ignore_errors=True)
    shown = lambda done, total, text: print(f"\rtiming {done}/{total} {text:40}", end="", file=sys.stderr)
    measured = jobs.profile(
        files,
        cifar10().data("test").inputs[:64],
        jobs.Session(preset="quick", threads=1, folder=folder, progress=shown),
    )
    print(file=sys.stderr)
    p50 = {row: [line["p50_ms"] for line in jobs.raw(folder, row)["time"]] for row in files}
    found = {}
    for row, figures in measured.items():
        latency = next(m for m in figures if m.name == "latency_p50_ms")
        ratio = (1.0, 1.0, 1.0) if row == PARENT else intervals.ratio(p50[row], p50[PARENT])
        found[row] = {
            "latency_p50_ms": [latency.value, latency.low, latency.high],
            "ratio": list(ratio),
            "note": latency.note,
        }
    return found


def run(seed: int, out: Path) -> None:
    from edgekd import environment

    rows, files = compress(seed, out)
    for row, figures in times(files, out / f"timing-{seed}").items():
        rows[row] |= figures
    for row in ("QAT with teacher", "QAT without teacher", "PTQ"):
        rows[row]["ort_bytes"] = ort_bytes(files[row], out)
        again = score(files[row])
        if abs(again - rows[row]["top1"][0]) > 1e-9:
            raise SystemExit(f"{row}: onnxruntime alone gives {again}, the run {rows[row]['top1'][0]}")
    result = (
        json.loads(RESULT.read_text()) if RESULT.is_file() else {"schema": "edgekd.benchmark.cifar10/1", "seeds": {}}
    )
    command = f"EDGEKD_CIFAR10=... python benchmarks/cifar10/run.py --seed {seed}"
    result["seeds"][str(seed)] = {"command": command, "environment": environment.describe(), "rows": rows}
    result["seeds"] = dict(sorted(result["seeds"].items(), key=lambda pair: int(pair[0])))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if seed == min(map(int, result["seeds"])):
        shutil.copyfile(files["QAT with teacher"], HERE / "student.onnx")
    tables()


# ---------------------------------------------------------------- tables


def spread(values: list[float], form: str) -> str:
    """The mean, and the standard deviation over seeds where there are several."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{format(statistics.mean(values), form)} ± {format(statistics.stdev(values), form)}"


def table(seeds: dict, rows: list[str]) -> list[str]:
    """Markdown lines; of a single seed the 95 % intervals are shown, of several the mean and deviation over seeds."""
    lines = [
        "| file | seeds | bytes | MACs | top-1 % (test) | agreement with teacher % | time over float student |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = [s["rows"][row] for s in seeds.values() if row in s["rows"]]
        if not found:
            continue

        def cell(key: str, found: list = found) -> str:
            values = [f[key] for f in found if key in f]
            if not values:
                return ""
            if len(values) == 1:
                return "{:.2f} ({:.2f} to {:.2f})".format(*values[0])
            return spread([v[0] for v in values], ".2f")

        size = {f["file_bytes"] for f in found}
        sizes = f"{min(size):,.0f}" if len(size) == 1 else f"{min(size):,.0f} to {max(size):,.0f}"
        macs = "{:.1f} M".format(statistics.mean(f["macs"] for f in found) / 1e6)
        named = row + " (full range)" * any(f.get("full_range", False) for f in found)
        lines.append(
            f"| {named} | {len(found)} | {sizes} | {macs} | {cell('top1')} | {cell('agreement')} | {cell('ratio')} |"
        )
    return lines


def every_row() -> list[str]:
    named = [row for name in RUNS for row in variation(name, 0)[2].values()]
    return [
        *ROWS,
        *sorted((r for r in named if r not in ROWS), key=lambda r: (-float(r.split()[2]), "PTQ" in r, "without" in r)),
    ]


def tables() -> None:
    result = json.loads(RESULT.read_text())
    seeds = result["seeds"]
    first = next(iter(seeds.values()))
    facts = first["environment"]
    head = [f"| {REFERENCE['row']} | | {REFERENCE['file_bytes']:,} | 12.5 M | {REFERENCE['top1']:.2f} | | |"]
    found = table(seeds, every_row())
    lines = ["# CIFAR-10: results", "", "Written by `run.py --tables` from `result.json`; don't edit.", ""]
    lines += [
        "Accuracy and agreement are of the exported file in onnxruntime, on the 10,000 test images; of one seed with "
        "its 95 % interval, of several the mean and the standard deviation over seeds. Times are ratios of one "
        "interleaved run on one thread. Int8 files answer the same on every x86 CPU, but not those of the full "
        "range, with AVX2 and without VNNI.",
        "",
    ]
    lines += [*found[:2], *head, *found[2:], ""]
    lines += [
        "## The delivered file, by seed",
        "",
        "| seed | bytes | as `.ort` | validation % | top-1 % (test) | alone, float | sha256 |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for seed, s in seeds.items():
        f, alone = s["rows"]["QAT with teacher"], s["rows"]["alone"]
        figures = [
            f"{f['file_bytes']:,.0f}",
            f"{f['ort_bytes']:,}",
            *(f"{v[0]:.2f}" for v in (f["validation"], f["top1"], alone["top1"])),
        ]
        lines.append(f"| {seed} | {' | '.join(figures)} | `{f['sha256'][:16]}` |")
    within = [s["rows"]["QAT with teacher"] for s in seeds.values()]
    met = sum(f["file_bytes"] <= LIMIT and f["top1"][0] >= AIM for f in within)
    lines += ["", f"At most {LIMIT:,} bytes and at least {AIM} %: met by {met} of {len(within)} seeds.", ""]
    story = (HERE / "STORY.md").read_text().strip() if (HERE / "STORY.md").is_file() else ""
    lines += [story, ""] if story else []
    packages = ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()))
    lines += ["## Made by", "", *(f"- seed {n}: `{s['command']}`" for n, s in seeds.items())]
    cpus = {r["command"]: r["environment"] for s in seeds.values() for r in s["rows"].values() if "command" in r}
    remade = {
        r["command"]: [k for k, o in s["rows"].items() if o.get("command") == r["command"]]
        for s in seeds.values()
        for r in s["rows"].values()
        if "command" in r
    }
    lines += [f"- {', '.join(rows)}: `{command}`, timed on {cpus[command]}" for command, rows in remade.items()] + [
        f"- {facts.get('cpu', '')}, {packages}"
    ]
    TABLES.write_text("\n".join(lines) + "\n")
    text, begin, end = README.read_text(), "<!-- cifar10: written by benchmarks/cifar10/run.py -->\n", "<!-- end -->"
    if begin in text:
        before, _, rest = text.partition(begin)
        safe = [row for row in ROWS if not any(s["rows"].get(row, {}).get("full_range", False) for s in seeds.values())]
        short = table(seeds, [*safe, "pruned to 0.5 with teacher", "pruned to 0.5 without teacher"])
        README.write_text(
            before + begin + "\n".join([*short[:2], *head, *short[2:]]) + "\n" + end + rest.partition(end)[2]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make", nargs="+", choices=RUNS, help="train what these variations need, measure nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-cifar10"))
    parser.add_argument("--safe", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--score", type=Path)
    parser.add_argument("--teacher", action="store_true")
    given = parser.parse_args()
    if given.tables:
        tables()
    elif given.safe:
        safe(given.seed, given.out)
    elif given.score:
        print(f"{score(given.score):.2f} %")
    elif given.teacher:
        teacher(given.out)
    elif given.make:
        make(given.make, given.seed)
    else:
        run(given.seed, given.out)


if __name__ == "__main__":
    from edgekd import EdgekdError

    try:
        main()
    except EdgekdError as error:
        raise SystemExit(f"error: {error}") from None
