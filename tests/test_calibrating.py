"""Probes timed on a board become its calibration, and files are predicted by it; what the verb prints, keeps and
refuses."""

import dataclasses
import json
import math

import onnx
import pytest

from edgekd import cli, targets
from edgekd.errors import UsageError
from edgekd.measure import machine
from edgekd.predicting import latency, of_file, probes, shipped
from edgekd.predicting.work import work_of
from edgekd.probes import static
from edgekd.verbs.targets import calibrate


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CALIBRATIONS", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def timed(monkeypatch):
    """A board on which everything takes twice of what its core's published figures say."""
    target = targets.load("raspberry-pi-4")
    made = latency.device_of(target)
    known = shipped.calibrate(made, runtime="onnxruntime")
    from edgekd.predicting import calibration

    times = {
        key: 2 * calibration.predict(work_of(onnx.load_model_from_string(file)), known, precision=key[1]).value
        for key, file in probes.models().items()
    }
    monkeypatch.setattr(calibrate, "_times", lambda *_: (times, ("tokens int8",)))
    monkeypatch.setattr(machine, "stands_for", lambda host, wanted: (wanted, host))
    return times


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(probes.models()["residual", "int8"])
    return path


def test_a_calibration_replaces_what_is_known_of_the_core(timed, file, place, capsys):
    target = targets.load("raspberry-pi-4")
    (before,) = of_file.predicted(file, target)
    assert before.note.startswith("transferred") and before.origin == "predicted" and before.target == "raspberry-pi-4"
    assert cli.run(["targets", "calibrate", "raspberry-pi-4", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "noisy: 1 of 30 times" in told and "tokens int8" in told
    assert "30 of 30 inside the interval" in told and str(place / "raspberry-pi-4.json") in told
    assert [p.name for p in place.iterdir()] == ["raspberry-pi-4.json"], "what was in work is gone"
    (after,) = of_file.predicted(file, target)
    assert after.note.startswith("calibrated: 30 files timed on raspberry-pi-4")
    assert after.value == pytest.approx(2 * before.value, rel=0.1) and after.high / after.low < before.high / before.low
    assert of_file.known(targets.load("cortex-a72")) == (), "another target's file"
    assert len(of_file.known(target)) == 30 and of_file.known(dataclasses.replace(target, core="cortex-a53")) == (), (
        "of another core"
    )


def test_each_probe_is_predicted_by_the_others_alone(timed, monkeypatch):
    asked = []
    genuine = shipped.calibrate
    monkeypatch.setattr(
        shipped,
        "calibrate",
        lambda made, *, rows=(), **more: asked.append(rows) or genuine(made, rows=rows, **more),
    )
    calibrate.calibrate("raspberry-pi-4")
    whole = shipped.read(of_file.folder() / "raspberry-pi-4.json").tables[0].rows
    assert [len(rows) for rows in asked] == [len(timed) - 1] * len(timed)
    assert [{r.milliseconds for r in whole} - {r.milliseconds for r in rows} for rows in asked] == [
        {ms} for ms in timed.values()
    ]


def test_an_int8_file_is_predicted_as_int8(file):
    target = targets.load("raspberry-pi-4")
    work = work_of(static.read(file))
    by = {p: latency.predict(work, target, precision=p).value for p in ("int8", "float")}
    assert by["int8"] != by["float"] and of_file.predicted(file, target)[0].value == by["int8"]


def test_a_damaged_calibration_is_an_error_and_not_a_guess(timed, file, place):
    calibrate.calibrate("raspberry-pi-4")
    path = place / "raspberry-pi-4.json"
    table = json.loads(path.read_text())
    table["tables"][0]["rows"][3][2] = -1
    path.write_text(json.dumps(table))
    with pytest.raises(UsageError, match=r"rows\[3\]"):
        of_file.predicted(file, targets.load("raspberry-pi-4"))
    path.write_text("{}")
    with pytest.raises(UsageError, match="schema"):
        of_file.predicted(file, targets.load("raspberry-pi-4"))


def test_what_is_not_known_is_no_number(file, monkeypatch):
    """A core that nothing was timed on gets a bound under another name; one without a clock nothing."""
    (bound,) = of_file.predicted(file, targets.load("snapdragon-8gen1-big"))
    assert bound.name == "latency_at_least_ms" and bound.note.startswith("bound") and math.isfinite(bound.high)
    assert of_file.predicted(file, targets.load("cortex-a72")) == ()
    assert of_file.predicted(file, targets.load("cortex-m4-stm32l4r5")) == ()
    monkeypatch.setattr(machine, "stands_for", lambda host, wanted: (wanted, host))
    with pytest.raises(UsageError, match="core and clock"):
        calibrate.calibrate("cortex-a72")


def test_a_file_that_does_nothing_has_no_latency(tmp_path):
    value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    assert of_file.predicted(tmp_path / "m.onnx", targets.load("raspberry-pi-4")) == ()


@pytest.mark.slow
def test_probes_are_timed_here_for_real(monkeypatch, place):
    few = {k: v for k, v in probes.models().items() if k[0] in ("operators", "tokens")}
    monkeypatch.setattr(probes, "models", lambda: few)
    times = calibrate.calibrate("host").times
    assert set(times) == set(few) and all(0 < ms < 1000 for ms in times.values())
    assert (
        "calibrated"
        in shipped.calibrate(
            latency.device_of(targets.load("host")), runtime="onnxruntime", rows=of_file.known(targets.load("host"))
        ).kind
    )


def test_without_a_board_it_says_what_to_give(capsys):
    other = "x86-64-sse42" if targets.environment.describe()["architecture"] == "aarch64" else "raspberry-pi-4"
    assert cli.run(["targets", "calibrate", other]) == 4
    assert f"the address of a {other} board: --on ssh://" in capsys.readouterr().err
    assert cli.run(["targets", "calibrate", "cortex-m4-stm32l4r5"]) == 2
    assert "has no runtime for it" in capsys.readouterr().err
