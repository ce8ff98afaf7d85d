"""What distillation and quantization-aware training cost over a plain training step, and what calibration needs in
memory.

    python benchmarks/overhead/run.py [--rounds 12] [--steps 6] [--out benchmarks/overhead/result.json]

Steps of every kind are timed in turn (A B C D, D C B A, ...) in one process on one thread; the ratio is taken round by
round, so that a drift of the machine hits all alike. Calibration runs in a fresh process per size. Only ratios are
meant to be compared between machines.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH, SIDE, CLASSES = 64, 32, 10


def task():
    from edgekd import Task
    from edgekd.models.networks import residual

    models = {
        "teacher": lambda: residual((32, 64, 128), channels=3, classes=CLASSES, blocks=2),
        "student": lambda: residual((16, 32, 64), channels=3, classes=CLASSES),
    }
    return Task("overhead", "1", models, lambda split: (), (), classes=CLASSES)


def columns(rows: int):
    from edgekd.data.columns import Columns

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, 3, SIDE, SIDE)).astype(np.float32)
    return Columns(
        "train", inputs, rng.integers(0, CLASSES, rows), list(range(rows)), np.ones(rows, np.float32), "synthetic"
    )


def stepper(module, data, terms, teacher=None):
    """A function that makes one training step: the very parts that the training loop uses."""
    from edgekd.data.columns import take
    from edgekd.records import Signals
    from edgekd.training.optimizer import make_optimizer
    from edgekd.training.settings import Training
    from edgekd.training.terms import bind, parts, total

    optimizer, bound = make_optimizer(module, Training()), bind(terms, lambda: None)
    module.train()
    position = [0]

    def step():
        start = position[0] % (len(data) - BATCH)
        position[0] += BATCH
        batch = take(data, np.arange(start, start + BATCH, dtype=np.int64))
        seen, taught = Signals(module(batch.inputs)), {} if teacher is None else {"": teacher(batch)}
        loss = total(parts(bound, seen, taught, batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def training(rounds: int, steps: int) -> dict:
    """Medians of milliseconds per step, and of the ratios to the plain step, round by round."""
    import torch

    from edgekd.models import saved
    from edgekd.quantization import fake_quantized
    from edgekd.records import Artifact
    from edgekd.teachers.cached import cached
    from edgekd.teachers.live import live
    from edgekd.training.read_terms import terms

    torch.set_num_threads(1)
    work, data = task(), columns(BATCH * 16)
    plain, distil = (
        terms(({"use": "cross_entropy"},)),
        terms(({"use": "cross_entropy", "weight": 0.1}, {"use": "kl", "weight": 0.9})),
    )
    teacher, student = saved.create(work, "teacher", 0), lambda: saved.create(work, "student", 0)
    with tempfile.TemporaryDirectory() as folder:
        logits = live(teacher, work)
        answers = torch.cat([logits(_batch(data, i)).output for i in range(0, len(data), BATCH)])
        np.save(Path(folder) / "logits.npy", answers.numpy()[None])
        known = cached(Artifact("", "logits", {}, {}, "", {}, 0, {}, Path(folder)), len(data), 1)
        example = torch.from_numpy(data.inputs[:BATCH])
        kinds = {
            "plain": stepper(student(), data, plain),
            "cached teacher": stepper(student(), data, distil, known),
            "live teacher": stepper(student(), data, distil, live(teacher, work)),
            "qat": stepper(fake_quantized(student().eval(), example), data, plain),
            "qat, learned": stepper(fake_quantized(student().eval(), example, learned=True), data, plain),
            "plain again": stepper(student(), data, plain),
        }
        for step in kinds.values():
            for _ in range(3):
                step()
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(rounds):
            for name in list(kinds) if number % 2 == 0 else list(kinds)[::-1]:
                begun = time.perf_counter()
                for _ in range(steps):
                    kinds[name]()
                times[name].append(1e3 * (time.perf_counter() - begun) / steps)
            print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
        print(file=sys.stderr)
    ratios = {n: sorted(a / b for a, b in zip(times[n], times["plain"], strict=True)) for n in times}
    return {
        n: {
            "ms": statistics.median(times[n]),
            "ratio": statistics.median(r),
            "low": r[len(r) // 10],
            "high": r[-1 - len(r) // 10],
        }
        for n, r in ratios.items()
    }


def _batch(data, start):
    from edgekd.data.columns import take

    return take(data, np.arange(start, start + BATCH, dtype=np.int64))


def calibration(rows: int) -> int:
    """Peak resident bytes of a fresh process that calibrates on `rows` samples that it makes one batch at a time."""
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; import run; run.calibrate({rows})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def calibrate(rows: int) -> None:
    import torch

    from edgekd.models import saved
    from edgekd.quantization import calibrated

    torch.set_num_threads(1)

    def batches():
        for start in range(0, rows, 50):
            yield torch.from_numpy(np.random.default_rng(start).normal(size=(50, 3, SIDE, SIDE)).astype(np.float32))

    calibrated(saved.create(task(), "student", 0).eval(), batches(), ranges="entropy")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", default=str(Path(__file__).parent / "result.json"))
    arguments = parser.parse_args()
    from edgekd import environment

    peaks = {str(rows): [calibration(rows) for _ in range(3)] for rows in (100, 10_000)}
    medians = {rows: statistics.median(p) for rows, p in peaks.items()}
    result = {
        "schema": "edgekd.benchmark/1",
        "command": f"python benchmarks/overhead/run.py --rounds {arguments.rounds} --steps {arguments.steps}",
        "seed": 0,
        "environment": environment.describe(),
        "step": training(arguments.rounds, arguments.steps),
        "calibration_peak_rss_bytes": peaks,
        "calibration_ratio": medians["10000"] / medians["100"],
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["step"].items():
        print(f"{name:<16} {row['ms']:8.2f} ms   {row['ratio']:.3f} x plain   [{row['low']:.3f}, {row['high']:.3f}]")
    print(f"calibration on 10,000 samples over 100: peak memory x {result['calibration_ratio']:.3f}")


if __name__ == "__main__":
    main()
