"""The rules of what is quantized, by hand; the same network as a torch graph and as a float ONNX file."""

import math

import numpy as np
import pytest
import torch
from test_foreign import traced
from test_quantization import data
from torch import nn
from torch.nn import functional as F

from edgekd.quantization import placement
from edgekd.quantization.onnx_graph import convert
from edgekd.quantization.parameters import Limits
from edgekd.quantization.placement import COMBINES, CONVOLUTION, FLOAT, LOOKUP, MOVES, PRODUCT, Flow, Operator
from edgekd.quantization.torch_graph.capture import capture
from edgekd.quantization.torch_graph.sites import place

RELU, SIX = (0.0, math.inf), (0.0, 6.0)


def one(output, rule, *operands, result="", **more):
    return Operator((output,), rule, operands[0], operands, result or output, **more)


def flow(*operators, outputs=(), stored=()):
    floats = {"x", *(n for op in operators for n in op.outputs), *stored}
    return Flow(("x",), operators, outputs, floats, set(stored))


def placed(given, trained):
    values, tied = placement.place(given, trained)
    return list(values), tied


class TestRules:
    @pytest.mark.parametrize("trained", [True, False])
    def test_what_layers_read_and_what_convolutions_make(self, trained):
        """After a clip that alone reads it; what is moved goes with its source."""
        given = flow(
            one("a", CONVOLUTION, "x", result="b"),
            one("b", FLOAT, "a", clip=SIX),
            one("c", MOVES, "b"),
            one("d", PRODUCT, "c"),
            one("e", FLOAT, "d"),
            outputs=("e",),
        )
        values, tied = placement.place(given, trained)
        assert tied == {"c": "b"} and values["b"] == Limits(0.0, 6.0)
        assert list(values) == (["x", "b", "d", "e"] if trained else ["x", "b"])
        assert [n for n, limits in values.items() if limits.output] == (["e"] if trained else [])

    def test_a_product_whose_result_floats_alone_read_gives_floats_unless_trained(self):
        given = flow(one("a", PRODUCT, "x"), one("b", FLOAT, "a"))
        assert placed(given, True) == (["x", "a"], {}) and placed(given, False) == (["x"], {})

    @pytest.mark.parametrize("other, integer", [("b", True), ("f", False)])
    def test_a_sum_is_one_of_integers_where_all_its_operands_are(self, other, integer):
        """The sum of a convolution's value and a product's, or a float operator's."""
        given = flow(
            one("a", CONVOLUTION, "x"),
            one("b", PRODUCT, "x"),
            one("f", FLOAT, "x"),
            one("s", COMBINES, "a", other),
        )
        assert placed(given, True)[0] == (["x", "a", "b", "s"] if integer else ["x", "a", "b", "f", "s"])
        assert placed(given, False)[0] == (["x", "a", "b", "s"] if integer else ["x", "a"])

    def test_integers_spread_from_sum_to_sum_and_through_look_ups(self):
        """x sigmoid(x) of a convolution, and what is added to it later; a sum of two floats stays one."""
        given = flow(
            one("a", CONVOLUTION, "x"),
            one("g", LOOKUP, "a"),
            one("h", COMBINES, "a", "g"),
            one("i", COMBINES, "h", "h"),
            one("f", FLOAT, "x"),
            one("j", COMBINES, "f", "f"),
        )
        assert placed(given, False)[0] == ["x", "a", "g", "h", "i"]

    @pytest.mark.parametrize("trained", [True, False])
    def test_the_positive_part_of_a_quantized_value_has_its_parameters(self, trained):
        given = flow(
            one("a", CONVOLUTION, "x"),
            one("m", MOVES, "a"),
            one("r", FLOAT, "m", clip=RELU),
            one("b", CONVOLUTION, "r"),
            one("s", COMBINES, "m", "b"),
        )
        assert placed(given, trained) == (["x", "a", "b", "s"], {"m": "a", "r": "a"})
        six = flow(*(op if op.outputs != ("r",) else one("r", FLOAT, "m", clip=SIX) for op in given.operators))
        assert placed(six, trained)[0] == ["x", "a", "r", "b", "s"]

    def test_what_is_stored_and_what_holds_no_floats_is_not_quantized(self):
        given = flow(one("m", MOVES, "w"), one("a", PRODUCT, "x", "m"), stored=("w",))
        assert placed(given, True) == (["x", "a"], {})
        given = Flow(("i",), (one("a", MOVES, "i"), one("b", PRODUCT, "a")), (), {"b"})
        assert placed(given, True) == (["b"], {})

    def test_a_softmax_has_shares(self):
        given = flow(one("a", FLOAT, "x", share=True), one("b", PRODUCT, "a"))
        assert placement.place(given, False)[0] == {"a": Limits(share=True)}


class Net(nn.Module):
    """Every kind of operator that both graphs know."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.d = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu6(self.a(x)), 2)
        y = F.relu(self.c(self.b(x)) + x)
        return self.d(torch.cat([y, x], 1).mean((2, 3)).flatten(1))


def test_a_network_is_placed_alike_as_torch_graph_and_as_onnx_file():
    """The kinds of operators that make quantized values, in order. Trained, the output is quantized too."""
    torch.manual_seed(0)
    graph = capture(Net(), data((3, 12, 12), 2))
    nodes = {n.name: n for n in graph.graph.nodes}
    ours = [str(getattr(nodes[name].target, "overloadpacket", "input")) for name in place(graph).values]
    ours = [name.removeprefix("aten.") for name in ours]
    model, arrays = traced(Net, 3, 12, 12)
    made = convert.quantize(model, arrays)
    kinds = {n.output[0]: n.op_type for n in made.float_model.graph.node}
    theirs = [kinds.get(name, "input") for name in made.placement.values]
    assert ours == ["input", "relu6", "conv2d", "conv2d", "relu", "cat", "mean", "linear"]
    assert theirs == ["input", "Clip", "Conv", "Conv", "Relu", "Concat", "GlobalAveragePool"]


def test_differences_of_kinds_are_those_that_are_named():
    """A transposed convolution, a mean over tokens and a clip without zero: quantized in torch graphs alone."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.out, self.head = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.out(F.relu6(self.up(x))).clamp(0.2, 0.4)
            return self.head(x.flatten(2).mean(2))

    torch.manual_seed(0)
    graph = capture(Odd(), data((3, 4, 4), 2))
    found = place(graph)
    assert [n.split("_")[0] for n in found.values] == ["x", "relu6", "clamp", "mean", "linear"]
    assert set(found.weights) == {"up__weight", "out__weight", "head__weight"}
    model, arrays = traced(Odd, 3, 4, 4)
    made = convert.quantize(model, arrays)
    kinds = {n.output[0]: n.op_type for n in made.float_model.graph.node}
    assert [kinds.get(name, "input") for name in made.placement.values] == ["Clip", "Conv", "ReduceMean"]
    assert [k.kind for k in made.placement.layers if k.reason] == ["ConvTranspose"]
    assert np.isfinite([s for site in made.grid.sites.values() for s in site.scale]).all()
