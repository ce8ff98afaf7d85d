"""Flash and RAM of small devices: as budgets, in `profile`, in a run and at its gate."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import test_gate
import test_probes
import tiny
from onnx import helper

from edgekd import targets
from edgekd.cli import run as command
from edgekd.decisions import budget, capacity
from edgekd.decisions.rules import parse
from edgekd.errors import UsageError
from edgekd.records import Candidate, Measurement
from edgekd.run import resolve
from edgekd.run.dump import dump
from edgekd.verbs import gate as gating

SMALL = (
    'title = "small"\narchitecture = "armv7e-m"\nflash_bytes = {flash}\nram_bytes = {ram}\n[runtime]\nname = "none"\n'
)


def device(folder, name="small", flash=65536, ram=8192):
    path = folder / f"{name}.toml"
    path.write_text(SMALL.format(flash=flash, ram=ram))
    return path


def test_memories_are_told_in_whole_units(tmp_path):
    found = capacity.budgets(targets.load(device(tmp_path)))
    assert found == {"file_bytes": "max 64 KiB (flash of small)", "activation_bytes": "max 8 KiB (RAM of small)"}
    found = capacity.budgets(targets.load(device(tmp_path, flash=2 * 2**20, ram=1000)))
    assert found == {"file_bytes": "max 2 MiB (flash of small)", "activation_bytes": "max 1000 B (RAM of small)"}
    assert capacity.budgets(targets.load("raspberry-pi-zero-2w")) == {}
    flash_alone = dataclasses.replace(targets.load(device(tmp_path)), ram_bytes=None)
    assert capacity.budgets(flash_alone) == {"file_bytes": "max 64 KiB (flash of small)"}


def test_a_remark_says_where_a_limit_is_from_and_changes_none():
    plain, told = parse("file_bytes", "max 64 KiB"), parse("file_bytes", "max 64 KiB (flash of small)")
    assert (
        (told.limit, told.unit, told.kind, told.versus)
        == (plain.limit, plain.unit, plain.kind, plain.versus)
        == (65536, "B", "max", None)
    )
    assert told.text == "max 64 KiB (flash of small)"
    assert parse("top1", "drop max 1 pt vs teacher (as agreed)").versus == "teacher"
    for wrong in (
        "max 64 KiB (flash",
        "max 64 KiB flash)",
        "max (flash of small)",
        "max 64 (flash)",
        "max 64 KiB (a) (b)",
    ):
        with pytest.raises(UsageError):
            parse("file_bytes", wrong)


FLASH, RAM = "max 64 KiB (flash of small)", "max 8 KiB (RAM of small)"
GATES = [
    ({}, {"small": {"file_bytes": FLASH, "activation_bytes": RAM}}),
    ({"any": {"file_bytes": "max 1 MB"}}, {"small": {"file_bytes": ["max 1 MB", FLASH], "activation_bytes": RAM}}),
    ({"any": {"file_bytes": "max 1 MB"}, "small": {"file_bytes": "max 9 kB"}},
     {"small": {"file_bytes": ["max 9 kB", FLASH], "activation_bytes": RAM}}),
    ({"small": {"file_bytes": ["max 9 kB", "min 1 kB"], "macs": "max 1 M"}},
     {"small": {"file_bytes": ["max 9 kB", "min 1 kB", FLASH], "macs": "max 1 M", "activation_bytes": RAM}}),
    ({"small": {"file_bytes": {"is": "max 9 kB", "level": "warn"}}},
     {"small": {"file_bytes": {"is": ["max 9 kB", FLASH], "level": "warn"}, "activation_bytes": RAM}}),
]  # fmt: skip


@pytest.mark.parametrize("gate, wanted", GATES)
def test_they_stand_beside_what_people_write_and_never_replace_it(tmp_path, gate, wanted):
    target = targets.load(device(tmp_path))
    made = capacity.added(gate, [target, targets.load("raspberry-pi-4")])
    assert made == {**gate, **wanted}
    assert capacity.added(made, [target]) == made, "a resolved gate resolves to itself"
    assert not budget.problems(made)


def test_a_looser_budget_of_ones_own_does_not_open_the_flash(tmp_path):
    made = capacity.added({"any": {"file_bytes": "max 1 MB"}}, [targets.load(device(tmp_path))])
    found = {rule.text: rule.limit for rule in budget.rules(made, "small") if rule.name == "file_bytes"}
    assert found == {"max 1 MB": 1e6, FLASH: 65536}


def test_a_resolved_recipe_holds_them_and_repeats(tmp_path):
    """The quality budget that is filled in and the device's own; what was written out resolves to the same."""
    device(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(
        'task = "digits"\n'
        'targets = ["host", "small.toml"]\n'
        "[[stage]]\n"
        'use = "distill"\n'
        "[gate.any]\n"
        'file_bytes = "max 1 MB"\n'
    )
    first = resolve.resolved(path)
    assert first.gate["small"] == {"file_bytes": ["max 1 MB", FLASH], "activation_bytes": RAM}
    assert set(first.gate["any"]) == {"file_bytes", "top1"} and "host" not in first.gate
    (tmp_path / "again.toml").write_text(dump(first))
    assert resolve.resolved(tmp_path / "again.toml").gate == first.gate


# ---------------------------------------------------------------- profile


def test_profile_counts_and_judges_and_says_what_cannot_be_had(tmp_path, capsys):
    file = tmp_path / "m.onnx"
    file.write_bytes(test_probes.network().SerializeToString())
    report = tmp_path / "report.json"
    assert command(["profile", str(file), "--target", str(device(tmp_path)), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "8,192 B" in out
    assert (
        "file_bytes max 64 KiB (flash of small): PASS" in out
        and "activation_bytes max 8 KiB (RAM of small): PASS" in out
    )
    assert "neither times nor answers" in out and "latency" not in out
    found = json.loads(report.read_text())
    assert found["schema"] == "edgekd.profile/1" and {m["origin"] for m in found["measurements"]} == {"counted"}
    assert {c["verdict"] for c in found["checks"]} == {"pass"}

    assert command(["profile", str(file), "--target", str(device(tmp_path, "less", ram=8191))]) == 1
    assert "activation_bytes max 8191 B (RAM of less): FAIL" in capsys.readouterr().out


def test_profile_of_what_never_runs_takes_no_trace(tmp_path, capsys):
    assert command(["profile", "m.onnx", "--target", "cortex-m4-stm32l4r5", "--trace", "x.json"]) == 2
    assert "nothing runs as cortex-m4-stm32l4r5 here" in capsys.readouterr().err


def test_what_is_not_known_never_fits_and_samples_tell_it(tmp_path, capsys):
    """Height and width are open: 3, not 0; with samples of 8 x 8 they are known."""
    file, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4, "p", "q"])],
        [onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    np.savez(data, inputs=np.zeros((2, 3, 8, 8), np.float32))
    arguments = ["profile", str(file), "--target", "cortex-m4-stm32l4r5"]
    assert command(arguments) == 3
    said = capsys.readouterr().out
    assert "macs are not counted" in said and "activation_bytes are not counted: the shape of `x`" in said
    assert command([*arguments, "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "3,888" in said and "not counted" not in said  # 4 x 6 x 6 outputs of 27 products


def test_counts_are_those_of_the_largest_sample(tmp_path, capsys):
    file, folder = tmp_path / "m.onnx", tmp_path / "d"
    folder.mkdir()
    value = lambda name, dims: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [value("x", ["n", 3, "h", "w_"])],
        [value("y", ["n", 4, "p", "q"])],
        [onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    for i, (height, width) in enumerate([(4, 4), (8, 10), (10, 5)]):
        np.savez(folder / f"{i}.npz", x=np.zeros((3, height, width), np.float32))
    assert command(["profile", str(file), "--target", "cortex-m4-stm32l4r5", "--data", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{4 * 6 * 8 * 27:,}" in said and "counted at the largest sample: x [1, 3, 8, 10]; neither times" in said


def test_a_dimension_of_0_is_not_known(tmp_path, capsys):
    file = tmp_path / "m.onnx"
    value = lambda name, dims: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
    weights = onnx.numpy_helper.from_array(np.zeros((8, 4), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", [0, 8])], [value("y", [0, 4])], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    assert command(["profile", str(file), "--target", "cortex-m4-stm32l4r5"]) == 3
    said = capsys.readouterr().out
    assert "macs are not counted" in said and "INCONCLUSIVE" in said


# ---------------------------------------------------------------- a run, and its gate

RECIPE = """
task    = "tiny:task"
targets = ["host", "roomy.toml", "cramped.toml"]
threads = 1
control = false
[[stage]]
use    = "distill"
epochs = 1
[model.teacher]
train = { epochs = 1 }
[gate.any]
top1       = "min 1 %"
file_bytes = "max 100 kB"
"""


def test_gate_with_a_budget_file_knows_shipped_devices(tmp_path):
    name = "cortex-m7-stm32f746"
    folder = test_gate.make(tmp_path / "run", targets=(name,), sizes={"prune-0.5.int8": 2**20 + 1})
    path = tmp_path / "budget.toml"
    path.write_text('[any]\nfile_bytes = "max 2 MB"\n')
    gated = gating.gate(folder, budget=path)
    assert gated.exit_code == 1
    verdicts = {(c.name, c.rule): c.verdict for c in gated.checks}
    assert verdicts == {
        ("file_bytes", "max 2 MB"): "pass",
        ("file_bytes", f"max 1 MiB (flash of {name})"): "fail",
        ("activation_bytes", f"max 320 KiB (RAM of {name})"): "inconclusive",  # the folder was made without that figure
    }


def test_compress_for_a_device_of_64_kib(tmp_path, monkeypatch, capsys):
    """One run for this machine, a device that holds the students, and one that holds none: nothing is delivered for
    that, and it is said why."""
    from edgekd.measure import jobs

    device(tmp_path, "roomy", ram=65536)
    device(tmp_path, "cramped", flash=1024, ram=65536)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()
    assert command(["compress", "recipe.toml", "--out", "out", "--quiet"]) == 1
    capsys.readouterr()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    roomy, cramped = result["targets"]["roomy"], result["targets"]["cramped"]
    assert roomy["chosen"] and "no runtime for this device: no latency is measured" in roomy["reason"]
    assert {c["rule"]: c["verdict"] for c in roomy["checks"] if "roomy" in c["rule"]} == {
        "max 64 KiB (flash of roomy)": "pass",
        "max 64 KiB (RAM of roomy)": "pass",
    }
    assert cramped["chosen"] is None and "(flash of cramped)" in cramped["reason"]
    for candidate in result["candidates"]:
        told = [m for m in candidate["measurements"] if m["target"] in ("roomy", "cramped")]
        assert {m["origin"] for m in told} == {"emulated"} and all(m["unit"] != "ms" for m in told), (
            "no time is told of what never ran"
        )
        assert {m["split"] for m in told if m["name"] == "top1"} == {"validation", "test"}
        assert all(m["note"].startswith("reference runtime: onnxruntime ") for m in told)
    (quality,) = [c for c in roomy["checks"] if c["name"] == "top1"]
    assert (quality["verdict"], quality["origin"]) == ("pass", "emulated")
    for name in ("report.md", "report.html"):
        assert "from the reference runtime: onnxruntime" in (tmp_path / "out" / name).read_text().replace("\\", "")
    assert (tmp_path / "out" / "bundles" / "roomy").is_dir() and not (tmp_path / "out" / "bundles" / "cramped").exists()
    assert command(["gate", "out"]) == 1
    out = capsys.readouterr().out
    assert "flash of roomy" in out and "cramped" in out


@pytest.mark.parametrize(
    "note, value, verdict",
    [
        ("reference runtime: onnxruntime 1 on this machine", "min 88 %", "pass"),
        ("as Haswell", "min 88 %", "inconclusive"),
        (
            "reference runtime: onnxruntime 1 on this machine",
            {"is": "min 88 %", "accept": ["measured"]},
            "inconclusive",
        ),
    ],
)
def test_a_reference_runtimes_answers_are_accepted_where_the_budget_doesnt_say(note, value, verdict):
    figure = Measurement("top1", "%", 95, 93, 96, 100, "test", "small", "emulated", 1, "x", note)
    made = Candidate("a", "a", 0, (), (), "onnx", None, "", (figure,))
    (check,) = budget.judge(budget.rules({"any": {"top1": value}}, "small"), made, target="small")
    assert check.verdict == verdict


def test_a_measurement_is_judged_by_both_rules():
    made = {"small": {"file_bytes": ["max 1 MB", FLASH]}}
    size = Measurement("file_bytes", "B", 70_000, 70_000, 70_000, 1, None, None, "counted")
    checks = budget.judge(
        budget.rules(made, "small"), Candidate("a", "a", 0, (), (), "onnx", None, "", (size,)), target="small"
    )
    assert [c.verdict for c in checks] == ["pass", "fail"]
    assert budget.excess(checks[1]) == 70_000 - 65_536
