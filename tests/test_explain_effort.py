"""`explain` of files: what it says where the float file is another one, and how much it runs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.quantization.diagnosis import layers, noise
from edgekd.verbs.explain import explain
from edgekd.verbs.quantize import quantize


def network(seed):
    rng = np.random.default_rng(seed)
    sizes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 4)}
    tensors = [numpy_helper.from_array((rng.normal(size=s) / 3).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w2"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for seed in (0, 1):
        onnx.save(network(seed), folder / f"{seed}.onnx")
    np.savez(folder / "d.npz", inputs=np.random.default_rng(2).normal(size=(96, 3, 8, 8)).astype(np.float32))
    quantize(folder / "0.onnx", data=folder / "d.npz", out=folder / "q.onnx", slower_int8=True)
    return folder


def test_another_file_of_the_same_architecture_is_named_first(place):
    told = explain(place / "q.onnx", plain=place / "1.onnx", data=place / "d.npz").text
    assert told.startswith("1.onnx may not be the float file that q was made of: most weights are others")
    assert "hint: give the file that it was made of with --float" in told and "\nits weights were trained" not in told
    assert "may not be" not in explain(place / "q.onnx", plain=place / "0.onnx", data=place / "d.npz").text


def test_layers_that_give_nothing_back_in_a_quiet_file_are_not_run_alone(place, monkeypatch):
    counts = []
    whole = noise.outputs
    counted = lambda model, feed: (counts.append(len(noise.of(feed))), whole(model, feed))[1]
    monkeypatch.setattr(noise, "outputs", counted)
    monkeypatch.setattr(noise, "LOUD", 0.01)
    monkeypatch.setattr(noise, "MUCH", 99.0)
    p = layers.pair(normal(place), onnx.load(place / "q.onnx"))
    feed = {"x": np.load(place / "d.npz")["inputs"]}
    total, shares = noise.shares(p, feed)
    assert total < noise.LOUD and len(counts) == 2 + len(p.layers)
    counts.clear()
    monkeypatch.setattr(noise, "LOUD", 0.0)
    others = noise.shares(p, feed)[1]
    parts = sum((s.layer.parameters is not None) + (s.layer.weights is not None) for s in others)
    assert len(counts) == 2 + len(p.layers) + parts and min(counts) == 96
    assert [(s.layer.name, s.without) for s in others] == [(s.layer.name, s.without) for s in shares]
    counts.clear()
    monkeypatch.setattr(noise, "ALONE", 20 * 192)  # values
    fewer = noise.shares(p, feed)[1]
    assert sorted(counts) == [20] * parts + [96] * (2 + len(p.layers))
    assert [s.without for s in fewer] == [s.without for s in others]
    assert np.allclose(*(np.log([sum(s.alone) for s in part]) for part in (fewer, others)), atol=1)


def test_large_samples_are_run_a_few_at_a_time(place, monkeypatch):
    model, feed = onnx.load(place / "q.onnx"), {"x": np.load(place / "d.npz")["inputs"]}
    whole, sizes, session = noise.outputs(model, feed), [], noise.session

    def counted(model):
        infer = session(model)

        def run(arrays):
            sizes.append(len(arrays["x"]))
            return infer(arrays)

        run.outputs = infer.outputs
        return run

    monkeypatch.setattr(noise, "session", counted)
    monkeypatch.setattr(noise, "VALUES", 10 * 192)
    parts = noise.outputs(model, feed)
    assert sizes == [10] * 9 + [6]
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)


def normal(place):
    from edgekd.quantization.onnx_graph import normalize

    return normalize.normalized(onnx.load(place / "0.onnx"))
