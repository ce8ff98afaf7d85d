"""CONTRIBUTING.md names what is there: files, folders and tests, a row for each kind of part, the layers."""

import re
import tomllib
from pathlib import Path

import pytest
import test_layers

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| a")]


def named(text):
    """Paths in backticks, those of what is yet to be written left out."""
    return [p for p in re.findall(r"`((?:edgekd|tests|targets|docs|benchmarks)/[\w./-]*)", text) if "NAME" not in p]


@pytest.mark.parametrize("path", sorted(set(named(TEXT))))
def test_what_it_names_is_there(path):
    assert (ROOT / path).exists()


def test_every_folder_of_parts_has_a_row():
    folders = {p for row in ROWS for p in re.findall(r"edgekd/(\w+)/NAME", row)}
    assert folders >= {
        "losses",
        "ensembles",
        "criteria",
        "ranges",
        "tasks",
        "stages",
        "formats",
        "runtimes",
        "probes",
        "verbs",
    }
    assert all(re.search(r"tests/test_\w+\.py", row) for row in ROWS)


def test_the_layers_are_those_of_the_test():
    section = TEXT[TEXT.index("## The layers") : TEXT.index("## Style")]
    rows = {
        cells[1].strip(): set(re.findall(r"`(\w+)/`", cells[2]))
        for cells in (line.split("|") for line in section.splitlines() if line.startswith("| "))
    }
    wanted = {title: folders for title, folders in test_layers.LAYERS if folders}
    assert {title: rows[title] for title in wanted} == wanted
    assert rows["on devices"] == test_layers.DEVICE


def test_the_hooks_are_the_checks_of_make():
    programs = re.findall(r"entry: \.venv/bin/(\w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert programs == ["ruff", "ruff", "mypy"]
    makefile = (ROOT / "Makefile").read_text()
    assert [p for p in programs if f"$(BIN)/{p}" not in makefile] == []


def test_the_changelog_is_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    source = (ROOT / "edgekd" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.*)"', source, re.M)[1]
    heads = re.findall(r"^## (\S+?),?(?: .*)?$", text, re.M)
    assert heads[:2] == ["Unreleased", version]
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
