"""What mypy checks strictly, by pyproject.toml: ground and tools are in the list, and nothing that is not there."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def strict() -> set[str]:
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    return {name for o in overrides if o.get("disallow_untyped_defs") for name in o["module"]}


def test_every_file_directly_in_the_package_is_strict():
    files = {f"edgekd.{p.stem}".removesuffix(".__init__") for p in (ROOT / "edgekd").glob("*.py")}
    assert files - strict() == set(), "add the new file to [[tool.mypy.overrides]] in pyproject.toml"
    assert "edgekd.store.*" in strict()


def test_what_the_list_names_is_there():
    for name in strict():
        place = ROOT / name.removesuffix(".*").replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"{name} is not there: take it out of the list"
