"""The README: its example runs, its first command does what it says, its picture is of a run. The other pages:
test_docs."""

import importlib.util
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from edgekd.cli import run as command

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.S)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(language, holding):
    return next(text for name, text in BLOCKS if name == language and holding in text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The example's two files in a folder, with a store of its own and hurried timing."""
    import sys

    import tiny

    from edgekd.measure import jobs

    (tmp_path / "mytask.py").write_text(block("python", "edgekd.Task("))
    (tmp_path / "recipe.toml").write_text(block("toml", "[[stage]]"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()
    yield tmp_path
    sys.modules.pop("mytask", None)


def test_the_example_of_ones_own_is_short_and_runs(project, capsys):
    assert len([line for line in (project / "mytask.py").read_text().splitlines() if line.strip()]) <= 25
    for line in (
        line.removeprefix("edgekd ").split() for line in block("sh", "edgekd compress recipe.toml").splitlines() if line
    ):
        assert command([*line, "--quiet"] if line[0] == "compress" else line) == 0
    assert "PASS" in capsys.readouterr().out
    scope: dict = {}
    exec(block("python", "run = edgekd.compress("), scope)
    picture = ElementTree.fromstring(script("make_picture").drawn(project / "runs" / "mine"))
    shown = ["".join(e.itertext()) for e in picture.iter() if e.tag.endswith("text")]
    assert shown[0] == "mine" and any(words.endswith(" chosen") for words in shown)
    assert scope["run"].exit_code == 0 and "0" in capsys.readouterr().out.splitlines()[-1]


def test_it_is_short_and_has_one_picture_and_one_table():
    assert len(TEXT.splitlines()) <= 130
    assert len(re.findall(r"^!\[", TEXT, re.M)) == 1 == len(re.findall(r"^\|---", TEXT, re.M))


def test_settings_that_the_pages_name_are_taken():
    from edgekd.run import recipe

    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    sets = re.findall(r"--set (\S+?=[^`\s]+)", "".join(p.read_text("utf-8") for p in pages))
    assert recipe.parsed(None, [s for s in sets if s != "STAGE.KEY=VALUE"])[1] == []


def test_the_targets_of_the_page_are_those_that_ship_and_its_own_one_is_read(tmp_path):
    from edgekd import targets

    page = (ROOT / "docs" / "targets-and-boards.md").read_text("utf-8")
    table = re.findall(r"`([\w-]+)`", "".join(line for line in page.splitlines() if line.startswith("|")))
    named = {n for n in table if n != "-little"}
    named |= {n.replace("-big", "-little") for n in table if n.startswith("snapdragon")}
    assert named == set(targets.names()) - {"host"}
    (tmp_path / "sensor.toml").write_text(re.search(r"```toml\n(title.*?)```", page, re.S)[1])
    sensor = targets.load(tmp_path / "sensor.toml")
    assert (sensor.core, sensor.flash_bytes, sensor.ram_bytes) == ("cortex-m4", 2**20, 2**18)
    assert not targets.runs(sensor)


def test_shipped_recipes_plan():
    from edgekd.run import plan, recipe, resolve

    shipped = [
        p
        for p in [*ROOT.glob("edgekd/**/*.toml"), *ROOT.glob("benchmarks/**/*.toml")]
        if "stage" in tomllib.loads(p.read_text())
    ]
    assert shipped
    for path in shipped:
        if tomllib.loads(path.read_text())["task"] == "digits":  # others need data that is not here
            assert plan.make(resolve.resolved(path)).points
        else:
            read, problems = recipe.parsed(path)
            assert read.stages and not problems


def test_the_picture_is_of_the_built_in_recipe_and_whole():
    picture = ElementTree.parse(ROOT / "docs" / "report.svg").getroot()
    shown = {"".join(e.itertext()) for e in picture.iter() if e.tag.endswith("text")}
    assert {"digits", "teacher", "quantize chosen"} <= shown
    assert {e.tag.rpartition("}")[2] for e in picture.iter()} <= {
        "svg", "style", "rect", "text", "line", "polyline", "g", "circle", "title", "path"
    }  # fmt: skip


@pytest.mark.slow
def test_the_first_command_runs_to_its_end_and_finds_everything_finished(tmp_path, monkeypatch, capsys):
    """The built-in recipe as it is: what the text says of it, and what it writes."""
    import onnxruntime
    import tiny

    from edgekd import results
    from edgekd.tasks.digits import task

    tiny.settle(tmp_path, monkeypatch)
    assert command(["compress", "--quiet"]) == 0
    result = results.read(tmp_path / "runs/digits/result.json")
    assert [c.id for c in result.candidates] == ["teacher", "alone", "distill", "prune", "quantize", "alone-quantize"]
    figures = {c.id: {(m.name, m.split): m.value for m in c.measurements} for c in result.candidates}
    macs, sizes = (
        [figures[id][name, None] for id in ("distill", "prune", "quantize")] for name in ("macs", "file_bytes")
    )
    # half of the multiply-accumulates
    assert 0.45 < macs[1] / macs[0] <= 0.52 and macs[2] == macs[1] and sizes[0] > sizes[1] > 2 * sizes[2]
    found, test = result.targets["host"], task.data("test")
    assert found.verdict == "pass" and found.chosen == "quantize"
    session = onnxruntime.InferenceSession(
        str(tmp_path / "runs/digits/bundles/host/model.onnx"), providers=["CPUExecutionProvider"]
    )
    right = (session.run(None, {"input": np.asarray(test.inputs, np.float32)})[0].argmax(1) == test.labels).mean()
    assert 100 * right == pytest.approx(figures["quantize"]["top1", "test"]) and right > 0.97
    assert command(["gate", "runs/digits"]) == 0 and (tmp_path / "runs/digits/report.html").is_file()
    capsys.readouterr()
    assert command(["compress", "--quiet"]) == 0
    assert all(step["reused"] for step in results.read(tmp_path / "runs/digits/result.json").steps)
