"""Writes docs/reference/: what signatures, docstrings and schemas say, page by page.

    python docs/make_reference.py

tests/test_reference.py fails where a page is not what this writes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import annotated_types
import click
import pydantic

import edgekd
from edgekd import components, errors, probes, records, results, runtimes, signatures, targets
from edgekd.decisions import rules, tables
from edgekd.probes import quality

HERE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- written by docs/make_reference.py from docstrings and signatures: change those -->"
KINDS = {
    "tasks": "What is compressed: models, data, metrics. In a recipe: `task = "
    '"digits"` or `task = { use = "npz", path = "data.npz" }`.',
    "stages": 'The steps that make a model. In a recipe: `[[stage]]` with `use = "distill"`.',
    "losses": 'What a student learns by. In a stage: `losses = [{ use = "kl", weight = 0.9, temperature = 4.0 }]`.',
    "ensembles": 'How several teachers make one. In a stage: `combine = { use = "mean" }`.',
    "criteria": 'Which channels are pruned first. In a `prune` stage: `criterion = "magnitude"`.',
    "ranges": 'How calibration takes the range of a value. In a `quantize` stage: `ranges = "percentile"`.',
    "formats": "The files that a model is exported to.",
    "probes": "What is measured on an exported file.",
}
ENTRY = {  # of `losses`; every other key is a setting of the loss
    "use": "name of a loss, or `package.module:name`",
    "weight": "its weight; 1 if it says nothing",
    "on": 'inner layers by path: `"layer2"`, `"layer2 -> layer3"` (student -> teacher), `"layer2@input"`',
    "teacher": 'one of the stage\'s teachers, `"peers"` or `"ema"`; all of the stage if it says nothing',
    "schedule": "`{ weight = [[0, 0], [0.2, 1]] }`: curves of the weight or settings over the share of the training; "
    'with `by = "agreement"` over the share of validation samples that the student answers as its teacher does',
}
PLANNED = ("answer", "export", "load")  # stages that the plan adds by itself
FILLED = ("augment_seed", "teachers")  # settings that the plan fills in
BOUNDS = {
    annotated_types.Ge: "at least",
    annotated_types.Gt: "above",
    annotated_types.Le: "at most",
    annotated_types.Lt: "below",
}
PLAIN = {float: "number", int: "integer", str: "text", bool: "true or false", Any: "any", type(None): "none"}
BUDGET = """\
[any]
top1 = "drop max 1.0 pt vs teacher"
file_bytes = ["max 96 KiB", "regress max 3 % vs baseline"]

[raspberry-pi-4]
latency_p50_ms = { is = "max 35 ms", accept = ["measured", "predicted"], level = "warn" }
"""
VARIABLES = {
    "EDGEKD_DEVICE": "Device that models are trained on where neither recipe nor `--device` says it: auto, cpu, cuda, "
    "cuda:1 or mps.",
    "EDGEKD_STORE": "Folder of finished work. Default: `edgekd` in the user's cache folder.",
    "EDGEKD_STORE_LIMIT": "Most bytes that the store keeps, for example `20 GB`. Checkpoints and cached outputs of "
    "teachers go first, then what was not used for longest; what a run needs stays.",
    "EDGEKD_CACHE": "Folder of what `edgekd doctor --setup` makes. Default: the user's cache folder.",
    "EDGEKD_CALIBRATIONS": "Folder of timed boards (`edgekd targets calibrate`). Default: the user's data folder.",
    "EDGEKD_SSH_CONFIG": "The ssh configuration for `--on ssh://...`. Default: ssh's own.",
    "EDGEKD_REMOTE_PYTHON": "The Python interpreter on a board. Default: `python3`.",
    "EDGEKD_WORKERS": "Number of processes that read samples ahead where these are decoded as they are read; 0: none. "
    "Default: 1 where there are several cores.",
    "EDGEKD_DEBUG": "Set to 1 to see the traceback of an internal error.",
    "EDGEKD_CIFAR10": "Where CIFAR-10's archive or folder is, for the task `cifar10`.",
    "EDGEKD_SPEECH": "Where the recordings are, for the task `speech`.",
}


def pages() -> dict[str, str]:
    """{file name: text} of the whole reference."""
    made = {f"{kind}.md": parts(kind, about) for kind, about in KINDS.items()}
    made |= {
        "runtimes.md": device_runtimes(),
        "recipe.md": recipe(),
        "targets.md": target(),
        "budgets.md": budgets(),
        "files.md": files(),
        "commands.md": commands(),
        "exit-codes.md": exit_codes(),
        "environment.md": environment(),
        "python.md": python(),
    }
    index = [f"- [{title(text)}]({name})" for name, text in sorted(made.items())]
    made["README.md"] = page(
        "Reference", "Written from the code; how-to pages are [one folder up](../README.md).", *index
    )
    return made


def page(title: str, *blocks: str) -> str:
    """Blocks of Markdown under a title; items of a list stay together."""
    text = "\n\n".join([NOTE, f"# {title}", *(b for b in blocks if b)])
    return re.sub(r"(\n- .*)\n(?=\n- )", r"\1", text) + "\n"


def title(text: str) -> str:
    return re.search(r"^# (.*)$", text, re.M)[1]


# ---------------------------------------------------------------- parts


def parts(kind: str, about: str) -> str:
    names = [n for n in components.names(kind) if not (kind == "stages" and n in PLANNED)]
    blocks = [about]
    if not components.KINDS[kind].module:
        blocks.append("One of your own is named by its path: `package.module:name`.")
    if kind == "losses":
        blocks.append(table(("key of an entry", "what it is"), [(f"`{key}`", text) for key, text in ENTRY.items()]))
    for name in names:
        module = importlib.import_module(f"edgekd.{kind}.{name}")
        part = next((getattr(module, n) for n in (name, camel(name)) if hasattr(module, n)), None)
        blocks += [f"## {name}", paragraphs(inspect.getdoc(module) or "")]
        if kind == "probes":
            blocks.append(quantities(module.MEASURES))
        if callable(part) and not components.KINDS[kind].module:
            blocks += [paragraphs(inspect.getdoc(part) or ""), settings(part, components.KINDS[kind])]
    return page(kind.capitalize(), *blocks)


def quantities(measures: Iterable[records.Quantity]) -> str:
    """What a probe measures, or what a budget may name."""
    head = ("name", "what it is", "unit", "better", "origin")
    return table(head, [(f"`{q.name}`", q.title, unit(q), q.better or "neither", q.origin) for q in measures])


def unit(quantity: records.Quantity) -> str:
    """The unit as a reader needs it: one without is a count, except where the output declares it."""
    if quantity.name == quality.ERROR.name:
        return "the output's"
    return quantity.unit or "a count"


def device_runtimes() -> str:
    blocks = [
        "What runs a file on a device. In a target: `[runtime]` with `name`. One of your own is named by its path: "
        "`package.module`.",
        paragraphs(inspect.getdoc(runtimes) or ""),
    ]
    for name in runtimes.names():
        module = importlib.import_module(f"edgekd.runtimes.{name}")
        read, needed = (", ".join(f"`{n}`" for n in names) for names in (runtimes.formats(name), runtimes.needs(name)))
        blocks += [f"## {name}", paragraphs(inspect.getdoc(module) or ""), f"Reads {read}. Needs {needed}."]
    return page("Runtimes", *blocks)


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def paragraphs(doc: str) -> str:
    """A docstring as Markdown: its lines filled, what is indented or has columns kept as it is, examples as Python."""
    found = []
    for block in doc.split("\n\n"):
        lines = block.splitlines()
        if block.startswith(">>>"):
            found.append(f"```pycon\n{block}\n```")
        elif any(line.startswith("    ") or re.search(r"\S {2,}\S", line) for line in lines):
            found.append("```text\n" + inspect.cleandoc("\n".join(["", *lines])) + "\n```")
        else:
            found.append(escaped(" ".join(line.strip() for line in lines)))
    return "\n\n".join(found)


def escaped(text: str) -> str:
    """Text whose `<` and `*` are no Markdown, but in backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<*])", r"\\\1", p) for p in pieces)


def settings(part: Any, kind: signatures.Kind) -> str:
    """A table of a part's settings. One that names other parts says so in its annotation."""
    read = signatures.readers(part, kind)
    rows = []
    for name, field in signatures.model_of(part, kind).model_fields.items():
        if name not in FILLED:
            words = names_parts(read[name], field) if name in read else told(field.annotation, field.metadata)
            rows.append((name, words, given(field)))
    return with_remarks("setting", part, rows)


def names_parts(reader: Any, field: Any) -> str:
    """What a setting is that names parts: `name of a criterion`, with a link to its page."""
    kind = reader.kind
    one = components.KINDS[kind].one
    if isinstance(field.get_default(), tuple):
        return f"list of tables, see [{kind}]({kind}.md)"
    return f"name of {'an' if one[0] in 'aeiou' else 'a'} [{one}]({kind}.md), or a table with its settings"


# ---------------------------------------------------------------- types


def told(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words, with its bounds: `number, above 0`."""
    if isinstance(kind, str):
        return f"`{kind}`"
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return told(inside[0], [*inside[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        name = " or ".join(dict.fromkeys(told(k) for k in inside))
    elif origin is typing.Literal:
        name = ", ".join(f'`"{v}"`' if isinstance(v, str) else f"`{v}`" for v in inside)
    elif origin in (list, tuple) and inside:
        name = f"list of {told(inside[0])}"
    elif origin in (dict, Mapping) and inside:
        name = f"table of {told(inside[1])}"
    else:
        name = PLAIN.get(kind) or getattr(kind, "__name__", str(kind))
    return ", ".join([name, *bounds(metadata)])


def bounds(metadata: Iterable[Any]) -> list[str]:
    found = []
    for item in metadata:
        for kind, word in BOUNDS.items():
            if isinstance(item, kind):
                found.append(f"{word} {next(iter(vars_of(item))):g}")
    return found


def vars_of(item: Any) -> list[Any]:
    return [getattr(item, f.name) for f in dataclasses.fields(item)]


def toml(value: Any) -> str:
    """A default as a recipe would say it; none for what is left out."""
    value = signatures.plain(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, pydantic.BaseModel) or dataclasses.is_dataclass(value):
        return "see below"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inside = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rows = [tuple(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    if not rows:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def record(kind: Any) -> str:
    """A dataclass or pydantic model: its docstring and its fields."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        rows = [(name, told(f.annotation, f.metadata), given(f)) for name, f in kind.model_fields.items()]
    else:
        hints = annotations(kind)
        rows = [(f.name, told(hints[f.name]), default(f)) for f in dataclasses.fields(kind)]
    doc = inspect.cleandoc(kind.__doc__ or "")  # its own: not that of what it extends, nor dataclass's
    return paragraphs("" if doc.startswith(f"{kind.__name__}(") else doc) + "\n\n" + with_remarks("key", kind, rows)


def with_remarks(head: str, kind: Any, rows: list[tuple[str, str, str]]) -> str:
    """A table of fields; where comments stand beside some of them in the source, these are its last column."""
    found = remarks(kind)
    if not any(name in found for name, *_ in rows):
        return table((head, "type", "default"), [(f"`{name}`", *rest) for name, *rest in rows])
    told_of = [(f"`{name}`", *rest, escaped(found.get(name, ""))) for name, *rest in rows]
    return table((head, "type", "default", "what it is"), told_of)


def remarks(kind: Any) -> dict[str, str]:
    """{field: the comment beside it}, of a class and those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(getattr(kind, "__mro__", ())):
        if base.__module__.startswith("edgekd"):
            lines = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), re.M)
            found |= {name: text for name, text in lines if not text.startswith(("type:", "noqa", "fmt:"))}
    return found


def given(field: Any) -> str:
    """The default of a pydantic field."""
    return "required" if field.is_required() else toml(field.get_default(call_default_factory=True))


def annotations(kind: type) -> Mapping[str, Any]:
    """Types by field; as they are written where one is for type checkers only."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:
        return {f.name: f.type for f in dataclasses.fields(kind)}


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return toml(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else toml(field.default_factory())


# ---------------------------------------------------------------- files


def recipe() -> str:
    from edgekd.run.recipe.form import Form, ModelTable, Select

    return page(
        "Recipe",
        "A TOML file. `edgekd schema recipe` prints its JSON Schema; the settings of stages and losses are those of "
        "[stages](stages.md) and [losses](losses.md).",
        record(Form),
        "## model",
        record(ModelTable),
        "## select",
        record(Select),
        "## gate",
        "Tables of [budgets](budgets.md): `[gate.any]` for all targets, `[gate.TARGET]` for one.",
    )


def target() -> str:
    shipped = [targets.load(name) for name in targets.names() if name != targets.HOST]
    return page(
        "Targets",
        "`host` is the machine that edgekd runs on. A target of your own is a TOML file of the same form, named by its "
        "path. `edgekd list targets NAME` shows the facts of one, with their sources.",
        record(records.Target),
        "## int8",
        record(records.Scheme),
        "## runtime",
        record(records.Runtime),
        "## Targets that ship",
        table(
            ("name", "what it is", "core", "architecture"),
            [(f"`{t.name}`", t.title, t.core or "", t.architecture) for t in shipped],
        ),
    )


def budgets() -> str:
    units = [
        (unit or "(a count)", ", ".join(f"`{u or 'none'}`" for u in scale)) for unit, scale in rules.SCALES.items()
    ]
    return page(
        "Budgets",
        paragraphs(inspect.getdoc(tables) or ""),
        paragraphs(inspect.getdoc(rules) or ""),
        "A file for `edgekd gate --budget`:",
        f"```toml\n{BUDGET}```",
        "## Names",
        "The task's own metrics too, by their names. A rule takes figures that are measured or counted, unless it says "
        "`accept`; those whose origin is `emulated` here are taken as they are.",
        quantities(q for q in probes.declared().values() if q.budget),
        "## Units",
        table(("figure in", "a rule may say"), units),
    )


def files() -> str:
    from edgekd.delivery.bundle import Manifest
    from edgekd.run.schemas import KINDS

    kinds = ", ".join(f"`{kind}`" for kind in KINDS)
    blocks = [
        f"`edgekd schema KIND` prints the JSON Schema of a file: {kinds}. A reader takes older schemas too.",
        "## RUN/result.json",
        f"Schema `edgekd.result/{results.VERSIONS['result']}`.",
        record(records.Result),
    ]
    for kind in (records.Candidate, records.Measurement, records.TargetResult, records.Check):
        blocks += [f"### {kind.__name__}", record(kind)]
    blocks += [
        "## RUN/bundles/TARGET/manifest.json",
        f"Schema `edgekd.manifest/{results.VERSIONS['manifest']}`.",
        record(Manifest),
    ]
    return page("Files", *blocks)


# ---------------------------------------------------------------- commands, codes, Python


def commands() -> str:
    from edgekd.cli import cli

    blocks = []
    for context in walked(click.Context(cli, info_name="edgekd", terminal_width=100, **cli.context_settings)):
        blocks += [f"## {context.command_path}", f"```text\n{context.get_help().strip()}\n```"]
    return page("Commands", *blocks)


def walked(context: click.Context) -> Iterable[click.Context]:
    """The contexts of all verbs below a group's."""
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        inside = click.Context(command, parent=context, info_name=name, **command.context_settings)
        yield from walked(inside) if isinstance(command, click.Group) else (inside,)


CODES = {
    errors.PASSED: "passed, or done",
    errors.FAILED: "a gate, goal or fix failed",
    errors.USAGE: "wrong input: a recipe, task, target, model or file",
    errors.INCONCLUSIVE: "inconclusive: the figures don't decide",
    errors.UNFIT: "this machine can't do it: throttled, or a tool or emulator is missing",
    errors.BASELINE: "evidence or baseline can't be used: missing, of another test set, or a wrong digest",
    errors.BROKEN: "the run failed: training diverged, an export check failed, the disk is full",
    errors.INTERRUPTED: "interrupted: run the same command to resume",
}


def exit_codes() -> str:
    classes = {c.exit_code: f"`edgekd.{c.__name__}`" for c in errors.EdgekdError.__subclasses__()}
    rows = [(str(code), text, classes.get(code, "")) for code, text in CODES.items()]
    return page("Exit codes", "Of every command.", table(("code", "means", "exception in Python"), rows))


def environment() -> str:
    return page("Environment variables", table(("name", "what it is"), [(f"`{n}`", t) for n, t in VARIABLES.items()]))


def python() -> str:
    blocks = ["What `import edgekd` gives. Names are loaded when used; the import itself loads no torch."]
    for name in sorted(n for n in edgekd.__all__ if n != "__version__"):
        thing = getattr(edgekd, name)
        if dataclasses.is_dataclass(thing):
            blocks += [f"## edgekd.{name}", record(thing)]
            continue
        if isinstance(thing, type) and issubclass(thing, errors.EdgekdError):
            raised = (
                "Base of all."
                if thing is errors.EdgekdError
                else f"Exit code {thing.exit_code}: {CODES[thing.exit_code]}."
            )
            blocks += [f"## edgekd.{name}", raised]
            continue
        shown = "" if isinstance(thing, type) else f"```python\n{signature(name, thing)}\n```"
        blocks += [f"## edgekd.{name}", shown, paragraphs(inspect.getdoc(thing) or "")]
    return page("Python", *blocks)


def signature(name: str, function: Any) -> str:
    found = inspect.signature(function)
    inside, starred = [], False
    for p in found.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            inside, starred = [*inside, "*"], True
        inside.append(f"{p.name}: {p.annotation}" + ("" if p.default is p.empty else f" = {p.default!r}"))
    returns = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    short = f"edgekd.{name}({', '.join(inside)}){returns}"
    return short if len(short) <= 100 else f"edgekd.{name}(\n    " + ",\n    ".join(inside) + f",\n){returns}"


def main() -> None:
    HERE.mkdir(exist_ok=True)
    made = pages()
    for path in HERE.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
