"""docs/reference/ is what docs/make_reference.py writes, and its table of variables has those of the code."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "write it again: python docs/make_reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(reference):
    made = reference.pages()
    assert {p.name for p in reference.HERE.glob("*.md")} == set(made), AGAIN
    for name, text in made.items():
        assert (reference.HERE / name).read_text("utf-8") == text, (
            f"docs/reference/{name} is older than the code; {AGAIN}"
        )


def test_every_variable_of_the_code_is_in_it(reference):
    named = {
        n for p in (ROOT / "edgekd").rglob("*.py") for n in re.findall(r"\bEDGEKD_[A-Z0-9_]+", p.read_text("utf-8"))
    }
    assert named == set(reference.VARIABLES)


def test_the_keys_of_a_loss_are_those_that_are_read(reference):
    from edgekd.training.terms import KEYS

    assert set(reference.ENTRY) == set(KEYS)


def test_types_are_told_in_words(reference):
    from typing import Annotated, Literal

    from annotated_types import Ge, Gt, Lt

    assert reference.told(Annotated[float, Gt(0), Lt(1)]) == "number, above 0, below 1"
    assert reference.told(tuple[Annotated[int, Ge(2)], ...] | None) == "list of integer, at least 2 or none"
    assert reference.told(Literal["a", 4]) == '`"a"`, `4`'
    assert reference.toml(({"use": "kl", "weight": 0.5},)) == '`[{ use = "kl", weight = 0.5 }]`'


def test_what_is_in_the_unit_of_the_output_is_no_count(reference):
    made = reference.pages()
    for page in ("probes", "budgets"):
        row = next(r for r in made[f"{page}.md"].splitlines() if r.startswith("| `error_to_teacher`"))
        assert "| the output's |" in row and "a count" not in row
