"""`quantize --max-drop`: what may be lost is held on samples that nothing was selected by, or nothing is written."""

import math
import shlex

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from test_foreign import block, file, numbers, traced
from torch import nn

from edgekd.cli import run as command
from edgekd.errors import UsageError
from edgekd.metrics import mean_error
from edgekd.quantization.diagnosis.noise import outputs
from edgekd.quantization.diagnosis.signal_to_noise import noise
from edgekd.quantization.onnx_graph import bias, convert, normalize
from edgekd.quantization.onnx_graph.equalize import equalized, steps
from edgekd.quantization.qdq import graph as graphs
from edgekd.report.drop import Held, Row
from edgekd.run.allowed_drop import Allowed, parsed
from edgekd.run.quantize_drop import Setting, nearest, search
from edgekd.samples.rows import Samples
from edgekd.verbs.quantize import quantize

LAYERS = [f"layer{i}" for i in range(9)]


class TestSearch:
    """By made-up figures: dB that a setting has on both halves."""

    def found(self, limit, selected, judged=None):
        order = lambda best: LAYERS
        return search(Setting("minmax"), order, selected, judged or selected, Allowed(limit, "dB"))

    def test_the_first_that_holds_and_what_costs_nothing_comes_first(self):
        taken, tried = self.found(30, lambda s: 31 if s.ranges == "mse" else 29)
        assert taken == Setting("mse") and [t.setting.ranges for t in tried] == ["minmax", "percentile", "mse"]

    def test_it_has_to_hold_on_the_samples_that_judge(self):
        taken, tried = self.found(30, lambda s: 31, lambda s: 31 if s.equalize else 29)
        assert taken == Setting("minmax", equalize=True) and tried[0].judged == 29

    def test_as_few_layers_in_float_as_hold_on_top_of_the_best(self):
        figure = lambda s: 20 + 2 * s.correct_bias + 2 * len(s.float_layers)
        taken, tried = self.found(31, figure)
        assert taken == Setting("minmax", False, True, tuple(LAYERS[:5]))
        assert [len(t.setting.float_layers) for t in tried if t.setting.float_layers] == [1, 2, 4, 8, 6, 5]

    def test_what_does_not_hold_is_none_and_never_all_layers_are_in_float(self):
        taken, tried = self.found(60, lambda s: 20 + len(s.float_layers))
        assert taken is None and max(len(t.setting.float_layers) for t in tried) == len(LAYERS) - 1
        assert len(nearest(tried, Allowed(60, "dB")).setting.float_layers) == 8

    def test_files_that_can_not_be_made_hold_nothing(self):
        taken, tried = self.found(5, lambda s: math.nan if s.ranges == "minmax" else 10)
        assert taken == Setting("percentile") and math.isnan(tried[0].selected)


class TestAmounts:
    def test_points_are_of_accuracy_where_there_are_labels_else_of_equal_answers(self):
        labels = np.array([0, 1, 1, 0])
        plain = {"y": np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]])}
        int8 = {"y": np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])}
        assert parsed("1 pt", labels).figure(plain, int8, labels) == 0  # one is lost, one is won
        assert parsed("1 pt", None).figure(plain, int8, None) == 50

    def test_decibels_are_those_of_the_worst_output(self):
        plain = {n: numbers(64, 3, seed=i) for i, n in enumerate("ab")}
        int8 = {"a": plain["a"] * np.float32(1.001), "b": plain["b"] * np.float32(1.1)}
        allowed = parsed("30 dB", None)
        figure = allowed.figure(plain, int8, None)
        assert figure == pytest.approx(-10 * np.log10(noise(plain["b"], int8["b"]))) and not allowed.met(figure)

    def test_an_output_that_is_not_finite_has_no_decibels_whatever_the_others_have(self):
        plain = {n: numbers(64, 3, seed=i) for i, n in enumerate("ab")}
        int8 = {"a": plain["a"], "b": np.full((64, 3), np.nan, np.float32)}
        for order in ("ab", "ba"):
            figure = parsed("30 dB", None).figure({n: plain[n] for n in order}, {n: int8[n] for n in order}, None)
            assert math.isnan(figure) and not parsed("30 dB", None).met(figure)

    def test_a_small_amount_of_ones_own_metric_is_shown(self):
        assert Allowed(0.001, "loss", mean_error()).shown(0.00123) == "0.00123 loss"

    @pytest.mark.parametrize(
        "text, told",
        [("0.5 own_broken:error", "ZeroDivisionError"), ("0.5 own_missing:error", "own_missing"),
         ("0.5 own_broken:nothing", "nothing")],
    )  # fmt: skip
    def test_a_metric_that_can_not_be_had_is_told_with_its_place(self, text, told, tmp_path, monkeypatch):
        (tmp_path / "own_broken.py").write_text("def error():\n    return 1 / 0\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError) as caught:
            parsed(text, np.zeros(4))
        (problem,) = caught.value.problems
        assert problem.place == "--max-drop" and told in problem.message

    def test_a_metric_of_ones_own(self, tmp_path, monkeypatch):
        (tmp_path / "own_drop.py").write_text("from edgekd.metrics import mean_error as error\n")
        monkeypatch.chdir(tmp_path)
        labels = np.zeros((4, 2))
        allowed = parsed("0.5 own_drop:error", labels)
        figure = allowed.figure({"y": np.ones((4, 2))}, {"y": np.full((4, 2), 1.25)}, labels)
        assert figure == 0.25 and allowed.met(figure) and allowed.metric.name == mean_error().name

    @pytest.mark.parametrize("text", ["1", "pt", "one pt", "-1 pt", "30 db", "1 pt 2 pt"])
    def test_what_is_no_amount(self, text):
        with pytest.raises(UsageError, match="is not an amount with its unit"):
            parsed(text, None)

    def test_figures_that_are_no_numbers_are_never_met(self):
        assert not Allowed(5, "dB").met(math.nan) and not Allowed(5, "pt").met(math.nan)


class Uneven(nn.Module):
    """Channels of very different sizes between a convolution and a depthwise one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = block(3, 8, act=nn.ReLU), block(8, 8, 8, act=nn.ReLU), block(8, 6, act=nn.ReLU)
        sizes = torch.logspace(0, 2, 8)[:, None, None, None]
        self.a[0].weight.data *= sizes
        self.b[0].weight.data /= sizes

    def forward(self, x):
        return self.c(self.b(self.a(x))).mean((2, 3))


class TestEqualize:
    def test_the_network_computes_the_same_and_loses_less_in_int8(self):
        model, arrays = traced(Uneven, 3, 10, 10)
        plain = outputs(model, arrays)[0]
        normal = normalize.normalized(model)
        even = equalized(normal, arrays)
        assert len(list(steps(graphs.of(normal)))) == 2 and even != normal
        assert np.abs(outputs(even, arrays)[0] - plain).max() < 1e-4 * np.abs(plain).max()
        before, after = (convert.quantize(model, arrays, equalize=e).model for e in (False, True))
        lost = [noise(plain, outputs(m, arrays)[0]) for m in (before, after)]
        assert lost[1] < lost[0] / 2

    def test_layer_norms_and_the_products_that_read_them(self):
        stored = {"g": 10 ** np.linspace(-1, 1, 6).astype(np.float32), "b": numbers(6), "w": numbers(6, 4, seed=1)}
        stored["v"] = numbers(6, 5, seed=2)
        nodes = [
            helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], axis=-1),
            helper.make_node("MatMul", ["n", "w"], ["y"]),
            helper.make_node("MatMul", ["n", "v"], ["z"]),
        ]
        model = file(nodes, {"x": ["n", 3, 6]}, {"y": ["n", 3, 4], "z": ["n", 3, 5]}, stored)
        feed = {"x": numbers(32, 3, 6)}
        even = equalized(model, feed)
        assert even != model
        for ours, plain in zip(outputs(even, feed), outputs(model, feed), strict=True):
            assert np.abs(ours - plain).max() < 1e-5 * np.abs(plain).max()

    def test_a_value_that_another_operator_reads_is_left_alone(self):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Conv", ["a", "v"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ]
        stored = {"w": numbers(4, 4, 1, 1), "v": numbers(4, 4, 1, 1, seed=1)}
        model = file(nodes, {"x": ["n", 4, 5, 5]}, {"y": ["n", 4, 5, 5]}, stored)
        assert equalized(model, {"x": numbers(8, 4, 5, 5)}) is model


def test_corrected_biases_make_up_for_rounded_weights_on_average():
    """Of one product, whose weights and biases the file tells: by numpy."""
    stored = {"w": numbers(6, 4), "b": numbers(4, seed=1)}
    model = file([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"x": ["n", 6]}, {"y": ["n", 4]}, stored)
    feed = {"x": numbers(64, 6, seed=2) + 3}
    for correct, wanted in ((False, False), (True, True)):
        made = convert.quantize(model, feed, correct_bias=correct)
        told = {n.output[0]: n for n in made.model.graph.node}
        gemm = next(n for n in made.model.graph.node if n.op_type == "Gemm")
        constants = graphs.of(made.model).constants
        real = lambda n, told=told, c=constants: c[told[n].input[0]] * c[told[n].input[1]].astype(np.float64)
        found = feed["x"].mean(0) @ real(gemm.input[1]) + real(gemm.input[2])
        apart = np.abs(found - (feed["x"].mean(0) @ stored["w"] + stored["b"])).max()
        step = constants[told[gemm.input[2]].input[1]].max()
        assert (apart <= 0.51 * step) == wanted


def test_biases_are_corrected_where_the_first_input_is_one_number():
    """A constant that every sample shares is no number of samples."""
    stored = {"w": numbers(6, 4), "b": numbers(4, seed=1)}
    nodes = [helper.make_node("Mul", ["x", "gain"], ["v"]), helper.make_node("Gemm", ["v", "w", "b"], ["y"])]
    model = file(nodes, {"gain": [], "x": ["n", 6]}, {"y": ["n", 4]}, stored)
    x = numbers(64, 6, seed=2) + 3
    samples = Samples({"gain": np.broadcast_to(np.float32(2.0), (64,)), "x": x}, {"gain": None, "x": 0})
    assert np.allclose(bias._means(model, {"v": -1}, samples)["v"], 2 * x.mean(0), rtol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(block(i, 8, act=nn.ReLU) for i in (3, 8, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drop")
    model, _ = traced(Net, 3, 8, 8)
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", inputs=numbers(160, 3, 8, 8))
    return folder


class TestVerb:
    def test_a_file_that_holds_is_written_and_the_command_makes_it_again(self, net, tmp_path):
        plain = quantize(net / "m.onnx", data=net / "d.npz", out=tmp_path / "plain.onnx")
        limit = plain.agreements[0].snr_db + 2
        out = tmp_path / "a.onnx"
        made = quantize(net / "m.onnx", data=net / "d.npz", out=out, max_drop=f"{limit:.1f} dB")
        assert made.exit_code == 0 and made.held.held and len(made.held.tried) > 1 and "held" in str(made)
        x = np.load(net / "d.npz")["inputs"][3::4][1::2]
        before, after = (outputs(onnx.load(p), {"x": x})[0] for p in (net / "m.onnx", out))
        assert -10 * np.log10(noise(before, after)) >= round(limit, 1)
        content = out.read_bytes()
        out.unlink()
        assert command([*shlex.split(made.held.command)[1:], "--quiet"]) == 0
        assert out.read_bytes() == content

    def test_layers_that_go_into_float_for_the_drop_are_in_the_share_and_in_the_command_alone(self, net, tmp_path):
        """--like takes them from the file too, but does not make it: ranges and biases are no part of what it keeps."""
        limit = 0.0
        plain = quantize(net / "m.onnx", data=net / "d.npz", out=tmp_path / "plain.onnx")
        while True:  # until settings alone don't hold it
            limit = max(limit, plain.agreements[0].snr_db) + 1
            made = quantize(net / "m.onnx", data=net / "d.npz", out=tmp_path / "a.onnx", max_drop=f"{limit:.1f} dB")
            if isinstance(made, Held) or "--float-layer" in made.held.command:
                break
        assert not isinstance(made, Held) and 0 < made.speed.share < 1 and made.speed.float_layers == ()
        assert "--like with it" not in str(made)

    def test_points_of_accuracy_by_labels(self, net, tmp_path):
        """float's own answers are the labels, so that each other answer is a loss; the metric is told."""
        x = np.load(net / "d.npz")["inputs"]
        labels = outputs(onnx.load(net / "m.onnx"), {"x": x})[0].argmax(1)
        np.savez(tmp_path / "labelled.npz", inputs=x, labels=labels)
        made = quantize(net / "m.onnx", data=tmp_path / "labelled.npz", out=tmp_path / "a.onnx", max_drop="5 pt")
        assert made.exit_code == 0 and "top1 lost, at most 5.00 pt" in str(made)
        kept, whole = x[3::4][1::2], labels[3::4][1::2]
        found = outputs(onnx.load(tmp_path / "a.onnx"), {"x": kept})[0].argmax(1)
        assert 100 * (found != whole).mean() == pytest.approx(float(made.held.judged.split()[0]))

    def test_a_metric_that_raises_ends_the_command_with_its_place(self, net, tmp_path, monkeypatch, capsys):
        (tmp_path / "raising_drop.py").write_text(
            "import edgekd\nmetric = edgekd.Metric('m', '', 'lower', lambda o, l: 1 / 0, float)\n"
        )
        monkeypatch.chdir(tmp_path)
        np.savez(tmp_path / "l.npz", inputs=np.load(net / "d.npz")["inputs"], labels=np.zeros(160, np.int64))
        words = ["quantize", net / "m.onnx", "--data", "l.npz", "--out", "a.onnx", "--quiet"]
        assert command([*map(str, words), "--max-drop", "0.1 raising_drop:metric"]) == 2
        err = capsys.readouterr().err
        assert "--max-drop: m raised ZeroDivisionError" in err and not (tmp_path / "a.onnx").exists()

    def test_files_that_were_judged_before_are_told(self):
        rows = (Row("a", "1", "9"), Row("b", "1", ""), Row("c", "1", "1"))
        told = str(Held(True, "at most 1 pt", rows, "1", (8, 8), "edgekd quantize"))
        assert "the first of 2 files to hold" in told
        assert "the first of" not in str(Held(True, "at most 1 pt", rows[1:], "1", (8, 8), "edgekd quantize"))

    def test_nothing_is_written_where_nothing_holds(self, net, tmp_path, capsys):
        out = tmp_path / "a.onnx"
        arguments = [net / "m.onnx", "--data", net / "d.npz", "--out", out, "--max-drop", "90 dB", "--quiet"]
        assert command(["quantize", *map(str, arguments)]) == 1
        text = capsys.readouterr().out
        assert not out.exists() and "at least 90.0 dB: not held, nothing is written" in text
        assert "the nearest, " in text and "--float-layer" in text

    def test_too_few_samples_to_hold_some_out(self, net, tmp_path):
        np.savez(tmp_path / "few.npz", inputs=numbers(40, 3, 8, 8))
        with pytest.raises(UsageError, match="is judged on held-out samples, and these are too few"):
            quantize(net / "m.onnx", data=tmp_path / "few.npz", out=tmp_path / "a.onnx", max_drop="1 pt")
