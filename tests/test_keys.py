"""Code that a setting names is in the key, wherever in the settings it is named and whichever stage it is of."""

import json
import sys
import tomllib

import pytest
import tiny  # noqa: F401  (the recipe's task)

from edgekd import components, signatures
from edgekd.components import Use
from edgekd.criteria.magnitude import magnitude
from edgekd.ensembles.confidence import confidence
from edgekd.losses.kl import kl
from edgekd.run import plan, resolve
from edgekd.run.dump import dump
from edgekd.stages.prune import Prune
from edgekd.training.terms import Term

STAGE = """
import dataclasses
from typing import Any, ClassVar

@dataclasses.dataclass(frozen=True)
class Own:
    helper: Any = "named:by_default"
    reads: ClassVar = ()

    def __call__(self, source, run, *, teacher=(), data=None): ...
"""
NAMED = "import {library}\n\ndef {name}(x):\n    return x + {number}\n"


@pytest.fixture
def key(tmp_path, monkeypatch):
    """`key(lines, code of the part)`: that of a stage of one's own with these lines; with `whole` as a plan has it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ownstage.py").write_text(STAGE)

    def made(lines, name="by_recipe", number=1, library="json", whole=False):
        (tmp_path / "named.py").write_text(NAMED.format(name=name, number=number, library=library))
        for module in ("named", "ownstage"):
            sys.modules.pop(module, None)
        signatures.model_of.cache_clear()
        (tmp_path / "recipe.toml").write_text(
            'task = "tiny:task"\nthreads = 1\n[[stage]]\nuse = "train"\nepochs = 1\n'
            f'[[stage]]\nname = "own"\nuse = "ownstage:Own"\n{lines}\n[model.teacher]\ntrain = {{ epochs = 1 }}\n'
        )
        resolved = resolve.resolved(tmp_path / "recipe.toml")
        if whole:
            return next(k for k, step in plan.make(resolved).steps.items() if step.stage == "ownstage:Own")
        line = resolved.recipe.stages[-1]
        return plan._Planner(resolved).step(line.use, line.stage, line.name, 0)

    yield made
    for module in ("named", "ownstage"):
        sys.modules.pop(module, None)


WAYS = ["{}", "{{ use = {}, x = 1 }}", "[1, {}]", "[{{ a = [{{ use = {} }}] }}]", "{{ {} = 1 }}"]


@pytest.mark.parametrize("value", WAYS)
def test_a_part_that_a_stage_of_ones_own_names(key, value):
    line = f"helper = {value.format(json.dumps('named:by_recipe'))}"
    before = key(line)
    assert key(line, number=1) == before
    assert key(line, number=2) != before
    assert key(line, library="click") != before


def test_a_part_that_is_a_default(key):
    assert key("", name="by_default") != key("", name="by_default", number=2)
    assert key("", name="by_default", whole=True) != key("", name="by_default", number=2, whole=True)


def test_what_is_not_named_or_only_looks_so_is_not_in_the_key(key):
    assert key('helper = "nothing:there"') == key('helper = "nothing:there"', number=2)


def test_parts_are_found_where_a_setting_is_said_to_name_one():
    losses, combine = (Term("kl"), Term("json:loads")), Use("ensembles", "confidence")
    assert components.parts_of(Prune(losses=losses, combine=combine)) == [confidence, kl, json.loads, magnitude]
    assert components.parts_of(Prune(losses=losses[:1], criterion=Use("criteria", "json:dumps"))) == [kl, json.dumps]


@pytest.mark.parametrize("lines", ['ranges = "tiny:Net"', 'losses = [{ use = "tiny:Net" }]'])
def test_a_resolved_recipe_says_where_named_modules_lie(lines, monkeypatch, tmp_path):
    stages = [{"use": "train", "epochs": 1}, {"use": "quantize"}]
    stages[1] |= tomllib.loads(lines)
    assert "modules = " in dump(resolve.resolved({"task": "tiny:task", "stage": stages}), tmp_path)
