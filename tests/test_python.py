"""What the package gives to Python: its names whatever was imported, and a run as an object."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
from test_report import HOSTILE, candidate

import edgekd
from edgekd.records import Result, TargetResult
from edgekd.run.outcome import Outcome

NAMES = """
import importlib, pkgutil, types
import edgekd
for module in pkgutil.walk_packages(edgekd.__path__, "edgekd."):
    if module.name.split(".")[1] not in ("__main__", "runtimes"):
        importlib.import_module(module.name)
wrong = [name for name in edgekd.__all__ if isinstance(getattr(edgekd, name), types.ModuleType)]
assert not wrong, wrong
assert all(callable(getattr(edgekd, name)) for name in edgekd.__all__ if name != "__version__")
from edgekd.report import rows
import edgekd.report.rows
assert rows.title("x") == "x"
"""


def test_names_are_the_same_after_every_module_was_imported():
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path):
    found = (
        candidate("teacher", 98.3, 812345, 20_000_000, 0.8),
        candidate("small", 96.9, 98765, 1_000_000, 0.08, agreement=97.2),
    )
    targets = {"host": TargetResult(("small",), "small", "pass", (), HOSTILE)}
    return Outcome(Result(HOSTILE, "cd" * 32, {}, {"teacher": "teacher"}, found, targets), tmp_path, 0, "the table")


@pytest.mark.parametrize(("code", "verdict"), [(0, "pass"), (1, "fail"), (3, "inconclusive")])
def test_the_verdict_is_the_exit_code_in_a_word(run, code, verdict):
    assert Outcome(run.result, Path(), code).verdict == verdict


def test_a_run_is_shown_in_one_line_and_printed_as_its_table(run):
    assert len(repr(run)) < 400 and repr(run).isprintable()
    assert all(word in repr(run) for word in ("pass", "2 candidates", "host: small", str(run.folder)))
    assert str(run) == "the table"


def test_a_notebook_shows_the_figures_and_no_code_of_names(run):
    shown = run._repr_html_()
    assert "<table>" in shown and "<code>small</code>" in shown and "96.9" in shown
    assert "<script" not in shown and "\x1b" not in shown


def test_a_data_frame_has_a_row_for_each_measurement(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    rows = run.to_dataframe()
    assert len(rows) == sum(len(c.measurements) for c in run.result.candidates)
    (row,) = [r for r in rows if (r["candidate"], r["name"], r["split"]) == ("small", "top1", "test")]
    assert (row["value"], row["unit"], row["origin"], row["chosen_for"]) == (96.9, "%", "measured", ("host",))


def test_without_pandas_the_error_names_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(edgekd.EnvironmentUnfit, match="pip install pandas"):
        run.to_dataframe()
