"""The projects in benchmarks/examples: the commands of their README run and pass, in a copy of the folder."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from edgekd import results
from edgekd.cli import run as command

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "benchmarks" / "examples"
NAMES = sorted(p.parent.name for p in EXAMPLES.glob("*/README.md"))
POINTS = {  # what each example makes, beside the teacher
    "own_model": {"alone", "alone-quantize", "distill", "quantize"},
    "segmentation": {"alone", "alone-quantize", "distill", "quantize"},
    "multi_label": {"alone", "alone-quantize", "distill", "quantize"},
    "binary": {"alone", "alone-quantize", "distill", "quantize"},
    "regression": {"alone", "alone-quantize", "distill", "quantize"},
    "two_heads": {"alone", "alone-quantize", "distill", "quantize"},
    "recurrent": {"alone", "alone-quantize", "distill", "quantize"},
    "strings": {"alone", "alone-quantize", "distill", "quantize"},
    "streaming": {"alone", "alone-quantize", "distill", "quantize"},
    "own_loss": {"alone", "distill"},
    "own_target": {"distill", "quantize"},
    "prune_quantize": {"distill", "prune-0.7", "prune-0.5", "quantize-0.7", "quantize-0.5"},
}


def test_every_folder_is_in_the_index():
    assert sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir() and p.name != "__pycache__") == NAMES
    assert sorted(re.findall(r"\((\w+)/README\.md\)", (EXAMPLES / "README.md").read_text("utf-8"))) == NAMES


def test_the_pages_of_kinds_are_up_to_date():
    """docs/examples has a page for each that shows a kind of output or input, whose task fits on a screen."""
    made = runpy.run_path(str(ROOT / "docs" / "make_examples.py"))
    held = {p.name: p.read_text("utf-8") for p in (ROOT / "docs" / "examples").glob("*.md")}
    assert held == made["pages"](), "python docs/make_examples.py"
    says = lambda p: re.search(r"outputs=|lengths=|stream=", p.read_text("utf-8"))
    kinds = {p.parent.name for p in EXAMPLES.glob("*/*.py") if says(p)}
    assert kinds == set(made["KINDS"])
    for name in kinds:
        (task,) = EXAMPLES.glob(f"{name}/*.py")
        assert len(task.read_text("utf-8").splitlines()) <= 30, name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_commands_pass(name, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    tiny.settle(folder, monkeypatch)
    (script,) = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text("utf-8"), re.S | re.M)
    try:
        for line in script.splitlines():
            program, *words = shlex.split(line)
            assert program == "edgekd" and command([*words, *["--quiet"] * (words[0] == "compress")]) == 0, line
    finally:
        for module in [p.stem for p in folder.glob("*.py")]:
            sys.modules.pop(module, None)
    (found,) = (results.read(p) for p in folder.glob("runs/*/result.json"))
    (target,) = found.targets.values()
    assert target.verdict == "pass" and target.chosen in POINTS[name]
    assert {c.id for c in found.candidates} == POINTS[name] | {"teacher"}
