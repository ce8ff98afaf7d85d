"""Saturating int8 products: pairs by hand, bounds against brute force, and layers against onnxruntime on an emulated
CPU with AVX2 and no VNNI."""

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_quantization import data, exported, stirred
from torch import nn
from torch.nn import functional as F

from edgekd.quantization.qdq import graph, operands, pairs, saturation
from edgekd.records import Scheme

QEMU = shutil.which("qemu-x86_64")


def weights(*shape, seed=0):
    return np.random.default_rng(seed).integers(-127, 128, shape)


def values(*shape, seed=1):
    """Raw activations, most of them large."""
    random = np.random.default_rng(seed)
    return np.where(
        random.random(shape) < 0.6, random.integers(150, 256, shape), random.integers(0, 256, shape)
    ).astype(np.float32)


def layer(
    kind,
    w,
    shape,
    zero=0,
    out_zero=128,
    step=1000.0,
    bias=None,
    after=(),
    dtype=np.uint8,
    weight_zero=0,
    rounded=True,
    **attributes,
):
    """A QDQ file of one layer on inputs [n, *shape] of step 1; `after`: what lies before the output's grid."""
    w = np.asarray(w).astype(np.uint8 if weight_zero else np.int8)
    axis = 0 if kind == "Conv" or attributes.get("transB") else 1
    units = np.ones(w.shape[axis], np.float32)
    stored = {
        "one": np.float32(1),
        "zero": np.array(zero, dtype),
        "step": np.float32(step),
        "out_zero": np.array(out_zero, dtype),
    }
    stored |= {
        "w": w,
        "units": units,
        "w_zero": np.full(len(units), weight_zero, w.dtype),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    stored["added"] = (weights(len(units)) * 50.3).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "units", "w_zero"], ["w.x"], axis=axis),
    ]
    if bias is not None:
        stored["b"] = np.asarray(bias, np.int32)
        nodes.append(helper.make_node("DequantizeLinear", ["b", "units"], ["b.x"], axis=0))
    nodes.append(helper.make_node(kind, ["x", "w.x", *(["b.x"] if bias is not None else [])], ["y0"], **attributes))
    for i, name in enumerate(after):
        nodes.append(
            helper.make_node(name, [f"y{i}", *{"Clip": ["low", "high"], "Add": ["added"]}.get(name, [])], [f"y{i + 1}"])
        )
    if rounded:
        nodes.append(helper.make_node("QuantizeLinear", [f"y{len(after)}", "step", "out_zero"], ["y.q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y.q", "step", "out_zero"], ["output"]))
    else:
        nodes[-1].output[0] = "output"
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *shape]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(
        nodes, "layer", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


LAYERS = {  # name: (file, raw activations, their zero point)
    "three channels": (
        layer("Conv", weights(8, 3, 3, 3), (3, 6, 6), pads=[1] * 4, zero=200, step=500),
        values(2, 3, 6, 6),
        200,
    ),
    "packed": (
        layer("Conv", weights(24, 8, 3, 3), (8, 7, 7), pads=[1] * 4, zero=128, strides=[2, 2], dilations=[2, 2]),
        values(1, 8, 7, 7),
        128,
    ),
    "bias": (
        layer("Conv", weights(10, 6, 3, 3), (6, 5, 5), pads=[0, 1, 1, 0], zero=3, bias=weights(10) * 100),
        values(1, 6, 5, 5),
        3,
    ),
    "pointwise": (layer("Conv", weights(7, 5, 1, 1), (5, 4, 4), step=300), values(1, 5, 4, 4), 0),
    "groups": (layer("Conv", weights(6, 3, 3, 3), (9, 5, 5), pads=[1] * 4, group=3, zero=9), values(1, 9, 5, 5), 9),
    "depthwise": (
        layer("Conv", weights(16, 1, 3, 3), (16, 5, 5), pads=[1] * 4, group=16, zero=9, step=400),
        values(1, 16, 5, 5),
        9,
    ),
    "depthwise odd": (
        layer("Conv", weights(5, 1, 3, 3), (5, 5, 5), pads=[1] * 4, group=5, zero=9, step=400),
        values(1, 5, 5, 5),
        9,
    ),
    "two per channel": (
        layer("Conv", weights(8, 1, 3, 3), (4, 5, 5), pads=[1] * 4, group=4, zero=9, step=400),
        values(1, 4, 5, 5),
        9,
    ),
    "one dimension": (layer("Conv", weights(8, 3, 5), (3, 9), pads=[2, 2], zero=9, step=400), values(1, 3, 9), 9),
    "matrix": (layer("MatMul", weights(37, 11), (37,), zero=50), values(6, 37), 50),
    "vector": (layer("MatMul", weights(64, 40), (64,)), values(1, 64), 0),
    "stacked": (layer("MatMul", weights(40, 24), (5, 40), zero=50), values(2, 5, 40), 50),
    "long": (layer("MatMul", weights(1000, 16), (1000,), zero=50, step=8000), values(3, 1000), 50),
    "float output": (layer("MatMul", weights(40, 24), (40,), zero=50, rounded=False), values(3, 40), 50),
    "gemm": (layer("Gemm", weights(24, 40), (40,), zero=50, bias=weights(24) * 50, transB=1), values(3, 40), 50),
    "signed": (
        layer("Conv", weights(16, 8, 3, 3), (8, 5, 5), pads=[1] * 4, zero=-5, out_zero=10, dtype=np.int8),
        values(1, 8, 5, 5),
        123,
    ),
    "added": (layer("MatMul", weights(40, 24), (40,), zero=50, after=["Add"]), values(3, 40), 50),
    "unsigned weights": (layer("MatMul", weights(40, 24) + 128, (40,), zero=50, weight_zero=128), values(3, 40), 50),
}
EXACT = {"depthwise", "depthwise odd", "unsigned weights"}
SCRIPT = """
import sys, numpy as np, onnxruntime as ort
given, found = np.load(sys.argv[1]), {}
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
options.add_session_config_entry("session.x64quantprecision", sys.argv[3])
for name in (n[:-6] for n in given.files if n.endswith(".model")):
    session = ort.InferenceSession(given[name + ".model"].tobytes(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found.update({name + "/" + n: v for n, v in zip(names, session.run(names, {"input": given[name + ".input"]}))})
np.savez(sys.argv[2], **found)
"""


def run(models, folder, cpu, precise=False):
    """{name: {output: values}} of {name: (file, input)} on an emulated CPU."""
    stored = {f"{n}.model": np.frombuffer(m.SerializeToString(), np.uint8) for n, (m, _) in models.items()}
    np.savez(folder / "given.npz", **stored, **{f"{n}.input": x for n, (_, x) in models.items()})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": cpu}
    command = [
        QEMU,
        "-cpu",
        cpu,
        sys.executable,
        "-c",
        SCRIPT,
        str(folder / "given.npz"),
        str(folder / "found.npz"),
        str(int(precise)),
    ]
    subprocess.run(command, env=environment, check=True, timeout=120, stderr=subprocess.DEVNULL)
    found = np.load(folder / "found.npz")
    return {n: {k.removeprefix(f"{n}/"): found[k] for k in found.files if k.startswith(f"{n}/")} for n in models}


def shown(model):
    """A copy of a file that gives the integers that its layers read and write."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = dict.fromkeys(n for o in operands.read(model) for n in (o.x.q, *([o.output.q] if o.output else [])))
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    return model


def rows(o, y):
    """A layer's output as [positions, outputs]."""
    y = np.moveaxis(y, 1, -1) if o.node.op_type == "Conv" else y
    return y.reshape(-1, y.shape[-1])


class TestPairs:
    @pytest.mark.parametrize(
        ("a", "w", "exact", "saturating", "outside"),
        [
            ([255, 255], [127, 127], 64770, 32767, 1),
            ([255, 255], [-127, -127], -64770, -32768, 1),
            ([255, 255], [64, 64], 32640, 32640, 0),
            ([255, 255], [65, 64], 32895, 32767, 1),
            ([255, 255], [127, -127], 0, 0, 0),
            ([0, 255, 255, 0], [127] * 4, 64770, 64770, 0),  # neighbours are (0, 1) and (2, 3)
            ([255, 255, 255], [127] * 3, 97155, 32767 + 32385, 1),  # the last one stands alone
            ([200, 200, 200, 200], [100, 100, -100, -100], 0, -1, 2),
        ],
    )
    def test_by_hand(self, a, w, exact, saturating, outside):
        found = pairs.products(np.array([a]), np.array([w]))
        assert (found[0].item(), found[1].item(), found[2]) == (exact, saturating, outside)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
    @settings(max_examples=50, deadline=None)
    def test_sums_one_by_one(self, seed, k, n):
        a, w = values(3, k, seed=seed).astype(int), weights(n, k, seed=seed)
        exact, saturating, outside = pairs.products(a, w)
        seen = 0
        for i, j in itertools.product(range(3), range(n)):
            sums = [
                sum(int(a[i, at]) * int(w[j, at]) for at in range(first, min(first + 2, k))) for first in range(0, k, 2)
            ]
            assert exact[i, j] == sum(sums)
            assert saturating[i, j] == sum(max(-32768, min(32767, s)) for s in sums)
            seen += sum(not -32768 <= s <= 32767 for s in sums)
        assert outside == seen

    @given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 12), st.integers(0, 12))
    @settings(max_examples=50, deadline=None)
    def test_bound_is_what_can_be_reached(self, seed, k, low, span):
        w = weights(2, k, seed=seed)
        inputs = range(low, low + span + 1)
        sums = [0]
        for row, first in itertools.product(w, range(0, k, 2)):
            pair = row[first : first + 2]
            sums += [
                sum(int(a) * int(b) for a, b in zip(chosen, pair, strict=True))
                for chosen in itertools.product(inputs, repeat=len(pair))
            ]
        assert pairs.reach(w, low, low + span) == (min(sums), max(sums))


class TestAudit:
    @pytest.mark.parametrize(
        ("pair", "bound", "can"),
        [((64, 64), 32640, False), ((64, 65), 32895, True), ((-128, 0), 32640, False), ((-1, -128), 32895, True)],
    )
    def test_bound_of_a_file(self, pair, bound, can):
        (found,) = saturation.audit(layer("MatMul", np.array([[pair[0]], [pair[1]], [0], [0]]), (4,)))
        assert (found.kind, found.shape, found.bound, found.can_saturate) == ("MatMul", (4, 1), bound, can)

    def test_channels_are_neighbours_before_positions(self):
        w = np.zeros((1, 2, 1, 2), int)
        w[0, :, 0, 0] = 100
        assert saturation.audit(layer("Conv", w, (2, 4, 4)))[0].bound == 200 * 255
        w[:] = 0
        w[0, 0] = 100
        assert saturation.audit(layer("Conv", w, (2, 4, 4)))[0].bound == 100 * 255

    def test_kernels_without_pairs(self):
        found = {name: saturation.audit(LAYERS[name][0])[0] for name in LAYERS}
        assert {n for n, f in found.items() if not f.can_saturate} == EXACT
        assert all(found[n].bound == 0 for n in EXACT)

    def test_range_of_what_was_clipped(self):
        """A Relu at zero point 100 leaves 100 to 255: of two weights -100 and 90 at least -100 * 255 + 90 * 100, at
        most -100 * 100 + 90 * 255."""
        w = np.array([[-100], [90]])
        model = layer("MatMul", w, (2,), zero=100)
        model.graph.node[0].input[0] = "clipped"
        model.graph.node.insert(0, helper.make_node("Relu", ["input"], ["clipped"]))
        assert saturation.audit(model)[0].bound == 100 * 255 - 90 * 100
        assert saturation.audit(layer("MatMul", w, (2,), zero=100))[0].bound == 100 * 255

    @pytest.mark.parametrize(
        ("kind", "after", "how"),
        [
            *((kind, (), {"rounded": rounded}) for kind in ("Conv", "MatMul", "Gemm") for rounded in (True, False)),
            *((kind, ("Relu",), {"out_zero": z}) for kind in ("Conv", "MatMul", "Gemm") for z in (0, 10)),
            *(("Conv", ("Clip",), {"out_zero": 0, "step": s / 255}) for s in (5, 6, 7)),
            ("Conv", ("HardSwish",), {}),
            ("MatMul", ("Sigmoid",), {}),
            ("Gemm", (), {"alpha": 2.0}),
            *(("Gemm", (), {"bias": [0] * 24, **more}) for more in ({}, {"alpha": 2.0}, {"beta": 2.0})),
        ],
    )
    def test_the_layers_that_onnxruntime_computes_in_integers(self, kind, after, how, tmp_path):
        w, shape = (weights(16, 8, 3, 3), (8, 5, 5)) if kind == "Conv" else (weights(40, 24), (40,))
        model = layer(kind, w, shape, after=after, **how)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
        assert bool(saturation.audit(model)) == bool(
            made & {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}
        ), made

    @pytest.mark.parametrize("name", ["three channels", "packed", "bias", "groups", "two per channel", "depthwise"])
    def test_sums_are_the_convolution(self, name):
        model, raw, zero = LAYERS[name]
        (o,) = operands.read(model)
        how = {k: graph.attribute(o.node, k, 1) for k in ("strides", "dilations")}
        pads = graph.attribute(o.node, "pads", [0] * 4)
        x = F.pad(torch.from_numpy(raw.astype(np.float64)) - zero, (pads[1], pads[3], pads[0], pads[2]))
        bias = None if o.bias is None else torch.from_numpy(o.bias).double()
        sums = F.conv2d(
            x, torch.tensor(o.weight.constant).double(), bias, how["strides"], 0, how["dilations"], o.groups
        ).numpy()
        expected = np.clip(np.rint(rows(o, sums).astype(np.float32) * np.float32(1 / o.output.scale[0])) + 128, 0, 255)
        assert np.array_equal(saturation.simulate(o, raw.astype(np.uint8)).exact, expected)

    def test_what_a_feed_does(self):
        """Of three rows the first saturates one pair of two, by 2 * 255 * 127 - 32767 = 32003, 32 steps of 1000."""
        model = layer("MatMul", np.full((4, 1), 127), (4,), step=1000.0, out_zero=0)
        (found,) = saturation.audit(
            model, {"input": np.array([[255, 255, 0, 0], [0, 255, 255, 0], [1, 2, 3, 4]], np.float32)}
        )
        assert (found.pairs, found.changed, found.most) == (1 / 6, 1 / 3, 32.0)
        (found,) = saturation.audit(layer("MatMul", np.full((4, 1), 63), (4,)), {"input": values(5, 4)})
        assert (found.pairs, found.changed, found.most) == (0.0, 0.0, 0.0)

    def test_steps_where_the_output_waits(self):
        """32003 of sum is 3.2003 steps of 10000 after a sigmoid; with no grid after it nobody knows."""
        x = {"input": np.array([[255, 255, 0, 0]], np.float32)}
        (found,) = saturation.audit(layer("MatMul", np.full((4, 1), 127), (4,), step=10000.0, after=["Sigmoid"]), x)
        assert (found.pairs, found.changed, found.most) == (1 / 2, 1.0, pytest.approx(3.2003))
        (found,) = saturation.audit(layer("MatMul", np.full((4, 1), 127), (4,), rounded=False), x)
        assert (found.changed, found.most) == (1.0, None)

    def test_rows_are_looked_at_in_slices(self, monkeypatch):
        model, raw, zero = LAYERS["packed"]
        x = {"input": np.concatenate([raw, raw[:, ::-1], raw * 0]) - zero}
        whole = saturation.audit(model, x)
        monkeypatch.setattr(saturation, "SLICE", 1)
        assert saturation.audit(model, x) == whole
        assert 0 < whole[0].changed < 1

    def test_what_can_not_be_simulated_has_a_bound(self):
        model = layer("Conv", weights(4, 2, 3, 3), (2, 5, 5), auto_pad="SAME_UPPER")
        (found,) = saturation.audit(model, {"input": values(1, 2, 5, 5)})
        assert found.can_saturate
        assert found.changed is None


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the libraries here are not for x86-64")
class TestEmulated:
    @pytest.fixture(scope="class")
    @staticmethod
    def single():
        return {name: (model, raw - zero) for name, (model, raw, zero) in LAYERS.items()}

    def expected(self, which):
        """{layer: its float output from `simulate`}."""
        found = {}
        for name, (model, raw, zero) in LAYERS.items():
            (o,) = operands.read(model)
            y = getattr(saturation.simulate(o, (raw - zero + o.x.zero_point[0]).astype(o.x.zero_point.dtype)), which)
            found[name] = (
                y if o.output is None else (y - int(o.output.zero_point[0])).astype(np.float32) * o.output.scale[0]
            )
        return found

    def test_simulation_is_the_kernel(self, single, tmp_path):
        found, exact = run(single, tmp_path, "Haswell"), self.expected("exact")
        for name, y in self.expected("saturating").items():
            (o,) = operands.read(LAYERS[name][0])
            assert np.array_equal(rows(o, found[name]["output"]), y), name
            assert np.array_equal(y, exact[name]) == (name in EXACT), name

    def test_exact_without_avx2_and_when_asked(self, single, tmp_path):
        for found in (run(single, tmp_path, "Nehalem"), run(single, tmp_path, "Haswell", precise=True)):
            for name, y in self.expected("exact").items():
                (o,) = operands.read(LAYERS[name][0])
                assert np.array_equal(rows(o, found[name]["output"]), y), name

    def test_a_network(self, tmp_path):
        """Each layer on the values that reached it: only layers that the audit names come out otherwise, exactly as
        simulated; 7 bits change none."""
        chosen = torch.eye(8)[torch.arange(16) % 8].reshape(16, 8, 1, 1)  # no two neighbours: safe with 8 bits
        parts = [
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 8, 3, 2, 1),
        ]
        net = stirred(nn.Sequential(*(x for p in parts for x in (p, nn.ReLU())), nn.Flatten(), nn.Linear(8 * 25, 5)))
        parts[2].weight.data = chosen
        models, x = {}, data((3, 10, 10), 16)
        for bits in (8, 7):
            exported(net, x, tmp_path, scheme=Scheme(weight_bits=bits, pairs16=False))
            models[str(bits)] = (shown(onnx.load(tmp_path / "model.onnx")), x.numpy())
        found, here = run(models, tmp_path, "Haswell"), run(models, tmp_path, "Nehalem")
        for bits, (model, _) in models.items():
            otherwise = []
            for o, audited in zip(operands.read(model), saturation.audit(model, {"input": x.numpy()}), strict=True):
                result, y = saturation.simulate(o, found[bits][o.x.q]), rows(o, found[bits][o.output.q])
                assert np.array_equal(y, result.saturating), audited
                assert np.array_equal(
                    rows(o, here[bits][o.output.q]), saturation.simulate(o, here[bits][o.x.q]).exact
                ), audited
                assert audited.can_saturate or np.array_equal(y, result.exact), audited
                otherwise.append(not np.array_equal(y, result.exact))
            can = [layer.can_saturate for layer in saturation.audit(model)]
            assert can == ([True, False, False, True, True] if bits == "8" else [False] * 5)
            assert any(otherwise) == (bits == "8")
            assert np.array_equal(found[bits]["output"], here[bits]["output"]) == (bits == "7")


# ---------------------------------------------------------------- grids that keep pairs within 16 bits


def test_what_no_input_can_saturate_is_not_run(monkeypatch):
    model = layer("MatMul", weights(8, 4) // 2, (8,))
    run, feed = saturation.audit(model, {"x": values(5, 8)}), {"x": values(5, 8)}
    monkeypatch.setattr(saturation, "session", None)
    assert saturation.audit(model, feed) == run and (run[0].can_saturate, run[0].changed, run[0].pairs) == (False, 0, 0)


def test_pairs_of_a_weight_by_hand():
    from edgekd.quantization.parameters import PAIR
    from edgekd.quantization.torch_graph import modules

    rows = torch.tensor([[3.0, 4.0, -1.0, 2.0, -5.0], [-1.0, -2.0, 0.0, 0.0, 0.5]])
    assert modules.pairs(rows).tolist() == [[7.0, 2.0, 5.0], [3.0, 0.0, 0.5]]
    assert 255 * PAIR < 2**15 <= 255 * (PAIR + 1)


@pytest.mark.parametrize("mode", ["averaged", "learned"])
@pytest.mark.parametrize("name", ["residual", "depthwise", "mlp"])
def test_with_pairs16_no_layer_can_saturate_even_after_training(tmp_path, name, mode):
    """The audit of the exported file says so; without it, it can; and weights go on to use more than 7 bits of their
    grid."""
    from edgekd.formats.onnx import export
    from edgekd.models import networks
    from edgekd.quantization.torch_graph import fake
    from edgekd.quantization.torch_graph.calibrate import calibrate
    from edgekd.quantization.torch_graph.capture import capture
    from edgekd.records import Scheme

    torch.manual_seed(0)
    model, x = {
        "residual": lambda: (networks.residual((8, 12), channels=3, classes=10), torch.randn(16, 3, 8, 8)),
        "depthwise": lambda: (networks.ds_cnn((8, 8, 8), classes=10), torch.randn(16, 1, 24, 16)),
        "mlp": lambda: (
            torch.nn.Sequential(torch.nn.Linear(21, 33), torch.nn.ReLU(), torch.nn.Linear(33, 10)),
            torch.randn(16, 21),
        ),
    }[name]()
    for pairs16 in (False, True):
        graph = capture(model.eval(), x[:2])
        module = calibrate(fake.insert(graph, Scheme(pairs16=pairs16), learned=mode == "learned"), [x])
        fake.set_mode(module, "train")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
        grid = fake.settle(module.eval())
        graph.load_state_dict({n: t for n, t in module.state_dict().items() if n in graph.state_dict()})
        path = tmp_path / f"{pairs16}.onnx"
        export(graph, grid, x[:2], path)
        layers = saturation.audit(onnx.load(path))
        assert layers and any(layer.can_saturate for layer in layers) != pairs16
        if pairs16:
            assert max(layer.bound for layer in layers) > 255 * 100
