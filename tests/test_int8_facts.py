"""All of a target's int8 facts arrive in the file: in `compress` as in `quantize`, seen in what was exported."""

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper

from edgekd.records import Int8, Scheme, Target
from edgekd.run import target_settings
from edgekd.verbs.compress import compress
from edgekd.verbs.quantize import quantize

FACTS = {  # what a target says -> (scales of a weight, bits of its integers, whether each scale uses all of them)
    "": ("per channel", 8, False),
    "per_channel = false": ("per tensor", 8, False),
    "weight_bits = 7": ("per channel", 7, True),
    "pairs16 = false": ("per channel", 8, True),
    "weight_bits = 7\nper_channel = false\npairs16 = false": ("per tensor", 7, True),
}


@pytest.fixture
def device(tmp_path):
    """Writes a target of x86-64 without any feature: nothing here is timed for it."""

    def write(facts, name="mine"):
        path = tmp_path / f"{name}.toml"
        path.write_text(f'title = "{name}"\narchitecture = "x86-64"\n[int8]\n{facts}\n')
        return str(path)

    return write


def weights(path):
    """[(integers, scales, axis)] of the weights that a file keeps as int8, of two axes or more."""
    graph = onnx.load(path).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    found = [
        (stored[n.input[0]], stored[n.input[1]], next((a.i for a in n.attribute if a.name == "axis"), 0)) for n in nodes
    ]
    return [w for w in found if w[0].dtype == np.int8 and w[0].ndim > 1]


def told(path):
    """What a file's weights say of the facts that it was made by."""
    found = weights(path)
    assert len(found) >= 2
    kinds = {"per channel" if scale.ndim else "per tensor" for _, scale, _ in found}
    most = [np.abs(np.moveaxis(q.astype(int), axis, 0).reshape(scale.size, -1)).max(1) for q, scale, axis in found]
    high = 63 if max(m.max() for m in most) <= 63 else 127
    return " and ".join(sorted(kinds)), 7 if high == 63 else 8, all((m == high).all() for m in most)


def made(folder, targets):
    """What the int8 files of a run say, whether they were kept in its folder or not."""
    (folder / "r.toml").write_text(tiny.SHORT.replace("[[stage]]", "control = false\n[[stage]]", 1))
    compress(folder / "r.toml", targets=targets, out=folder / "run")
    files = (folder / "store").rglob("model.onnx")
    is_int8 = lambda path: any(p.value == "int8" for p in onnx.load(path).metadata_props)
    return sorted(told(path) for path in files if is_int8(path))


def test_compress_makes_the_files_that_the_targets_ask_for(tmp_path, monkeypatch, device):
    tiny.settle(tmp_path, monkeypatch)
    facts = ["", "per_channel = false", "weight_bits = 7"]
    targets = [device(text, f"t{number}") for number, text in enumerate(facts)]
    assert made(tmp_path, targets) == sorted(FACTS[text] for text in facts)


def test_compress_makes_weights_of_the_full_range_where_a_target_asks_for_them(tmp_path, monkeypatch, device):
    tiny.settle(tmp_path, monkeypatch)
    assert made(tmp_path, [device("pairs16 = false")]) == [FACTS["pairs16 = false"]]


@pytest.mark.parametrize("facts", FACTS)
def test_quantize_makes_the_file_that_the_target_asks_for(tmp_path, device, facts):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    stored = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 12))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, 1, ["n", size]) for n, size in (("x", 8), ("y", 12))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(stored)]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", inputs=x)
    quantize(tmp_path / "m.onnx", data=tmp_path / "d.npz", out=tmp_path / "o.onnx", target=device(facts))
    assert told(tmp_path / "o.onnx") == FACTS[facts]


def target(name, **facts):
    return Target(name, name, "x86-64", int8=Int8(**facts))


def test_a_file_for_several_targets_has_of_each_fact_what_all_allow():
    wide, narrow, whole = target("wide"), target("narrow", weight_bits=7), target("whole", per_channel=False)
    assert target_settings.merged([wide, narrow, whole]) == Int8(weight_bits=7, per_channel=False)
    assert target_settings.merged([target("full", pairs16=False), wide]) == Int8(pairs16=False)
    assert target_settings.scheme([narrow], float_layers=("a",)) == Scheme(weight_bits=7, float_layers=("a",))


@pytest.mark.parametrize("fact, less", [("weight_bits", 7), ("activation_bits", 7), ("per_channel", False)])
def test_what_is_made_for_a_target_serves_those_that_take_as_much(fact, less):
    groups = target_settings.grouped([target("wide"), target("narrow", **{fact: less})])
    (wide, of_wide), (narrow, of_narrow) = groups.items()
    assert (of_wide, of_narrow) == (("wide",), ("narrow",))
    assert narrow.serves(wide) and not wide.serves(narrow)
    assert getattr(narrow.int8, fact) == less


def test_one_target_with_the_full_range_is_enough_for_all():
    (settings, names), *more = target_settings.grouped([target("a", pairs16=False), target("b")]).items()
    assert not more and names == ("a", "b") and not settings.int8.pairs16
