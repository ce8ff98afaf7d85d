"""What can be named in a recipe, and what this machine is: the verbs `list` and `doctor`."""

from __future__ import annotations

import importlib
import inspect
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekd import components
from edgekd.errors import PASSED, UNFIT

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "numpy", "safetensors", "scikit-learn", "pydantic")


def listing(kinds: list[str]) -> str:
    """Tables of the parts of each kind: name, what it is, its settings with defaults."""
    return "\n\n".join(_targets() if kind == "targets" else _parts(kind) for kind in kinds)


def _parts(kind: str) -> str:
    rows = []
    for name in ["top1", "mean_error"] if kind == "metrics" else components.names(kind):
        if kind == "stages" and name in ("answer", "load", "export"):
            continue  # a plan makes these; a recipe's line names the others
        module = importlib.import_module("edgekd.metrics" if kind == "metrics" else f"edgekd.{kind}.{name}")
        if kind == "runtimes" and name == "worker":
            continue
        part = getattr(module, name, None) or getattr(module, "".join(w.capitalize() for w in name.split("_")), None)
        text = inspect.getdoc(part if kind == "metrics" else module) or ""
        settings = _settings(part, components.POSITIONAL.get(kind, 0)) if callable(part) and kind != "formats" else ""
        rows.append((name, text.split("\n\n")[0].replace("\n", " "), settings))
    return _table(kind, ("name", "what it is", "settings"), rows)


def _settings(part: Any, skip: int) -> str:
    settings = components.parameters(part, skip).items()
    return ", ".join(
        n if p.default is inspect.Parameter.empty else f"{n} = {p.default!r}"
        for n, p in settings
        if n not in ("augment_seed", "teachers") and len(repr(p.default)) < 60
    )


def _targets() -> str:
    from edgekd import targets

    rows = []
    for name in targets.names():
        t = targets.load(name)
        runtime = f"{t.runtime.name} {t.runtime.version}".strip()
        int8 = f"{t.int8.weight_bits}-bit weights" + ", sums of two in 16 bits" * t.int8.pairs16
        rows.append((t.name, t.title, t.architecture, ", ".join(t.features), runtime, str(t.threads), int8))
    return _table("targets", ("name", "title", "architecture", "features", "runtime", "threads", "int8"), rows)


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table as text; as wide as the terminal, 140 columns where there is none."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 140, force_terminal=sys.stdout.isatty())
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def doctor(as_json: bool) -> tuple[str, int]:
    """(text, exit code 0, or 4 where something needed is missing)."""
    from edgekd import environment, targets
    from edgekd.store import Store

    facts = environment.describe()
    versions, missing = {}, []
    for name in NEEDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    host, store = targets.load("host"), Store()
    advice = [f"{name} is not installed" for name in missing]
    governor = facts.get("governor")
    if governor not in (None, "performance"):
        advice.append(f"the CPU governor is `{governor}`: timing is steadier with `performance`")
    if host.int8.pairs16:
        advice.append("this CPU's int8 products saturate (AVX2 without VNNI): weights are scaled so that they don't")
    store_facts = {"folder": str(store.root), "bytes": sum(p.stat().st_size for p in Path(store.root).rglob("*") if p.is_file())}
    code = UNFIT if missing else PASSED
    if as_json:
        return json.dumps(
            {"environment": facts, "versions": versions, "missing": missing, "store": store_facts, "advice": advice}, indent=2, default=str
        ), code
    rows = [
        (k, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else json.dumps(v) if isinstance(v, dict) else str(v)) for k, v in facts.items()
    ]
    parts = [
        _table("this machine", ("fact", "value"), rows),
        _table("libraries", ("name", "version"), [(n, versions.get(n, "MISSING")) for n in NEEDED]),
        f"store: {store_facts['folder']} ({store_facts['bytes'] / 1e6:.1f} MB)",
        *[f"note: {line}" for line in advice],
    ]
    return "\n\n".join(parts), code
