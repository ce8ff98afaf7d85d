"""Which layer of an int8 file loses accuracy, and why: planted faults, files in between, causes by hand, and the
verb."""

import dataclasses
import functools
import hashlib
import shutil

import faults
import numpy as np
import onnx
import pytest
import torch
from faults import FRESH, HELD_OUT, kit, run, table, weighted
from onnx import numpy_helper
from torch import nn

from edgekd import results
from edgekd.cli import run as command
from edgekd.errors import BaselineError, UsageError
from edgekd.explain import accuracy, layers
from edgekd.files import sha256
from edgekd.formats import onnx as format
from edgekd.quantization import calibrated
from edgekd.quantization import parameters as quantization_parameters
from edgekd.quantization.diagnosis import layers as diagnose
from edgekd.quantization.diagnosis import noise as noises
from edgekd.quantization.diagnosis.causes import Seen, beyond, calibrated_on_few, of_values
from edgekd.quantization.diagnosis.signal_to_noise import signal
from edgekd.quantization.diagnosis.weight_causes import of_weights
from edgekd.quantization.qdq.graph import Parameters
from edgekd.quantization.qdq.pairing import PARTS, Layer, Weights, pair
from edgekd.quantization.qdq.partial import render
from edgekd.quantization.torch_graph import fake, modules
from edgekd.quantization.torch_graph.capture import capture
from edgekd.records import Candidate, Measurement, Result, TargetResult
from edgekd.verbs import explain


@pytest.mark.slow
def test_planted_faults(tmp_path):
    """The bars of the causes were chosen on `faults.TUNED`; these are others."""
    rows = [run(case, tmp_path) for case in HELD_OUT]
    fresh = [run(case, tmp_path) for case in FRESH]
    text = f"{table(rows)}\n{table(fresh)}"
    print(text)
    assert sum(r.cause_right for r in fresh) >= 0.8 * len(fresh), text
    assert len(rows) >= 20 and {r.case.network for r in rows} == {"residual", "ds_cnn"}
    assert sum(r.layer_right for r in rows) >= 0.9 * len(rows), text
    assert sum(r.cause_right for r in rows) >= 0.8 * len(rows), text


# ---------------------------------------------------------------- files in between


@pytest.fixture(scope="module", params=["residual", "ds_cnn"])
def healthy(request, tmp_path_factory):
    k = kit(request.param, 0)
    paths = k.build(tmp_path_factory.mktemp(request.param))
    return k, paths, pair(*map(onnx.load, paths))


def test_nothing_quantized_is_the_float_file_and_everything_the_int8_file(healthy):
    k, _, p = healthy
    feed, everything = {"input": k.x.numpy()[:32]}, [(layer.name, part) for layer in p.layers for part in PARTS]
    for quantized, file in (((), p.plain.model), (everything, p.quantized.model)):
        (ours,), (theirs,) = noises.outputs(render(p, quantized), feed), noises.outputs(file, feed)
        np.testing.assert_array_equal(ours, theirs)


def test_layers_are_those_of_the_model(healthy):
    """Weights one to one with the convolutions of the model, in its order, and no further from them than half a
    step."""
    k, _, p = healthy
    layers, modules = weighted(p), faults.convolutions(k.model)
    assert [layer.weights.stored.shape for layer in layers] == [tuple(m.weight.shape) for m in modules]
    assert [layer.depthwise for layer in layers] == [isinstance(m, nn.Conv2d) and m.groups > 1 for m in modules]
    for layer in layers:
        w = layer.weights
        step = w.scale.reshape(-1, *[1] * (w.plain.ndim - 1))
        assert (np.abs(w.plain - w.dequantized) <= step * 0.5001).all()
    assert p.layers[0].name == "input" and all(layer.parameters is not None for layer in p.layers)


def test_one_layer_is_rounded_alone(healthy):
    """With the last layer's value alone in int8, outputs are the float ones on that grid."""
    k, _, p = healthy
    feed, last = {"input": k.x.numpy()[:32]}, p.layers[-1]
    (plain,), (ours,) = (
        noises.outputs(p.plain.model, feed),
        noises.outputs(render(p, [(last.name, "values")]), feed),
    )
    scale, zero = last.parameters.scale[0], int(last.parameters.zero_point[0])
    expected = (np.clip(np.rint(plain / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_what_a_layer_gives_back_is_that_of_the_fake_quantized_model(healthy, tmp_path):
    """The same question to the torch model: one layer's roundings off, all others on; and the answers in order."""
    k, _, p = healthy
    x = k.x[:64]
    module = calibrated(k.model, [k.calibration])
    names = format.export(capture(k.model, x[:2]), fake.settle(module), x[:2], tmp_path / "int8.onnx")
    total, shares = noises.shares(p, {"input": x.numpy()})
    assert [s.without for s in shares] == sorted(s.without for s in shares)
    with torch.no_grad():
        plain = k.model(x).numpy()

        def noise():
            return float((np.square(module(x).numpy() - plain).mean(1) / signal(plain)).mean())

        assert diagnose.decibel(total / noise()) == pytest.approx(0, abs=0.3)
        parts = {part.name: part for part in fake.parts(module, (modules.Value, modules.Weight))}
        sites = [site for site, part in parts.items() if isinstance(part, modules.Weight)]
        for number, layer in enumerate(weighted(p)):
            mine = [parts[sites[number]], *(parts[site] for site, after in names.items() if after == layer.after)]
            mine += [b for b in fake.parts(module, modules.Bias) if b.operands[1] is mine[0]]
            assert len(mine) == 3
            for part in mine:
                part.mode = "observe"
            ours = next(s.without for s in shares if s.layer is layer)
            assert diagnose.decibel(ours / noise()) == pytest.approx(0, abs=0.3), layer.name
            for part in mine:
                part.mode = "exact"


def test_the_worst_comes_first(healthy, tmp_path):
    k, (plain, _), p = healthy
    file, layers = onnx.load(plain.parent / "int8.onnx"), weighted(p)
    for layer, by in ((layers[0], 16), (layers[2], 24)):
        faults.set_parameters(file, layer, layer.parameters.scale[0] * by, layer.parameters.zero_point[0])
    onnx.save(file, tmp_path / "two.onnx")
    found = diagnose.look(plain, tmp_path / "two.onnx", {"input": k.x.numpy()}).findings
    assert {f.layer for f in found} >= {layers[0].name, layers[2].name}
    assert [f.lost.snr for f in found] == sorted((f.lost.snr for f in found), reverse=True) and found[
        0
    ].layer == layers[2].name


def test_a_healthy_file_has_no_finding(healthy):
    k, paths, _ = healthy
    with torch.no_grad():
        labels = k.model(k.x).argmax(1).numpy()
    assert diagnose.look(*paths, {"input": k.x.numpy()}, labels).findings == ()
    looked = diagnose.look(*paths, {"input": k.x.numpy()}, labels)
    (found,) = looked.agreements
    assert found.snr_db > 20 and found.answers > 0.9 and not looked.trained


def test_trained_weights_are_their_own_reference(healthy, tmp_path):
    """Other weights in int8 than the float file has are no fault of the file; a grid that is wrong still is."""
    k, (plain, int8), p = healthy
    file = onnx.load(plain)
    for layer in weighted(p):
        for tensor in file.graph.initializer:
            if (array := numpy_helper.to_array(tensor)).shape == layer.weights.plain.shape and np.array_equal(
                array, layer.weights.plain
            ):
                noise = np.random.default_rng(0).normal(size=array.shape) * 0.1 * array.std()
                tensor.CopyFrom(numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))
    other = tmp_path / "other.onnx"
    onnx.save(file, other)
    assert diagnose.trained(pair(onnx.load(other), onnx.load(int8)))
    assert diagnose.look(other, int8, {"input": k.x.numpy()}).findings == ()
    spoiled = onnx.load(int8)
    layer = weighted(p)[1]
    faults.set_parameters(spoiled, layer, layer.parameters.scale[0] * 12, layer.parameters.zero_point[0])
    onnx.save(spoiled, tmp_path / "spoiled.onnx")
    found = diagnose.look(other, tmp_path / "spoiled.onnx", {"input": k.x.numpy()}).findings
    assert (found[0].layer, found[0].cause, found[0].lost.points) == (layer.name, "wrong scale", None)


def test_a_short_training_is_told_from_calibration():
    """Weights a third of a step away after a training, whose scales follow them; learned rounding and scales that cut
    are no training."""
    w = np.random.default_rng(0).normal(size=(8, 6, 3, 3)).astype(np.float32)
    step = np.abs(w).max((1, 2, 3)) / 127
    assert not diagnose.moved(weights(w, step))
    tuned = w + np.random.default_rng(1).normal(size=w.shape).astype(np.float32) * step.reshape(-1, 1, 1, 1) / 3
    made = weights(tuned, np.abs(tuned).max((1, 2, 3)) / 127)
    assert diagnose.moved(dataclasses.replace(made, plain=w))
    shaped = step.reshape(-1, 1, 1, 1)
    up = np.clip(np.floor(w / shaped) + (np.random.default_rng(2).random(w.shape) < 0.5), -127, 127)
    learned = Weights(up.astype(np.int8), step, 0, w, (up * shaped).astype(np.float32))
    assert not diagnose.moved(learned)
    assert not diagnose.moved(weights(w, 0.8 * step))
    assert not diagnose.moved(weights(w, np.abs(w).max((1, 2, 3)) / 7, high=7))


def test_a_loud_place_of_a_sequence():
    """One of ten places 50 times the others, in all channels; one channel at all places is another matter, and so is
    what a convolution makes."""
    v = np.random.default_rng(0).normal(size=(50, 10, 8)).astype(np.float32)
    assert named(fit(v, kind="Add"), v)[0] is None
    loud = v.copy()
    loud[:, 3] *= 50
    assert (
        named(fit(loud, kind="Add"), loud)[0] == "activation shape"
        and "place 3 of each sample" in named(fit(loud, kind="Add"), loud)[1]
    )
    assert named(fit(loud), loud)[0] == "outlier channel"
    channel = v.copy()
    channel[:, :, 5] *= 50
    assert (
        named(fit(channel, kind="Add"), channel)[0] == "outlier channel"
        and "channel 5" in named(fit(channel, kind="Add"), channel)[1]
    )


def test_files_of_two_networks_are_refused(healthy, tmp_path):
    k, (_, int8), _ = healthy
    other = kit("ds_cnn" if k.name == "residual" else "residual", 0).build(tmp_path)[0]
    with pytest.raises(UsageError, match="not the same network: operator"):
        diagnose.look(other, int8, {"input": k.x.numpy()})


def test_saturation_is_asked_for(healthy):
    """The layers of the audit, and only if asked; what they lose is not seen on exact products."""
    from edgekd.quantization.qdq.saturation import audit

    k, paths, p = healthy
    feed = {"input": np.abs(k.x.numpy()[:32]) * 10}
    asked = [f for f in diagnose.look(*paths, feed, saturates=True).findings if f.cause == "saturation"]
    expected = {f"{layer.kind}({layer.name})" for layer in audit(p.quantized.model, feed) if layer.changed}
    assert {f.layer for f in asked} == expected and all(
        f.lost.snr is not None and f.fix == "weight_bits = 7" for f in asked
    )
    assert not [f for f in diagnose.look(*paths, feed).findings if f.cause == "saturation"]


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="there is no qemu-x86_64")
def test_what_saturation_does_is_what_such_a_cpu_answers(tmp_path):
    """One layer saturates: the file with its excess added answers what the file itself does as a Haswell, and not what
    it does here."""
    from edgekd import targets
    from edgekd.hosts import emulator
    from edgekd.measure import jobs
    from edgekd.quantization.qdq.saturation import audit, saturated

    k = kit("residual", 0)
    faults.saturating(k, 0)
    paths = k.build(tmp_path)
    feed = {"input": k.x.numpy()[:16]}
    file = onnx.load(paths[1])
    (name,) = [layer.name for layer in audit(file, feed) if layer.changed]
    ours = noises.outputs(saturated(file, feed, [name])[name], feed)[0]
    (theirs,) = jobs.score(
        paths[1], feed, folder=tmp_path / "there", launch=emulator.launch(targets.load("x86-64-avx2"))
    ).values()
    here = noises.outputs(file, feed)[0]
    assert (np.abs(ours - theirs) < 1e-5).mean() > 0.98 and (np.abs(here - theirs) < 1e-5).mean() < 0.9


# ---------------------------------------------------------------- causes by hand


def test_signal_by_hand():
    """Means over the samples 2 and 0: what is left is (-2, 0), (0, 0), (2, 3), (0, -3) and so powers 2, 0, 6.5, 4.5,
    the median 3.25."""
    found = signal(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 3.0], [2.0, -3.0]]))
    assert found.tolist() == [3.25, 3.25, 6.5, 4.5] and diagnose.decibel(100) == 20


def values(seed=0):
    """[50, 8, 4, 4] within about 4 of zero."""
    return np.random.default_rng(seed).normal(size=(50, 8, 4, 4)).astype(np.float32)


def fit(v, low=None, high=None, **more):
    """A layer whose grid covers the values, or what is given."""
    scale, zero = quantization_parameters.scale_and_zero_point(
        v.min() if low is None else low, v.max() if high is None else high, 255
    )
    parameters = Parameters("q", np.array([scale], np.float32), np.array([zero], np.uint8), None)
    return Layer(
        **{
            "name": "Conv(v1)",
            "kind": "Conv",
            "before": "a",
            "after": "b",
            "parameters": parameters,
            "weights": None,
            "bias": None,
            **more,
        }
    )


def named(layer, v, before=None, **more):
    found = of_values(layer, Seen(v if before is None else before, v), **more)
    return (None, "") if found is None else (found.name, found.evidence)


def test_causes_of_values():
    v = values()
    assert named(fit(v), v)[0] is None
    cut = fit(v, *np.percentile(v, [2, 98]))
    assert named(cut, v)[0] == "clipped range" and named(cut, v)[1].startswith("3.9 % of the values are outside")
    assert named(cut, v, few=True)[0] == "calibration too small"
    wide = fit(v, 40 * v.min(), 40 * v.max())
    assert named(wide, v)[0] == "wrong scale" and " of 256 levels are in use" in named(wide, v)[1]
    one = v.copy()
    one[3, 1, 0, 0] = 100
    assert named(fit(one), one)[0] == "outlier" and "the largest is 100" in named(fit(one), one)[1]
    loud = v.copy()
    loud[:, 5] *= 50
    assert named(fit(loud), loud)[0] == "outlier channel" and "channel 5 reaches" in named(fit(loud), loud)[1]
    # negative values get through
    assert named(fit(np.maximum(v, 0), -2, 4), np.maximum(v, 0), before=v)[0] == "clipped range"


def test_a_bent_activation_wastes_codes():
    """3 of 4 values on one code and the rest on two: 2 * 1/8 * 3 + 3/4 * log2(4/3) = 1.06 bits; the same of a
    convolution is no cause."""
    v = np.tile(np.array([0, 0, 0, 0, 0, 0, 128, 255], np.float32), (8, 6, 1))[..., None]
    gelu = fit(v, kind="Gelu")
    assert named(gelu, v)[0] == "activation shape" and "3 levels in use carry 1.1 of 8 bits" in named(gelu, v)[1]
    assert named(fit(v), v)[0] is None
    softmax = np.abs(values()) / 400
    assert named(fit(softmax, 0, 1, kind="Softmax"), softmax)[0] == "activation shape"


def test_a_folded_norm_shows_in_weights_and_bias():
    loud, w = values(), np.random.default_rng(1).normal(size=(8, 3, 3, 3)).astype(np.float32)
    loud[:, 5] *= 50
    bias = np.full(8, 0.1, np.float32)
    w[5] *= 50
    stored = Weights(w.astype(np.int8), np.ones(8, np.float32), 0, w, w)
    assert named(fit(loud, weights=stored, bias=bias), loud)[0] == "outlier channel"
    bias[5] = 30
    assert named(fit(loud, weights=stored, bias=bias), loud)[0] == "folded batch norm"


def weights(plain, scale, axis=0, high=127):
    scale = np.broadcast_to(np.asarray(scale, np.float32), (len(plain) if axis is not None else 1,))
    shaped = scale.reshape(-1, *[1] * (plain.ndim - 1))
    q = np.clip(np.rint(plain / shaped), -high, high)
    return Weights(q.astype(np.int8), scale.copy(), axis, plain, (q * shaped).astype(np.float32))


def test_causes_of_weights():
    w = np.random.default_rng(0).normal(size=(8, 1, 3, 3)).astype(np.float32)
    widest = np.abs(w).max((1, 2, 3))
    layer = dataclasses.replace(fit(values()), depthwise=True)
    name = lambda made: getattr(of_weights(dataclasses.replace(layer, weights=made)), "name", None)
    assert name(weights(w, widest / 127)) is None
    assert name(weights(w, widest / 7, high=7)) == "few bits"
    assert name(weights(w, np.where(np.arange(8) == 2, 30, 1) * widest / 127)) == "wrong scale"
    assert name(weights(w, np.where(np.arange(8) == 2, 0.2, 1) * widest / 127)) == "clipped range"
    wrong = weights(w, widest / 127)
    wrong.dequantized[4] *= 3
    assert name(wrong) == "wrong scale"
    uneven = w * np.where(np.arange(8) < 4, 0.05, 1).reshape(8, 1, 1, 1).astype(np.float32)
    assert name(weights(uneven, np.abs(uneven).max() / 127, axis=None)) == "per-tensor weights on depthwise"
    assert name(weights(uneven, np.abs(uneven).max((1, 2, 3)) / 127)) is None


def test_few_samples_show_in_most_layers_each_by_another_share():
    v = values()
    assert beyond(fit(v), Seen(v, v)) == 0 and beyond(fit(v, *np.percentile(v, [5, 95])), Seen(v, v)) == pytest.approx(
        0.1, abs=0.01
    )
    assert calibrated_on_few({"a": 0.2, "b": 0.01, "c": 0.1, "d": 0})
    assert not calibrated_on_few({"a": 0.2, "b": 0, "c": 0, "d": 0})  # one layer
    assert not calibrated_on_few({"a": 0.02, "b": 0.01, "c": 0.02, "d": 0.015})  # a percentile


# ---------------------------------------------------------------- the verb

RECIPE = """task = "digits"
targets = ["host"]
threads = 1
[[stage]]
use = "distill"
[[stage]]
use = "quantize"
mode = "ptq"
"""


@functools.cache
def student_files():
    """A student of the digits as it is born, and its int8 file."""
    from edgekd.data.columns import load
    from edgekd.tasks.digits import student, task

    torch.manual_seed(0)
    x = torch.from_numpy(load(task, "validation").inputs)
    model = student()
    with torch.no_grad():
        model.train()(x)
    return faults.exported(model.eval(), x, x)


def put(folder, kept=("teacher", "distill", "distill.int8"), by=1.0):
    """The folder of a run; the scale of one value of the int8 file is `by` times too large."""
    (folder / "models").mkdir()
    for name, data in zip(("distill", "distill.int8"), student_files(), strict=True):
        (folder / f"models/{name}.onnx").write_bytes(data)
    p = pair(*(onnx.load(folder / f"models/{name}.onnx") for name in ("distill", "distill.int8")))
    culprit = weighted(p)[1]
    faults.set_parameters(
        p.quantized.model, culprit, culprit.parameters.scale[0] * by, culprit.parameters.zero_point[0]
    )
    onnx.save(p.quantized.model, folder / "models/distill.int8.onnx")
    (folder / "models/teacher.onnx").write_bytes(b"teacher")
    (folder / "recipe.toml").write_text(RECIPE)

    def candidate(id, parents, stages, value, *more):
        file = folder / f"models/{id}.onnx"
        top1 = Measurement("top1", "%", value, value - 1, value + 1, 899, "test", "host", "measured")
        return Candidate(
            id, id, 0, parents, stages, "onnx", f"models/{id}.onnx" if id in kept else None, sha256(file), (top1, *more)
        )

    emulated = Measurement("host_agreement", "%", 99.9, 99.9, 99.9, 899, "test", "host", "emulated", note="as Haswell")
    found = (
        candidate("teacher", (), ("teacher", "float32"), 99.0),
        candidate("distill", ("teacher",), ("distill", "float32"), 97.5),
        candidate("distill.int8", ("distill",), ("distill", "quantize", "int8"), 90.25, emulated),
    )
    digest = hashlib.sha256(RECIPE.encode()).hexdigest()
    chosen = TargetResult(("distill", "distill.int8"), "distill.int8", "pass")
    results.write(Result("digits", digest, {}, {"teacher": "teacher"}, found, {"host": chosen}), folder / "result.json")
    return culprit.name


def test_explain_a_run(tmp_path, capsys):
    culprit = put(tmp_path, by=30)
    assert command(["explain", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["teacher", "top1", "99.00", "%", "[98.00,", "100.00]"] in lines
    assert any(line[:1] == ["distill"] and line[-2:] == ["-1.50", "pt"] for line in lines)
    assert any(line[:1] == ["distill.int8"] and line[-2:] == ["-7.25", "pt"] for line in lines)
    assert "host_agreement" in out and "as Haswell" in out and "224 samples of validation" in out
    first = out.splitlines().index(next(line for line in out.splitlines() if line.startswith("layer"))) + 1
    assert out.splitlines()[first].startswith(f"{culprit}  wrong scale")


def test_a_stage_that_bought_nothing_is_told(tmp_path):
    put(tmp_path)
    result = results.read(tmp_path / "result.json")
    gain = Measurement("gain", "pt", 0.1, -0.6, 0.8, 899, "test", None, "measured", note="over alone")
    made = tuple(
        dataclasses.replace(c, measurements=(*c.measurements, *[gain] * (c.id == "distill"))) for c in result.candidates
    )
    text = str(explain.explain(_rewritten(tmp_path, dataclasses.replace(result, candidates=made))))
    assert (
        "distill has no significant gain over alone: +0.10 [-0.60, +0.80] pt on test" in text
        and "to try: attention" in text
    )


def test_what_distillation_cost_is_told_where_the_control_was_chosen(tmp_path):
    """The best int8 file learned without a teacher: the recipe's own line is spoken of all the same, and once."""
    put(tmp_path)
    result = results.read(tmp_path / "result.json")
    teacher, distilled, int8 = result.candidates
    cost = Measurement("gain", "pt", -24.0, -34.6, -13.5, 899, "test", None, "measured", note="over alone")
    own = dataclasses.replace(distilled, id="own", file=None, measurements=(*distilled.measurements, cost))
    alone = (dataclasses.replace(distilled, parents=()), dataclasses.replace(int8, parents=("distill",)))
    chosen = TargetResult(("distill", "distill.int8"), "distill", "pass", reason="the fastest")
    for target in (
        chosen,
        dataclasses.replace(chosen, chosen="distill.int8"),
        dataclasses.replace(chosen, chosen=None, verdict="fail"),
    ):
        made = dataclasses.replace(
            result, candidates=(teacher, own, *alone), targets={"host": target, "raspberry-pi-4": target}
        )
        text = str(explain.explain(_rewritten(tmp_path, made)))
        assert text.count("own is worse than alone: -24.00 [-34.60, -13.50] pt on test") == text.count("to try: ") == 1


def test_explain_makes_nothing_up(tmp_path):
    put(tmp_path)
    found = explain.explain(tmp_path)
    assert found.findings == {"distill.int8": ()} and layers.NOTHING in str(found) and found.exit_code == 0
    (tmp_path / "models/distill.onnx").write_bytes(b"other")
    with pytest.raises(BaselineError, match="differs from its digest"):
        explain.explain(tmp_path)


def test_accuracy_is_told_where_another_target_knows_the_chosen_file_alone(tmp_path):
    """Of a target that is emulated, its parents have no figures on test: those of a target that was measured, else
    validation."""
    put(tmp_path)
    result = results.read(tmp_path / "result.json")
    targets = {"raspberry-pi-4": result.targets["host"], **result.targets}
    text = str(explain.explain(_rewritten(tmp_path, dataclasses.replace(result, targets=targets))))
    assert "accuracy on test, of host" in text and "99.00 %" in text and "not measured" not in text.split("beside")[0]
    made = []
    for c in result.candidates:
        here = [
            dataclasses.replace(m, split="validation", target=None) for m in c.measurements if m.origin == "measured"
        ]
        there = [
            dataclasses.replace(m, target="raspberry-pi-4", origin="emulated")
            for m in c.measurements
            if c.id == "distill.int8"
        ]
        made.append(dataclasses.replace(c, measurements=(*here, *there)))
    alone = dataclasses.replace(result, candidates=tuple(made), targets={"raspberry-pi-4": result.targets["host"]})
    text = str(explain.explain(_rewritten(tmp_path, alone)))
    assert "accuracy on validation, as the machine of the run answers" in text and "99.00 %" in text


def _rewritten(folder, result):
    results.write(result, folder / "result.json")
    return folder


def test_explain_without_the_parents_file(tmp_path):
    put(tmp_path, kept=("teacher", "distill.int8"))
    assert "the file of distill was not kept in models/" in str(explain.explain(tmp_path))


def test_the_nearest_for_a_target_that_no_machine_stands_for():
    def candidate(id, value, target):
        quality = Measurement("top1", "%", value, value, value, 9, "validation", target, "measured")
        return Candidate(id, id, 0, (), ("int8",), "onnx", f"models/{id}.onnx", "", (quality,))

    known = [candidate("a", 80.0, None), candidate("b", 90.0, None), candidate("c", 99.0, "host")]
    result = Result("t", "", {}, {}, tuple(known), {}, ())
    assert accuracy.nearest(result, "pi") == "b" and accuracy.nearest(result, "host") == "c"


def test_explain_needs_a_run(tmp_path, capsys):
    assert command(["explain", str(tmp_path)]) == 2
    assert "no result.json" in capsys.readouterr().err


def test_a_gelu_network_is_read(tmp_path):
    """Operators that stay float between grids, and a product of matrices whose bias is added behind it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(40, 5, 8)
    graph, grid = capture(model, x[:2]), fake.settle(calibrated(model, [x]))
    format.export(graph, None, x[:2], tmp_path / "a.onnx")
    format.export(graph, grid, x[:2], tmp_path / "b.onnx")
    p = pair(onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx"))
    feed = {"input": x.numpy()}
    np.testing.assert_allclose(
        noises.outputs(render(p, ()), feed)[0], noises.outputs(p.plain.model, feed)[0], atol=1e-5
    )
    assert diagnose.look(tmp_path / "a.onnx", tmp_path / "b.onnx", feed).findings == ()
