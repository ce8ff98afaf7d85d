"""The examples in docstrings do what they show; every loss, ensemble, criterion and range has one."""

import doctest
import importlib
from pathlib import Path

import pytest

from edgekd import components

KINDS = ("losses", "ensembles", "criteria", "ranges")


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in KINDS for name in components.names(kind)])
def test_the_example_shows_what_comes_out(kind, name):
    module = importlib.import_module(f"edgekd.{kind}.{name}")
    part = components.find(kind, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(part, name, module=module, globs={name: part})
    example.globs = {part.__name__: part}  # nothing else: it can be pasted anywhere
    assert example.examples, f"{kind}/{name}.py: its docstring shows no example: >>> {part.__name__}(...)"
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


ROOT = Path(__file__).resolve().parent.parent / "edgekd"
OTHERS = sorted(p for p in ROOT.rglob("*.py") if ">>> " in p.read_text("utf-8") and p.parent.name not in KINDS)


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_examples_elsewhere_too(path):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
