"""Trains the cases of test_processes.py, in one process or as one of several: `python ranks.py RANK COUNT PLACE`.
Without arguments: the trainings of `tiny.toml` in two processes."""

import dataclasses
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from toys import artifact, run_in

import edgekd
from edgekd import Task, arrays
from edgekd.stages.distill import Distill
from edgekd.training import ranks
from edgekd.training.terms import Term


def plain(width, norm=False):
    norms = [nn.BatchNorm2d(width)] if norm else []
    return lambda: nn.Sequential(nn.Conv2d(2, width, 3), *norms, nn.Tanh(), nn.Flatten(), nn.Linear(16 * width, 3))


def pictures(norm=False):
    """Samples with weights, 3 classes; 45 train samples make an uneven last batch."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, 90)
    x[np.arange(90), y % 2] += y[:, None, None]
    rows = [edgekd.Sample(x[i], int(y[i]), weight=float(0.5 + i % 3)) for i in range(90)]
    splits = lambda split: {"train": rows[:45], "validation": rows[45:60], "test": rows[60:]}[split]
    return Task("pictures", "1", {"teacher": plain(6), "student": plain(4, norm)}, splits, (), classes=3)


def masked():
    """A class for each pixel, of which few count, and unevenly."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2, 4, 4)).astype(np.float32), rng.integers(-1, 2, (60, 4, 4))
    y[::2] = np.where(rng.random((30, 4, 4)) < 0.9, -1, y[::2])
    splits = arrays(x[:40], y[:40], x[40:], y[40:], validation=0.2)
    model = lambda: nn.Conv2d(2, 2, 3, padding=1)
    return Task("masked", "1", {"teacher": model, "student": model}, splits, (),
                outputs={"map": edgekd.classes(axis=1, ignore_index=-1)})  # fmt: skip


def stage(*losses, use=Distill, **more):
    return use(epochs=2, batch=12, lr=0.02, optimizer="sgd", losses=losses, warmup=0.0, **more)


CE, KL = Term("cross_entropy"), Term("kl", hyper={"temperature": 2.0})
on = lambda use, **more: Term(use, on=(("0", "0"),), **more)
CASES = {
    "rows": (pictures(), stage(CE, KL, clip=0.5, balance=True)),
    "adamw": (pictures(), dataclasses.replace(stage(CE, KL), optimizer="adamw")),
    "norm": (pictures(norm=True), stage(CE, KL)),
    "outputs": (pictures(), stage(Term("dist"), Term("mlkd", 0.1))),
    "layers": (pictures(), stage(CE, on("relational", weight=0.1), on("similarity"), on("contrastive"), on("hint"))),
    "masked": (masked(), stage(CE, KL)),
    "itself": (pictures(), stage(CE, Term("kl", teacher="ema"), ema=0.9)),
    "peers": (pictures(), dataclasses.replace(stage(CE, Term("kl", teacher="peers")), peers=2)),
}


def train(name, place, share, accumulate=1, **more):
    """Trains a case in a folder, with its batch divided by `share` times `accumulate`; {tensor: values}, losses."""
    task, given = CASES[name]
    given = dataclasses.replace(given, batch=given.batch // (share * accumulate), accumulate=accumulate, **more)
    teachers = ()
    if any(t.use not in ("cross_entropy",) and t.teacher is None for t in given.losses):
        made = run_in(place / "teacher", task)
        from edgekd.models import saved

        saved.save(made.folder, saved.create(task, "teacher", 7), model="teacher", pruning=None, seed=7)
        teachers = (artifact(made),)
    run = run_in(place / "student", task)
    facts = given(None, run, teacher=teachers).facts
    from edgekd.models import saved

    return saved.read_tensors(run.folder / "weights.safetensors"), facts["losses"]


def steps():
    """Makes the steps of `tiny.toml` up to the students. Checkpoints after every step."""
    from edgekd.errors import EdgekdError
    from edgekd.progress import Silent
    from edgekd.run import plan, processes, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store
    from edgekd.training import loop

    if processes.follows():
        return processes.follow()
    loop.CHECKPOINT_SECONDS = -1.0
    store, told = Store(), lambda **event: print(event["event"], file=sys.stderr)
    resolved = resolve.resolved("tiny.toml", processes=2)
    planned = plan.make(resolved, store)
    planned.steps = {key: s for key, s in planned.steps.items() if s.stage in ("train", "answer", "distill")}
    try:
        made, _ = run_steps(planned, resolved, store, Silent(), told)
    except EdgekdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        processes.close()
    print(f"made {sum(a.form == 'torch' for a in made.values())} models", file=sys.stderr)
    return 0


def cases(rank, count, place):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=count)
    with ranks.several():
        found = {name: train(name, place / name / str(rank), count) for name in CASES}
        found["norm per rank"] = train("norm", place / "per" / str(rank), count, batch_norm="per_rank")
        found["accumulated"] = train("adamw", place / "acc" / str(rank), count, 2)
    torch.save(found, place / f"found{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(steps())
    cases(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))
