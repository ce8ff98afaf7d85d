"""Weights that somebody brings: what doesn't fit the model is told by the plan, from the file's header, before anything
is trained."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import edgekd
from edgekd.errors import UsageError
from edgekd.models import saved
from edgekd.run import resolve
from edgekd.run.plan import make

X = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
TASK = edgekd.Task(
    "brought",
    "1",
    {
        name: lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        for name in ("teacher", "student")
    },
    edgekd.arrays(X[:60], np.arange(60) % 3, X[60:], np.arange(30) % 3),
    (edgekd.top1(),),
    classes=3,
)
STATE = {k: v.clone() for k, v in TASK.models["student"]().state_dict().items()}
RECIPE = {
    "task": "test_weight_files:TASK",
    "threads": 1,
    "model": {"student": {"weights": ""}},
    "stage": [{"use": "quantize", "mode": "ptq"}],
}


def planned(path):
    return make(resolve.resolved({**RECIPE, "model": {"student": {"weights": str(path)}}}))


def told(path):
    with pytest.raises(UsageError) as caught:
        planned(path)
    return [str(p) for p in caught.value.problems]


WRONG = {
    "shape": ({"0.weight": torch.zeros(8, 7)}, ["0.weight: has shape [8, 7], but the model needs [8, 6]"]),
    "bool": ({"0.weight": torch.zeros(8, 6, dtype=torch.bool)}, ["0.weight: has booleans"]),
    "int32": ({"3.bias": torch.zeros(3, dtype=torch.int32)}, ["3.bias: has integers"]),
    "complex": ({"3.bias": torch.zeros(3, dtype=torch.complex64)}, ["3.bias: has complex numbers"]),
    "float8": ({"3.bias": torch.zeros(3).to(torch.float8_e4m3fn)}, ["3.bias: has numbers of type"]),
    "several": (
        {"0.weight": None, "more": torch.zeros(1), "3.bias": torch.zeros(4)},
        ["0.weight: is missing", "no such tensor", "shape [4]"],
    ),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_by_the_plan(tmp_path, name, suffix):
    change, words = WRONG[name]
    state = {k: v for k, v in {**STATE, **change}.items() if v is not None}
    path = tmp_path / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    found = told(path)
    assert len(found) == len(words) and all("model.student: weights: " in p for p in found)
    assert all(any(word in p for p in found) for word in words), found


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:TypedStorage:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_values_that_are_no_plain_numbers(tmp_path, kind):
    with torch.no_grad():
        odd = (
            torch.eye(8, 6).to_sparse()
            if kind == "sparse"
            else torch.quantize_per_tensor(torch.eye(8, 6), 0.1, 0, torch.qint8)
        )
    torch.save({**STATE, "0.weight": odd}, tmp_path / "w.pt")
    (found,) = told(tmp_path / "w.pt")
    assert "values" in found and "the model needs floating-point numbers" in found


@pytest.mark.parametrize(
    "data", [b"", b"hello", (2**40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}" + b"x" * 9]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "onnx"])
def test_files_of_another_format(tmp_path, data, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(data)
    if suffix == "safetensors" and data[8:10] == b"{}" and data[0] == 2:
        assert told(path)
    else:
        (found,) = told(path)
        assert "can't be read safely as weights" in found and "hint" in found


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_and_data_parallel_names_are_taken(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    save_file(
        {f"module.{k}": v.to(kind) if v.is_floating_point() else v.to(torch.int32) for k, v in STATE.items()}, path
    )
    assert planned(path).steps
    module = saved.bring(path, TASK.models["student"]())
    assert torch.allclose(module[0].weight, STATE["0.weight"], atol=1e-2) and module[0].weight.dtype == torch.float32


def test_weights_are_loaded_before_anything_is_trained(tmp_path):
    """So that values which are not finite are told at once."""
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    stages = [step.stage for step in planned(path).steps.values()]
    assert stages.index("load") < stages.index("train")
    save_file({**STATE, "0.bias": torch.full((8,), torch.nan)}, path)
    with pytest.raises(UsageError, match="0.bias: has values that are not finite"):
        saved.bring(path, TASK.models["student"]())
