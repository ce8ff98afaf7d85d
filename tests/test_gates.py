"""Channels made equally wide through a hard swish, and ranges without what its hard sigmoid makes 0."""

import math

import numpy as np
import onnx
import pytest
from onnx import helper
from test_foreign import file, numbers
from test_never_slower import fused, optimized

from edgekd.quantization.diagnosis.noise import outputs
from edgekd.quantization.diagnosis.signal_to_noise import noise
from edgekd.quantization.onnx_graph import convert, gates, normalize
from edgekd.quantization.onnx_graph.equalize import equalized, steps
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.compare import compare
from edgekd.quantization.qdq.pairing import pair


def uneven(reader_groups=8, outputs_=8, more=()):
    """Convolution -> hard swish -> convolution, with channels of 1 to 100 between them: (file, samples)."""
    sizes = np.logspace(0, 2, 8).astype(np.float32)
    stored = {
        "w": numbers(8, 4, 1, 1) * sizes.reshape(-1, 1, 1, 1),
        "b": numbers(8, seed=1),
        "v": numbers(outputs_, 8 // reader_groups, 3, 3, seed=2)
        / (sizes.reshape(-1, 1, 1, 1) if reader_groups == 8 else 1),
        "u": numbers(5, outputs_, 1, 1, seed=3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"]),
        helper.make_node("HardSwish", ["a"], ["h"]),
        helper.make_node("Conv", ["h", "v"], ["c"], group=reader_groups, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "u"], ["y"]),
        *more,
    ]
    outs = {"y": ["n", 5, 6, 6]} | {n.output[0]: ["n", 8, 6, 6] for n in more}
    return file(nodes, {"x": ["n", 4, 6, 6]}, outs, stored), {"x": numbers(64, 4, 6, 6, seed=4)}


@pytest.mark.parametrize("groups", [8, 1])
def test_the_network_computes_the_same(groups):
    model, feed = uneven(groups)
    normal = normalize.normalized(model)
    even = equalized(normal, feed)
    assert [bool(s.gate) for s in steps(graphs.of(normal))][:1] == [True] and even != normal
    onnx.checker.check_model(even)
    for ours, plain in zip(outputs(even, feed), outputs(model, feed), strict=True):
        assert np.abs(ours - plain).max() < 1e-5 * np.abs(plain).max()


def test_it_loses_less_in_int8_all_in_integer_kernels_and_as_simulated(tmp_path):
    model, feed = uneven()
    plain = outputs(model, feed)[0]
    before, after = (convert.quantize(model, feed, equalize=e) for e in (False, True))
    lost = [noise(plain, outputs(m.model, feed)[0]) for m in (before, after)]
    assert lost[1] < lost[0] / 4
    path = tmp_path / "int8.onnx"
    onnx.save(after.model, path)
    rows = compare(path, {"x": feed["x"][:4]})
    assert all(r.differ == 0 for r in rows if r.integer)
    kinds = {n.op_type for n in optimized(after.model).graph.node}
    assert fused(after.model) == {"QLinearAdd", "QLinearMul"} and kinds.isdisjoint({"Mul", "HardSigmoid", "Conv"})


def test_the_file_is_compared_layer_by_layer_with_the_float_file_that_was_given():
    """What `explain` reads: the given file has no products before its hard sigmoids."""
    model, feed = uneven()
    made = convert.quantize(model, feed, equalize=True).model
    for plain in (normalize.normalized(model), convert.quantize(model, feed, equalize=True).float_model):
        found = pair(plain, made)
        assert [k.kind for k in found.layers if k.weights and k.kind == "Conv"] == ["Conv"] * 3


def test_a_value_that_something_else_reads_is_left_alone():
    model, feed = uneven(more=[helper.make_node("Neg", ["a"], ["z"])])
    normal = normalize.normalized(model)
    assert not any(s.gate for s in steps(graphs.of(normal)))
    assert gates.of("a", graphs.of(normal)) is None
    assert outputs(equalized(normal, feed), feed)[1] == pytest.approx(outputs(model, feed)[1])


class TestRanges:
    def graph(self, alpha, beta, gated=True):
        nodes = [helper.make_node("HardSigmoid", ["x"], ["h"], alpha=alpha, beta=beta)]
        nodes += [helper.make_node("Mul", ["x", "h"], ["y"])] * gated
        return graphs.of(file(nodes, {"x": ["n", 4]}, {"y" if gated else "h": ["n", 4]}, {}))

    @pytest.mark.parametrize(
        "alpha, beta, gated, wanted",
        [
            (1 / 6, 0.5, True, (-3, 40)),
            (1 / 6, 0.5, False, (-3, 3)),
            (0.2, 0.5, False, (-2.5, 2.5)),
            (0.2, -0.5, True, (-50, 40)),
            (-0.2, 0.5, False, (-50, 40)),
        ],
    )
    def test_end_where_the_answer_is_settled(self, alpha, beta, gated, wanted):
        """By the definition of the operator: all beyond the ends gives what the ends give."""
        graph = self.graph(alpha, beta, gated)
        low, high = gates.alive(graph, {"x": (-50.0, 40.0)})["x"]
        assert (low, high) == pytest.approx(wanted, rel=1e-6)
        x = np.linspace(-50, 40, 4001)
        answer = lambda v: np.clip(alpha * v + beta, 0, 1) * (v if gated else 1)
        assert answer(np.clip(x, low, high)) == pytest.approx(answer(x), abs=1e-4)

    def test_a_range_that_is_narrower_stays(self):
        assert gates.alive(self.graph(1 / 6, 0.5), {"x": (-1.0, 2.0)}) == {"x": (-1.0, 2.0)}

    def test_no_range_of_what_has_no_gate(self):
        graph = graphs.of(file([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, {}))
        assert gates.alive(graph, {"x": (-math.pi, 9.0)}) == {"x": (-math.pi, 9.0)}
