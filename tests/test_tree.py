"""edgekd/README.md is the map of the package: its tree has every folder and file at the root and no other, in their
layers, and every path that it names is there."""

import re
from pathlib import Path

import test_layers

ROOT = Path(__file__).resolve().parent.parent / "edgekd"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = re.search(r"## The tree.*?```\n(.*?)```", TEXT, re.S)[1].splitlines()
SIGNS = "add it to the tree in edgekd/README.md"


def test_the_tree_has_what_is_there():
    named = {line.split()[0].rstrip("/") for line in TREE if not line.startswith(" ")}
    there = {p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert there - named == set(), SIGNS
    assert named - there == set(), "take it out of the tree in edgekd/README.md"
    inside = {line.split()[0].rstrip("/") for line in TREE if line.startswith("  ")}
    assert inside == {p.name for p in (ROOT / "quantization").iterdir() if (p / "__init__.py").is_file()}, SIGNS


def test_folders_stand_in_their_layers_from_the_top():
    order = [title for title, _ in test_layers.LAYERS][::-1]
    rows = [(line.split()[0].rstrip("/"), line.split()[-1]) for line in TREE if re.match(r"\w+/", line)]
    wanted = {name: title for title, names in test_layers.LAYERS for name in names}
    wanted |= dict.fromkeys(test_layers.DEVICE, "devices")
    assert dict(rows) == wanted
    places = [order.index(title) for _, title in rows if title in order]
    assert places == sorted(places)


def test_every_path_that_it_names_is_there():
    named = re.findall(r"`([\w/]+(?:\.py|\.c|/))`", re.sub(r"```.*?```", "", TEXT, flags=re.S))
    folders = {p.name for p in ROOT.rglob("*.py")}
    lost = [n for n in named if not (ROOT / n).exists() and n not in folders and "NAME" not in n]
    assert [n for n in lost if not n.startswith(("tests/", "benchmarks/"))] == []
    assert [n for n in lost if not (ROOT.parent / n).exists()] == []


def test_it_answers_what_newcomers_ask():
    section = TEXT[TEXT.index("## Where is") : TEXT.index("## The tree")]
    rows = re.findall(r"^\| (.*\?) \| (.*) \|$", section, re.M)
    assert len(rows) >= 10 and all(re.search(r"`[\w/]+(\.py|/)`", answer) for _, answer in rows)
