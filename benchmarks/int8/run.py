"""One float network, quantized in several ways, each file scored as several x86 CPUs by emulation.

    EDGEKD_CIFAR10=/path/to/cifar-10-binary.tar.gz python benchmarks/int8/run.py --weights FLOAT/weights.safetensors [--seconds 60]
    python benchmarks/int8/run.py --tables

The network is the student of benchmarks/cifar10 (`student.toml`); its float weights are the distill step's artifact. edgekd's files come from its
own stages, calibrated on 512 images; onnxruntime's from `quantize_static` at its defaults on the same float file and images. RESULTS.md is made
from result.json."""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
CPUS = ("x86-64-avx2", "x86-64-sse42")
WAYS = {
    "edgekd, weights of the full range": {},
    "edgekd, pairs within 16 bits": {"pairs16": True},
    "edgekd, 7-bit weights": {"weight_bits": 7},
    "edgekd, first layer 7 bits": {"layer_bits": {"conv2d": 7}},
    "edgekd, pairs within 16 bits, bias correction": {"pairs16": True, "after": ("bias_correction",)},
}


def files(weights: Path, folder: Path):
    """{way: path} of the float file and its int8 files; the task's data."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from edgekd.records import Artifact, Run
    from edgekd.sources.columns import load
    from edgekd.sources.epochs import order
    from edgekd.stages.export import Export
    from edgekd.stages.load import Load
    from edgekd.stages.quantize import Quantize
    from edgekd.tasks.cifar10 import cifar10

    task = cifar10(widths=[16, 24, 40], blocks=2)
    data = cache(lambda split: load(task, split))

    def made(stage, source, name, form):
        place = folder / name
        place.mkdir(parents=True)
        stage(source, Run(task, 0, 1, place, folder / "scratch", data))
        return Artifact(name, form, {"weights.safetensors": name}, {}, "", {}, 0, {}, place)

    student = made(Load(model="student", weights=str(weights)), None, "float", "torch")
    found = {"float": made(Export(), student, "float-file", "onnx").folder / "model.onnx"}
    for number, (way, settings) in enumerate(WAYS.items()):
        quantized = made(Quantize(mode="ptq", **settings), student, f"q{number}", "quantized")
        found[way] = made(Export(), quantized, f"f{number}", "onnx").folder / "model.onnx"
    found["edgekd, delivered by benchmarks/cifar10"] = HERE.parent / "cifar10" / "student.onnx"
    train = data("train")
    rows = train.inputs[order(0, 0, len(train))[:512]]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(rows[:, None])

        def get_next(self):
            row = next(self.left, None)
            return None if row is None else {"input": row}

    for way, settings in {
        "onnxruntime, defaults": {},
        "onnxruntime, unsigned activations, per channel": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    }.items():
        path = folder / f"{len(found)}.onnx"
        quantize_static(found["float"], path, Reader(), quant_format=QuantFormat.QDQ, **settings)
        found[way] = path
    return found, data("test")


def run(weights: Path, seconds: float) -> None:
    from edgekd import environment, measure, targets
    from edgekd.hosts import emulator

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found, test = files(weights, folder / "files")
        mixed = np.random.default_rng(0).permutation(len(test))
        inputs, labels = test.inputs[mixed], test.labels[mixed]
        result = {"schema": "edgekd.benchmark.int8/1", "ways": {}, "seed": 0}
        for number, (way, path) in enumerate(found.items()):
            (here,) = measure.score(path, inputs, folder=folder / f"here{number}").values()
            entry = {"bytes": path.stat().st_size, "top1": top1(here, labels), "cpus": {}}
            for cpu in CPUS if way != "float" else ():
                launch = emulator.launch(targets.load(cpu))
                (there,) = measure.score(path, inputs, folder=folder / f"{cpu}{number}", launch=launch, cap_s=seconds).values()
                n = len(there)
                same = here[:n].argmax(1) == there.argmax(1)
                entry["cpus"][cpu] = {
                    "samples": n,
                    "top1": top1(there, labels[:n]),
                    "top1_here": top1(here[:n], labels[:n]),
                    "agreement": 100 * float(same.mean()),
                    "equal": 100 * float((here[:n] == there).mean()),
                }
            result["ways"][way] = entry
            print(way, entry, flush=True)
        names = [w for w in found if w != "float"]
        timed = measure.profile({w: found[w] for w in ("float", *names)}, inputs[:64], preset="quick", folder=folder / "times")
        p50 = {w: next(m for m in ms if m.name == "latency_p50_ms") for w, ms in timed.items()}
        for way in names:
            result["ways"][way] |= {"time_to_float": p50[way].value / p50["float"].value, "noise": p50[way].note}
    result |= {"environment": environment.describe(), "command": "EDGEKD_CIFAR10=... python benchmarks/int8/run.py --weights ..."}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((outputs.argmax(1) == labels).mean())


def tables() -> None:
    result = json.loads(RESULT.read_text())
    head = ["file", "bytes", "here", "time, float = 1"]
    for cpu in CPUS:
        head += [f"{cpu}: points", "equal answers %", "equal outputs %"]
    lines = ["# The same file on other CPUs: results", "",
             "Written by `run.py --tables` from `result.json`; don't edit. *here*: per cent right of 10,000",
             "test images on a CPU with AVX512-VNNI. *points*: what emulation shows less what is right here, on the same images.", "",
             f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]  # fmt: skip
    for way, entry in result["ways"].items():
        cells = [way, f"{entry['bytes']:,}", f"{entry['top1']:.2f}", f"{entry['time_to_float']:.2f}" if "time_to_float" in entry else ""]
        for cpu in CPUS:
            c = entry["cpus"].get(cpu)
            cells += ["", "", ""] if c is None else [f"{c['top1'] - c['top1_here']:+.2f}", f"{c['agreement']:.2f}", f"{c['equal']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    counts = [c["samples"] for e in result["ways"].values() for c in e["cpus"].values()]
    facts = result["environment"]
    lines += ["", f"{min(counts):,} to {max(counts):,} images under emulation. Again: `{result['command']}`. {facts['cpu']}, "
              f"{', '.join(f'{k} {v}' for k, v in sorted(facts['versions'].items()))}."]  # fmt: skip
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if not given.tables:
        run(given.weights, given.seconds)
    tables()


if __name__ == "__main__":
    main()
