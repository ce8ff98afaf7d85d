"""The main job, end to end on a small task of one's own: the run folder, its files opened alone, reuse, the gate,
killing it."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny

import edgekd
from edgekd import results
from edgekd.cli import run as command
from edgekd.errors import UsageError
from edgekd.run.schemas import schema

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe, and a store of its own."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "recipe.toml").write_text(tiny.RECIPE)
    return folder


@pytest.fixture(autouse=True)
def surroundings(place, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(place / "store"))
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(HERE))
    from edgekd.measure import jobs

    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()


@pytest.fixture(scope="module")
def made(place):
    """One undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        from edgekd.measure import jobs

        patch.setenv("EDGEKD_STORE", str(place / "store"))
        patch.syspath_prepend(str(HERE))
        patch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
        tiny.hurry()
        return edgekd.compress(place / "recipe.toml", out=place / "run")


def reproducible(folder):
    """{file: digest} of what the contract lists as byte-identical."""
    patterns = ("recipe.toml", "models/*", "bundles/*/model.*", "bundles/*/golden*")
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for pattern in patterns
        for p in sorted(folder.glob(pattern))
    }


def test_the_folder_of_a_run(made):
    folder, result = made.folder, results.read(made.folder / "result.json")
    assert made.exit_code == 0 and result == made.result
    jsonschema.validate(json.loads((folder / "result.json").read_text()), schema("result"))
    ids = [c.id for c in result.candidates]
    assert ids == ["teacher", "alone", "distill", "prune", "quantize", "alone-quantize"]
    assert result.references == {"teacher": "teacher", "alone": "alone"}
    beside = {c.id: m.note for c in result.candidates for m in c.measurements if m.name == "gain"}
    assert beside == {"distill": "over alone"}  # the line is pruned, the control is whole
    assert {p.name for p in folder.iterdir()} >= {
        "result.json",
        "recipe.toml",
        "log.jsonl",
        "report.html",
        "report.md",
        "models",
        "predictions",
        "bundles",
    }
    chosen = result.targets["host"].chosen
    assert (folder / f"models/{chosen}.onnx").is_file() and (folder / "bundles/host/manifest.json").is_file()
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events.count("step") == len(result.steps)
    text = str(made)
    assert all(id in text for id in ids) and "PASS" in text and "edgekd gate" in text


def test_figures_are_those_of_the_files(made):
    """Every model file scored here by onnxruntime alone gives the accuracy that the result tells, and its bytes are
    counted."""
    test = tiny.task.data("test")
    kept = [c for c in made.result.candidates if c.file]
    assert {"teacher", "alone", made.result.targets["host"].chosen} <= {c.id for c in kept}
    for candidate in kept:
        figures = {(m.name, m.split): m for m in candidate.measurements}
        path = made.folder / str(candidate.file)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = session.run(["output"], {"input": test.inputs})[0]
        assert figures["top1", "test"].value == pytest.approx(100 * (outputs.argmax(1) == test.labels).mean())
        assert figures["top1", "test"].low < figures["top1", "test"].value <= figures["top1", "test"].high
        assert (
            figures["file_bytes", None].value == path.stat().st_size and figures["file_bytes", None].origin == "counted"
        )
        assert hashlib.sha256(path.read_bytes()).hexdigest() == candidate.sha256
        predictions = results.load_predictions(made.folder / "predictions" / f"{candidate.id}.npz")
        assert np.allclose(predictions.outputs, outputs, atol=1e-5) and len(predictions.records["top1"]) == 120
        assert {"latency_p50_ms", "latency_p90_ms", "load_ms", "first_ms", "peak_rss_bytes"} <= {n for n, _ in figures}
        if candidate.id != "teacher":
            assert {"agreement", "kl_to_teacher", "ece", "worst_class_drop"} <= {n for n, _ in figures}


def test_the_int8_file(made):
    """Integers only, a dynamic batch, key facts, and nothing of this machine."""
    path = made.folder / "models/quantize.onnx"
    model = onnx.load(path)
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["edgekd.form"] == "int8" and facts["edgekd.task"] == "tiny"
    assert [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1] == []
    assert (
        model.opset_import[0].version == 20 and model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    )
    data = path.read_bytes()
    assert not re.search(rb"/[a-z_.]{2,}/[a-z_.]{2,}/", data) and not any(
        word in data for word in (b".py", b"stack", b"site-packages")
    )
    quantize = next(s for s in made.result.steps if s["step"] == "export quantize")
    assert quantize["seconds"] > 0
    small = {c.id: next(m.value for m in c.measurements if m.name == "file_bytes") for c in made.result.candidates}
    macs = {c.id: next(m.value for m in c.measurements if m.name == "macs") for c in made.result.candidates}
    assert small["quantize"] < small["distill"] < small["teacher"] and small["prune"] < small["distill"]
    assert macs["prune"] == macs["quantize"] and abs(macs["prune"] / macs["distill"] - 0.54) < 0.02 * 0.54


def test_run_again_reuses_everything(made, place, capsys):
    before = reproducible(made.folder)
    times = {c.id: [m for m in c.measurements if m.name.startswith("latency")] for c in made.result.candidates}
    assert command(["compress", "recipe.toml", "--out", "run", "--quiet"]) == 0
    again = results.read(made.folder / "result.json")
    assert all(s["reused"] for s in again.steps) and reproducible(made.folder) == before
    assert {c.id: [m for m in c.measurements if m.name.startswith("latency")] for c in again.candidates} == times


def test_the_resolved_recipe_repeats_the_run(made, place):
    again = edgekd.compress(made.folder / "recipe.toml", out=place / "repeated")
    assert all(s["reused"] for s in again.result.steps)
    assert reproducible(place / "repeated") == reproducible(made.folder)


def test_a_run_copied_elsewhere_gates_and_reports(made, tmp_path, capsys):
    shutil.copytree(made.folder, tmp_path / "copy")
    (tmp_path / "copy/report.html").unlink()
    assert command(["gate", str(tmp_path / "copy"), "--json", str(tmp_path / "gate.json")]) == 0
    assert command(["gate", str(tmp_path / "copy/bundles/host")]) == 0
    assert command(["report", str(tmp_path / "copy")]) == 0 and (tmp_path / "copy/report.html").is_file()
    (tmp_path / "strict.toml").write_text('[any]\nfile_bytes = "max 10 B"\n')
    assert command(["gate", str(tmp_path / "copy"), "--budget", str(tmp_path / "strict.toml")]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_another_recipe_is_refused_without_fresh(made, capsys):
    assert command(["compress", "recipe.toml", "--out", "run", "--set", "distill.epochs=2"]) == 2
    assert "holds the run of another recipe" in capsys.readouterr().err


def test_a_folder_in_use_is_told(made, place, capsys):
    import fcntl

    with open(made.folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert command(["compress", "recipe.toml", "--out", "run"]) == 2
    assert "another run is using this folder" in capsys.readouterr().err


def test_a_corrupted_file_in_the_store_is_made_again(made, place, capsys):
    before = reproducible(made.folder)
    victim = next(p for p in sorted((place / "store/artifacts").rglob("weights.safetensors")))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    os.chmod(victim, 0o644)
    victim.write_bytes(bytes(data))
    assert command(["compress", "recipe.toml", "--out", "run", "--quiet"]) == 0
    assert reproducible(made.folder) == before
    assert any(not s["reused"] for s in results.read(made.folder / "result.json").steps)


def test_none_within_budget_delivers_nothing(made, place, capsys):
    assert (
        command(["compress", "recipe.toml", "--out", "none", "--quiet", "--set", 'gate.any.file_bytes="max 10 B"']) == 1
    )
    result = results.read(place / "none/result.json")
    assert result.targets["host"].chosen is None and "nearest" in result.targets["host"].reason
    assert list((place / "none/bundles").iterdir()) == []


def test_dry_run_computes_nothing(made, place, capsys):
    assert command(["compress", "recipe.toml", "--dry-run", "--out", "dry", "--set", "distill.epochs=5"]) == 0
    text = capsys.readouterr().out
    assert "finished  teacher" in text and "to do     distill" in text and not (place / "dry").exists()


def test_a_time_budget_concludes_with_what_is_there(made, place, capsys):
    code = command(
        [
            "compress",
            "recipe.toml",
            "--out",
            "short",
            "--quiet",
            "--time-budget",
            "0.000001s",
            "--set",
            "prune.epochs=2",
        ]
    )
    result = results.read(place / "short/result.json")
    assert [c.id for c in result.candidates] == ["teacher", "alone", "distill", "alone-quantize"] and code == 0
    assert result.targets["host"].chosen in ("alone", "distill") and (place / "short/bundles/host/model.onnx").is_file()


def bringing(path, stages, **more):
    """A recipe of `stages` with a teacher whose weights are brought from `path`."""
    teacher = {"teacher": {"weights": str(path)}}
    return {
        "task": "tiny:task",
        "threads": 1,
        "model": teacher,
        "stage": stages,
        "gate": {"any": {"top1": "min 1 %"}},
        "control": False,
        **more,
    }


def test_a_brought_teacher_and_a_sweep(place):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(tiny.Net(48).state_dict(), place / "teacher.safetensors")
    stages = [{"use": "distill", "epochs": 1}, {"use": "quantize", "mode": "ptq", "samples": 32}]
    ranges = {"quantize.ranges": ["minmax", "percentile", "entropy", "mse"]}
    outcome = edgekd.compress(bringing(place / "teacher.safetensors", stages, sweep=ranges), out=place / "brought")
    ids = [c.id for c in outcome.result.candidates]
    assert ids == ["teacher", "distill", *(f"quantize-{r}" for r in ("minmax", "percentile", "entropy", "mse"))]
    assert sum(s["stage"] == "distill" for s in outcome.result.steps) == 1  # what points share is done once
    assert outcome.result.targets["host"].chosen is not None
    files = {c.id.removeprefix("quantize-"): c.sha256 for c in outcome.result.candidates}
    assert files["mse"] != files["minmax"]
    # so few values tell neither of a ten-thousandth nor more than chance of a tail
    assert files["percentile"] == files["minmax"] == files["entropy"]


def test_brought_weights_in_torchs_own_format_are_the_same(place):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(place / "teacher.safetensors"), place / "teacher.pt")
    outcome = edgekd.compress(
        bringing(place / "teacher.pt", [{"use": "distill", "epochs": 1}]), out=place / "brought-pt"
    )
    sweep = results.read(place / "brought/result.json")
    files = [
        {c.id: c.sha256 for c in result.candidates if c.id in ("teacher", "distill")}
        for result in (outcome.result, sweep)
    ]
    assert len(files[0]) == 2 and files[0].items() == files[1].items()


@pytest.mark.parametrize("form", ["state", "nested", "whole", "raw"])
def test_brought_weights_are_never_unpickled(place, tmp_path, form):
    """A .pt that would make a folder: as an entry beside the weights, inside of a checkpoint, instead of the module,
    without torch's archive."""
    import pickle

    import torch

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    state, path = tiny.Net(48).state_dict(), tmp_path / "teacher.pt"
    held = {
        "state": {**state, "more": Harm()},
        "nested": {"state_dict": state, "optimizer": [Harm()]},
        "whole": Harm(),
        "raw": Harm(),
    }[form]
    torch.save(held, path) if form != "raw" else path.write_bytes(pickle.dumps(held))
    torch.load(path, weights_only=False) if form != "raw" else pickle.loads(path.read_bytes())
    (tmp_path / "harm").rmdir()  # it was no empty threat
    with pytest.raises(UsageError, match="can't be read safely as weights"):
        edgekd.compress(bringing(path, [{"use": "distill", "epochs": 1}]), out=place / f"hostile-{form}")
    assert not (tmp_path / "harm").exists()


def test_targets_that_want_different_grids_share_what_they_can(made, place):
    outcome = edgekd.compress(place / "recipe.toml", out=place / "two", targets=["x86-64-avx2", "host"])
    stages = [s["stage"] for s in outcome.result.steps]
    assert set(outcome.result.targets) == {"x86-64-avx2", "host"}
    assert [stages.count(stage) for stage in ("distill", "prune", "quantize")] == [1, 1, 2]  # the line and the control
    for target in outcome.result.targets:
        found = outcome.result.targets[target]
        assert found.chosen is not None and (place / f"two/bundles/{target}/model.onnx").is_file(), found.reason


@pytest.fixture
def cores():
    """The cores of these tests, which have them again afterwards."""
    found = os.sched_getaffinity(0)
    yield found
    os.sched_setaffinity(0, found)


@pytest.mark.slow
def test_killed_at_random_moments_ends_in_the_same_bytes(made, place, tmp_path, cores):
    """SIGKILL, again and again, then left alone: every file that the contract lists is byte for byte that of the
    undisturbed run. Every other time, and at the end, on one core, where the undisturbed run had them all."""
    environment = {
        **os.environ,
        "EDGEKD_STORE": str(tmp_path / "store"),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    line = [
        sys.executable,
        str(HERE / "tiny.py"),
        "compress",
        str(place / "recipe.toml"),
        "--out",
        str(place / "killed"),
        "--quiet",
    ]
    rng, kills = random.Random(0), 0
    for attempt in range(8):
        os.sched_setaffinity(0, cores if attempt % 2 else {min(cores)})  # what it starts inherits them
        process = subprocess.Popen(
            line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(rng.uniform(3.0, 9.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    os.sched_setaffinity(0, {min(cores)})
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = reproducible(place / "killed"), reproducible(made.folder)
    both = ours.keys() & theirs.keys()
    assert kills > 0 and {name: ours[name] for name in both} == {name: theirs[name] for name in both} and len(both) >= 5
    # of two files with equal bytes, times that were measured apart decide whether both are on the front
    assert all(name.startswith("models/") for name in ours.keys() ^ theirs.keys())
