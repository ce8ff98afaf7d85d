"""What is installed: the wheel holds the package, its recipe and its targets, and nothing else; the pinned versions fit
together."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling: pip install edgekd[test]")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_package_recipe_targets_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    targets = {f"edgekd/_targets/{p.name}" for p in (ROOT / "targets").glob("*.toml")}
    assert targets and targets <= names
    kinds = (".py", ".toml", ".mjs", ".html", ".c")
    tracked = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "edgekd").rglob("*") if p.is_file() and p.suffix in kinds
    }
    assert tracked <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    strangers = [n for n in names if not n.startswith(("edgekd/", "edgekd-"))]
    assert not strangers and not any("test" in Path(n).name for n in names if n.startswith("edgekd/"))


def test_its_version_is_the_one_that_the_package_says(wheel):
    import edgekd

    assert wheel.name == f"edgekd-{edgekd.__version__}-py3-none-any.whl"
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_its_types_are_for_users_too(wheel):
    """PEP 561: without this file a type checker takes everything of an installed edgekd for Any."""
    assert "edgekd/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_installed_elsewhere_it_finds_its_targets_and_its_recipe(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    code = """
import edgekd, edgekd.components, edgekd.run.recipe, edgekd.targets
print(edgekd.__file__)
print(*edgekd.targets.names())
print(*(edgekd.targets.load(name).name for name in edgekd.targets.names()))
print(*edgekd.components.names("tasks"))
print(edgekd.run.recipe.file.BUILT_IN.is_file())
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home, names, loaded, tasks, recipe = done.stdout.splitlines()
    assert Path(home).is_relative_to(site) and names == loaded and recipe == "True"
    assert set(names.split()) == {"host", *(p.stem for p in (ROOT / "targets").glob("*.toml"))}
    assert tasks == "cifar10 digits image_folder model_and_data npz speech"


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / ".constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = (
        project["project"]["dependencies"]
        + sum(project["project"]["optional-dependencies"].values(), [])
        + project["build-system"]["requires"]
    )
    return [Requirement(line) for line in listed]


def test_every_dependency_is_pinned_and_every_pin_is_allowed():
    pinned = pins()
    for requirement in requirements():
        assert requirement.name in pinned and requirement.specifier.contains(
            pinned[canonicalize_name(requirement.name)]
        ), str(requirement)
    waiting, seen = requirements(), set()
    while waiting:  # what these need in turn, as far as it is installed here
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # what a torch build with CUDA brings along is its own choice
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(name)
        assert name in pinned, f"{name} is needed, but .constraints.txt doesn't pin it"
        try:
            wanted = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        extras = requirement.extras or {""}
        waiting += [
            r
            for r in map(Requirement, wanted)
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)
        ]


def test_continuous_integration_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert (
        os.access(script, os.X_OK)
        and "make test" in script.read_text()
        and "make test" in (ROOT / "README.md").read_text()
    )
    dry = subprocess.run(
        ["make", "-n", "test", "VENV=none-yet"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    parts = ("pip install", ".constraints.txt", "ruff check .", "ruff format --check .", "bin/mypy", "-m pytest")
    assert [part for part in parts if part not in dry] == []


def test_the_versions_of_torch_that_were_tried_are_allowed_and_no_later_minor_one():
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    tried = re.findall(r"\d+\.\d+\.\d+", re.search(r"pass with torch ([^;]+);", text)[1])
    (torch,) = [r for r in requirements() if r.name == "torch"]
    minors = [int(version.split(".")[1]) for version in tried]
    assert len(minors) >= 3 and minors == list(range(minors[0], minors[-1] + 1)) and pins()["torch"] in tried
    assert all(torch.specifier.contains(version) for version in tried)
    assert not any(torch.specifier.contains(f"2.{minor}.0") for minor in (minors[0] - 1, minors[-1] + 1))
