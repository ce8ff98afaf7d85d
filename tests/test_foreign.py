"""Float ONNX files of any making become int8 files that agree with them, whose integer operators compute what the file
says."""

import io
import warnings
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from edgekd import components, targets
from edgekd.cli import run as command
from edgekd.errors import RunFailed
from edgekd.formats.onnx import float_kernels
from edgekd.quantization.histogram import Histogram
from edgekd.quantization.onnx_graph import convert, normalize, scales
from edgekd.quantization.onnx_graph.placement import Layer
from edgekd.quantization.parameters import scale_and_zero_point
from edgekd.quantization.qdq import simulate
from edgekd.quantization.torch_graph import modules
from edgekd.records import Scheme
from edgekd.samples.rows import of
from edgekd.verbs import quantize

ROWS = 48


def numbers(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def file(nodes, inputs, outputs, stored, opset=17, ir=8, old=False):
    """A model by hand: inputs {name: shape}, outputs {name: rank or shape}, stored {name: array}."""
    value = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
    listed = [value(n, s) for n, s in inputs.items()] + [value(n, list(a.shape)) for n, a in stored.items() if old]
    initializers = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    graph = helper.make_graph(nodes, "g", listed, [value(n, s) for n, s in outputs.items()], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(model, full_check=True)
    return model


def stir(module, seed=0):
    """Weights and batch statistics of a net that could have been trained."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.2)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def traced(make, *shape, opset=13, fixed=False):
    torch.manual_seed(0)
    module, example, buffer = stir(make()), torch.randn(2, *shape), io.BytesIO()
    axes = {} if fixed else {"x": {0: "n"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        torch.onnx.export(module, (example,), buffer, dynamo=False, opset_version=opset, **names)
    return onnx.load_model_from_string(buffer.getvalue()), {"x": numbers(ROWS, *shape)}


def block(i, o, groups=1, stride=1, act=nn.ReLU6):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(o), act())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (
            block(3, 16, act=nn.ReLU),
            block(16, 16, 4, act=nn.ReLU),
            block(16, 16, 2, act=nn.Identity),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        x = F.relu(x + self.b(self.a(x)))
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Squeeze(nn.Module):
    """Gates by sigmoids, SiLU and hard swish, as in mobile nets."""

    def __init__(self):
        super().__init__()
        self.a, self.b = block(3, 8, act=nn.SiLU), block(8, 8, 8, act=nn.Hardswish)
        self.down, self.up, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.out(x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))))


class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up, self.out = block(3, 12, stride=2), nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(20, 2, 1)

    def forward(self, x):
        low = self.down(x)
        return self.out(torch.cat([self.up(low), F.interpolate(low, scale_factor=2.0)], 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = nn.LayerNorm(24), nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.f1, self.f2, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 4)

    def forward(self, x):
        q, k, v = (t.reshape(-1, 6, 2, 12).transpose(1, 2) for t in self.qkv(self.n1(x)).chunk(3, -1))
        shares = torch.softmax(q @ k.transpose(-1, -2) / 12**0.5, -1)
        x = x + self.o((shares @ v).transpose(1, 2).reshape(-1, 6, 24))
        return self.head((x + self.f2(F.gelu(self.f1(self.n2(x))))).mean(1))


def modern():
    """The same block as torch's newer exporter writes it."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n", min=1)},)
        program = torch.onnx.export(
            Attention().eval(),
            (torch.randn(2, 6, 24),),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["x"],
            external_data=False,
            verbose=False,
        )
    return program.model_proto, {"x": numbers(ROWS, 6, 24)}


def gemms():
    """Gemm with its factors, transB 0 and 1, a bias of one row; a MatMul whose bias comes first in the Add."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], alpha=0.5, beta=2.0, transB=1),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["c"]),
        helper.make_node("MatMul", ["c", "w3"], ["d"]),
        helper.make_node("Add", ["b3", "d"], ["y"]),
    ]
    stored = {
        "w1": numbers(16, 12),
        "b1": numbers(16, seed=1),
        "w2": numbers(16, 8, seed=2),
        "b2": numbers(1, 8, seed=3),
    }
    return file(nodes, {"x": ["n", 12]}, {"y": ["n", 6]}, stored | {"w3": numbers(8, 6), "b3": numbers(6)}), {
        "x": numbers(ROWS, 12)
    }


def tokens(open_dims):
    """MatMul and Add over [n, t, features]: as rows where one dimension is open, as they are where two are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
    ]
    nodes.append(helper.make_node("MatMul", ["c", "w2"], ["y"]))
    stored = {"w1": numbers(8, 16), "b1": numbers(16), "w2": numbers(16, 4)}
    t = "t" if open_dims == 2 else 5
    return file(nodes, {"x": ["n", t, 8]}, {"y": ["n", t, 4]}, stored), {"x": numbers(ROWS, 5, 8)}


def shared():
    """One kernel read by two convolutions, one matrix along two axes; a branch that is added to itself and joined with
    itself; an old file whose weights are inputs; a layer's value that is also an output."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "k"], ["b"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Add", ["b", "b"], ["c"]),
        helper.make_node("Concat", ["c", "c", "b"], ["d"], axis=1),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "m"], ["h"]),
        helper.make_node("Gemm", ["h", "m"], ["y"], transB=1),
    ]
    stored = {"k": numbers(4, 4, 3, 3, scale=0.3), "m": numbers(12, 12, seed=2)}
    outputs = {"y": ["n", 12], "a": ["n", 4, 7, 7]}
    return file(nodes, {"x": ["n", 4, 7, 7]}, outputs, stored, opset=11, ir=3, old=True), {"x": numbers(ROWS, 4, 7, 7)}


def odd(drowned=False):
    """Dead channels, weights of 1e-6 and 1e6 side by side, a bias that its scale can't hold, inputs in the thousands, a
    batch of three; `drowned`: one channel a thousand times larger than the others, which matter as much."""
    w1, w2 = numbers(8, 3, 3, 3), numbers(8, 8, 1, 1, seed=1, scale=0.1)
    w1[2], w1[3], w2[5], w2[6] = 0, w1[3] * 1e-6, 0, w2[6] * (1 if drowned else 1e6)
    b1 = numbers(8, scale=100)
    b1[3] = 2e4
    if drowned:
        w1[4], w2[:, 4] = w1[4] * 1e3, w2[:, 4] * 1e-3
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    return file(nodes, {"x": [3, 3, 6, 6]}, {"y": [3, 8, 4, 4]}, {"w1": w1, "b1": b1, "w2": w2}), {
        "x": numbers(ROWS, 3, 6, 6, scale=3e3)
    }


def moved():
    """Values that are padded, cut, split, turned, picked and clipped between integer operators; limits that hold no
    zero."""
    stored = {"w": numbers(8, 3, 3, 3), "v": numbers(4, 4, 1, 1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    stored |= {
        "i": np.array([1, 0, 3, 2]),
        "sizes": np.array([4, 4]),
        "low": np.array(0.5, np.float32),
        "high": np.array(1.5, np.float32),
        "minus": np.array(-1, np.float32),
    }
    stored |= {"s": np.array([1]), "e": np.array([6]), "ax": np.array([2])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Clip", ["a", "minus", "high"], ["b"]),
        helper.make_node("Pad", ["b", "pads"], ["c"]),
        helper.make_node("Split", ["c", "sizes"], ["d", "e1"], axis=1),
        helper.make_node("Gather", ["d", "i"], ["f"], axis=1),
        helper.make_node("Conv", ["f", "v"], ["g"]),
        helper.make_node("Clip", ["g", "low", "high"], ["h"]),
        helper.make_node("Slice", ["e1", "s", "e", "ax"], ["j"]),
        helper.make_node("Transpose", ["j"], ["k"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["k", "v"], ["l"]),
        helper.make_node("ReduceMean", ["l"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMax", ["h"], ["o"], axes=[2, 3], keepdims=0),
        helper.make_node("Sub", ["m", "o"], ["y"]),
    ]
    return file(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4]}, stored, opset=13), {"x": numbers(ROWS, 3, 8, 8)}


def mobile():
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    return nn.Sequential(block(3, 16, stride=2), block(16, 16, 16), nn.Conv2d(16, 24, 1), *tail)


# {name: (what makes it, least dB: 3 below what was measured, of random networks whose outputs vary little; layers that
# stay float)}
CASES = {
    "mobile": (lambda: traced(mobile, 3, 12, 12, opset=11), 13, 0),
    "fixed": (lambda: traced(mobile, 3, 12, 12, fixed=True), 13, 0),
    "residual": (lambda: traced(Residual, 3, 12, 12), 19, 0),
    "squeeze": (lambda: traced(Squeeze, 3, 8, 8), 24, 0),
    "up": (lambda: traced(Up, 3, 8, 8), 28, 1),
    "attention": (lambda: traced(Attention, 6, 24, opset=17), 33, 0),
    "modern": (modern, 33, 0),
    "gemms": (gemms, 28, 0),
    "tokens": (lambda: tokens(1), 31, 0),
    "open tokens": (lambda: tokens(2), 31, 0),
    "shared": (shared, 24, 0),
    "odd": (odd, -5, 0),
    "moved": (moved, 25, 0),
}
SATURATES = targets.saturates(targets.load("host"))


def given(folder, model, arrays):
    onnx.save(model, folder / "float.onnx")
    np.savez(folder / "data.npz", **arrays)
    return {"model": folder / "float.onnx", "data": folder / "data.npz", "out": folder / "int8.onnx"}


def answers(path, arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    parts = [session.run(None, feed) for feed in of(arrays).batches(size if isinstance(size, int) else ROWS)]
    return [np.concatenate(p) for p in zip(*parts, strict=True)]


def decibels(wanted, made):
    """Signal, less its mean over the samples, to noise: the mean of what samples have, none weaker than the median."""
    power = lambda values: (values.astype(float) ** 2).reshape(len(values), -1).mean(1)
    signal = power(wanted - wanted.mean(0))
    return -10 * np.log10(max((power(wanted - made) / np.maximum(signal, np.median(signal))).mean(), 1e-20))


@pytest.mark.parametrize("name", CASES)
def test_int8_agrees_with_float(name, tmp_path):
    (model, arrays), least, left = (CASES[name][0](), *CASES[name][1:])
    paths = given(tmp_path, model, arrays)
    wanted = answers(paths["model"], arrays)
    for bits, full in ((7, False), (8, False), *([] if SATURATES else [(8, True)])):
        made = quantize.quantize(**paths, weight_bits=bits, full_range=full)
        onnx.checker.check_model(onnx.load(paths["out"]), full_check=True)
        quiet = all(a.snr_db >= 20 for a in made.agreements)
        told = [note for note in made.notes if "samples are taken along" not in note]
        assert made.differ == 0 and made.audited and len(told) == (not quiet)
        assert sum(bool(r.reason) for r in made.layers) == left == len(float_kernels(paths["out"]))
        outputs = {
            o.name: pair for o, *pair in zip(model.graph.output, wanted, answers(paths["out"], arrays), strict=True)
        }
        assert outputs.keys() == {a.output for a in made.agreements}
        for agreement in made.agreements:
            ends = [part.split("-") for part in agreement.channels.split(", ") if part]
            mine = [c for end in ends for c in range(int(end[0]), int(end[-1]) + 1)] or slice(None)
            found = decibels(*(x[:, mine] for x in outputs[agreement.output]))
            assert found >= least and agreement.snr_db == pytest.approx(found, abs=0.01)
        assert all(r.after < r.before for r in made.layers if not r.reason and r.before)
        assert any(r.can_saturate for r in made.layers) == full
        assert (made.before, made.after) == (paths["model"].stat().st_size, paths["out"].stat().st_size)


@pytest.mark.parametrize("name", CASES)
def test_one_file_for_every_cpu(name, tmp_path):
    """By default no layer can leave 16 bits, whatever comes, and less is lost than with 7 bits for all; which target
    asks makes no difference."""
    paths, files = given(tmp_path, *CASES[name][0]()), []
    for target in ("host", "x86-64-avx2"):
        made = quantize.quantize(**paths, target=target)
        files.append(paths["out"].read_bytes())
    assert files[0] == files[1]
    assert (
        made.differ == 0
        and made.audited
        and not any(r.can_saturate for r in made.layers)
        and "no layer saturates" in str(made)
    )
    assert made.weight_bits == 8 and made.agreements[0].snr_db >= CASES[name][1]


def test_wide_files_get_nearly_four_times_smaller(tmp_path):
    made = quantize.quantize(
        **given(tmp_path, *traced(lambda: nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)), 256))
    )
    assert made.before / made.after > 3.7 and f"({made.before / made.after:.2f}x smaller)" in str(made)


def test_as_good_as_onnxruntimes_own_quantization(tmp_path):
    from onnxruntime import quantization as theirs

    model, arrays = CASES["residual"][0]()
    paths = given(tmp_path, model, arrays)

    class Reader(theirs.CalibrationDataReader):
        feeds = iter([arrays])

        def get_next(self):
            return next(self.feeds, None)

    kinds = {
        "activation_type": theirs.QuantType.QUInt8,
        "weight_type": theirs.QuantType.QInt8,
        "reduce_range": True,
        "per_channel": True,
    }
    theirs.quantize_static(paths["model"], tmp_path / "theirs.onnx", Reader(), **kinds)
    quantize.quantize(**paths, weight_bits=7)
    wanted, ours, other = (answers(p, arrays)[0] for p in (paths["model"], paths["out"], tmp_path / "theirs.onnx"))
    assert decibels(wanted, ours) >= decibels(wanted, other) - 0.5


def test_numbers_by_hand(tmp_path):
    """x in [-1, 1.55] has scale 0.01 and zero point 100; rows of weights reach 1.27 and 2.54; biases are in steps of
    0.01 * 0.01 and 0.01 * 0.02."""
    w, b = np.array([[1.27, -0.5], [2.54, 1.0], [0, 0]], np.float32), np.array([0.5, -0.3, 1e4], np.float32)
    model = file(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"x": ["n", 2]}, {"y": ["n", 3]}, {"w": w, "b": b}
    )
    made = convert.quantize(model, {"x": np.array([[-1, 0], [1.55, 1]], np.float32)}, scheme=Scheme(pairs16=False))
    sites = made.grid.sites
    assert sites["x"].zero_point == 100 and sites["x"].scale[0] == pytest.approx(0.01)
    # the dead row takes the widest of the others, and then what its bias needs: 1e4 / (0.01 * 2^30)
    assert (
        sites["w"].scale == pytest.approx((0.01, 0.02, 1e6 / 2**30 if 1e6 / 2**30 > 0.02 else 0.02))
        and sites["w"].axis == 0
    )
    stored = {i.name: numpy_helper.to_array(i) for i in made.model.graph.initializer}
    assert stored["w.q"].tolist() == [[127, -50], [127, 50], [0, 0]]
    assert stored["y.bias.q"].tolist() == [5000, -1500, pytest.approx(1e4 / (0.01 * 0.02))]


def test_pairs_by_hand():
    """Neighbours of one sign add up, of two signs the greater counts; a kernel's positions come before its channels."""
    gemm = Layer("y", "y", "Gemm", axis=0)
    w = np.array([[100, 26, 0], [100, -26, 1], [-1, -2, -126]], np.float32)
    assert scales.within_pairs(w, gemm).tolist() == pytest.approx([1, 100 / 126, 1])
    assert scales.within_pairs(w.T.copy(), replace(gemm, axis=1)).tolist() == scales.within_pairs(w, gemm).tolist()
    # one output, two channels, two positions: pairs (1, 4) and (2, 8)
    kernel = np.array([[[[1, 2]], [[4, 8]]]], np.float32)
    assert scales.within_pairs(kernel, replace(gemm, kind="Conv")).tolist() == pytest.approx([10 / 126])
    w = numbers(7, 9)
    assert np.allclose(scales.within_pairs(w, gemm), modules.pairs(torch.tensor(w)).amax(1).numpy() / 126)


def placed(model, arrays):
    return convert.quantize(model, arrays)


def test_what_float_operators_alone_read_is_not_rounded():
    made = placed(*CASES["attention"][0]())
    reads = {k.label: k.x for k in made.placement.layers}
    outputs = {k.name for k in made.placement.layers}
    # the residual stream
    assert made.placement.values.keys().isdisjoint(
        n.output[0] for n in made.float_model.graph.node if n.op_type == "Add"
    )
    assert "y" not in made.placement.values and len(reads) == 7 and outputs
    shares = [name for name, limits in made.placement.values.items() if limits.share]
    assert len(shares) == 1 and made.grid.sites[shares[0]].scale == (1 / 256,)


def test_sums_of_what_has_grids_are_integers():
    made = placed(*CASES["residual"][0]())
    values, nodes = made.placement.values, made.float_model.graph.node
    (add,) = [n for n in nodes if n.op_type == "Add"]
    clip = next(n for n in nodes if n.input[0] == add.output[0])
    assert add.output[0] not in values and clip.output[0] in values  # the Relu's grid cuts by itself
    assert sum(n.op_type == "Relu" for n in made.model.graph.node) == 0
    pool = next(n for n in nodes if n.op_type == "MaxPool")
    assert made.placement.tied[pool.output[0]] == pool.input[0]


def test_products_of_activations_are_integers():
    """Of SiLU, of hard swish and of the gate behind it both operands have grids."""
    made = placed(*CASES["squeeze"][0]())
    integer = [
        n.op_type == "Mul" and all(i in made.placement.values for i in n.input) for n in made.float_model.graph.node
    ]
    assert sum(n.op_type == "Mul" for n in made.float_model.graph.node) == sum(integer) == 3
    assert all(n.output[0] in made.placement.values for n in made.float_model.graph.node if n.op_type == "HardSigmoid")


def test_a_branch_before_a_clip_has_its_own_grid():
    """a = conv(x); y = a + conv(relu(a)): the sum reads a itself, negative numbers too."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    model, x = (
        file(nodes, {"x": ["n", 4, 5, 5]}, {"y": ["n", 4, 5, 5]}, {"w": numbers(4, 4, 1, 1)}),
        numbers(ROWS, 4, 5, 5),
    )
    made = placed(model, {"x": x})
    assert list(made.placement.values) == ["x", "a", "c", "y"] and made.placement.tied == {"b": "a"}
    assert made.grid.sites["a"].zero_point > 50


def test_limits_without_zero_keep_their_layer_and_their_clip():
    made = placed(*moved())
    assert {"g", "b"} <= made.placement.values.keys() and "h" not in made.placement.values
    kinds = [n.op_type for n in made.model.graph.node]
    assert kinds.count("Clip") == 1


def test_channels_that_are_drowned_are_told(tmp_path, capsys):
    paths = given(tmp_path, *odd(drowned=True))
    assert (
        command(
            [
                "quantize",
                str(paths["model"]),
                "--data",
                str(paths["data"]),
                "--out",
                str(paths["out"]),
                "--weight-bits",
                "7",
                "--quiet",
            ]
        )
        == 0
    )
    assert "less than 20 dB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_by_name(name):
    """The grid of an input with an outlier is that which the part itself gives of a histogram of it, in one
    piece."""
    model, x = gemms()[0], numbers(2000, 12)
    x[0, 0] = 500
    whole = Histogram()
    whole.add(x)
    site = convert.quantize(model, {"x": x}, ranges=name).grid.sites["x"]
    assert site.scale[0] == pytest.approx(
        scale_and_zero_point(*components.find("ranges", name)(whole), 255)[0], rel=0.02
    )
    assert (site.scale[0] < 1) == (name in ("percentile", "entropy"))


def test_extremes_need_no_histogram(monkeypatch):
    model, arrays = gemms()
    grid = convert.quantize(model, arrays, ranges="minmax").grid
    monkeypatch.setattr(Histogram, "add", None)
    assert convert.quantize(model, arrays, ranges="minmax").grid == grid


def test_folding_may_round_as_float32_does():
    """A batch norm takes off 500 of what a convolution makes: float32 is 3e-5 off, which is nothing to int8."""
    stored = {"w": numbers(8, 3, 3, 3) + 4, "s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    stored |= {"m": 108 * stored["w"].mean((1, 2, 3)), "v": np.ones(8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    model = file(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 8, 6, 6]}, stored)
    x = 4 + numbers(ROWS, 3, 8, 8, scale=0.01)
    made = convert.quantize(model, {"x": x})
    assert [known.kind for known in made.placement.layers if not known.reason] == ["Conv"]


def test_a_subgraph_keeps_what_it_reads(tmp_path):
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    yes = helper.make_graph([helper.make_node("Relu", ["a"], ["t"])], "yes", [], [value("t")])
    no = helper.make_graph([helper.make_node("MatMul", ["a", "w2"], ["e"])], "no", [], [value("e")])
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "three"], ["g"]),
        helper.make_node("If", ["g"], ["i"], then_branch=yes, else_branch=no),
        helper.make_node("Add", ["i", "b"], ["y"]),
    ]
    stored = {"w": numbers(8, 8), "w2": numbers(8, 8, seed=1), "three": np.array(3, np.float32)}
    made = quantize.quantize(
        **given(tmp_path, file(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, stored), {"x": numbers(ROWS, 8)}), weight_bits=7
    )
    assert made.agreements[0].snr_db > 30 and made.differ == 0 and "not compared" not in str(made)


def test_a_gemm_with_a_bias_per_row_stays_float_with_its_factor():
    """alpha goes into the weights only where the layer can be quantized: else it would count twice."""
    stored = {"w": numbers(6, 4), "b": numbers(ROWS, 1), "v": numbers(4, 3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], alpha=0.5),
        helper.make_node("Gemm", ["a", "v"], ["y"]),
    ]
    model = file(nodes, {"x": [ROWS, 6]}, {"y": [ROWS, 3]}, stored)
    made = convert.quantize(model, {"x": numbers(ROWS, 6)})
    assert [(k.label, k.reason) for k in made.placement.layers] == [
        ("a", "its input is transposed or scaled"),
        ("y", ""),
    ]


# ---------------------------------------------------------------- as a command


def say(capsys, *arguments):
    code = command(["quantize", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_print(tmp_path, capsys):
    model, arrays = CASES["up"][0]()
    paths = given(tmp_path, model, arrays)
    code, out, _ = say(
        capsys,
        paths["model"],
        "--data",
        paths["data"],
        "--out",
        paths["out"],
        "--quiet",
        "--samples",
        40,
        "--weight-bits",
        "7",
    )
    assert (
        code == 0
        and "2 of 3 layers in int8" in out
        and "onnxruntime has no integer kernel for ConvTranspose" in out
        and "40 calibration samples" in out
    )
    assert "0 values differ" in out and "no layer saturates" in out and list(tmp_path.glob(".*")) == []
    np.savez(tmp_path / "labelled.npz", inputs=numbers(ROWS, 12), labels=np.zeros(ROWS, np.int64))
    onnx.save(gemms()[0], paths["model"])
    line = (paths["model"], "--data", tmp_path / "labelled.npz", "--out", paths["out"], "--quiet", "--weight-bits", 8)
    code, out, _ = say(capsys, *line)
    zeros = float((answers(paths["model"], {"x": numbers(ROWS, 12)})[0].argmax(1) == 0).mean())
    assert code == 0 and f"top1: {100 * zeros:.2f} % float" in out
    assert "no layer saturates" in out
    code, out, error = say(capsys, *line, "--full-range")
    assert ("without --full-range the file is exact on every CPU" in out) == (not SATURATES) and code == 2 * SATURATES
    paths["out"].unlink(missing_ok=True)
    code, out, error = say(capsys, *line, "--full-range", "--target", "x86-64-avx2")
    assert code == 2 and error.startswith("error: --full-range: x86-64-avx2 adds") and not paths["out"].exists()
    code, out, error = say(capsys, *line[:-1], 7, "--full-range", "--target", "x86-64-avx2")
    assert code == 0 and "no layer saturates" in out


def test_what_asked_for_the_full_range_is_said(tmp_path):
    (tmp_path / "wide.toml").write_text('title = "w"\narchitecture = "aarch64"\n[int8]\npairs16 = false\n')
    paths = given(tmp_path, *gemms())
    for more, told in (({}, ""), ({"full_range": True}, "--full-range and ")):
        made = str(quantize.quantize(**paths, target=str(tmp_path / "wide.toml"), **more))
        assert (
            f"can saturate; without {told}pairs16 = false in {tmp_path / 'wide.toml'} the file is exact on every CPU"
            in made
        )


def test_few_samples_work_and_are_told(tmp_path, capsys):
    model, arrays = gemms()
    paths = given(tmp_path, model, {"x": arrays["x"][:1]})
    code, out, _ = say(capsys, paths["model"], "--data", paths["data"], "--out", paths["out"], "--quiet")
    assert code == 0 and "calibrated on 1 sample only" in out


def test_all_problems_at_once(tmp_path, capsys):
    model, arrays = gemms()
    x = arrays["x"].copy()
    x[3, 2] = np.nan
    paths = given(tmp_path, model, {"x": x, "z": x})
    wrong = ("--target", "host2", "--ranges", "minmaxx", "--samples", 0)
    code, out, err = say(
        capsys, paths["model"], "--data", paths["data"], "--out", tmp_path / "no" / "int8.onnx", *wrong
    )
    assert code == 2 and not out and "6 problems" in err and err.count("hint:") == 6
    for part in (
        "in 1 of 48 samples",
        "z is not an input",
        "host2",
        "did you mean `minmax`",
        "there is no folder",
        "0 is not a number of samples",
    ):
        assert part in err


@pytest.mark.parametrize(
    "arrays, part",
    [
        ({"x": numbers(4, 5)}, "samples of shape [5], the model takes [n, 12]"),
        ({"z": numbers(4, 12)}, "has no array for the input x"),
        ({"x": np.zeros((4, 12), "U3")}, "the model takes float32"),
        ({"labels": np.zeros(4)}, "has no `inputs`"),
    ],
)
def test_wrong_data(arrays, part, tmp_path, capsys):
    paths = given(tmp_path, gemms()[0], arrays)
    code, _, err = say(capsys, paths["model"], "--data", paths["data"], "--out", paths["out"])
    assert code == 2 and part in err and not paths["out"].exists()


def wrong_files():
    x, y, w = {"x": ["n", 8]}, {"y": ["n", 8]}, numbers(8, 8)
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"])
    infinite = w.copy()
    infinite[0, 0] = np.inf
    exploding = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["y"]),
    ]
    quantized = convert.quantize(file([gemm], x, y, {"w": w}), {"x": numbers(ROWS, 8)}).model
    return {
        "is quantized already": quantized,
        "no layer can be quantized": file([helper.make_node("Relu", ["x"], ["y"])], x, y, {}),
        "the weight w holds numbers that are not finite": file([gemm], x, y, {"w": infinite}),
        "numbers are not finite in calibration": file(exploding, x, y, {"w": w * 100}),
    }


@pytest.mark.parametrize(
    "part", ["is quantized", "no layer can", "the weight w holds", "are not finite in calibration"]
)
def test_wrong_files(part, tmp_path, capsys):
    model = next(m for name, m in wrong_files().items() if part in name)
    paths = given(tmp_path, model, {"x": numbers(ROWS, 8)})
    code, _, err = say(capsys, paths["model"], "--data", paths["data"], "--out", paths["out"])
    assert code == 2 and part in err and "hint:" in err and not paths["out"].exists()


def broken_files():
    """{what is said: (file, samples)} of files that are in order on paper, and can't be run."""
    x, y = {"x": ["n", 4]}, {"y": ["n", 4]}
    crash = file(
        [helper.make_node("Identity", ["x"], ["y"])], {"x": ["n", 4, 4]}, {"y": ["n", 4, 4]}, {"w": numbers(4, 12)}
    )
    crash.graph.node[0].CopyFrom(helper.make_node("Attention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=1))
    crash.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    huge = [
        helper.make_node("ConstantOfShape", ["s"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return {
        "does not run in onnxruntime: the process was killed": (crash, numbers(ROWS, 4, 4)),
        "does not run in onnxruntime: Fail": (file(huge, x, y, {"s": np.array([2**44], np.int64)}), numbers(ROWS, 4)),
        "a model that takes no input": (
            file([helper.make_node("Relu", ["w"], ["y"])], {}, {"y": [2, 4]}, {"w": numbers(2, 4)}),
            numbers(ROWS, 4),
        ),
        "output y: holds no row": (
            file([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], x, {"y": []}, {}),
            numbers(ROWS, 4),
        ),
        "can't run it on the samples": (
            file([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n"]}, {"y": []}, {"w": numbers(1)}),
            numbers(ROWS),
        ),
    }


@pytest.mark.parametrize("said", broken_files())
def test_files_that_can_not_be_run_take_nothing_with_them(said, tmp_path, capsys):
    model, samples = broken_files()[said]
    paths = given(tmp_path, model, {"x": samples})
    np.savez(paths["data"], inputs=samples)
    code, _, err = say(capsys, paths["model"], "--data", paths["data"], "--out", paths["out"], "--quiet")
    assert code == 2 and "internal" not in err and not paths["out"].exists()
    one = [numpy_helper.from_array(np.float32([1]), "one"), numpy_helper.from_array(np.float32(1), "step")]
    both = [
        helper.make_node("QuantizeLinear", ["one", "step"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step"], ["dq"]),
    ]
    model.graph.initializer.extend(one)
    model.graph.node.extend(both)  # int8 in form
    onnx.save(model, tmp_path / "int8.onnx")
    words = ["explain", str(tmp_path / "int8.onnx"), "--float", str(paths["model"]), "--data", str(paths["data"])]
    assert command([*words, "--quiet"]) == 2
    assert said in capsys.readouterr().err


def test_the_model_itself_is_not_replaced(tmp_path, capsys):
    paths = given(tmp_path, *gemms())
    before = paths["model"].read_bytes()
    code, _, err = say(capsys, paths["model"], "--data", paths["data"], "--out", paths["model"])
    assert code == 2 and "is the model itself" in err and paths["model"].read_bytes() == before
    assert "is a folder" in say(capsys, paths["model"], "--data", paths["data"], "--out", tmp_path)[2]
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 99)
    assert say(capsys, tmp_path / "junk.onnx", "--data", paths["data"], "--out", paths["out"])[0] == 2


def test_an_integer_operator_that_differs_refuses_the_file(tmp_path, monkeypatch):
    paths = given(tmp_path, *gemms())
    honest = simulate.KERNELS["Gemm"]
    monkeypatch.setitem(simulate.KERNELS, "Gemm", lambda *given: honest(*given) ^ 1)
    with pytest.raises(RunFailed, match="does not compute these integer operators as the file says: Gemm"):
        quantize.quantize(**paths, weight_bits=7)
    assert not paths["out"].exists()


# ---------------------------------------------------------------- the normal form


@pytest.mark.parametrize("name", CASES)
def test_the_normal_form_computes_the_same(name, tmp_path):
    model, arrays = CASES[name][0]()
    made = normalize.normalized(model)
    onnx.checker.check_model(made, full_check=True)
    paths = given(tmp_path, model, arrays), tmp_path / "normal.onnx"
    onnx.save(made, paths[1])
    for a, b in zip(answers(paths[0]["model"], arrays), answers(paths[1], arrays), strict=True):
        assert decibels(a, b) > 110
    kinds = {n.op_type for n in made.graph.node}
    assert (
        "BatchNormalization" not in kinds
        and "Constant" not in kinds
        and next(o.version for o in made.opset_import) >= 13
    )


def test_padding_in_numbers(tmp_path):
    """All sizes from 5 to 9 with kernels and strides, against onnxruntime's own auto_pad."""
    for size, kernel, stride, kind in [(5, 3, 2, "UPPER"), (6, 3, 2, "LOWER"), (7, 2, 2, "LOWER"), (9, 4, 3, "UPPER")]:
        given = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "auto_pad": f"SAME_{kind}"}
        node = helper.make_node("Conv", ["x", "w"], ["y"], **given)
        model = file(
            [node], {"x": ["n", 2, size, size]}, {"y": ["n", 3, "h", "w"]}, {"w": numbers(3, 2, kernel, kernel)}
        )
        made = normalize.normalized(model)
        assert not any(a.name == "auto_pad" for a in made.graph.node[0].attribute)
        for part, name in ((model, "a.onnx"), (made, "b.onnx")):
            onnx.save(part, tmp_path / name)
        x = {"x": numbers(2, 2, size, size)}
        assert np.allclose(*(answers(tmp_path / n, x)[0] for n in ("a.onnx", "b.onnx")), atol=1e-5)


def test_no_torch_is_needed(tmp_path):
    import subprocess
    import sys

    paths = given(tmp_path, *gemms())
    call = "quantize(sys.argv[1], data=sys.argv[2], out=sys.argv[3])"
    script = f"import sys; from edgekd.verbs.quantize import quantize; {call}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, *map(str, paths.values())], check=True)


def test_a_table_that_a_subgraph_reads_stays_as_it_is(tmp_path):
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("Gather", ["table", "ids"], [name])], name, [], [value(name)])
        for name in ("yes", "no")
    ]
    stored = {"table": numbers(600, 8), "w": numbers(8, 3, seed=3)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
        helper.make_node("ReduceMax", ["y"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "m"], ["g"]),
        helper.make_node("If", ["g"], ["z"], then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 3]), value("z")],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = convert.quantize(model, {"ids": np.random.default_rng(0).integers(0, 600, (64, 5))})
    assert made.tables == () and "table" in {i.name for i in made.model.graph.initializer}


def test_a_table_that_is_looked_up_is_stored_as_integers(tmp_path):
    """By hand: column c of the table is q * max|column| / 127. A small one stays."""
    table, small = numbers(600, 8), numbers(20, 8, seed=1)
    stored = {"table": table, "small": small, "w": numbers(8, 3, seed=3)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Gather", ["small", "few"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    whole = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", 5]) for n in ("ids", "few")]
    initializers = [numpy_helper.from_array(a, n) for n, a in stored.items()]
    graph = helper.make_graph(
        nodes, "g", whole, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 3])], initializers
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", ids=rng.integers(0, 600, (64, 5)), few=rng.integers(0, 20, (64, 5)))
    made = quantize.quantize(tmp_path / "m.onnx", data=tmp_path / "d.npz", out=tmp_path / "q.onnx")
    row = next(r for r in made.layers if r.kind == "table")
    assert (row.name, row.before, row.after) == ("table", 4 * 4800, 4800 + 5 * 8)
    kept = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "q.onnx").graph.initializer}
    scale = np.abs(table).max(0) / np.float32(127)
    assert np.array_equal(kept["table.q"], np.round(table / scale).astype(np.int8)) and np.allclose(
        kept["table.s"], scale, rtol=1e-6
    )
    assert "table" not in kept and kept["small"].dtype == np.float32
