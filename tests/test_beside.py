"""How an int8 file's outputs are held against the float file's: by hand, channels of another size, integers, and the
samples that are compared."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.cli import run
from edgekd.quantization.diagnosis import layers, signal_to_noise
from edgekd.samples.split import divided
from edgekd.verbs import quantize

RNG = np.random.default_rng(0)


def detections(rows=40, boxes=31.0, scores=14.0, turned=False):
    """[n, 4 + 6, 50]: boxes in pixels and class scores from 0 to 1 in one tensor, with so many dB of noise each."""
    plain = np.concatenate([RNG.uniform(0, 640, (rows, 4, 50)), RNG.uniform(0, 1, (rows, 6, 50))], 1)
    size = np.repeat([plain[:, :4].std() * 10 ** (-boxes / 20), plain[:, 4:].std() * 10 ** (-scores / 20)], (4, 6))[
        :, None
    ]
    found = plain + size * RNG.normal(size=plain.shape)
    return [x.astype(np.float32).swapaxes(1, 2) if turned else x.astype(np.float32) for x in (plain, found)]


def test_by_hand():
    """Less its mean (10, 0) the output is (-1, 0), (1, 0), of power 0.5; a difference of 0.1 in one number is 0.005, a
    hundredth: 20 dB."""
    plain = np.array([[9.0, 0.0], [11.0, 0.0]])
    (found,) = signal_to_noise.compare("y", plain, plain + [0, 0.1])
    assert found.snr_db == pytest.approx(20) and (found.output, found.answers, found.channels) == ("y", 1.0, "")
    assert str(found) == "y: 20.0 dB, greatest value the same in 100.00 %"
    (constant,) = signal_to_noise.compare("y", plain + 1000, plain + 1000 + [0, 0.1])
    assert constant.snr_db == pytest.approx(20), "what is always added hides no noise"
    (one,) = signal_to_noise.compare("y", plain[:1], plain[:1] * 1.1)  # of one sample the mean is the sample
    assert one.snr_db == pytest.approx(20)


@pytest.mark.parametrize("turned", [False, True])
def test_channels_of_another_size_are_judged_apart(turned):
    boxes, scores = signal_to_noise.compare("y", *detections(turned=turned))
    assert (boxes.channels, scores.channels) == ("0-3", "4-9")
    assert boxes.snr_db == pytest.approx(31, abs=0.5) and scores.snr_db == pytest.approx(14, abs=0.5)
    assert boxes.answers is None and 0.5 < scores.answers < 0.95
    assert str(scores).startswith("y [4-9]: ")


def test_channels_of_one_size_are_one():
    plain = RNG.normal(size=(60, 12, 7)) * RNG.uniform(0.5, 2, (12, 1))
    plain[:, 3] = 0.25  # one that never moves
    (found,) = signal_to_noise.compare("y", plain, plain + 0.01)
    assert found.channels == "" and found.snr_db == pytest.approx(40, abs=2)


def test_answers_of_every_token():
    plain = np.zeros((2, 3, 4))
    plain[..., 1] = 1
    other = plain.copy()
    other[0, 2, 3] = 2
    assert signal_to_noise.compare("y", plain, other)[0].answers == pytest.approx(5 / 6)


def test_integers_by_equal_values():
    a = np.array([[1, 2], [3, 4]])
    assert signal_to_noise.compare("y", a, np.array([[1, 2], [3, 5]])) == [
        signal_to_noise.Agreement("y", None, equal=0.75)
    ]
    longer = np.array([[3, 4], [1, 2], [9, 9]])  # what a suppression selects, in another order
    assert signal_to_noise.equal(a, longer) == pytest.approx(2 / 3) and signal_to_noise.equal(a[:0], a[:0]) == 1.0


def test_what_is_not_finite_in_float_is_not_compared():
    plain = np.where(np.tri(6, dtype=bool), RNG.normal(size=(9, 6, 6)), -np.inf)
    (found,) = signal_to_noise.compare("y", plain, plain + 0.001)
    assert 50 < found.snr_db < 70


def test_runs_of_channels():
    assert (
        signal_to_noise.ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
        and signal_to_noise.ranges(list(range(0, 20, 2))) == "0, 2, 4, 6, 8, ... 10 in all"
    )


# ---------------------------------------------------------------- through the verb


def saved(folder, nodes, outputs, rows, labels=None, **weights):
    tensors = [
        numpy_helper.from_array(w.astype(np.float32) if w.dtype.kind == "f" else w, n) for n, w in weights.items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    kinds = [helper.make_tensor_value_info(n, *kind) for n, kind in outputs.items()]
    graph = helper.make_graph(nodes, "g", inputs, kinds, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "f.onnx")
    np.savez(
        folder / "d.npz",
        inputs=RNG.normal(size=(rows, 3, 8, 8)).astype(np.float32),
        **({} if labels is None else {"labels": labels}),
    )
    return {"model": folder / "f.onnx", "data": folder / "d.npz", "out": folder / "q.onnx"}


POOLED = [
    helper.make_node("Conv", ["x", "w"], ["h"]),
    helper.make_node("GlobalAveragePool", ["h"], ["p"]),
    helper.make_node("Flatten", ["p"], ["y"]),
]
WEIGHTS = {"w": RNG.normal(size=(5, 3, 3, 3))}


def test_class_numbers_and_their_labels(tmp_path):
    nodes = [*POOLED, helper.make_node("ArgMax", ["y"], ["c"], axis=1, keepdims=0)]
    made = quantize.quantize(
        **saved(tmp_path, nodes, {"c": (TensorProto.INT64, ["n"])}, 64, np.arange(64) % 5, **WEIGHTS)
    )
    (found,) = made.agreements
    assert found.snr_db is None and 0.8 < found.equal <= 1 and f"c: {100 * found.equal:.2f} % equal values" in str(made)
    assert made.top1 is not None and "dB" not in str(made)


def test_an_output_that_cannot_be_compared_is_told(tmp_path):
    """The scores above zero: how many there are depends on the values."""
    chain = [
        ("Relu", ["y"], "r"),
        ("NonZero", ["r"], "at"),
        ("Transpose", ["at"], "rows"),
        ("GatherND", ["y", "rows"], "z"),
    ]
    nodes = [*POOLED, *(helper.make_node(kind, inputs, [output]) for kind, inputs, output in chain)]
    made = quantize.quantize(**saved(tmp_path, nodes, {"z": (TensorProto.FLOAT, ["k"])}, 64, **WEIGHTS))
    assert made.agreements == () and made.notes == ("output z: its shape depends on the values: it is not compared",)


@pytest.mark.parametrize("rows, used, kept", [(127, 127, 0), (128, 96, 32), (1000, 512, 250)])
def test_samples_that_calibration_did_not_use(tmp_path, rows, used, kept):
    paths = saved(tmp_path, POOLED, {"y": (TensorProto.FLOAT, ["n", 5])}, rows, **WEIGHTS)
    made = quantize.quantize(**paths)
    assert (made.samples, made.unused, made.compared) == (used, kept > 0, kept or used)
    calibrated, compared = divided(rows, 512, None)
    assert len(np.unique(calibrated)) == used and not set(calibrated) & set(compared)
    said = f"{kept} held-out samples (every fourth; calibration used {used})" if kept else f"{used} calibration samples"
    assert f"int8 compared with float on {said}" in str(made)


def test_explain_and_quantize_tell_one_figure(tmp_path, capsys):
    """Over the same samples the same number, though the output has a mean far from zero."""
    paths = saved(
        tmp_path,
        [*POOLED, helper.make_node("Add", ["y", "b"], ["z"])],
        {"z": (TensorProto.FLOAT, ["n", 5])},
        100,
        **WEIGHTS,
        b=np.full(5, 3.0),
    )
    made = quantize.quantize(**paths)
    with np.load(paths["data"]) as file:
        looked = layers.look(paths["model"], paths["out"], {"x": file["inputs"]})
    assert looked.agreements == made.agreements and made.agreements[0].snr_db < 40
    assert (
        run(["explain", *map(str, (paths["out"], "--float", paths["model"], "--data", paths["data"])), "--quiet"]) == 0
    )
    said = capsys.readouterr().out
    assert (
        "dB: signal, less its mean over the samples, to noise" in said
        and "dB: signal, less its mean over the samples, to noise" in str(made)
    )


def test_in_parts_as_in_one_piece(monkeypatch):
    plain, found = detections()
    plain[3, 2, 1] = np.inf
    whole = signal_to_noise.compare("y", plain, found)
    monkeypatch.setattr(signal_to_noise, "PART", 1)
    assert signal_to_noise.compare("y", plain, found) == whole and len(whole) == 2
