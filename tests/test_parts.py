"""What a part of any kind keeps: a new file in one of these folders is tested here without being named anywhere."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from edgekd import components, runtimes, signatures
from edgekd.cli import run as command

ROOT = Path(__file__).resolve().parent.parent / "edgekd"
SPLITS = {"train", "validation", "test", "unlabelled", "prior"}


def parts(*kinds):
    return [(kind, name) for kind in kinds for name in components.names(kind)]


@pytest.mark.parametrize("kind, name", parts("losses", "ensembles", "criteria", "ranges", "stages", "tasks"))
def test_its_settings_are_what_a_recipe_takes(kind, name):
    """Every setting has a type, by which a recipe's table is checked."""
    if not hasattr(importlib.import_module(f"edgekd.{kind}.{name}"), name) and kind == "tasks":
        return  # a `task` without settings
    part = components.find(kind, name)
    fields, named = signatures.model_of(part, components.KINDS[kind]).model_fields, signatures.readers(part)
    untyped = [field for field, info in fields.items() if info.annotation is Any and field not in named]
    assert not untyped, f"{kind}/{name}.py: annotate {', '.join(untyped)}: the recipe is checked by it"


@pytest.mark.parametrize(
    "kind, name", parts("losses", "ensembles", "criteria", "ranges", "stages", "tasks", "formats", "probes")
)
def test_it_says_what_it_is_in_a_first_sentence(kind, name):
    """`edgekd list` and the reference show the first paragraph of the module."""
    text = (inspect.getdoc(importlib.import_module(f"edgekd.{kind}.{name}")) or "").split("\n\n")[0]
    assert text.endswith((".", ".)")) or ". " in text, f"{kind}/{name}.py begins with a sentence that says what it is"


@pytest.mark.parametrize("kind", ["tasks", "losses", "ensembles", "criteria", "ranges", "formats", "runtimes"])
def test_it_is_listed(kind, capsys):
    assert command(["list", kind]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")}
    there = set(runtimes.names() if kind == "runtimes" else components.names(kind))
    assert there <= shown


@pytest.mark.parametrize("name", components.names("stages"))
def test_a_stage_is_a_frozen_record_of_settings_that_is_called(name):
    stage = components.find("stages", name)
    assert dataclasses.is_dataclass(stage) and stage.__dataclass_params__.frozen
    taken = inspect.signature(stage.__call__).parameters
    assert list(taken) == ["self", "source", "run", "teacher", "data"] and taken["teacher"].default == ()
    reads = stage.reads.fget(stage()) if isinstance(stage.reads, property) else stage.reads
    assert set(reads) <= SPLITS


@pytest.mark.parametrize("name", components.names("formats"))
def test_a_format_renders_a_graph_with_a_grid(name):
    module = importlib.import_module(f"edgekd.formats.{name}")
    assert list(inspect.signature(module.export).parameters)[:4] == ["graph", "grid", "example", "path"]
    assert module.SUFFIX.startswith(".")


@pytest.mark.parametrize("path", sorted((ROOT / "runtimes").glob("*.py")), ids=lambda p: p.stem)
def test_what_is_copied_to_devices_reads_as_python_3_8(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("name", runtimes.names())
def test_a_runtime_says_its_formats_and_needs_and_loads_a_file(name):
    assert set(runtimes.formats(name)) & set(components.names("formats")) and runtimes.needs(name)
    tree = ast.parse((ROOT / "runtimes" / f"{name}.py").read_text(encoding="utf-8"))
    functions = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions["load"][:2] == ["path", "threads"]
