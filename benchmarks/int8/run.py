"""Networks quantized in several ways, each file scored as several CPUs by emulation, and timed against its float
parent.

    python benchmarks/int8/run.py cifar10|speech|text [--samples 2000] [--peers PYTHON] [--only WAY ...] [--times]
    python benchmarks/int8/run.py --tables

cifar10  the student of benchmarks/cifar10, its float weights from student.safetensors (the `distill` step there);
         EDGEKD_CIFAR10 names the data
speech   the student of benchmarks/speech with one speaker held out; EDGEKD_SPEECH names the recordings
text     a transformer encoder (`text.py`); EDGEKD_SST2 names the data

All of a model's files come from one plan: its recipe, and for each way the recipe's `quantize` stage with other
settings, so that what is finished is found in the store. onnxruntime's files come from `quantize_static` on the same
float file and the same 512 samples; with `--peers`, a Python that has nncf makes its own (`peers.py`). RESULTS.md is
made from result.json."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
RECIPES = {"cifar10": HERE / "cifar10.toml", "speech": HERE.parent / "speech/recipe.toml", "text": HERE / "text.toml"}
SCHEMA = "edgekd.benchmark.int8/2"
CPUS = ("x86-64-avx2", "x86-64-sse42", "cortex-a53", "cortex-a76")
LABELS = ({"use": "cross_entropy"},)
FULL, PAIRS = "calibrated, weights of the full range", "calibrated, pairs within 16 bits"
NETWORKS = {"cifar10": "residual", "speech": "depthwise", "text": "encoder"}
WAYS = {
    FULL: {"mode": "ptq", "pairs16": False},
    PAIRS: {"mode": "ptq"},
    "calibrated, pairs, equalized, adaround, biases": {
        "mode": "ptq",
        "before": ("equalize",),
        "after": ("adaround", "bias_correction"),
    },
    "calibrated, 4-bit weights": {"mode": "ptq", "weight_bits": 4},
    "fine-tuned on labels": {"mode": "qat", "losses": LABELS},
    "fine-tuned with the teacher": {"mode": "qat"},
    "fine-tuned with the teacher, learned steps": {"mode": "qat", "observer": "learned"},
    "fine-tuned with the teacher, 4-bit weights": {"mode": "qat", "weight_bits": 4},
    "fine-tuned with the teacher, 4-bit weights, learned steps": {
        "mode": "qat",
        "weight_bits": 4,
        "observer": "learned",
    },
}
# where a layer norm stands before the products
SMOOTH = {"calibrated, pairs, smoothed": {"mode": "ptq", "before": ("smooth",)}}
PEERS = {
    "onnxruntime, defaults": {},
    "onnxruntime, unsigned activations, per channel": {
        "activation_type": "QUInt8",
        "weight_type": "QInt8",
        "per_channel": True,
    },
    "onnxruntime, the same with reduce_range": {
        "activation_type": "QUInt8",
        "weight_type": "QInt8",
        "per_channel": True,
        "reduce_range": True,
    },
}


def ours(model: str, only: list[str]) -> tuple[dict[str, Path], dict, object]:
    """({way: file}, {way: bytes-independent facts}, resolved recipe): trained, calibrated and exported, from the store
    where finished."""
    from edgekd import signatures
    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    resolved = resolve.resolved(RECIPES[model])
    wanted = plan.make(resolved)
    point = next(p for p in wanted.points if p.stages[-1] == "quantize")
    ways = {w: s for w, s in (WAYS | (SMOOTH if model == "text" else {})).items() if not only or w in only}
    needed = {point.parents[0]: "float"}
    for number, (way, settings) in enumerate(ways.items()):
        stage = signatures.changed(wanted.steps[point.step].part, settings)
        wanted = plan.extended(resolved, wanted, point, settings, f"-way{number}")
        needed[made_by(wanted, point.stages, stage)] = way
    store, progress = Store(), reporter(False)
    made, _ = run_steps(
        narrowed(wanted, {p.export for p in wanted.points if p.id in needed}),
        resolved,
        store,
        progress,
        lambda **_: None,
    )
    progress.close()
    found = {needed[p.id]: made[p.export] for p in wanted.points if p.id in needed}
    return (
        {way: a.folder / "model.onnx" for way, a in found.items()},
        {way: dict(a.facts) for way, a in found.items()},
        resolved,
    )


def made_by(wanted, stages: tuple[str, ...], stage: object) -> str:
    """The point whose last stage is this: a new one, or the recipe's own."""
    return next(p.id for p in wanted.points if p.stages == stages and wanted.steps[p.step].part == stage)


def narrowed(wanted, keys: set[str]):
    """The plan with only the steps that `keys` need."""
    from edgekd.run.plan import Plan

    left, needed = list(keys), set()
    while left:
        key = left.pop()
        needed.add(key)
        left += [k for keys in wanted.steps[key].inputs.values() for k in keys if k not in needed]
    return Plan({k: s for k, s in wanted.steps.items() if k in needed}, wanted.points, wanted.losses)


def theirs(float_file: Path, resolved, folder: Path, python: str | None) -> dict[str, Path]:
    """{way: file} of onnxruntime's static quantization and, with a Python that has it, of nncf."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from edgekd.data.epochs import order

    train = resolved.data("train")
    rows, name = train.inputs[order(0, 0, len(train))[:512]], resolved.task.inputs[0]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(rows[:, None])

        def get_next(self):
            row = next(self.left, None)
            return None if row is None else {name: row}

    found = {}
    for way, settings in PEERS.items():
        path = folder / f"peer{len(found)}.onnx"
        kinds = {k: getattr(QuantType, v) if isinstance(v, str) else v for k, v in settings.items()}
        quantize_static(float_file, path, Reader(), quant_format=QuantFormat.QDQ, **kinds)
        found[way] = path
    if python:
        np.savez(folder / "calibration.npz", **{name: rows})
        done = subprocess.run(
            [python, str(HERE / "peers.py"), str(float_file), str(folder / "calibration.npz"), str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )
        found |= {way: Path(path) for way, path in json.loads(done.stdout.splitlines()[-1]).items()}
    return found


def run(model: str, samples: int, python: str | None, only: list[str], times: bool) -> None:
    from edgekd import environment, targets
    from edgekd.errors import EnvironmentUnfit
    from edgekd.files import sha256
    from edgekd.hosts import emulator
    from edgekd.measure import jobs

    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    result = result if result.get("schema") == SCHEMA else {"schema": SCHEMA, "models": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found, facts, resolved = ours(model, only)
        if python or not only:
            found |= theirs(found["float"], resolved, folder, python)
        test = resolved.data("test")
        mixed = np.random.default_rng(0).permutation(len(test))
        inputs, labels = test.inputs[mixed], test.labels[mixed]
        ways = result["models"].get(model, {}).get("ways", {})
        result["models"][model] = result["models"].get(model, {}) | {"ways": ways, "samples": len(test)}
        found = {way: path for way, path in found.items() if not times or way in ways}
        for number, (way, path) in enumerate(found.items()):
            if times or ways.get(way, {}).get("sha256") == sha256(path):
                continue  # was scored already: what takes long is taken once
            (here,) = jobs.score(path, inputs, folder=folder / f"here{number}").values()
            entry = {"sha256": sha256(path), "bytes": path.stat().st_size, "top1": top1(here, labels), "cpus": {}}
            if "equality" in facts.get(way, {}):
                entry["model_and_file"] = {k: facts[way][k]["equal"] for k in ("equality", "fake_quantized")}
                entry["saturable"] = len(facts[way]["saturation"])
            for cpu in CPUS if way != "float" else ():
                try:
                    launch = emulator.launch(targets.load(cpu))
                except EnvironmentUnfit as error:
                    print(error)
                    continue
                (there,) = jobs.score(
                    path, inputs[:samples], folder=folder / f"{cpu}{number}", launch=launch, cap_s=900
                ).values()
                n = len(there)
                entry["cpus"][cpu] = {
                    "samples": n,
                    "top1": top1(there, labels[:n]),
                    "top1_here": top1(here[:n], labels[:n]),
                    "agreement": 100 * float((here[:n].argmax(1) == there.argmax(1)).mean()),
                    "equal": 100 * float((here[:n] == there).mean()),
                }
            ways[way] = entry
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
            print(way, {k: v for k, v in entry.items() if k != "cpus"}, flush=True)
        timed = jobs.profile(found, inputs[:64], jobs.Session(preset="quick", folder=folder / "times"))
        p50 = {w: next(m for m in ms if m.name == "latency_p50_ms") for w, ms in timed.items()}
        for way in found:
            ways[way] |= {
                "time_to_float": p50[way].value / p50["float"].value,
                "p50_ms": p50[way].value,
                "noise": p50[way].note,
            }
    result["models"][model] |= {
        "environment": environment.describe(),
        "command": f"python benchmarks/int8/run.py {model}",
        "seed": 0,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((outputs.argmax(1) == labels).mean())


def tables() -> None:
    result = json.loads(RESULT.read_text())
    lines = [
        "# The same file on other CPUs: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. *here*: per cent right of the test samples on a "
        "CPU with AVX512-VNNI. A CPU's cell: points that emulation shows more or less than what is right here on the "
        "same samples / per cent of equal answers / per cent of equal outputs.",
        "",
        "## What weights within pairs cost",
        "",
        "Calibrated alike, from the same float weights and samples; times of one interleaved run on a CPU with "
        "AVX512-VNNI.",
        "",
        "| network | bytes, full range | bytes, pairs | time, pairs over full range | right, full range | right, pairs "
        "| points |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model, found in result["models"].items():
        full, pairs = (found["ways"][way] for way in (FULL, PAIRS))
        points = pairs["top1"] - full["top1"]
        lines.append(
            f"| {model} ({NETWORKS[model]}) | {full['bytes']:,} | {pairs['bytes']:,} | "
            f"{pairs['p50_ms'] / full['p50_ms']:.3f} | {full['top1']:.2f} | {pairs['top1']:.2f} | {points:+.2f} |"
        )
    for model, found in result["models"].items():
        cpus = [c for c in CPUS if any(c in e["cpus"] for e in found["ways"].values())]
        head = ["file", "bytes", "here", "time, float = 1", *cpus]
        lines += ["", f"## {model}", "", f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
        for way, entry in found["ways"].items():
            cells = [
                way,
                f"{entry['bytes']:,}",
                f"{entry['top1']:.2f}",
                f"{entry['time_to_float']:.2f}" + "*" * entry["noise"].count("noisy") if "noise" in entry else "",
            ]
            for cpu in cpus:
                c = entry["cpus"].get(cpu)
                cells.append(
                    "" if c is None else f"{c['top1'] - c['top1_here']:+.2f} / {c['agreement']:.2f} / {c['equal']:.2f}"
                )
            lines.append(f"| {' | '.join(cells)} |")
        counts = [c["samples"] for e in found["ways"].values() for c in e["cpus"].values()]
        emulated = f"{min(counts):,} to {max(counts):,} of them under emulation. " if counts else ""
        facts = found["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()))
        lines += [
            "",
            f"{found['samples']:,} test samples, {emulated}Again: `{found['command']}`. {facts['cpu']}, {versions}. "
            "Ratios with a star were noisy.",
        ]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=RECIPES)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", default=[], choices=[*WAYS, *SMOOTH])
    parser.add_argument("--times", action="store_true", help="only time again what was scored, on an idle machine")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.model:
        run(given.model, given.samples, given.peers, given.only, given.times)
    tables()


if __name__ == "__main__":
    main()
