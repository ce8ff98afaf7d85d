"""`quantize` times int8 against float, and puts layers back into float where int8 costs time. Times are made up, but
for those tests that assert nothing of them."""

import itertools
import json
import shlex
import tempfile
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from test_foreign import ROWS, block, file, numbers, traced
from torch import nn

from edgekd.cli import run as command
from edgekd.errors import UsageError
from edgekd.measure.together import Bench, wider
from edgekd.quantization.diagnosis.noise import outputs
from edgekd.quantization.diagnosis.regions import MOST, Cost, in_float, proposals
from edgekd.quantization.onnx_graph import convert
from edgekd.quantization.onnx_graph.placement import ASKED
from edgekd.quantization.qdq.compare import compare
from edgekd.quantization.qdq.pairing import pair
from edgekd.quantization.qdq.partial import render
from edgekd.records import Scheme
from edgekd.report.int8 import Row
from edgekd.report.speed import Speed
from edgekd.run import quantize_speed
from edgekd.run.quantize_file import LOSES, TIMED, explained
from edgekd.run.quantize_speed import decide
from edgekd.samples.rows import of
from edgekd.verbs.quantize import quantize

FIRST = "/layers/layers.0/layers.0.0/Conv"
FASTER, EVEN, SLOWER = (0.8, 0.7, 0.9), (1.02, 0.99, 1.05), (1.2, 1.1, 1.3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(block(i, 8, act=nn.ReLU) for i in (3, 8, 8, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    model, arrays = traced(Net, 3, 12, 12)
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", inputs=arrays["x"])
    return folder


def given(folder, **more):
    return {"model": folder / "m.onnx", "data": folder / "d.npz", **more}


class TestDecision:
    """Of five layers, with the times of made-up files."""

    macs = (10, 20, 30, 20, 20)
    costs = [Cost(1, 5), Cost(1, 1), Cost(1, 1), Cost(1, 1.3), Cost(1, 3)]

    def decided(self, *sessions):
        asked = iter(sessions)

        def ratios(sets):
            found = next(asked)
            return [found(s) if callable(found) else found for s in sets]

        return decide(lambda: (self.costs, 0.0), self.macs, ratios)

    def test_int8_that_is_not_shown_slower_stays_whole(self):
        made = decide(lambda: pytest.fail("no layer is looked at"), self.macs, lambda sets: [EVEN])
        assert made.chosen == frozenset() and made.ratio == EVEN

    def test_the_file_with_most_products_in_int8_of_those_that_are_not_slower(self):
        made = self.decided(SLOWER, lambda s: EVEN if {0, 4} <= s else SLOWER, EVEN)
        assert made.chosen == {0, 4} and made.ratio == EVEN

    def test_a_file_that_a_second_session_shows_slower_is_not_taken(self):
        made = self.decided(SLOWER, lambda s: EVEN, SLOWER, FASTER)
        assert made.chosen == {4} and made.ratio == FASTER  # which has more products in int8 than {0, 4}
        assert dict(made.tried)[frozenset({0})] == SLOWER

    def test_where_all_are_slower_the_fastest_with_half_of_the_products_in_int8(self):
        made = self.decided(SLOWER, lambda s: (1.19 - len(s) / 100, 1.05, 3))
        fastest = max((s for s, _ in made.tried if sum(self.macs[i] for i in s) <= 50), key=len)
        assert made.chosen == fastest and made.chosen and made.ratio[1] > 1


class TestRegions:
    def test_the_best_of_all_sets(self):
        """By trying each."""
        generator = np.random.default_rng(0)
        for _ in range(50):
            costs = [Cost(*pair) for pair in generator.random((7, 2))]
            conversion = float(generator.random() / 3)

            def gain(chosen, costs=costs, conversion=conversion):
                states = [i in chosen for i in range(len(costs))]
                turns = sum(a != b for a, b in itertools.pairwise(states))
                return sum(costs[i].int8_ms - 1.2 * costs[i].float_ms for i in chosen) - conversion * turns

            every = [set(s) for n in range(8) for s in itertools.combinations(range(7), n)]
            assert gain(in_float(costs, conversion, 1.2)) == pytest.approx(max(map(gain, every)))

    def test_a_layer_alone_goes_back_only_where_it_pays_for_both_conversions(self):
        costs = [Cost(2, 0.5), Cost(1, 3.5), Cost(2, 0.5)]
        assert in_float(costs, 1.0, 1.0) == {1} and in_float(costs, 1.3, 1.0) == frozenset()

    def test_few_sets_from_small_to_large_and_never_all(self):
        costs = [Cost(1, x) for x in np.linspace(0.5, 5, 40)]
        found = proposals(costs, 0.1)
        assert 2 < len(found) <= MOST and [len(s) for s in found] == sorted(len(s) for s in found)
        assert all(0 < len(s) < 40 for s in found) and len(set(found)) == len(found)

    def test_the_layer_that_loses_most_is_tried_by_itself(self):
        """Its neighbours lose time too, so that no best stretch is this layer alone."""
        costs = [Cost(1, 1.5), Cost(1, 2), Cost(1, 9), Cost(1, 9.5), Cost(1, 0.9), Cost(1, 0.9)]
        assert {frozenset({3}), frozenset({2})} <= set(proposals(costs, 3.0))
        assert proposals([Cost(1, 2)], 0.1) == []


@pytest.mark.parametrize("kind", ["If", "LSTM"])
def test_the_share_in_int8_is_of_all_products(tmp_path, kind):
    """An LSTM of 5 inputs and 4 units multiplies 4 * 4 * (5 + 4) times, a body of an If 5 * 8."""
    x = helper.make_tensor_value_info("x", 1, ["n", 5])
    rng = np.random.default_rng(0)
    stored = {"w": rng.normal(size=(5, 8)), "u": rng.normal(size=(1, 16, 5)), "r": rng.normal(size=(1, 16, 4))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="first")]
    if kind == "LSTM":
        nodes += [helper.make_node("Unsqueeze", ["x", "zero"], ["s"])]
        nodes += [helper.make_node("LSTM", ["s", "u", "r"], ["", "h"], hidden_size=4)]
    else:
        out = helper.make_tensor_value_info("m", 1, None)
        branch = [helper.make_node("MatMul", ["x", "w"], ["m"])]
        bodies = {f"{b}_branch": helper.make_graph(branch, b, [], [out]) for b in ("then", "else")}
        nodes += [helper.make_node("ReduceSum", ["x"], ["t"], keepdims=0), helper.make_node("Cast", ["t"], ["c"], to=9)]
        nodes += [helper.make_node("If", ["c"], ["h"], **bodies)]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info(n, 1, None) for n in ("y", "h")])
    graph.initializer.extend(onnx.numpy_helper.from_array(a.astype("f4"), n) for n, a in stored.items())
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "zero"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    samples = of({"x": rng.normal(size=(32, 5)).astype("f4")})
    given = SimpleNamespace(calibration=samples)
    made = convert.quantize(model, samples)
    share = quantize_speed.of_all(given, made, [k for k in made.placement.layers if not k.reason])
    assert share == pytest.approx(40 / (40 + (144 if kind == "LSTM" else 40)))


def test_a_session_that_tells_a_file_from_itself_has_wider_intervals():
    assert wider((1.1, 1.05, 1.2), (1.0, 0.99, 1.01)) == (1.1, 1.05, 1.2)
    assert wider((1.1, 1.05, 1.2), (0.9, 0.8, 0.95)) == (1.1, pytest.approx(1.05 * 0.9), pytest.approx(1.2 / 0.9))


class TestVerb:
    @pytest.fixture
    def slow(self, monkeypatch):
        """The first layer takes long in int8, whatever it is measured by."""
        monkeypatch.setattr(
            quantize_speed._Subject, "costs", lambda s: ([Cost(1, 9), *[Cost(1, 1)] * (len(s.labels) - 1)], 0.1)
        )
        whole = lambda path: "dq" in next(n for n in onnx.load(path).graph.node if n.name == FIRST).input[1]
        monkeypatch.setattr(Bench, "ratios", lambda _, files, *__: [SLOWER if whole(f) else EVEN for f in files[1:]])

    def test_the_decision_is_printed_kept_in_the_file_and_makes_the_same_file_again(
        self, net, slow, tmp_path, monkeypatch
    ):
        made = quantize(**given(net, out=tmp_path / "a.onnx"))
        assert made.speed.float_layers == (FIRST,) and made.speed.ratio == EVEN
        assert [r.name for r in made.layers if r.reason] == [FIRST]
        assert json.loads(stored(tmp_path / "a.onnx")["edgekd.float_layers"]) == [FIRST]
        monkeypatch.setattr(Bench, "ratios", lambda *_: pytest.fail("timed again"))
        line = next(t for t in str(made).splitlines() if "--float-layer" in t)
        options = shlex.split(line[line.index("--float-layer") :])
        again = [["--like", tmp_path / "a.onnx"], options]
        for number, more in enumerate(again):
            out = tmp_path / f"again{number}.onnx"
            arguments = [net / "m.onnx", "--data", net / "d.npz", "--out", out, *more]
            assert command(["quantize", *map(str, arguments), "--quiet"]) == 0
            assert out.read_bytes() == (tmp_path / "a.onnx").read_bytes()

    def test_slower_int8_keeps_all_and_times_nothing(self, net, slow, tmp_path, monkeypatch):
        monkeypatch.setattr(Bench, "ratios", lambda *_: pytest.fail("timed"))
        made = quantize(**given(net, out=tmp_path / "a.onnx", slower_int8=True))
        assert made.speed is None and not any(r.reason for r in made.layers)
        assert "edgekd.float_layers" not in stored(tmp_path / "a.onnx")
        quantize(**given(net, out=tmp_path / "b.onnx", like=tmp_path / "a.onnx"))
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_a_file_that_is_slower_whatever_is_tried_is_written_and_said_to_be(self, net, slow, tmp_path, monkeypatch):
        monkeypatch.setattr(Bench, "ratios", lambda _, files, *__: [SLOWER] * (len(files) - 1))
        text = str(quantize(**given(net, out=tmp_path / "a.onnx")))
        assert "int8 takes 1.200 [1.100, 1.300] of float's time on this machine" in text
        assert "no file with layers in int8 is as fast as float here" in text and (tmp_path / "a.onnx").is_file()

    def test_nothing_is_decided_by_time_for_a_target_that_can_not_be_timed_here(self, net, tmp_path, monkeypatch):
        monkeypatch.setattr(Bench, "ratios", lambda *_: pytest.fail("timed"))
        made = quantize(**given(net, out=tmp_path / "a.onnx", target="raspberry-pi-4"))
        assert "not timed: this machine is not a raspberry-pi-4 (" in str(made) and made.speed.float_layers == ()

    @pytest.mark.parametrize(
        "more, wanted",
        [
            ({"on": "ssh://board", "slower_int8": True}, "nothing is timed with --slower-int8"),
            ({"like": "m.onnx"}, "does not say which layers edgekd kept in float"),
            ({"like": "none.onnx"}, "none.onnx"),
        ],
    )
    def test_what_can_not_be_meant(self, net, tmp_path, more, wanted):
        more = {k: net / v if k == "like" else v for k, v in more.items()}
        with pytest.raises(UsageError, match=wanted):
            quantize(**given(net, out=tmp_path / "a.onnx", **more))


def stored(path):
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def test_times_of_a_real_session(net, tmp_path, monkeypatch):
    """Nothing is asserted of the times but that they are there, and in which order."""
    monkeypatch.undo()
    arrays = {"x": numbers(ROWS, 3, 12, 12)}
    made = convert.quantize(onnx.load(net / "m.onnx"), arrays)
    layers = [k for k in made.placement.layers if not k.reason]
    models = [quantize_speed.numbered(m, layers) for m in (made.float_model, made.model)]
    files = [tmp_path / "float.onnx", tmp_path / "int8.onnx"]
    for path, model in zip(files, models, strict=True):
        onnx.save(model, path)
    bench = Bench(arrays, 1, tmp_path / "bench")
    (ratio,) = bench.ratios(files, "one")
    assert 0 < ratio[1] <= ratio[0] <= ratio[2]
    for line in map(json.loads, (tmp_path / "bench" / "one" / "out" / "results.jsonl").read_text().splitlines()):
        assert set(line["cpu_p50_ms"]) == set(line["p50_ms"]) and all(0 < s < 1.1 for s in line["cpu_share"].values())
    for clock, model in zip(bench.operators(files), models, strict=True):
        each = quantize_speed.by_layer(clock, model, len(layers))
        assert len(each) == 5 and min(each) > 0 and sum(each) == pytest.approx(sum(ms for _, ms in clock))


@pytest.mark.parametrize(("share", "expected", "said"), [(0.5, 0.2, "50 % of a core"), (0.99, 0.05, "")])
def test_a_file_that_waits_for_a_core_is_not_taken_for_slow(tmp_path, monkeypatch, share, expected, said):
    """Float inferences of 10 ms are preempted, int8 ones of 0.5 ms are not: by CPU time 2.5 and 0.5 ms."""
    monkeypatch.undo()
    wall, cpu = {"s0": 10.0, "s1": 0.5, "control": 10.0}, {"s0": 2.5, "s1": 0.5, "control": 2.5}
    shares = {"s0": share, "s1": 1.0, "control": share}
    line = {"p50_ms": wall, "cpu_p50_ms": cpu, "cpu_share": shares}
    monkeypatch.setattr(Bench, "_run", lambda self, name, models, schedule, progress: dict.fromkeys(range(6), line))
    bench = Bench({}, 1, tmp_path)
    (ratio,) = bench.ratios([tmp_path / "a", tmp_path / "b"], "one")
    assert ratio == pytest.approx((expected,) * 3)
    assert said in ", ".join(bench.noise) and bool(bench.noise) == bool(said)
    assert said in str(Speed(ratio, where="here", noise=", ".join(bench.noise)))


def test_a_layer_is_in_float_for_what_put_it_there():
    rows = [Row(n, "Conv", 8, 8, ASKED) for n in "abc"] + [Row("d", "Conv", 8, 2)]
    assert [r.reason for r in explained(rows, ["a"], ["b"])] == [ASKED, TIMED, LOSES, ""]


class TestFloatLayers:
    """onnxruntime rounds weights of float layers between integers to int8 with one scale, unless they are written so
    that it can't; its answers without any optimization are the oracle."""

    @pytest.mark.parametrize("floats", [s for n in (1, 2, 3) for s in itertools.combinations(range(4), n)])
    def test_weights_that_stay_float_are_computed_as_stored(self, net, floats):
        model = onnx.load(net / "m.onnx")
        x = numbers(ROWS, 3, 12, 12)
        names = tuple(f"/layers/layers.{i}/layers.{i}.0/Conv" for i in floats)
        made = convert.quantize(model, {"x": x}, scheme=Scheme(float_layers=names))
        plain, fused = (answers(made.model, x, level) for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"))
        steps = np.abs(plain - fused).max() / np.abs(plain).max()
        assert steps < 0.02  # a value that is rounded otherwise; rounded weights differ by more than that in sum

    @pytest.mark.parametrize("floats", [(0, 1), (1,), (2,), (1, 2)])
    def test_they_have_the_blocked_layout_of_a_float_file(self, net, floats, tmp_path):
        names = tuple(f"/layers/layers.{i}/layers.{i}.0/Conv" for i in floats)
        made = convert.quantize(
            onnx.load(net / "m.onnx"), {"x": numbers(8, 3, 12, 12)}, scheme=Scheme(float_layers=names)
        )
        domains = [n.domain for n in optimized(made.model).graph.node if n.op_type in ("Conv", "FusedConv")]
        whole = [n.domain for n in optimized(made.float_model).graph.node if n.op_type == "Conv"]
        assert domains == whole[: len(floats)]  # com.microsoft.nchwc on x86


def answers(model, x, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


class TestActivations:
    """Those that have integer kernels in onnxruntime, or are written so that they have."""

    def between(self, *nodes, **stored):
        """Convolution -> nodes (a to b) -> convolution, quantized: (made, samples, kinds of fused operators)."""
        stored |= {"w": numbers(8, 8, 1, 1, seed=1), "v": numbers(4, 8, 1, 1, seed=2)}
        ends = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["b", "v"], ["y"])]
        model = file([ends[0], *nodes, ends[1]], {"x": ["n", 8, 6, 6]}, {"y": ["n", 4, 6, 6]}, stored)
        x = numbers(ROWS, 8, 6, 6)
        made = convert.quantize(model, {"x": x})
        return model, made, x

    def check(self, tmp_path, found, kinds, decibels):
        model, made, x = found
        path = tmp_path / "int8.onnx"
        onnx.save(made.model, path)
        assert kinds == fused(made.model)
        plain, ours = (answers(m, x, "ORT_ENABLE_ALL") for m in (model, made.model))
        noise = np.square(plain - ours).mean() / np.square(plain - plain.mean(0)).mean()
        assert -10 * np.log10(noise) > decibels
        assert all(r.differ == 0 for r in compare(path, {"x": x[:4]}) if r.integer)

    def test_hard_swish(self, tmp_path):
        self.check(
            tmp_path, self.between(helper.make_node("HardSwish", ["a"], ["b"])), {"QLinearAdd", "QLinearMul"}, 29
        )

    @pytest.mark.parametrize("product_first", [True, False])
    def test_hard_swish_of_older_exporters(self, product_first, tmp_path):
        numbers_ = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
        clipped = [
            helper.make_node("Add", ["a", "three"], ["s"]),
            helper.make_node("Clip", ["s", "zero", "six"], ["c"]),
        ]
        rest = [("Mul", ["a", "c"], "m"), ("Div", ["m", "six"], "b")]
        rest = rest if product_first else [("Div", ["c", "six"], "m"), ("Mul", ["a", "m"], "b")]
        nodes = [*clipped, *(helper.make_node(kind, names, [made]) for kind, names, made in rest)]
        self.check(tmp_path, self.between(*nodes, **numbers_), {"QLinearAdd", "QLinearMul"}, 29)

    @pytest.mark.parametrize("alpha, beta", [(0.2, 0.5), (1 / 6, 0.5), (0.5, 0.0), (0.1, 0.9)])
    def test_hard_sigmoid(self, alpha, beta, tmp_path):
        node = helper.make_node("HardSigmoid", ["a"], ["b"], alpha=alpha, beta=beta)
        self.check(tmp_path, self.between(node), {"QLinearAdd"}, 29)

    @pytest.mark.parametrize("alpha, beta", [(-0.2, 0.5), (0.2, -0.5)])
    def test_hard_sigmoid_that_is_no_such_sum_stays_float(self, alpha, beta, tmp_path):
        node = helper.make_node("HardSigmoid", ["a"], ["b"], alpha=alpha, beta=beta)
        self.check(tmp_path, self.between(node), set(), 29)

    def test_its_layers_are_found_and_can_be_left_in_float(self):
        """What `explain` looks at: all in float computes what the float file does, but for the gate's rounding."""
        nodes = [helper.make_node("HardSwish", ["a"], ["h"]), helper.make_node("Relu", ["h"], ["b"])]
        model, made, x = self.between(*nodes)
        found = pair(made.float_model, made.model)
        assert [k.name for k in found.layers if k.weights] == ["Conv(a.raw)", "Conv(y.raw)"]
        plain, ours = answers(model, x, "ORT_ENABLE_ALL"), outputs(render(found, ()), {"x": x})[0]
        assert np.square(plain - ours).mean() < 1e-4 * np.square(plain).mean()

    def test_leaky_relu(self, tmp_path):
        self.check(
            tmp_path, self.between(helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1)), {"QLinearLeakyRelu"}, 29
        )


def fused(model):
    """Kinds of integer operators between convolutions that onnxruntime makes of a file."""
    kinds = {n.op_type for n in optimized(model).graph.node}
    return {k for k in kinds if k.startswith("QLinear")} - {"QLinearConv"}


def optimized(model):
    """The file as onnxruntime runs it here."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/o.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
