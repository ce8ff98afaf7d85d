"""The parts of the benchmark: each `name(device, quick, folder)` returns a table; one that failed has its error."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

CLASSES, SIDE = 10, 32
WAYS = {  # the settings of edgekd's training, and the same by hand
    "float32": {},
    "tf32": {"tf32": True},
    "bfloat16": {"precision": "bfloat16", "teacher_precision": "bfloat16"},
    "float16": {"precision": "float16", "teacher_precision": "float16"},
    "bfloat16 compiled": {"precision": "bfloat16", "teacher_precision": "bfloat16", "compile": True},
}
TAPPED = ("attention", "channel_wise", "contrastive", "heads", "hint", "normalized_features", "patient", "relational",
          "similarity")  # fmt: skip


def networks(wide: bool = True):
    from edgekd.models.networks import residual

    teacher, student = ((64, 128, 256, 512), (32, 64, 128, 256)) if wide else ((8, 16), (8, 16))
    torch.manual_seed(0)
    made = [residual(w, channels=3, classes=CLASSES, blocks=2 if wide else 1) for w in (teacher, student)]
    return made[0], made[1]


def samples(rows: int, side: int = SIDE):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 3, side, side)).astype(np.float32), rng.integers(0, CLASSES, rows)


def task(augment=None):
    from edgekd import Task

    return Task("gpu", "1", {}, lambda split: (), (), classes=CLASSES, augment=augment, views=2)


def columns(images, labels):
    from edgekd.data.columns import Columns

    names = list(range(len(images)))
    return Columns("train", images, labels, names, np.ones(len(images), np.float32), "synthetic")


def waiting(device: str):
    return (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)


def fitted(
    student, teacher, data, *, device, batch, epochs, scratch, losses=None, mark=None, progress=None, **settings
):
    """Trains with edgekd's loop and a teacher that runs on every batch; returns the facts."""
    from edgekd.data import epochs as of_data
    from edgekd.models.device import placed
    from edgekd.records import Run
    from edgekd.stages.distill import KD
    from edgekd.teachers.live import live
    from edgekd.training.loop import fit
    from edgekd.training.settings import Training

    chosen = Training(epochs=epochs, batch=batch, lr=1e-3, losses=losses or KD, **settings)
    given = task(settings.pop("augment", None))
    source = of_data.epochs(data, given, batch=batch, seed=0, augment_seed=0, views=1, on=device)
    run = Run(given, 0, torch.get_num_threads(), scratch, scratch, lambda split: data, device=device)
    run = dataclasses.replace(run, progress=progress) if progress else run
    teach = {"": live(placed(teacher, device), given, chosen.teacher_precision)} if teacher is not None else {}
    steps = len(of_data.spans(len(data), batch))
    return fit(student, source, chosen.losses, settings=chosen, steps_per_epoch=steps, run=run, teachers=teach,
               on_epoch=mark)  # fmt: skip


# ---------------------------------------------------------------- step time


def steps(device: str, quick: bool, folder: Path) -> dict:
    """Milliseconds per step of edgekd's loop and of the loop by hand, in turn, and the GPU's utilization meanwhile."""
    batch, rows, count, rounds = (128, 512, 3, 1) if quick else (256, 12800, 4, 3)
    images, labels = samples(rows)
    data, found = columns(images, labels), {}
    if device == "cpu":
        batch, data, images, labels = 8, columns(images[:24], labels[:24]), images[:24], labels[:24]
    for name, settings in WAYS.items():
        each = {"edgekd": [], "hand": []}
        used = {"edgekd": [], "hand": []}
        try:
            for number in range(rounds):
                for way in ("edgekd", "hand") if number % 2 == 0 else ("hand", "edgekd"):
                    with Utilization(device) as busy:
                        times = _timed(way, settings, data, images, labels, device, batch, count, folder)
                        whole = (times[-1] - times[1]) / (count - 1) / (len(data) // batch)
                    each[way].append(round(1000 * whole, 4))
                    used[way] += busy.between(times[1], times[-1])
            ratios = [e / h for e, h in zip(each["edgekd"], each["hand"], strict=True)]
            found[name] = {
                "edgekd_ms": statistics.median(each["edgekd"]),
                "hand_ms": statistics.median(each["hand"]),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_low": round(min(ratios), 3),
                "ratio_high": round(max(ratios), 3),
                **{f"{w}_busy_%": round(statistics.mean(u)) if u else None for w, u in used.items()},
                "each": each,
            }
        except Exception as error:
            found[name] = _failed(error)
    return found


def _timed(way, settings, data, images, labels, device, batch, count, folder):
    import hand

    teacher, student = networks(wide=device != "cpu")
    wait = waiting(device)
    if way == "hand":
        chosen = {"precision": settings.get("precision", "float32"), "tf32": settings.get("tf32", False)}
        compiled = settings.get("compile", False)
        return hand.epochs(teacher, student, images, labels, device=device, batch=batch, count=count, wait=wait,
                           compiled=compiled, **chosen)  # fmt: skip
    times = []

    def mark(_):
        wait()
        times.append(time.monotonic())

    scratch = folder / f"steps-{time.monotonic_ns()}"
    scratch.mkdir()
    # the last epoch's end is taken at the last step, before the last checkpoint is written
    ends = lambda done, total, text: mark(0) if done == total else None
    fitted(student, teacher, data, device=device, batch=batch, epochs=count, scratch=scratch, mark=mark, progress=ends,
           schedule="linear", warmup=0.0, weight_decay=0.01, **settings)  # fmt: skip
    return times


class Utilization:
    """The GPU's utilization by nvidia-smi, sampled while it is entered."""

    def __init__(self, device: str):
        self.device, self.taken, self.process = device, [], None

    def __enter__(self):
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        if self.device.startswith("cuda"):
            with contextlib.suppress(OSError):
                self.begun = time.monotonic()
                self.process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *error):
        if self.process is not None:
            self.process.terminate()
            lines = self.process.communicate(timeout=20)[0].split()
            spent = time.monotonic() - self.begun
            # nvidia-smi gives no times here: the samples are spread evenly
            numbers = [float(line) for line in lines if line.strip().isdigit()]
            self.taken = [(self.begun + spent * (i + 0.5) / len(numbers), n) for i, n in enumerate(numbers)]

    def between(self, start: float, end: float) -> list[float]:
        return [n for at, n in self.taken if start <= at <= end]


# ---------------------------------------------------------------- a whole run


def run(device: str, quick: bool, folder: Path) -> dict:
    """Digits: a teacher, a student and int8 by quantization-aware training on the device and on the CPU, scored in
    onnxruntime."""
    few = {"teacher": 2, "distill": 2, "quantize": 1} if quick else {"teacher": 30, "distill": 30, "quantize": 8}
    recipe = {
        "task": "digits",
        "threads": 2,
        "stage": [{"use": "distill", "epochs": few["distill"]}, {"use": "quantize", "epochs": few["quantize"]}],
        "model": {"teacher": {"train": {"epochs": few["teacher"]}}},
        "select": {"maximize": ["top1"], "minimize": ["file_bytes"], "slower_int8": True},
    }
    found = {}
    for where in dict.fromkeys((device, "cpu")):
        try:
            found[where] = _compressed(recipe, where, folder / f"run-{where.replace(':', '-')}")
        except BaseException as error:
            found[where] = _failed(error)
    return found


def _compressed(recipe, device, out):
    import edgekd

    begun = time.monotonic()
    outcome = edgekd.compress(recipe, out=out, device=device)
    seconds = round(time.monotonic() - begun, 1)
    result = json.loads((out / "result.json").read_text())
    top1 = {
        c["id"]: m["value"]
        for c in result["candidates"]
        for m in c["measurements"]
        if m["name"] == "top1" and m["split"] == "test"
    }
    made = {s["step"]: {k: s.get(k) for k in ("seconds", "device")} for s in result["steps"] if s.get("device")}
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in sorted((out / "models").glob("*"))}
    return {"exit_code": outcome.exit_code, "run_seconds": seconds, "top1": top1, "made": made, "files": files}


# ---------------------------------------------------------------- resuming


def resume(device: str, quick: bool, folder: Path) -> dict:
    """Whether two runs give the same bytes, and one that was killed in an epoch and resumed."""
    ways = {name: WAYS[name] for name in ("float32", "bfloat16", "float16")}
    found = {}
    for name, settings in list(ways.items())[: 1 if quick else None]:
        try:
            digests = {}
            for kind in ("once", "again", "killed"):
                place = folder / f"resume-{name}-{kind}"
                place.mkdir(parents=True)
                if kind == "killed":
                    code, text = _child(place, device, settings, 9)
                    if code != -signal.SIGKILL:
                        raise RuntimeError(f"was not killed, but ended with {code}: {text}")
                code, text = _child(place, device, settings, 0)
                if code:
                    raise RuntimeError(text)
                digests[kind] = text.split()[-1]
            found[name] = {
                "two_runs_equal": digests["once"] == digests["again"],
                "resumed_equal": digests["once"] == digests["killed"],
            }
        except Exception as error:
            found[name] = _failed(error)
    return found


def _child(place, device, settings, kill):
    code = (
        f"import sys; sys.path[:0] = {sys.path[:3]!r}; import measured; measured.trained({str(place)!r}, {device!r}, "
    )
    code += f"{settings!r}, {kill})"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    return made.returncode, made.stdout + made.stderr[-2000:]


def trained(place: str, device: str, settings: dict, kill: int) -> None:
    """In a process of its own: trains a student with dropout, prints the digest of its weights; is killed after step
    `kill`. A checkpoint is written at every step."""
    from torch import nn

    import edgekd.training.loop as loop

    loop.CHECKPOINT_SECONDS = -1.0
    teacher, student = networks(wide=False)
    student = nn.Sequential(student, nn.Dropout(0.1))

    def progress(done, total, text):
        if kill and done == kill + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted(student, teacher, columns(*samples(320)), device=device, batch=64, epochs=3, scratch=Path(place),
           progress=progress, **settings)  # fmt: skip
    state = b"".join(t.numpy().tobytes() for t in student.state_dict().values())
    print(hashlib.sha256(state).hexdigest())


# ---------------------------------------------------------------- every part


def parts(device: str, quick: bool, folder: Path) -> dict:
    """Every loss and ensemble on the device beside the CPU: the largest difference of value and gradient, relative to
    the largest value. Ways of training take a few steps."""
    from edgekd import components

    every = {f"loss {name}": (loss, name) for name in components.names("losses")}
    every |= {f"ensemble {name}": (ensemble, name) for name in components.names("ensembles")}
    every |= {f"augmentation {name}": (augmented, name) for name in ("affine", "shifted", "spectral")}
    every |= {f"training {name}": (way, name) for name in MODES}
    every |= {"quantization": (quantized, "")}
    found = {}
    for title, (check, name) in every.items():
        try:
            found[title] = check(name, device, folder)
        except BaseException as error:
            found[title] = _failed(error)
    return found


def signals(device, seed):
    from edgekd import Signals

    chance = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=chance)
    output, tap = draw(16, CLASSES), draw(16, 8, 4, 4)
    return Signals(output.to(device).requires_grad_(), {"a": tap.to(device).requires_grad_()})


def batch_of(rows=16):
    from edgekd import Batch

    labels = torch.arange(rows) % CLASSES
    tags = [("even" if i % 2 == 0 else "odd",) for i in range(rows)]
    return Batch(torch.zeros(rows, 3, 8, 8), labels, torch.arange(rows), torch.ones(rows), tags=tags)


NUMBERS = ("mse", "mae", "huber", "bounded")  # losses from labels of the output's size


def loss(name, device, folder):
    from edgekd.losses import _takes  # noqa: F401  (the folder is a package of parts)
    from edgekd.models.device import on
    from edgekd.training.terms import Term, bind

    def values(where):
        torch.manual_seed(0)
        seen, taught, batch = signals(where, 1), signals(where, 2), on(batch_of(), where)
        change = (lambda t: t.flatten(1)) if name == "patient" else (lambda t: t)
        seen, taught = (
            dataclasses.replace(s, taps={k: change(t) for k, t in s.taps.items()} if name in TAPPED else {})
            for s in (seen, taught)
        )
        if name in NUMBERS:
            batch.labels = taught.output.detach().flip(0)
        term = Term(name, on=(("a", "a"),) if name in TAPPED else ())
        (bound,) = bind((term,), lambda: (seen, {"": taught}, batch))
        if isinstance(bound.call, torch.nn.Module):
            bound.call.to(where)
        _, rows = bound.rows(seen, taught, batch, 0.5)
        leaves = [seen.output, *seen.taps.values()]
        gradients = torch.autograd.grad(rows.sum(), leaves, allow_unused=True)
        return [rows, *(g for g in gradients if g is not None)]

    return {"difference": _difference(values(device), values("cpu"))}


def ensemble(name, device, folder):
    from edgekd.components import Use
    from edgekd.models.device import on

    classes = {"one": tuple(range(5)), "two": tuple(range(5, CLASSES))}
    given = {"routed": [{"classes": classes}, {"tags": {"one": ("even",), "two": ("odd",)}}]}.get(name, [{}])

    def values(where, settings):
        combine = Use("ensembles", name, settings)
        if isinstance(combine.part(), type):
            combine = combine(("one", "two"), 0).to(where)
        both = {"one": signals(where, 1), "two": signals(where, 2)}
        return [combine(both, on(batch_of(), where)).output]

    worst = max(_difference(values(device, s), values("cpu", s)) for s in given)
    return {"difference": worst}


def augmented(name, device, folder):
    from edgekd.data import augmentation

    chance = torch.Generator().manual_seed(0)
    images, u = torch.randn(16, 3, 12, 12, generator=chance), torch.rand(16, 8, generator=chance)
    settings = {
        "affine": {"turn": 0.3, "scale": 0.1, "shift": 0.2, "flip": True},
        "shifted": {"pixels": 2, "flip": True},
        "spectral": {"shift": 2, "gain": 0.5, "bands": 3, "frames": 3, "ground": -1.0},
    }[name]
    made = getattr(augmentation, name)
    return {
        "difference": _difference([made(images.to(device), u.to(device), **settings)], [made(images, u, **settings)])
    }


MODES = {
    "ema": {"losses": [("cross_entropy", {}), ("kl", {"teacher": "ema"})]},
    "peers": {"peers": 2, "losses": [("cross_entropy", {}), ("kl", {"teacher": "peers"})]},
    "balance": {"balance": True},
    "clip, float16": {"clip": 1.0, "precision": "float16"},
    "sgd": {"optimizer": "sgd"},
    "taps": {"losses": [("cross_entropy", {}), ("heads", {"on": (("3", "3"),)})]},
}


def way(name, device, folder):
    from edgekd.training.terms import Term

    settings = dict(MODES[name])
    losses = tuple(Term(use, **more) for use, more in settings.pop("losses", ())) or None
    teacher, student = networks(wide=False)
    students = [student, networks(wide=False)[1]] if settings.pop("peers", 0) else student
    scratch = folder / f"way-{abs(hash(name))}"
    scratch.mkdir()
    teacher = None if losses else teacher
    facts = fitted(students, teacher, columns(*samples(64, 8)), device=device, batch=16, epochs=2, scratch=scratch,
                   losses=losses, **settings)  # fmt: skip
    state = student.state_dict().values()
    assert all(t.device.type == "cpu" and bool(t.isfinite().all()) for t in state)
    return {"losses": {k: round(v, 4) for k, v in facts["losses"].items()}}


def quantized(name, device, folder):
    """Calibration on the device beside the CPU: the scales; and one epoch of quantization-aware training."""
    from edgekd.models.device import moved, placed
    from edgekd.quantization.torch_graph import fake
    from edgekd.quantization.torch_graph.calibrate import calibrate
    from edgekd.quantization.torch_graph.capture import capture

    images, _ = samples(64, 8)
    _, student = networks(wide=False)
    graph = capture(student.eval(), torch.from_numpy(images[:2]))

    def scales(where):
        module = placed(fake.insert(graph), where)
        calibrate(module, [moved(torch.from_numpy(images), where)])
        return [torch.tensor(s.scale) for s in fake.settle(placed(module, "cpu")).sites.values()]

    return {"difference_of_scales": _difference(scales(device), scales("cpu"))}


def _difference(ours, theirs) -> float:
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)))
    return float(f"{worst:.3g}")


def _failed(error: BaseException) -> dict:
    if isinstance(error, KeyboardInterrupt):
        raise error
    return {"error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()}
