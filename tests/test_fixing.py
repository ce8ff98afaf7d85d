"""`explain --fix`: which fixes a cause asks for, when one counts, fixed files through a run's own steps and from
files of any making."""

import dataclasses
import hashlib
import json
import shlex
from pathlib import Path

import faults
import numpy as np
import onnx
import pytest
import tiny
from faults import kit, weighted

import edgekd
from edgekd.cli import run as command
from edgekd.errors import UsageError
from edgekd.explain import fix as fixing
from edgekd.explain.trial import State, helps, recovers
from edgekd.measure import jobs
from edgekd.quantization.diagnosis.fixes import Now, fixes, in_float, shown
from edgekd.quantization.diagnosis.layers import Finding, Lost
from edgekd.quantization.parameters import exactly
from edgekd.quantization.qdq.pairing import pair
from edgekd.verbs import explain

ALL = frozenset(
    ("ranges", "samples", "before", "after", "pairs16", "float_layers", "layer_bits", "weight_bits", "observer")
)
PTQ = {
    "mode": "ptq",
    "ranges": "percentile",
    "samples": 8,
    "before": (),
    "after": (),
    "weight_bits": 8,
    "layer_bits": {},
    "float_layers": (),
}


def found(*causes):
    return [Finding(f"Conv(v{i})", cause, "", "", Lost(3.0)) for i, cause in enumerate(causes)]


def settings(causes, now):
    return [dict(r.settings) for r in fixes(found(*causes), now)]


# ---------------------------------------------------------------- fixes


def test_fixes_by_cause():
    now = Now(PTQ, 300, ALL, 8, {"Conv(v0)": ("conv2d",), "Conv(v1)": ("linear", "linear_1")})
    assert settings(["calibration too small"], now) == [{"samples": 300}, {"samples": 300, "ranges": "minmax"}]
    assert settings(["clipped range"], now) == [{"ranges": "minmax"}, {"ranges": "mse"}, {"samples": 300}]
    assert settings(["outlier channel"], now)[:2] == [{"before": ("equalize",)}, {"before": ("equalize", "smooth")}]
    assert settings(["folded batch norm"], now) == [
        {"before": ("equalize",)},
        {"before": ("equalize",), "after": ("bias_correction",)},
    ]
    assert settings(["saturation"], now) == [{"pairs16": True}, {"weight_bits": 7}]
    assert settings(["rounding"], now) == [{"after": ("adaround", "bias_correction")}]
    few = Now({**PTQ, "weight_bits": 4}, 300, ALL, 8, now.layers)
    assert settings(["few bits", "few bits"], few) == [
        {"weight_bits": 8},
        {"layer_bits": {"conv2d": 8, "linear": 8, "linear_1": 8}},
    ]


def test_several_causes_are_also_fixed_together_and_nothing_is_tried_twice():
    now = Now(PTQ, 300, ALL)
    made = settings(["outlier channel", "clipped range", "outlier channel"], now)
    assert made[-1] == {"before": ("equalize",), "ranges": "minmax"}
    assert len(made) == len({repr(sorted(s.items())) for s in made})


def test_what_a_maker_cant_say_is_not_tried():
    file = Now({}, 1000, frozenset(("ranges", "samples", "weight_bits", "float_layers")), same=False)
    assert settings(["outlier channel"], file) == [{}, {"ranges": "mse"}]
    assert settings(["calibration too small"], file) == [{"samples": 512}]
    assert settings(["saturation"], file) == [{}, {"weight_bits": 7}]
    trained = Now({**PTQ, "mode": "qat", "observer": "averaged", "ranges": "minmax"}, 300, ALL)
    assert settings(["clipped range"], trained)[0] == {"observer": "learned"} and settings(["rounding"], trained) == []


def test_float_layers_grow_one_at_a_time():
    now = Now(
        {**PTQ, "layer_bits": {"linear": 4}},
        300,
        ALL,
        8,
        {"a": ("conv2d",), "b": ("linear", "linear_1"), "c": ("conv2d",)},
    )
    made = [dict(r.settings) for r in in_float(["x", "a", "c", "b"], now, {"ranges": "mse"})]
    assert made[0] == {"ranges": "mse", "float_layers": ("conv2d",)}
    assert made[1] == {"ranges": "mse", "float_layers": ("conv2d", "linear", "linear_1"), "layer_bits": {}}
    assert len(made) == 2


def test_settings_as_toml():
    import tomllib

    given = {"a": ("x", "y"), "b": {"conv2d": 8}, "c": True, "d": "mse", "e": 0.5, "f": {}}
    text = "\n".join(f"{k} = {shown(v)}" for k, v in given.items())
    assert tomllib.loads(text) == {**given, "a": ["x", "y"]}


# ---------------------------------------------------------------- what counts


def test_what_recovers_and_what_helps():
    """Noise 0.1 is 10 dB; 3 dB less is 0.05. A quarter of 4 points is one."""
    before = State(4.0, 0.1)
    assert (
        recovers(before, State(1.0, 0.04))
        and not recovers(before, State(1.1, 0.04))
        and not recovers(before, State(0.0, 0.06))
    )
    assert (
        helps(before, State(3.9, 0.07)) and not helps(before, State(3.9, 0.09)) and not helps(before, State(4.2, 0.04))
    )
    assert recovers(State(None, 0.1), State(None, 0.04)) and not recovers(State(None, 0.1), State(None, 0.08))
    assert recovers(State(0.05, 0.1), State(0.1, 0.04)) and not recovers(State(0.05, 0.1), State(0.15, 0.04))
    assert recovers(before, State(0.5, 0.2), trained=True) and helps(before, State(3.9, 0.2), trained=True)
    assert not helps(before, State(4.0, 0.01), trained=True)
    assert recovers(State(1.0, 0.1, 3), State(1.0, 0.1, 0)) and not recovers(State(1.0, 0.1, 3), State(1.0, 0.1, 1))
    assert helps(State(1.0, 0.1, 3), State(1.0, 0.1, 1))


def test_a_bias_is_told_exactly():
    given = np.array([0, 1, -1, 3.1415927, -1e-20, 12345678.0, 2.0**-120], np.float32)
    q, scale = exactly(given)
    assert q.dtype == np.int32 and scale.dtype == np.float32 and (q.astype(np.float32) * scale == given).all()


# ---------------------------------------------------------------- a run of one's own

RECIPE = """
task = "tiny:task"
targets = ["host"]
threads = 1
control = false
[model.teacher]
train = { epochs = 4 }
[[stage]]
use = "distill"
epochs = 6
[[stage]]
name = "int8"
use = "quantize"
mode = "ptq"
weight_bits = 2
[select]
maximize = ["top1"]
minimize = ["file_bytes"]
[gate.any]
top1 = "min 1 %"
"""


@pytest.fixture(autouse=True, scope="module")
def surroundings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("place")
        patch.setenv("EDGEKD_STORE", str(place / "store"))
        patch.chdir(place)
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
        tiny.hurry()
        yield place


@pytest.fixture(autouse=True)
def timed(request, monkeypatch):
    """One test times files; the others take its word."""
    if "the_recipe_says_the_same" not in request.node.name:
        monkeypatch.setattr(
            jobs, "compare", lambda *a, **k: jobs.Comparison((1.0, 0.9, 1.1), (1.0, 0.9, 1.1), (), (), 6)
        )


@pytest.fixture(scope="module")
def made(surroundings):
    (surroundings / "recipe.toml").write_text(RECIPE)
    return edgekd.compress(surroundings / "recipe.toml", out=surroundings / "run").folder


def files(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_fixed_and_the_recipe_says_the_same(made, capsys):
    """Weights of 2 bits; the fixed file is byte for byte what the printed command makes."""
    before = files(made)
    assert command(["explain", str(made), "--fix", "--quiet", "--json", "found.json"]) == 0
    out = capsys.readouterr().out
    after = files(made)
    assert {k: v for k, v in after.items() if k.parts[0] != "fixed"} == before
    assert sorted(p.name for p in (made / "fixed").iterdir()) == ["int8.json", "int8.onnx"]
    record = json.loads(Path("found.json").read_text())
    fix = record["fixes"][0]
    assert (
        record["schema"] == "edgekd.explain/1"
        and fix["helped"]
        and fix["recovered"]
        and fix["sha256"] == after[Path("fixed/int8.onnx")]
    )
    assert json.loads((made / "fixed/int8.json").read_text())["schema"] == fixing.SCHEMA
    assert "weight_bits = 8" in out and "in the recipe, [[stage]] `int8`:" in out and "interleaved" in out
    assert fix["change"][0] > 0 and fix["ratio"][1] <= fix["ratio"][0] <= fix["ratio"][2]
    line = next(text for text in out.splitlines() if text.startswith("or: edgekd compress"))
    words = shlex.split(line.removeprefix("or: edgekd ").replace("NEW", "again"))
    assert command([*words, "--quiet"]) == 0
    assert hashlib.sha256(Path("again/models/int8.onnx").read_bytes()).hexdigest() == fix["sha256"]


def test_what_does_not_help_leaves_nothing(made, monkeypatch, capsys):
    """The only fixes that are offered make it worse, or can't be made."""
    from edgekd.quantization.diagnosis.fixes import Fix

    offered = [
        Fix({"layer_bits": {"conv2d": 2}}, ("few bits",)),
        Fix({"float_layers": ("nothing",)}, ("few bits",)),
    ]
    monkeypatch.setattr(fixing, "fixes", lambda findings, now: offered)
    monkeypatch.setattr(fixing, "in_float", lambda *_: iter(()))
    for file in (made / "fixed").glob("*"):
        file.unlink()
    before = files(made)
    assert command(["explain", str(made), "--fix", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert (
        "nothing that was tried helps; no file is left" in out
        and "can't be made: the model's graph has no layer `nothing`" in out
    )
    assert files(made) == before


def test_the_fewest_float_layers_where_no_setting_helps(made, monkeypatch):
    monkeypatch.setattr(fixing, "fixes", lambda findings, now: [])
    fix = explain.explain(made, fix=True).fixes[0]
    names = fix.remedy.settings["float_layers"]
    assert fix.helped and list(fix.remedy.settings) == ["float_layers"] and len(names) >= 1
    assert [t.verdict == "recovers" for t in fix.tried] == [False] * (len(names) - 1) + [True]
    assert [len(t.remedy.settings["float_layers"]) for t in fix.tried] == list(range(1, len(names) + 1))
    stored = {i.name: i.data_type for i in onnx.load(made / "fixed/int8.onnx").graph.initializer}
    whole = {i.name: i.data_type for i in onnx.load(made / "models/int8.onnx").graph.initializer}
    assert sum(t == onnx.TensorProto.INT8 for t in stored.values()) < sum(
        t == onnx.TensorProto.INT8 for t in whole.values()
    )


def test_a_run_without_its_store_is_fixed_from_the_float_file(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "empty"))
    assert command(["explain", str(made), "--fix", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "the store no longer has" in out and "0 values differ from the simulation" in out


# ---------------------------------------------------------------- files of any making


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A float file, its data, and an int8 file with a grid that is far too wide."""
    from edgekd.verbs.quantize import quantize

    folder = tmp_path_factory.mktemp("files")
    k = kit("ds_cnn", 0)
    onnx.save(k.files()[0], folder / "float.onnx")
    x = faults.inputs("ds_cnn", 400, seed=50)
    np.savez(folder / "data.npz", inputs=x.numpy(), labels=k.model(x).argmax(1).numpy())
    quantize(folder / "float.onnx", data=folder / "data.npz", out=folder / "sound.onnx")
    p = pair(onnx.load(folder / "float.onnx"), onnx.load(folder / "sound.onnx"))
    layer = weighted(p)[2]
    faults.set_parameters(p.quantized.model, layer, layer.parameters.scale[0] * 12, layer.parameters.zero_point[0])
    onnx.save(p.quantized.model, folder / "bad.onnx")
    return folder, layer.name


def test_a_file_is_fixed_and_the_command_says_the_same(given, capsys):
    folder, culprit = given
    ours = ["--float", str(folder / "float.onnx"), "--data", str(folder / "data.npz")]
    digest = hashlib.sha256((folder / "bad.onnx").read_bytes()).hexdigest()
    assert command(["explain", str(folder / "bad.onnx"), *ours, "--fix", "--quiet"]) == 0
    out = capsys.readouterr().out
    label = culprit.removeprefix("Conv(").removesuffix(")")
    assert f"\n{label}  " in out and "wrong scale" in out and "0 values differ from the simulation" in out
    assert hashlib.sha256((folder / "bad.onnx").read_bytes()).hexdigest() == digest
    line = next(text for text in out.splitlines() if text.startswith("to make it so from now on: edgekd quantize"))
    assert (
        command(
            [
                *shlex.split(line.removeprefix("to make it so from now on: edgekd ").replace("bad.onnx", "again.onnx")),
                "--quiet",
            ]
        )
        == 0
    )
    assert (folder / "again.onnx").read_bytes() == (folder / "fixed/bad.onnx").read_bytes()


def test_a_sound_file_is_left_alone(given, capsys):
    folder, _ = given
    ours = ["--float", str(folder / "float.onnx"), "--data", str(folder / "data.npz")]
    assert command(["explain", str(folder / "sound.onnx"), *ours, "--fix", "--quiet"]) == 0
    assert "so there is nothing to fix" in capsys.readouterr().out
    assert not (folder / "fixed/sound.onnx").exists()


def test_a_float_layer_of_a_file(given, tmp_path):
    """Asked for by name: its weight is the float file's, no integer kernel computes it, and its neighbours stay
    integers."""
    from edgekd.formats.onnx import float_kernels
    from edgekd.verbs.quantize import quantize

    folder, _ = given
    made = quantize(folder / "float.onnx", data=folder / "data.npz", out=tmp_path / "a.onnx", float_layers=["v13"])
    assert [r.name for r in made.layers if r.reason] == ["v13"] and {r.reason for r in made.layers} == {
        "",
        "it was asked to",
    }
    kept = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "a.onnx").graph.initializer}
    plain = next(n for n in onnx.load(folder / "float.onnx").graph.node if n.output[0] == "v13")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(folder / "float.onnx").graph.initializer}
    assert any(
        a.shape == stored[plain.input[1]].shape and np.array_equal(a, stored[plain.input[1]]) for a in kept.values()
    )
    assert len(float_kernels(tmp_path / "a.onnx")) == 1
    with pytest.raises(UsageError, match="no layer `v14` to keep in float"):
        quantize(folder / "float.onnx", data=folder / "data.npz", out=tmp_path / "b.onnx", float_layers=["v14"])


def test_what_is_missing_is_told_at_once(given, made, capsys):
    folder, _ = given
    assert command(["explain", str(folder / "bad.onnx"), "--target", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "--float: is missing" in err and "--data: is missing" in err and "nowhere" in err
    assert command(["explain", str(made), "--float", "x", "--data", "y"]) == 2
    assert "a run's recipe says it" in capsys.readouterr().err


def test_what_makes_other_samples_worse_is_not_kept(given, monkeypatch):
    folder, _ = given
    for file in (folder / "fixed").glob("*"):
        file.unlink()
    real = fixing._measured
    monkeypatch.setattr(fixing, "_measured", lambda *a: dataclasses.replace(real(*a), change=(-2.0, -3.0, -1.0)))
    found = explain.explain(folder / "bad.onnx", plain=folder / "float.onnx", data=folder / "data.npz", fix=True)
    assert (
        found.exit_code == 1
        and "makes others worse: it is not kept" in str(found)
        and not list((folder / "fixed").glob("*"))
    )
