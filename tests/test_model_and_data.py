"""The task of a model and data that a person names: what its outputs and its metric are."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekd.data import check
from edgekd.errors import UsageError
from edgekd.models import given
from edgekd.run import passed, resolve
from edgekd.run.resolve import find_task

MODULE = """
import numpy as np
import edgekd
from torch import nn

x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype("float32")
parts = lambda y: {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}
head = lambda *last: nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), *last)
flat = lambda n: head(nn.Flatten(), nn.Linear(256, n))
classes, pixels, labels, numbers, one = flat(3), head(nn.Conv2d(4, 3, 1)), flat(5), flat(2), flat(1)
y_classes = parts(np.arange(40) % 3)
y_one = parts(np.arange(40) % 2)
y_pixels = parts(np.arange(40 * 64).reshape(40, 8, 8) % 3)
y_labels = parts((np.arange(200).reshape(40, 5) * 7 % 3 == 0).astype(int))
y_numbers = lambda: tuple(parts(np.arange(80, dtype="float32").reshape(40, 2)).values())
y_wrong = parts(np.arange(40 * 4).reshape(40, 4) % 3)
y_bytes = {**parts(np.arange(40) % 3), "x_train": (x[:30] * 0).astype("uint8")}
task = edgekd.Task("own", "7", {"small": lambda: flat(3)}, edgekd.arrays(*y_classes.values()), (edgekd.top1(),), 3)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "namedmodels.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "namedmodels", raising=False)


def found(model, data, **more):
    table = {"use": "model_and_data", "model": f"namedmodels:{model}", "data": f"namedmodels:{data}"}
    return find_task(table | more, Path.cwd())


@pytest.mark.parametrize(
    ("model", "data", "metric", "kind"),
    [
        ("classes", "y_classes", "top1", None),
        ("one", "y_one", "top1", "yes_no"),  # declared: a student can be trained
        ("pixels", "y_pixels", "mean_iou", "classes"),
        ("labels", "y_labels", "average_precision", "yes_no"),
        ("numbers", "y_numbers", "mean_error", "numbers"),
    ],
)
def test_the_metric_follows_from_the_labels(model, data, metric, kind):
    task = found(model, data)
    assert task.metrics[0].name == metric and (task.output.kind if task.output else None) == kind
    assert check(task) == [] and task.name == "namedmodels"


def test_a_task_is_taken_with_its_own_models_beside_the_given_one():
    task = found("classes", "task")
    assert (task.name, task.version) == ("own", "7") and set(task.models) == {"small", "teacher", "student"}


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("classes", "y_wrong", "labels are int64 of shape [6, 4], and the model gives [2, 3]"),
        ("classes", "y_bytes", "is uint8, and how the model scales these values is not known"),
        ("x", "y_classes", "is ndarray, not a model"),
        ("parts", "y_classes", "failed: TypeError"),
        ("classes", "head", "failed: "),
        ("classes", "classes", "failed: TypeError"),
    ],
)
def test_what_does_not_fit_is_said(model, data, words):
    with pytest.raises(UsageError) as caught:
        found(model, data)
    assert words in str(caught.value), str(caught.value)


def test_a_module_is_known_by_its_code_and_form_and_not_by_its_weights():
    def key(width, seed):
        torch.manual_seed(seed)
        task = found("classes", "y_classes")
        copies = given.Copies(nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten()))
        return passed.of_task(dataclasses.replace(task, models={"teacher": copies}), lambda split: task_data)[0]

    task_data = type("Data", (), {"digest": "d"})
    assert key(4, 0) == key(4, 1) != key(5, 0)


def test_copies_do_not_share_weights():
    copies = given.Copies(nn.Linear(2, 2))
    first, again = copies(), copies()
    first.weight.data.zero_()
    assert again.weight.abs().sum() > 0


def test_a_folder_of_images_is_read_as_the_model_was_trained(tmp_path):
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (20, 10), tuple(max(0, c - number) for c in colour)).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    (tmp_path / "how.json").write_text('{"crop": 8, "mean": [0.5, 0.5, 0.5], "deviation": [0.5, 0.25, 0.5]}')
    table = {"use": "model_and_data", "model": "namedmodels:classes", "path": "images"}
    task = find_task({**table, "preprocess": "how.json"}, tmp_path)
    assert check(task) == [] and task.metrics[0].name == "top1" and task.name == "images"
    sample = next(s for split in ("train", "validation", "test") for s in task.data(split) if s.id == "red/3.png")
    assert sample.label == 1 and np.allclose(sample.inputs[:, 4, 4], [(252 / 255 - 0.5) / 0.5, -2, -1])
    with pytest.raises(UsageError, match="--preprocess: is missing"):
        find_task(table, tmp_path)
    with pytest.raises(UsageError, match='say `"crop"'):
        find_task({**table, "preprocess": "unit"}, tmp_path)
    assert resolve.resolved({"task": {**table, "preprocess": "how.json"}, "stage": [{"use": "distill"}]})
