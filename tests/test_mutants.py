"""The table of `make mutants` names what is there, and leaves out no module of those that it is for."""

from pathlib import Path

import mutants
import pytest

ROOT = Path(mutants.__file__).parent.parent


@pytest.mark.parametrize(
    "name", ["losses", "training/loop", "training/terms", "training/loss_checks", "quantization", "decisions", "store"]
)
def test_every_module_has_its_tests(name):
    place = ROOT / "edgekd" / name
    for path in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        module = path.relative_to(ROOT).as_posix()
        assert path.stem == "__init__" or {module, f"edgekd/{name}"} & mutants.TESTS.keys(), module


def test_the_table_names_what_is_there():
    for module, tests in mutants.TESTS.items():
        assert (ROOT / module).exists() and tests.split()
        assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in tests.split()), module


def test_a_part_of_which_nothing_was_tried_has_no_score():
    assert "no fault tried" in mutants.score({}) and "%" not in mutants.score({})
    assert "3 of     4 noticed (75.0 %)" in mutants.score({"killed": 3, "survived": 1})
