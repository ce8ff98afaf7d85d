"""What the end of a run needs is tried at its beginning: what breaks there is an error of use, before anything is
trained."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import edgekd
from edgekd.errors import RunFailed, UsageError
from edgekd.progress import Lines, Silent
from edgekd.records import Metric
from edgekd.run import plan, resolve, sanity_check, steps
from edgekd.store.store import Store

X = np.random.default_rng(0).normal(size=(120, 10, 4)).astype(np.float32)
Y = np.arange(120) % 3


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def flat(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 3))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = flat()

    def forward(self, x):
        return self.inner(x) * (1 + 0.1 * torch.rand(()))


def task_of(make=flat, metrics=None, **more):
    models = {"teacher": make, "student": make}
    return edgekd.Task(
        "checked",
        "1",
        models,
        edgekd.arrays(X[:90], Y[:90], X[90:], Y[90:]),
        metrics or (edgekd.top1(),),
        classes=3,
        **more,
    )


TASK = task_of()
LSTM = task_of(lambda: Recurrent(nn.LSTM))
GRU = task_of(lambda: Recurrent(nn.GRU))
NOISY = task_of(Noisy)
ZEROS = task_of(lambda: zeroed(flat()))
FRONT = task_of(before=lambda: b"no network")
SHORT = {"epochs": 1, "batch": 32}
DISTILL = {"use": "distill", "model": "teacher", **SHORT}  # one model, one export


def zeroed(module):
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def metric(records, value=lambda r: float(np.mean(r))):
    return Metric("own", "", "higher", records, value)


def right(outputs, labels):
    return (outputs.argmax(1) == labels).astype(float)


def halved(outputs, labels):
    return right(outputs, labels)[: max(2, len(labels) // 2)]


NAN = task_of(metrics=(metric(right, lambda r: float("nan")),))
RAISES = task_of(metrics=(metric(right, lambda r: [][len(r) - 2]),))
FEWER = task_of(metrics=(metric(halved),))
# needs right and wrong answers
BOTH = task_of(metrics=(metric(right, lambda r: float(np.mean(r)) if 0 < np.mean(r) < 1 else float("nan")),))


def auc(rows):
    """Of [n, 2]: score, whether it is of the class. Raises ValueError where that is the same of all."""
    score, own = rows[:, 0], rows[:, 1]
    if own.all() or not own.any():
        raise ValueError("only one class is there")
    return float((score[own == 1][:, None] > score[own == 0]).mean())


# sorted, and none of the class among the few samples of a sanity check
AUC = task_of(metrics=(metric(lambda o, y: np.stack([o[:, 0], np.arange(len(y)) < 10 * (len(y) > 10)], 1), auc),))
SHARES = task_of(
    lambda: nn.Sequential(flat(), nn.Softmax(1)), metrics=(metric(lambda o, y: np.sqrt(o[np.arange(len(y)), y])),)
)


def checked(name="TASK", stages=(DISTILL,), store=None, progress=None, place=".", **more):
    table = {
        "task": f"test_sanity_check:{name}",
        "threads": 1,
        "control": False,
        "stage": list(stages),
        "model": {"teacher": {"train": SHORT}},
        **more,
    }
    resolved = resolve.resolved(table)
    sanity_check.check(resolved, plan.make(resolved), store or Store(), place, progress or Silent())
    return resolved


@pytest.fixture(autouse=True)
def ground(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


def told(tmp_path, *args, **more):
    with pytest.raises(UsageError) as caught:
        checked(*args, place=tmp_path / "run", **more)
    return "\n".join(str(p) for p in caught.value.problems)


@pytest.mark.parametrize(
    "name, word",
    [("NAN", "is nan"), ("RAISES", "IndexError"), ("FEWER", "records of shape"), ("NOISY", "differs from the model")],
)
def test_what_breaks_at_the_end_is_told_at_the_beginning(tmp_path, name, word):
    text = told(tmp_path, name)
    assert word in text and "task checked" in text


@pytest.mark.parametrize("name", ["BOTH", "SHARES", "AUC"])
def test_a_metric_that_some_outputs_are_nothing_for(tmp_path, name):
    checked(name, place=tmp_path / "run")


def test_a_front_end_that_is_no_network(tmp_path):
    text = told(tmp_path, "FRONT")
    assert "before" in text and "not an ONNX file" in text and "/edgekd-" not in text


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_recurrent_networks_reach_their_end(tmp_path, name):
    checked(name, place=tmp_path / "run")


def test_every_form_is_tried(tmp_path, monkeypatch):
    forms = []
    make = steps.make
    monkeypatch.setattr(steps, "make", lambda step, *rest: forms.append((step.stage, step.part)) or make(step, *rest))
    checked(
        stages=[DISTILL, {"use": "quantize", **SHORT}], place=tmp_path / "run", sweep={"quantize.weight_bits": [8, 4]}
    )
    assert [stage for stage, _ in forms] == ["fresh", "export", "quantize", "export", "quantize", "export"]
    assert {(part.weight_bits, part.samples, part.mode) for stage, part in forms if stage == "quantize"} == {
        (8, 2, "ptq"),
        (4, 2, "ptq"),
    }


@pytest.mark.parametrize("bits", [None, 8, [8, 4]])
def test_weights_in_blocks_are_a_form_too(tmp_path, bits):
    more = {} if bits is None else {"bits": bits}
    checked(stages=[DISTILL, {"use": "weight_only", **more}], place=tmp_path / "run")


def test_a_form_that_can_not_be_made_is_told_by_its_stage(tmp_path, monkeypatch):
    from edgekd.stages.quantize import Quantize

    def broken(self, *given, **more):
        raise NotImplementedError("no grid for this")

    monkeypatch.setattr(Quantize, "__call__", broken)
    text = told(tmp_path, stages=[DISTILL, {"use": "quantize", **SHORT}])
    assert "quantize: can't be exported: NotImplementedError: no grid" in text


def test_an_int8_file_of_untrained_weights_that_differs_is_only_said(tmp_path, monkeypatch, capsys):
    from edgekd.quantization.torch_graph import check

    def refuse(*given):
        raise RunFailed("differs in one value")

    monkeypatch.setattr(
        check, "compare", lambda *given, **more: dataclasses.replace(compare(*given, **more), reasons=("x",))
    )
    monkeypatch.setattr(check, "refuse", refuse)
    checked(stages=[DISTILL, {"use": "quantize", **SHORT}], place=tmp_path / "run", progress=Lines())
    assert "differs in one value" in capsys.readouterr().err


from edgekd.quantization.torch_graph.check import compare  # noqa: E402  (before it is replaced)


def test_names_that_no_file_can_have(tmp_path):
    long = [{**DISTILL, "name": "a" * 245}]  # a file may be named so, but no candidate of a result
    for stages, more in ((long, {}), ([DISTILL], {"targets": [str(tmp_path / f"{'b' * 240}.toml")]})):
        (tmp_path / f"{'b' * 240}.toml").write_text('title = "b"\narchitecture = "x86-64"\n')
        text = told(tmp_path, stages=stages, **more)
        assert "can't name a file: File name too long" in text and (
            "the candidate aaa" in text or "the target bbb" in text
        )


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "run").write_text("")
    assert "is a file, not a folder" in told(tmp_path)


def test_a_disk_without_room_for_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(sanity_check.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(RunFailed, match="answers take"):
        checked(place=tmp_path / "run")
    monkeypatch.setattr(steps, "finished", lambda planned, store: planned.steps)  # they are there already
    checked(place=tmp_path / "run")


def test_what_was_tried_once_is_not_tried_again(tmp_path, monkeypatch):
    checked(place=tmp_path / "run")
    calls = []
    monkeypatch.setattr(steps, "make", lambda *given: calls.append(given))
    checked(place=tmp_path / "run")
    # a training's settings change nothing of its end
    checked(stages=[{**DISTILL, "epochs": 7, "lr": 0.1}], place=tmp_path / "run")
    assert calls == []
    monkeypatch.undo()
    with pytest.raises(UsageError, match="File name too long"):
        checked(stages=[{**DISTILL, "name": "c" * 300}], store=Store(tmp_path / "store"), place=tmp_path / "run")


def test_compress_and_dry_run_check(tmp_path, monkeypatch, capsys):
    from edgekd import cli

    text = 'task = "test_sanity_check:NAN"\ncontrol = false\n[[stage]]\nuse = "train"\nmodel = "teacher"\nepochs = 1\n'
    (tmp_path / "recipe.toml").write_text(text)
    for more in ((), ("--dry-run",)):
        monkeypatch.setattr(steps, "run_steps", None)
        assert cli.run(["compress", "recipe.toml", "--quiet", *more]) == 2
        assert "metrics['own']: is nan" in capsys.readouterr().err
