"""The examples in the docstrings of losses, ensembles, criteria and ranges: every part has one, and it does what it
shows."""

import doctest
import importlib

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
