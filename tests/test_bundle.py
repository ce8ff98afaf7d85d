"""Bundles: what is written is what was measured, and what is read is what was written, whoever had it in hand since."""

import dataclasses
import hashlib
import json
import os
import shutil

import jsonschema
import numpy as np
import pytest

from edgekd import results
from edgekd.delivery import bundle
from edgekd.errors import BaselineError, UsageError
from edgekd.records import Candidate, Check, Measurement, Metric, Result, TargetResult
from edgekd.run.schemas import schema

MODEL = b"not really a model" * 100
TOP1 = Metric(
    "top1",
    "%",
    "higher",
    lambda outputs, labels: (outputs.argmax(1) == labels).astype(float),
    lambda r: 100 * float(r.mean()),
)


def candidate(id, data, *measurements):
    return Candidate(
        id,
        id,
        0,
        (),
        ("distill", "quantize"),
        "onnx",
        f"models/{id}.onnx",
        hashlib.sha256(data).hexdigest(),
        measurements,
    )


@pytest.fixture
def run(tmp_path):
    """A run's folder with a teacher, a chosen candidate, their files and predictions."""
    folder = tmp_path / "run"
    size = Measurement("file_bytes", "B", len(MODEL), len(MODEL), len(MODEL), 1, None, None, "counted")
    ours = Measurement("top1", "%", 97.0, 95.0, 98.0, 40, "test", "host", "measured", 1, "abc")
    other = dataclasses.replace(ours, target="pi", environment="def")
    found = (candidate("teacher", b"teacher"), candidate("small.int8", MODEL, size, ours, other))
    environment = {
        "abc": {"cpu": "A", "versions": {"onnxruntime": "1.31.1"}},
        "def": {"versions": {"onnxruntime": "1.0"}},
    }
    check = Check("host", "small.int8", "top1", "min 88 %", "pass", "error", 97.0, 95.0, 98.0, "%", "measured")
    targets = {
        "host": TargetResult(("small.int8",), "small.int8", "pass", (check,)),
        "pi": TargetResult((), None, None),
    }
    result = Result("digits", "cd" * 32, environment, {"teacher": "teacher"}, found, targets)
    for name, data in (("teacher", b"teacher"), ("small.int8", MODEL)):
        (folder / "models").mkdir(parents=True, exist_ok=True)
        (folder / "predictions").mkdir(exist_ok=True)
        (folder / "models" / f"{name}.onnx").write_bytes(data)
        outputs = np.random.default_rng(len(name)).normal(size=(40, 10)).astype(np.float32)
        records = {"top1": TOP1.records(outputs, np.arange(40) % 10)}
        results.save_predictions(
            folder / "predictions" / f"{name}.npz", [f"t{i}" for i in range(40)], "ef" * 32, outputs, records, (TOP1,)
        )
    results.write(result, folder / "result.json")
    (folder / "recipe.toml").write_text(
        'task = "digits"\n[gate.any]\ntop1 = "min 88 %"\n[gate.pi]\nfile_bytes = "max 1 kB"\n'
    )
    return folder


def golden():
    inputs = {"input": np.arange(3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)}
    return {"golden_inputs": inputs, "golden_outputs": {"output": np.ones((3, 10), np.float32)}}


def write(run):
    return bundle.write(run, results.read(run), "small.int8", "host", **golden())


def alter(folder, **changes):
    """Changes the manifest; a change of None takes the key away."""
    table = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


# ---------------------------------------------------------------- written and read


def test_a_bundle_holds_the_measured_file_and_says_what_it_is(run):
    folder = write(run)
    manifest = bundle.read(folder)
    assert folder == run / "bundles" / "host" and (folder / "model.onnx").read_bytes() == MODEL
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "golden.npz", "predictions.npz", "manifest.json"}
    assert (manifest.task, manifest.target, manifest.candidate) == ("digits", "host", "small.int8")
    assert (manifest.model, manifest.verdict) == ("model.onnx", "pass")
    assert manifest.inputs == (bundle.Tensor("input", "float32", (1, 8, 8)),) and manifest.outputs == (
        bundle.Tensor("output", "float32", (10,)),
    )
    assert (
        manifest.test_digest == "ef" * 32
        and manifest.recipe_sha256 == "cd" * 32
        and manifest.versions["onnxruntime"] == "1.31.1"
    )
    assert [(m.name, m.target) for m in manifest.measurements] == [("file_bytes", None), ("top1", "host")]
    assert (
        [c.rule for c in manifest.checks] == ["min 88 %"]
        and list(manifest.environment) == ["abc"]
        and manifest.golden is None
    )
    assert manifest.gate == {"any": {"top1": "min 88 %"}}
    for name, file in manifest.files.items():
        assert (
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == file.sha256
            and (folder / name).stat().st_size == file.bytes
        )


def test_golden_vectors_and_predictions_come_back(run):
    folder = write(run)
    arrays = results.load_arrays(folder / "golden.npz")
    assert np.array_equal(arrays["inputs.input"], golden()["golden_inputs"]["input"]) and arrays[
        "outputs.output"
    ].shape == (3, 10)
    ours, kept = (
        results.load_predictions(p) for p in (run / "predictions" / "small.int8.npz", folder / "predictions.npz")
    )
    assert (
        np.array_equal(ours.outputs, kept.outputs) and ours.digest == kept.digest and list(ours.ids) == list(kept.ids)
    )
    assert np.array_equal(ours.records["top1"], kept.records["top1"]) and kept.better == {"top1": "higher"}
    theirs = results.load_predictions(run / "predictions" / "teacher.npz").records["top1"]
    assert np.array_equal(results.load_teacher(folder / "predictions.npz")["top1"], theirs)
    assert not np.array_equal(theirs, kept.records["top1"])


def test_a_bundle_is_read_after_a_move_and_its_manifest_follows_its_schema(run, tmp_path):
    folder = shutil.move(write(run), tmp_path / "elsewhere")
    assert bundle.read(folder).task == "digits"
    jsonschema.validate(json.loads((tmp_path / "elsewhere" / "manifest.json").read_text()), schema("manifest"))
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "manifest.json").read_text()


def test_the_same_run_gives_the_same_bytes(run):
    first = {p.name: p.read_bytes() for p in write(run).iterdir()}
    os.utime(run / "models" / "small.int8.onnx", (1, 1))
    assert {p.name: p.read_bytes() for p in write(run).iterdir()} == first


def test_a_bundle_without_predictions_says_so(run):
    shutil.rmtree(run / "predictions")
    manifest = bundle.read(write(run))
    assert manifest.test_digest is None and set(manifest.files) == {"model.onnx", "golden.npz"}


# ---------------------------------------------------------------- whole or not at all


def test_a_bundle_takes_the_place_of_an_older_one_whole(run):
    folder = write(run)
    (folder / "stray.txt").write_text("of the older one")
    write(run)
    assert not (folder / "stray.txt").exists() and [p.name for p in folder.parent.iterdir()] == ["host"]


@pytest.mark.parametrize("function", ["_predictions", "_swap", "budget_of"])
def test_a_failure_leaves_the_older_bundle_and_nothing_else(run, monkeypatch, function):
    folder = write(run)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(bundle, function, fail)
    with pytest.raises(OSError, match="disk is full"):
        write(run)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and [
        p.name for p in folder.parent.iterdir()
    ] == ["host"]


def test_a_move_that_fails_puts_the_older_bundle_back(run, monkeypatch):
    folder, rename = write(run), os.rename

    def fail(source, target):
        if str(source).endswith(".part"):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        write(run)
    assert bundle.read(folder).task == "digits" and [p.name for p in folder.parent.iterdir()] == ["host"]


def test_a_link_in_the_bundles_place_is_replaced_not_followed(run, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    (run / "bundles").mkdir()
    (run / "bundles" / "host").symlink_to(precious)
    folder = write(run)
    assert (precious / "file").read_text() == "keep" and list(precious.iterdir()) == [precious / "file"]
    assert not folder.is_symlink() and bundle.read(folder)


# ---------------------------------------------------------------- what can't be bundled


def test_only_the_file_that_was_measured_is_bundled(run):
    (run / "models" / "small.int8.onnx").write_bytes(MODEL + b"!")
    with pytest.raises(BaselineError, match="not the file that was measured"):
        write(run)
    (run / "models" / "small.int8.onnx").unlink()
    with pytest.raises(BaselineError, match="is missing"):
        write(run)
    assert list((run / "bundles").iterdir()) == []


@pytest.mark.parametrize("prefix, digest", [("t", "00" * 32), ("x", "ef" * 32)])
def test_a_teacher_of_another_test_set_is_no_reference(run, prefix, digest):
    ids, records = [f"{prefix}{i}" for i in range(40)], {"top1": np.ones(40)}
    results.save_predictions(run / "predictions" / "teacher.npz", ids, digest, np.ones((40, 10)), records, (TOP1,))
    with pytest.raises(BaselineError, match="another test set"):
        write(run)


def test_what_is_not_there_is_told(run):
    result = results.read(run)
    wrong = (
        ("none", "host", "is not in this run"),
        ("small.int8", "mars", "not a target of this run"),
        ("small.int8", "../x", "not a target"),
    )
    for id, target, message in wrong:
        with pytest.raises(UsageError, match=message):
            bundle.write(run, result, id, target, **golden())
    unkept = dataclasses.replace(result.candidates[1], file=None)
    with pytest.raises(UsageError, match="has no file"):
        bundle.write(run, dataclasses.replace(result, candidates=(unkept,)), "small.int8", "host", **golden())
    outside = dataclasses.replace(result.candidates[1], file="../../etc/passwd")
    with pytest.raises(UsageError, match="has no file"):
        bundle.write(run, dataclasses.replace(result, candidates=(outside,)), "small.int8", "host", **golden())
    with pytest.raises(UsageError, match="same number of samples"):
        bundle.write(
            run,
            result,
            "small.int8",
            "host",
            golden_inputs={"x": np.ones((3, 2))},
            golden_outputs={"y": np.ones((2, 2))},
        )
    with pytest.raises(UsageError, match="need inputs and outputs"):
        bundle.write(run, result, "small.int8", "host", golden_inputs={}, golden_outputs={"y": np.ones((2, 2))})
    assert not (run / "bundles").exists()


# ---------------------------------------------------------------- what is refused when reading


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "predictions.npz"])
@pytest.mark.parametrize("harm", ["flip", "grow", "remove", "link", "folder"])
def test_a_file_that_differs_is_found(run, name, harm):
    path = write(run) / name
    data = path.read_bytes()
    path.unlink()
    if harm == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "grow":
        path.write_bytes(data + b"\0")
    elif harm == "link":
        (path.parent.parent / "real").write_bytes(data)
        path.symlink_to(path.parent.parent / "real")
    elif harm == "folder":
        path.mkdir()
    words = {
        "flip": "differs from its digest",
        "grow": "manifest says",
        "remove": "is missing",
        "link": "is a link",
        "folder": "not a plain file",
    }
    with pytest.raises(BaselineError, match=words[harm]) as caught:
        bundle.read(path.parent)
    assert caught.value.exit_code == 5 and name in str(caught.value)


def test_every_wrong_file_is_told_at_once(run):
    folder = write(run)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "golden.npz").unlink()
    with pytest.raises(BaselineError) as caught:
        bundle.read(folder)
    assert len(caught.value.problems) == 2


def test_a_pipe_does_not_hang_the_reader(run):
    folder = write(run)
    (folder / "golden.npz").unlink()
    os.mkfifo(folder / "golden.npz")
    with pytest.raises(BaselineError, match="not a plain file"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "manifest.json",
        ".hidden",
        "x\0y",
        "x\n",
        "é" * 300,
    ],
)
def test_names_that_lead_elsewhere_are_refused(run, name):
    folder = write(run)
    (run / "bundles" / "secret").write_bytes(b"secret")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    alter(folder, files=files | {name: {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}})
    with pytest.raises(UsageError, match="plain file name"):
        bundle.read(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema": "edgekd.manifest/2"}, "too new"),
        ({"schema": "edgekd.result/1"}, "is not edgekd.manifest"),
        ({"schema": None}, "schema: is missing"),
        ({"target": "../host"}, "not a valid target name"),
        ({"model": "other.onnx"}, "lacks"),
        ({"task": 7}, "task: input should be a valid string"),
        ({"files": {}}, "files"),
        ({"files": {f"f{i}": {"sha256": "00" * 32, "bytes": 0} for i in range(100)}}, "more than 64"),
        (
            {"files": {"model.onnx": {"sha256": "zz", "bytes": 1}, "golden.npz": {"sha256": "00" * 32, "bytes": 1}}},
            "not a SHA-256",
        ),
        ({"files": {"model.onnx": {"sha256": "00" * 32, "bytes": -1}}}, "greater than or equal"),
        ({"files": {"model.onnx": {"sha256": "00" * 32, "bytes": 10**30}}}, "files.model.onnx.bytes"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}, "greater than or equal"),
        ({"measurements": [{"name": "top1"}]}, "field required"),
        ({"verdict": "great"}, "verdict"),
        ({"golden": "real"}, "golden"),
        ({"recipe_sha256": None}, "field required"),
    ],
)
def test_a_manifest_that_is_wrong_is_told_with_its_place(run, changes, message):
    folder = write(run)
    alter(folder, **changes)
    with pytest.raises(UsageError, match=message):
        bundle.read(folder)


def test_what_is_no_manifest_is_refused(run, tmp_path):
    folder = write(run)
    for data in (b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"schema": []}'):
        (folder / "manifest.json").write_bytes(data)
        with pytest.raises(UsageError):
            bundle.read(folder)
    with open(folder / "manifest.json", "wb") as file:
        file.truncate(results.TEXT_LIMIT + 1)
    with pytest.raises(UsageError, match="more than"):
        bundle.read(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match="can't be read"):
        bundle.read(folder)
    (folder / "manifest.json").symlink_to(run / "result.json")
    with pytest.raises(UsageError, match="is a link"):
        bundle.read(folder)
    with pytest.raises(UsageError):
        bundle.read(tmp_path / "nowhere")
