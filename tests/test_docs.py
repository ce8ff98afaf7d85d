"""Every block of README.md, CONTRIBUTING.md and docs/ does what it says: commands parse, Python runs, recipes, targets
and budgets are read, links lead somewhere."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest

import edgekd
from edgekd.cli import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks" / "examples").glob("**/README.md")),
]
ELSEWHERE = {"pip", "python", "python3", "pre-commit"}  # programs that are not ours
RUN_ELSEWHERE = ("edgekd.compress(", "edgekd.gate(")  # blocks that tests/test_readme.py runs


def blocks(language):
    """(page, block) of all pages."""
    return [
        pytest.param(page, text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, text in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.S | re.M))
    ]


def lines(script):
    """Commands of a shell script, without remarks."""
    joined = script.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def verbs(group):
    context = click.Context(group)
    return {name: group.get_command(context, name) for name in group.list_commands(context)}


def parse(words):
    """Raises where a command of ours would not be taken."""
    program, *rest = words
    name = re.sub(r"^[.\w]+/bin/", "", program)
    if name == "edgekd":
        command, context = cli, click.Context(cli, **cli.context_settings)
        while isinstance(command, click.Group):
            assert rest and rest[0] in verbs(command), f"edgekd has no command {' '.join(rest[:1])}"
            command, rest = verbs(command)[rest[0]], rest[1:]
            context = click.Context(command, parent=context) if isinstance(command, click.Group) else context
        command.make_context(command.name, list(rest), parent=context)
    elif name == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        assert rest[0] in targets, f"the Makefile has no {rest[0]}"
    elif name in ("python", "python3") and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), f"{rest[0]} is not there"
    else:
        assert name in ELSEWHERE | {"ruff", "cd", "export", "torchrun"}, f"{name}: not a program that the pages name"


@pytest.mark.parametrize("page, script", blocks("sh"))
def test_commands_are_taken(page, script):
    for words in lines(script):
        parse(words)


@pytest.mark.parametrize("page, text", blocks("yaml"))
def test_steps_of_a_workflow_are_commands(page, text):
    steps = re.findall(r"^- run: (.*)$", text, re.M)
    assert len(steps) == len(text.splitlines())
    for words in lines("\n".join(steps)):
        parse(words)


def test_a_command_that_is_not_there_is_found():
    for words in (["edgekd", "compres"], ["edgekd", "gate", "runs/x", "--nothing"], ["make", "nothing"]):
        with pytest.raises(Exception):  # noqa: B017 - click's, or an assertion
            parse(words)


@pytest.mark.parametrize("page, text", blocks("python"))
def test_python_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(text, str(page), "exec")
    if not any(call in text for call in RUN_ELSEWHERE):
        exec(code, {})
    for name in re.findall(r"edgekd\.(\w+)\(", text):
        assert hasattr(edgekd, name), name


@pytest.mark.parametrize("page, text", blocks("toml"))
def test_tables_are_read(page, text, tmp_path, monkeypatch):
    """A recipe or a part of one, a target, or a budget, by its keys."""
    from edgekd import targets
    from edgekd.decisions import budget

    table = tomllib.loads(text)
    if "architecture" in table:
        (tmp_path / "own.toml").write_text(text)
        assert targets.load(tmp_path / "own.toml").title == table["title"]
    elif table.keys() & {"stage", "model", "mixed", "sweep", "select", "gate", "task"}:
        own_modules(tmp_path, monkeypatch)
        assert read(table)
    else:
        (tmp_path / "budget.toml").write_text(text)
        assert budget.read(tmp_path / "budget.toml")


def read(table):
    """A recipe of the page's tables, with what they leave out."""
    from edgekd.run import recipe

    stages = [{"use": "distill"}, {"use": "prune"}, {"use": "quantize"}]
    if "stage" in table:
        own = {s["use"] for s in table["stage"]}
        stages = [*([{"use": "distill"}] if not own & {"distill", "train"} else []), *table["stage"]]
    models = {"teacher": {"train": {"epochs": 1}}, **table.get("model", {})}
    task = table.get("task", "digits")
    if isinstance(task, dict) or ":" in task:
        table, task = {**table, "gate": {}}, "digits"  # data that is not here
    read, problems = recipe.parsed({**table, "task": task, "stage": stages, "model": models})
    assert problems == []
    return read


def own_modules(folder, monkeypatch):
    """Weights and modules that pages speak of."""
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, folder / "teacher.safetensors")
    (folder / "mymodule.py").write_text(cosine())
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("mymodule", None)


def cosine():
    """The loss of one's own in docs/distil.md."""
    text = (ROOT / "docs" / "distil.md").read_text("utf-8")
    return re.search(r"^```python\n(.*?)^```", text, re.S | re.M)[1]


WAYS = re.findall(r"^\| (.*?) \| (.*`.*) \|$", (ROOT / "docs" / "distil.md").read_text("utf-8"), re.M)


@pytest.mark.parametrize("wanted, says", WAYS, ids=[w for w, _ in WAYS])
def test_ways_to_distil_are_read(wanted, says, tmp_path, monkeypatch):
    """Each row of the table is a stage that a recipe may have."""
    from edgekd import components
    from edgekd.run import recipe

    own_modules(tmp_path, monkeypatch)
    stage, terms = {"use": "distill"}, []
    for fragment in re.findall(r"`([^`]*)`", says):
        if fragment.startswith("{"):
            terms.append(tomllib.loads(f"term = {fragment}")["term"])
        elif " = " in fragment:
            stage |= tomllib.loads(fragment)
        elif re.fullmatch(r"[a-z_0-9]+", fragment):
            assert fragment in components.names("losses") + components.names("ensembles")
    if terms:
        stage["losses"] = [{"weight": 1.0, **term} for term in terms]
    named = {*stage.get("combine", {}).get("classes", {}), *stage.get("combine", {}).get("tags", {}), "one", "two"}
    named = sorted(named) if "combine" in stage or any(t.get("teacher") == "two" for t in terms) else ["teacher"]
    if "learns_with" not in stage:
        stage.setdefault("teacher", named)
    models = {name: {"train": {"epochs": 1}} for name in ("one", "two", "teacher")}
    assert recipe.parsed({"task": "digits", "stage": [stage], "model": models})[1] == []


def test_a_loss_of_ones_own_gives_a_value_per_row(tmp_path, monkeypatch):
    import torch

    from edgekd import Signals, components

    own_modules(tmp_path, monkeypatch)
    loss = components.imported("mymodule:cosine")
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert loss(Signals(logits), Signals(logits), None).tolist() == pytest.approx([0.0, 0.0])


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "edgekd" / "README.md", ROOT / "benchmarks" / "README.md"], ids=str)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link


def test_every_page_is_in_the_index_and_every_verb_on_a_page():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"} == set(
        re.findall(r"\((\w[\w-]*\.md)\)", index)
    )
    whole = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert {verb for verb in verbs(cli) if f"edgekd {verb}" not in whole} <= {"report", "schema"}


def test_options_that_the_text_names_are_there():
    known = {o for c in every(cli) for p in c.params for o in [*p.opts, *p.secondary_opts]}
    for page in PAGES:
        for fragment in re.findall(r"`([^`\n]*)`", page.read_text("utf-8")):
            ours = fragment.startswith(("edgekd ", "--")) or "--" not in fragment
            named = re.findall(r"(?<![\w-])--[a-z][\w-]*", fragment) if ours else []
            assert set(named) <= known | {"--help"}, f"{page.name}: {fragment}"


def every(command):
    yield command
    for sub in verbs(command).values() if isinstance(command, click.Group) else ():
        yield from every(sub)
