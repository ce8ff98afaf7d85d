"""ONNX files of anybody's making: shapes against onnxruntime's own, products counted by hand, weights in second files,
hostile ones among them, and files of other formats."""

import logging
import os
import struct
import warnings
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from torch import nn
from torch.nn import functional as F

from edgekd.delivery import bundle
from edgekd.errors import UsageError
from edgekd.files import sha256
from edgekd.measure import folders
from edgekd.onnx_files import external
from edgekd.probes import Subject, measure, static
from edgekd.quantization.qdq.values import session
from edgekd.run import evidence

IMAGE, SEQUENCE = (2, 3, 16, 16), (2, 5, 4)


class Shuffled(nn.Module):
    """Channels are split, and shuffled by views of sizes that come from the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        x = torch.cat([a, self.second(b)], 1)
        n, c, height, width = x.shape
        return x.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)


class Tokens(nn.Module):
    """Patches, queries, keys and values of one product, windows as attention sees them."""

    def __init__(self):
        super().__init__()
        self.patch, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, tokens, c = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        return self.out((q @ k.transpose(-2, -1) @ v).transpose(1, 2).reshape(n, tokens, c))


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(3, 6)

    def forward(self, x):
        n, c, height, width = x.shape
        x = x.view(n, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        return self.qkv(x).view(n, height // 4, width // 4, 16, 6).mean((1, 2))


class Unfolded(nn.Module):
    def forward(self, x):
        return F.unfold(x, 3, stride=2).transpose(1, 2) @ torch.ones(27, 5)


class Head(nn.Module):
    """Boxes on grids of two sizes, as detectors have them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        found = []
        for y in (a, b, F.interpolate(b, scale_factor=2)):
            n, _, height, width = y.shape
            y = y.reshape(n, 2, 6, height, width).permute(0, 1, 3, 4, 2)
            grid = torch.arange(width).float() + torch.arange(height).float()[:, None]
            found.append((y.sigmoid() + grid[None, None, :, :, None]).reshape(n, -1, 6))
        return torch.cat(found, 1)


class Resized(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        y = F.interpolate(self.up(self.down(x)), size=x.shape[2:], mode="bilinear")
        return torch.cat([x, F.pad(y, [0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]])], 1)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.last = kind(4, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.layer(x)[0][:, -1])


class Bag(nn.Module):
    """EmbeddingBag, which is exported as a Loop."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.table(x))


# {name: (network, shape of a batch of 2, multiply-accumulates of one sample, by hand)}
NETWORKS = {
    "shuffled": (Shuffled, IMAGE, 256 * 8 * 27 + 256 * 4 * 4),
    "tokens": (Tokens, IMAGE, 16 * 8 * 48 + 16 * 8 * 24 + 2 * 2 * 16 * 16 * 4 + 16 * 8 * 8),
    "windows": (Windows, IMAGE, 256 * 3 * 6),
    "unfolded": (Unfolded, IMAGE, 49 * 27 * 5),
    "head": (Head, IMAGE, 64 * 12 * 27 + 16 * 12 * 108),
    "resized": (Resized, IMAGE, 64 * 8 * 27 + 64 * 8 * 3 * 4),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCE, 5 * 2 * 32 * (4 + 8) + 16 * 3),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCE, 5 * 2 * 24 * (4 + 8) + 16 * 3),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCE, 5 * 2 * 8 * (4 + 8) + 16 * 3),
    "bag": (Bag, (2, 6), 24),
}


def exported(name, path, axes=None, dynamo=False):
    torch.manual_seed(0)
    made, shape, _ = NETWORKS[name]
    x = torch.randint(0, 20, shape) if name == "bag" else torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            how = {"dynamo": False, "opset_version": 17, "dynamic_axes": {"x": axes or {}}}
            if dynamo:
                batch = torch.export.Dim("n", min=1, max=64)
                how = {"dynamo": True, "dynamic_shapes": ({0: batch},), "verbose": False}
            torch.onnx.export(made().eval(), (x,), path, input_names=["x"], **how)
        finally:
            logging.disable(logging.NOTSET)
    return x.numpy()


def differing(path, x, sample=None):
    """Values whose shape is another in onnxruntime, which is asked for every value inside."""
    made = static.read(path)
    values = session(made, [n for node in made.graph.node for n in node.output if n])({"x": x})
    ours = static.value_shapes(made, sample)
    return {
        n: (v.shape, ours.get(n)) for n, v in values.items() if isinstance(v, np.ndarray) and v.shape != ours.get(n)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_that_come_from_the_input_are_those_of_onnxruntime(tmp_path, name):
    """With an open batch, and with height, width and length open too, which samples then tell."""
    path, macs = tmp_path / "m.onnx", NETWORKS[name][2]
    x = exported(name, path, {0: "n"})
    assert static.macs(static.read(path)) == (macs, ())
    assert differing(path, x[:1]) == {}
    inner = {i: f"d{i}" for i in range(x.ndim) if i not in (1, 2 if x.ndim == 3 else 1)} | (
        {1: "d1"} if x.ndim == 3 else {}
    )
    x = exported(name, path, inner)
    assert static.macs(static.read(path), {"x": x[:1].shape}) == (macs, ())
    assert differing(path, x[:1], {"x": x[:1].shape}) == {}


@pytest.mark.parametrize("name", ["shuffled", "tokens", "lstm"])
def test_the_other_exporter_writes_the_same_counts(tmp_path, name):
    path = tmp_path / "m.onnx"
    x = exported(name, path, dynamo=True)
    assert static.macs(static.read(path)) == (NETWORKS[name][2], ())
    assert differing(path, x[:1]) == {}


@pytest.mark.parametrize("name", ["shuffled", "tokens", "windows", "lstm"])
def test_a_fixed_batch_is_counted_as_one_and_each_sample_told(tmp_path, name):
    path, macs = tmp_path / "m.onnx", NETWORKS[name][2]
    x = exported(name, path)
    found = {m.name: m for m in measure(Subject(file=path))}
    assert found["macs"].value == 2 * macs and found["macs"].note == f"of a batch of 2: {macs:,} per sample"
    assert "of a batch of 2" in found["activation_bytes"].note
    assert differing(path, x) == {}


@pytest.mark.parametrize(
    ("dims", "sample", "macs"),
    [
        ({"x": ["T", 32], "y": ["T", 1]}, {"x": (50, 32)}, 1600),
        ({"x": ["T", 32], "y": ["T", 1]}, {"x": (50, 32), "y": (50, 1)}, 1600),
        ({"x": ["T", 32], "y": ["T", 1]}, {}, 32),
        ({"x": [None, 32], "y": [None, 1]}, {"x": (50, 32), "y": (1, 1)}, 1600),
        ({"x": [None, 32], "y": [None, 1]}, {}, 32),
        ({"x": ["N", "T", 32], "y": ["T", 1]}, {"x": (1, 50, 32)}, 1600),
        ({"x": ["N", "T", 32], "y": ["T", 1]}, {"x": (1, 50, 32), "y": (50, 1)}, 1600),
        ({"x": ["N", "T", 32], "y": ["T", 1]}, {}, None),
        ({"x": ["T", "N", 32], "y": ["N", "T", 1]}, {}, None),
        ({"x": ["N", "T", 32], "y": ["N", 1, 1]}, {}, None),
        ({"x": ["N", 50, 32], "y": ["N", 1, 1]}, {}, 1600),
    ],
)
def test_an_open_length_is_that_of_the_sample(dims, sample, macs):
    value = lambda name, shape: h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    weight = nh.from_array(np.ones((32, 1), np.float32), "w")
    nodes = [h.make_node("MatMul", ["x", "w"], ["z"]), h.make_node("Identity", ["y"], ["u"])]
    outputs = [value("z", None), value("u", None)]
    graph = h.make_graph(nodes, "g", [value(n, s) for n, s in dims.items()], outputs, [weight])
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    if macs is None:
        with pytest.raises(static.Open):
            static.macs(made, sample)
    else:
        assert static.macs(made, sample) == (macs, ())


def test_a_loop_of_unknown_length_is_left_out_and_said(tmp_path):
    """How often it runs is an input: a budget must not pass by the rest."""
    step = h.make_graph(
        [h.make_node("MatMul", ["s", "w"], ["t"]), h.make_node("Identity", ["go"], ["on"])],
        "step",
        [h.make_tensor_value_info("i", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, []),
         h.make_tensor_value_info("s", T.FLOAT, None)],
        [h.make_tensor_value_info("on", T.BOOL, []), h.make_tensor_value_info("t", T.FLOAT, None)],
    )  # fmt: skip

    def made(times):
        stored = [nh.from_array(np.eye(4, dtype=np.float32), "w"), nh.from_array(np.array(True), "yes")]
        stored += [] if times is None else [nh.from_array(np.array(times), "times")]
        inputs = [h.make_tensor_value_info("x", T.FLOAT, ["n", 4])]
        inputs += [h.make_tensor_value_info("times", T.INT64, [])] if times is None else []
        node = h.make_node("Loop", ["times", "yes", "x"], ["y"], body=step)
        graph = h.make_graph([node], "g", inputs, [h.make_tensor_value_info("y", T.FLOAT, ["n", 4])], stored)
        return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)

    assert static.macs(made(3)) == (48, ()) and static.macs(made(None)) == (0, ("Loop",))


@pytest.mark.parametrize("chain", [1, 2, 3, 4])
def test_what_a_growing_value_reaches_in_later_steps_has_no_shape(chain):
    """s0 grows by a row a step, s1 is what s0 was, s2 what s1 was, ...: the product is of none that is known."""
    value = lambda name, shape: h.make_tensor_value_info(name, T.FLOAT, shape)
    nodes = [h.make_node("Concat", ["s0", "row"], ["t0"], axis=0), h.make_node("Identity", ["go"], ["on"])]
    nodes += [h.make_node("Identity", [f"s{i}"], [f"t{i + 1}"]) for i in range(chain)]
    nodes.append(h.make_node("MatMul", [f"s{chain}", "w"], ["made"]))
    names = range(chain + 1)
    inputs = [h.make_tensor_value_info("i", T.INT64, []), h.make_tensor_value_info("go", T.BOOL, [])]
    outputs = [h.make_tensor_value_info("on", T.BOOL, [])]
    inputs += [value(f"s{i}", None) for i in names]
    body = h.make_graph(nodes, "body", inputs, [*outputs, *(value(f"t{i}", None) for i in names)])
    node = h.make_node("Loop", ["times", "yes", *["x"] * (chain + 1)], [f"y{i}" for i in names], body=body)
    stored = [nh.from_array(np.eye(4, dtype=np.float32), "w"), nh.from_array(np.array(True), "yes")]
    stored += [nh.from_array(np.array(9), "times"), nh.from_array(np.ones((1, 4), np.float32), "row")]
    graph = h.make_graph([node], "g", [value("x", [1, 4])], [value("y0", None)], stored)
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    assert static.macs(made) == (0, ("Loop",))


def test_loops_deeper_than_anybody_writes_come_to_an_end_and_are_left_out():
    """A Loop is gone through again where what it carries changes: 2 ** 20 times in all, or more, without a limit."""
    inner = [h.make_node("MatMul", ["x", "w"], ["y0"])]
    for i in range(20):
        body = h.make_graph(
            [h.make_node("Identity", [f"c{i}"], [f"o{i}"]), *inner,
             h.make_node("Concat", [f"k{i}", f"y{i}"], [f"z{i}"], axis=0)],
            f"b{i}",
            [h.make_tensor_value_info(f"i{i}", T.INT64, []), h.make_tensor_value_info(f"c{i}", T.BOOL, []),
             h.make_tensor_value_info(f"k{i}", T.FLOAT, None)],
            [h.make_tensor_value_info(f"o{i}", T.BOOL, []), h.make_tensor_value_info(f"z{i}", T.FLOAT, None)],
        )  # fmt: skip
        inner = [h.make_node("Loop", ["twice", "yes", "x"], [f"y{i + 1}"], body=body)]
    stored = [nh.from_array(np.eye(4, dtype=np.float32), "w"), nh.from_array(np.array(2), "twice")]
    graph = h.make_graph(
        inner, "g", [h.make_tensor_value_info("x", T.FLOAT, ["n", 4])],
        [h.make_tensor_value_info("y20", T.FLOAT, None)],
        [*stored, nh.from_array(np.array(True), "yes")],
    )  # fmt: skip
    assert static.macs(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)) == (0, ("Loop",))


def test_fused_operators_are_counted_like_what_they_fuse():
    """FusedConv and FusedMatMul of onnxruntime, and its attention: 5 tokens of 8."""
    stored = {"w": np.zeros((4, 3, 3, 3)), "v": np.zeros((6, 100)), "p": np.zeros((8, 24)), "b": np.zeros(24)}
    nodes = [
        h.make_node("FusedConv", ["x", "w"], ["c"], domain="com.microsoft", activation="Relu"),
        h.make_node("Reshape", ["c", "flat"], ["r"]),
        h.make_node("FusedMatMul", ["r", "v"], ["m"], domain="com.microsoft", transB=1, alpha=0.5),
        h.make_node("Attention", ["z", "p", "b"], ["a"], domain="com.microsoft", num_heads=2),
        h.make_node("MatMul", ["a", "q"], ["y"]),
    ]
    tensors = [nh.from_array(a.astype(np.float32), n) for n, a in stored.items()]
    tensors += [nh.from_array(np.array([-1, 100]), "flat"), nh.from_array(np.zeros((8, 2), np.float32), "q")]
    inputs = [
        h.make_tensor_value_info("x", T.FLOAT, ["n", 3, 7, 7]),
        h.make_tensor_value_info("z", T.FLOAT, ["n", 5, 8]),
    ]
    outputs = [h.make_tensor_value_info(n, T.FLOAT, None) for n in ("m", "y")]
    opsets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    made = h.make_model(h.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=opsets, ir_version=8)
    attention = 5 * 8 * 24 + 2 * 5 * 5 * 8
    assert static.macs(made) == (4 * 25 * 27 + 100 * 6 + attention + 5 * 8 * 2, ())
    seen = session(made, ["c", "a"])({"x": np.zeros((1, 3, 7, 7), np.float32), "z": np.zeros((1, 5, 8), np.float32)})
    ours = static.value_shapes(made)
    assert {n: ours[n] for n in ("c", "m", "a", "y")} == {n: seen[n].shape for n in ("c", "m", "a", "y")}


ONE, BYTE, SIGNED = np.float32(1), np.uint8(0), np.zeros((3, 3), np.int8)
SIDE = {"xs": ONE, "xz": BYTE}
TYPED = {
    "QLinearConcat": ("ys yz x xs xz x xs xz", {**SIDE, "ys": ONE, "yz": BYTE}, {"axis": 1}),
    "QGemm": ("x xs xz w ws wz c", {**SIDE, "w": SIGNED, "ws": ONE, "wz": np.int8(0), "c": np.zeros(3, np.int32)}, {}),
    "QGemm of bytes": (
        "x xs xz w ws wz _ ys yz", {**SIDE, "w": SIGNED, "ws": ONE, "wz": np.int8(0), "ys": ONE, "yz": BYTE}, {},
    ),
    "MatMulIntegerToFloat": ("x w xs ws", {**SIDE, "w": SIGNED, "ws": ONE}, {}),
    "DequantizeLinear": ("x xs xz", SIDE, {}),
    "QLinearAdd": ("x xs xz x xs xz ys yz", {**SIDE, "ys": ONE, "yz": BYTE}, {}),
    "QLinearSigmoid": ("x xs xz ys yz", {**SIDE, "ys": ONE, "yz": BYTE}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_what_fused_operators_make_has_the_type_and_shape_of_onnxruntime(name):
    inputs, stored, attributes = TYPED[name]
    names = [n.strip("_") for n in inputs.split()]
    node = h.make_node(name.split()[0], names, ["y"], domain="com.microsoft", **attributes)
    x, y = h.make_tensor_value_info("x", T.UINT8, [2, 3]), onnx.ValueInfoProto(name="y")
    graph = h.make_graph([node], "g", [x], [y], [nh.from_array(np.asarray(a), n) for n, a in stored.items()])
    opsets = [h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)]
    made = h.make_model(graph, opset_imports=opsets, ir_version=8)
    (seen,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": np.zeros((2, 3), np.uint8)})
    kind = static.known(made).types["y"]
    assert static.dtype(kind.tensor_type.elem_type) == seen.dtype and static.known(made).shape("y") == seen.shape


# ---------------------------------------------------------------- weights in a second file


def split(path, **changes):
    """A Gemm whose weight [4, 3] lies in `w.bin` beside it; `changes` to what it says of the place."""
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    path.with_name("w.bin").write_bytes(bytes(16) + w.tobytes())
    tensor = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=changes.pop("dims", [4, 3]))
    tensor.data_location = T.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": "16", "length": "48"} | changes).items():
        tensor.external_data.add(key=key, value=value)
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["y"])], "g", [h.make_tensor_value_info("x", T.FLOAT, ["n", 4])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n", 3])],
    )  # fmt: skip
    graph.initializer.append(tensor)
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return w


def test_weights_in_a_second_file_are_read_and_counted(tmp_path):
    path = tmp_path / "m.onnx"
    w = split(path)
    made = static.read(path)
    assert np.array_equal(nh.to_array(made.graph.initializer[0]), w) and not external.outside(made)
    found = {m.name: m.value for m in measure(Subject(file=path))}
    assert found["file_bytes"] == path.stat().st_size + 64 and found["macs"] == found["parameters"] == 12


HOSTILE = {
    "up": ({"location": "../w.bin"}, "leads out of the model's folder"),
    "absolute": ({"location": "/etc/passwd"}, "no relative path"),
    "drive": ({"location": "C:\\w.bin"}, "no relative path"),
    "backslash": ({"location": "..\\w.bin"}, "leads out of the model's folder"),
    "absent": ({"location": "none.bin"}, "No such file"),
    "a folder": ({"location": "."}, "no relative path"),
    "past the end": ({"offset": "17"}, "ends at byte 65, and w.bin has 64"),
    "negative": ({"offset": "-1"}, "its offset is `-1`"),
    "huge": ({"offset": "9" * 30}, "its offset is"),
    "too short": ({"length": "44"}, "it has 44 bytes, and its shape [4, 3] takes 48"),
    "too large a shape": ({"dims": [2**40, 3], "length": ""}, "ends at byte"),
    "negative shape": ({"dims": [-4, 3]}, "its shape is"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_places_of_weights_that_are_not_beside_the_file_are_refused(tmp_path, name):
    changes, reason = HOSTILE[name]
    split(tmp_path / "m.onnx", **changes)
    with pytest.raises(UsageError) as caught:
        static.read(tmp_path / "m.onnx")
    assert reason in str(caught.value) and "keeps the tensor w" in str(caught.value)


def test_one_missing_file_is_one_problem(tmp_path):
    split(tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for i in range(30):
        made.graph.initializer.add().CopyFrom(made.graph.initializer[0])
        made.graph.initializer[-1].name = f"w{i}"
    onnx.save(made, tmp_path / "m.onnx")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(UsageError) as caught:
        static.read(tmp_path / "m.onnx")
    assert len(caught.value.problems) == 1 and "the tensor w (and 30 more)" in str(caught.value)


def test_an_output_without_a_shape_is_read(tmp_path):
    """onnx's checker refuses it; onnxruntime and some exporters don't."""
    graph = h.make_graph(
        [h.make_node("Relu", ["x"], ["y"])], "g", [h.make_tensor_value_info("x", T.FLOAT, ["n", 4])],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
    )  # fmt: skip
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    assert static.value_shapes(static.read(tmp_path / "m.onnx"))["y"] == (1, 4)


@pytest.mark.parametrize("make", [os.symlink, lambda target, link: os.mkfifo(link)])
def test_links_and_pipes_beside_the_file_are_refused(tmp_path, make):
    split(tmp_path / "m.onnx", location="other.bin")
    make(tmp_path / "w.bin", tmp_path / "other.bin")
    with pytest.raises(UsageError, match="is a link|is not a regular file"):
        static.read(tmp_path / "m.onnx")


def test_a_file_whose_bytes_many_tensors_claim_is_refused(tmp_path):
    """A small file that would fill the memory."""
    split(tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for i in range(5):
        made.graph.initializer.add().CopyFrom(made.graph.initializer[0])
        made.graph.initializer[-1].name = f"w{i}"
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="reads the same bytes"):
        static.read(tmp_path / "m.onnx")


def test_a_job_takes_the_second_file_along(tmp_path):
    """Two files whose weights have the same name lie in one job, and each runs with its own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        split(tmp_path / name / "m.onnx")
    (tmp_path / "b" / "w.bin").write_bytes(bytes(64))
    models = {"s0": tmp_path / "a" / "m.onnx", "s1": tmp_path / "b" / "m.onnx"}
    folders.build(tmp_path / "job", folders.Job(models, np.ones((1, 4), np.float32), [], "onnxruntime"))
    made = {s: session(static.read(tmp_path / "job" / "models" / f"{s}.onnx")) for s in models}
    x = {"x": np.ones((1, 4), np.float32)}
    assert made["s0"](x)["y"].tolist() == [[18, 22, 26]] and made["s1"](x)["y"].tolist() == [[0, 0, 0]]


def test_a_model_that_one_file_cannot_hold_is_written_as_two(tmp_path, monkeypatch):
    """The limit is lowered: 2 GB would take long. The same bytes every time, and the same model."""
    monkeypatch.setattr(external, "LIMIT", external.ROOM + 4000)
    generator = np.random.default_rng(0)
    w = generator.normal(size=(40, 40)).astype(np.float32)
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["m"]), h.make_node("Add", ["m", "b"], ["y"])], "g",
        [h.make_tensor_value_info("x", T.FLOAT, ["n", 40])], [h.make_tensor_value_info("y", T.FLOAT, ["n", 40])],
        [nh.from_array(w, "w"), nh.from_array(w[0], "b")],
    )  # fmt: skip
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    external.write(made, tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").read_bytes() == w.tobytes()
    assert static.read(tmp_path / "m.onnx") == made and external.copied(made) == made
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[1] == made.graph.initializer[1]
    assert list(external.parts(made, "m.onnx")) == list(external.parts(made, "m.onnx"))


# ---------------------------------------------------------------- files of other formats


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


class Boom:
    def __reduce__(self):
        return os.abort, ()


FORMATS = {
    "m.tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(64)), "TensorFlow Lite", "tf2onnx.convert --tflite"),
    "m.pt": (lambda p: torch.save(nn.Linear(2, 2).state_dict(), p), "a PyTorch checkpoint", "torch.onnx.export"),
    "m.pth": (lambda p: torch.save(Boom(), p), "a PyTorch checkpoint", "torch.onnx.export"),
    "old.pth": (lambda p: torch.save(Boom(), p, _use_new_zipfile_serialization=False), "a pickle", "torch.onnx.export"),
    "script.pt": (zipped("m/constants.pkl", "m/data.pkl", "m/code/x.py"), "a TorchScript archive", "torch.jit.load"),
    "m.keras": (zipped("config.json", "model.weights.h5"), "a Keras model", "format='onnx'"),
    "m.npz": (lambda p: np.savez(p, inputs=np.zeros(3)), "an archive of arrays", "--data"),
    "m.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5", "format='onnx'"),
    "m.pb": (lambda p: p.write_bytes(b"\n\x2e\n\x05input\x12\x0bPlaceholder*\x0b\n\x05dtype\x12\x020\x01"),
             "a frozen TensorFlow graph", "tf2onnx.convert --graphdef m.pb"),
    "m.safetensors": (lambda p: p.write_bytes(struct.pack("<Q", 16) + b'{"w": {"a": 1}} ' + bytes(9)),
                      "a safetensors file", "torch.onnx.export"),
    "m.xml": (lambda p: p.write_text('<?xml version="1.0"?>\n<net name="m" version="11">\n</net>'), "an OpenVINO model",
              "converted from"),
    "m.mlmodel": (lambda p: p.write_bytes(b"\x08\x05\x12\x10\n\x04" + bytes(30)), "a Core ML model", "export"),
    "m.gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(30)), "a GGUF file", "export the model"),
    "m.ort": (lambda p: p.write_bytes(b"\x1c\0\0\0ORTM" + bytes(64)), "onnxruntime's own format", ".onnx"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_other_formats_are_named_by_their_content(tmp_path, name):
    """Under a wrong name as well; nothing in them is run."""
    write, what, hint = FORMATS[name]
    write(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        static.read(tmp_path / name)
    assert what in str(caught.value) and hint in str(caught.value) and "not an ONNX file" in str(caught.value)
    if name not in ("m.mlmodel",):
        (tmp_path / name).rename(tmp_path / "m.onnx")
        with pytest.raises(UsageError, match=what):
            static.read(tmp_path / "m.onnx")


def test_a_folder_of_tensorflow_is_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    with pytest.raises(UsageError, match="TensorFlow SavedModel"):
        static.read(tmp_path)


def test_a_bundle_takes_the_second_file_along_and_a_gate_counts_it(tmp_path):
    source, folder = tmp_path / "m.onnx", tmp_path / "bundle"
    split(source)
    folder.mkdir()
    assert bundle._copy(source, folder, sha256(source)) == "model.onnx"
    assert np.array_equal(nh.to_array(static.read(folder / "model.onnx").graph.initializer[0]).ravel(), np.arange(12))
    figures = [m for m in measure(Subject(file=source)) if m.name == "file_bytes"]
    assert evidence._model(folder / "model.onnx", None, figures) == []
    (folder / "w.bin").write_bytes(bytes(100))
    assert "the figure is" in str(evidence._model(folder / "model.onnx", None, figures)[0])
