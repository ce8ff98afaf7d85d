"""Committed results: tables are made from them and nothing else, and the delivered file is the one that they tell
of."""

import ast
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parent.parent
CIFAR = ROOT / "benchmarks" / "cifar10"


def script(path: Path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    run = script(CIFAR / "run.py")
    monkeypatch.setattr(run, "TABLES", tmp_path / "RESULTS.md")
    monkeypatch.setattr(run, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    return run


def test_cifar10_tables_are_those_of_the_result(cifar, tmp_path):
    cifar.tables()
    assert (tmp_path / "RESULTS.md").read_text() == (CIFAR / "RESULTS.md").read_text()
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert "<!-- cifar10" in (ROOT / "README.md").read_text()


def test_cifar10_tables_follow_the_result(cifar, tmp_path, monkeypatch):
    """The table is computed: another result gives another table."""
    result = json.loads((CIFAR / "result.json").read_text())
    for seed in result["seeds"].values():
        seed["rows"]["QAT with teacher"]["top1"][0] = 12.34
    (tmp_path / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(cifar, "RESULT", tmp_path / "result.json")
    cifar.tables()
    assert "12.34" in (tmp_path / "RESULTS.md").read_text() and "12.34" in (tmp_path / "README.md").read_text()
    assert "met by 0 of" in (tmp_path / "RESULTS.md").read_text()


def test_cifar10_delivered_file():
    result = json.loads((CIFAR / "result.json").read_text())
    row = next(iter(result["seeds"].values()))["rows"]["QAT with teacher"]
    raw = (CIFAR / "student.onnx").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == row["sha256"] and len(raw) == row["file_bytes"] <= 98496
    assert not {n.domain for n in onnx.load_from_string(raw).graph.node} - {"", "ai.onnx"}
    assert row["top1"][0] >= 88.5


@pytest.mark.skipif("EDGEKD_CIFAR10" not in os.environ, reason="EDGEKD_CIFAR10 names no data")
def test_cifar10_delivered_file_scores_what_the_result_says(cifar):
    result = json.loads((CIFAR / "result.json").read_text())
    row = next(iter(result["seeds"].values()))["rows"]["QAT with teacher"]
    assert np.isclose(cifar.score(CIFAR / "student.onnx"), row["top1"][0], atol=0.05)


def test_foreign_tables_are_those_of_the_result(tmp_path, monkeypatch):
    """As committed; what edgekd does not reach is told, whatever it is."""
    folder = ROOT / "benchmarks" / "foreign"
    monkeypatch.syspath_prepend(str(folder))
    tables = script(folder / "tables.py")
    result = json.loads((folder / "result.json").read_text())
    tables.write(result, tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == (folder / "RESULTS.md").read_text()
    ways = next(f for f in result["files"].values() if "db" in f["ways"]["edgekd"] and "db" in f["ways"]["static"])[
        "ways"
    ]
    ways["edgekd"] |= {"db": 3.21, "time_to_float": [1.3, 1.23, 1.4], "cpu_s": 77.0}
    ways["static"]["db"] = 32.1
    told = "\n".join(tables.missed(result["files"]))
    assert "ruined, 3.2 dB" in told and "32.1" in told and "1.30 times float's time [1.23, 1.40]" in told
    assert "made in 77.0 s of CPU" in told


def test_foreign_files_all_have_a_row():
    """Those of packages and the generated ones, and no others."""
    folder = ROOT / "benchmarks" / "foreign"
    assigned = [n for n in ast.parse((folder / "architectures.py").read_text()).body if isinstance(n, ast.AnnAssign)]
    made = next(n.value for n in assigned if n.target.id == "ARCHITECTURES")
    wanted = {*json.loads((folder / "files.json").read_text()), *(name.id for name in made.elts)}
    rows = {*json.loads((folder / "result.json").read_text())["files"]}
    assert not wanted - rows, f"no row: {sorted(wanted - rows)}"
    assert not rows - wanted, f"of no file: {sorted(rows - wanted)}"


@pytest.mark.parametrize("name", ["distillation", "kinds", "speech"])
def test_tables_are_those_of_the_result(name, tmp_path, monkeypatch):
    """As committed; and another result gives another table."""
    folder = ROOT / "benchmarks" / name
    run = script(folder / "run.py")
    monkeypatch.setattr(run, "TABLES", tmp_path / "RESULTS.md")
    run.tables()
    assert (tmp_path / "RESULTS.md").read_text() == (folder / "RESULTS.md").read_text()
    text = (folder / "result.json").read_text()
    changed = json.loads(text)
    if name == "speech":
        next(iter(changed["speakers"].values()))["quantize"]["top1"] = 12.34
    elif name == "kinds":
        for seed in changed["kinds"]["binary"].values():
            seed["teacher"]["auc"] = 12.34
    else:
        next(iter(changed["methods"].values()))["seeds"] = {"0": {"value": 12.34}}
    (tmp_path / "result.json").write_text(json.dumps(changed))
    monkeypatch.setattr(run, "RESULT", tmp_path / "result.json")
    run.tables()
    assert "12.3" in (tmp_path / "RESULTS.md").read_text()


def test_online_tables_are_those_of_the_result(tmp_path, monkeypatch):
    """As committed; and another result gives another table."""
    folder = ROOT / "benchmarks" / "distillation"
    monkeypatch.syspath_prepend(str(folder))
    online = script(folder / "online.py")
    monkeypatch.setattr(online, "TABLES", tmp_path / "ONLINE.md")
    online.tables()
    assert (tmp_path / "ONLINE.md").read_text() == (folder / "ONLINE.md").read_text()
    changed = json.loads((folder / "online.json").read_text())
    next(iter(changed["ways"].values()))["seeds"] = dict.fromkeys("012", 12.34)
    (tmp_path / "online.json").write_text(json.dumps(changed))
    monkeypatch.setattr(online, "RESULT", tmp_path / "online.json")
    online.tables()
    assert "12.34" in (tmp_path / "ONLINE.md").read_text()
