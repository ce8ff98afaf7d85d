"""Mixed precision in a recipe: which files it adds, what they leave in float, and that a second run finds the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

import edgekd
from edgekd.errors import UsageError
from edgekd.progress import reporter
from edgekd.quantization.diagnosis import mixed_precision as diagnosis_mixed
from edgekd.run import mixed_precision, resolve
from edgekd.run.graph import Point

MIXED = """
[mixed]
quantize = [0.2, 1.0]

[select]
slower_int8 = true
"""
SAVED = {"conv2d": 40.0, "conv2d_1": 30.0, "conv2d_2": 20.0, "linear": 10.0}  # microseconds


@pytest.fixture
def place(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "mixed.toml").write_text(tiny.SHORT + MIXED)
    return tmp_path


def test_files_with_layers_in_float_are_made_measured_and_found_again(place, monkeypatch):
    monkeypatch.setattr(mixed_precision, "_times", lambda *_: SAVED)
    asked = []
    genuine = diagnosis_mixed.choose
    monkeypatch.setattr(
        diagnosis_mixed,
        "choose",
        lambda noise, saved, budget: asked.append((dict(saved), budget)) or genuine(noise, saved, budget),
    )
    found = edgekd.compress(place / "mixed.toml", out="run").result
    assert asked == [(SAVED, pytest.approx(20.0)), (SAVED, pytest.approx(100.0))]
    mixed = [c for c in found.candidates if "-float" in c.id]
    assert mixed, "no file was added"
    steps = {s["step"]: s["key"] for s in found.steps}
    for c in mixed:
        made = json.loads(next((place / "store").glob(f"artifacts/*/{steps[c.id]}/artifact.json")).read_text())
        layers = made["settings"]["float_layers"] if "settings" in made else made["payload"]["settings"]["float_layers"]
        assert c.id == f"quantize-float{len(layers)}" and set(layers) < set(SAVED)
        assert {"latency_p50_ms", "top1", "file_bytes"} <= {m.name for m in c.measurements}
        assert c.parents == ("distill",) and c.stages[-1] == "int8"
    monkeypatch.setattr(mixed_precision, "_times", lambda *_: pytest.fail("was known"))
    again = edgekd.compress("run/recipe.toml", out="run").result
    assert [c.id for c in again.candidates] == [c.id for c in found.candidates] and all(
        s["reused"] for s in again.steps
    )


def test_shares_are_of_what_int8_saves_and_no_set_is_made_twice(monkeypatch):
    """30 us are saved in all: a layer that int8 makes slower saves none. Where all layers would stay float there is
    nothing to make."""
    known = {
        "noise": {"a": 1.0, "b": 2.0, "c": 4.0},
        "saved": {"a": 10.0, "b": 20.0, "c": -5.0},
        "sharing": {n: [n] for n in "abc"},
        "unit": "us",
    }
    chosen, made = iter([("c",), ("c",), ("a", "b", "c"), ()]), []
    budgets = []
    monkeypatch.setattr(mixed_precision, "_known", lambda *_: known)
    monkeypatch.setattr(diagnosis_mixed, "choose", lambda noise, saved, budget: budgets.append(budget) or next(chosen))
    monkeypatch.setattr(
        mixed_precision.planning,
        "extended",
        lambda resolved, plan, point, change, suffix, *more: made.append((change, suffix)) or plan,
    )
    point = lambda id, parents, stage: Point(id, id, 0, parents, (stage,), id, f"{id}'", ("host",))
    seen = [
        SimpleNamespace(point=point("distill", (), "distill")),
        SimpleNamespace(point=point("q", ("distill",), "quantize")),
    ]
    resolved = SimpleNamespace(recipe=SimpleNamespace(mixed={"quantize": [0.4, 0.1, 0.5, 1.0]}))
    plan = SimpleNamespace(steps={"q": SimpleNamespace(part=SimpleNamespace(float_layers=()))})
    mixed_precision.extend(resolved, plan, {"q": None}, seen, None, Path(), reporter(True))
    assert budgets == pytest.approx([3.0, 12.0, 15.0, 30.0]) and made == [({"float_layers": ("c",)}, "-float1")]


def test_without_a_machine_that_can_time_layers_go_by_their_work(place, monkeypatch):
    monkeypatch.setattr(mixed_precision, "_times", lambda *_: pytest.fail("this machine is none of the targets"))
    monkeypatch.setattr(mixed_precision.targets, "surplus", lambda *_: ["avx512_vnni"])
    asked = []
    genuine = diagnosis_mixed.choose
    monkeypatch.setattr(
        diagnosis_mixed,
        "choose",
        lambda noise, saved, budget: asked.append(dict(saved)) or genuine(noise, saved, budget),
    )
    edgekd.compress(place / "mixed.toml", out="run")
    # 10 x 10 images at stride 2: 25 places; 24 channels
    assert asked[0] == {"conv2d": 25 * 9 * 24, "conv2d_1": 25 * 9 * 24, "conv2d_2": 25 * 24 * 24, "linear": 24 * 3}


def test_what_a_layer_in_float_has_converted_is_counted():
    """By hand: the file's ends are 2 x 4 x 4 and 3 x 4 x 4 values, 80 in all, in 8 us: 0.1 us a value. The layer reads
    32 and writes 48."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, 4, 4]) for n, c in (("x", 2), ("y", 3))]
    weight = numpy_helper.from_array(np.zeros((3, 2, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "g", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert mixed_precision.with_conversions({"conv": -3.0}, model, 0.008) == {"conv": pytest.approx(5.0)}


def test_what_the_table_says_wrongly_is_told(place):
    text = tiny.RECIPE.replace("samples = 64", 'float_layers = ["linear"]')
    wrong = text + "\n[mixed]\nprune = [0.1]\nquantise = [0.1]\nquantize = [0.5]\n"
    (place / "wrong.toml").write_text(wrong)
    with pytest.raises(UsageError) as error:
        resolve.resolved(place / "wrong.toml")
    told = str(error.value)
    assert (
        "mixed.prune: `prune` does not quantize to int8" in told
        and "did you mean `quantize`?" in told
        and "has float_layers of its own" in told
    )
    (place / "wrong.toml").write_text(tiny.RECIPE + "\n[mixed]\nquantize = [1.5]\n")
    with pytest.raises(UsageError, match="mixed.quantize"):
        resolve.resolved(place / "wrong.toml")
