"""The verb `doctor`: whether this machine has what edgekd needs; with --setup, what it can emulate ARM CPUs with."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.errors import PASSED, UNFIT
from edgekd.report.tables import folded
from edgekd.verbs import _options

NEEDED = ("onnx", "onnxruntime", "numpy", "scipy", "pydantic")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--setup",
    "wanted",
    type=click.Choice(["arm-emulator"]),
    help="Fetch what runs files as ARM CPUs here; no root. Again: verify it.",
)
@_options.quiet
def command(as_json, wanted, quiet):
    """Check this machine: versions, CPU features, the store, what limits timing; or set it up to emulate ARM."""
    if wanted is not None:
        _options.show(setup(wanted, quiet=quiet))
        return PASSED
    text, code = doctor(as_json)
    _options.show(text)
    return code


def setup(name: str, *, quiet: bool = True) -> str:
    """Makes or verifies what `name` (arm-emulator) stands for; returns what there is. Raises EnvironmentUnfit,
    BaselineError."""
    from edgekd.hosts import arm_setup
    from edgekd.progress import reporter

    progress = reporter(quiet)
    try:
        return {"arm-emulator": arm_setup.setup}[name](progress)
    finally:
        progress.close()


def doctor(as_json: bool) -> tuple[str, int]:
    """(text, exit code 0, or 4 where something needed is missing)."""
    import json

    from edgekd import environment, targets
    from edgekd.hosts import arm
    from edgekd.store.store import Store

    facts = environment.describe()
    versions = environment.versions((*NEEDED, *environment.TRAINING.values()))
    light = bool(environment.versions(["edgekd-light"]))
    wanted = NEEDED if light else (*NEEDED, *environment.TRAINING.values())
    missing = [name for name in wanted if name not in versions]
    host, store = targets.load("host"), Store()
    advice = [f"{name} is not installed" for name in missing]
    if light:
        advice.append("edgekd-light: nothing can be trained here; verbs that take files work")
    governor = facts.get("governor")
    if governor not in (None, "performance"):
        advice.append(f"the CPU governor is `{governor}`: timing is steadier with `performance`")
    if targets.saturates(host):
        advice.append("this CPU's int8 products saturate (AVX2 without VNNI): weights are scaled so that they don't")
    # emulators are no finished work
    kept = (p for p in Path(store.root).rglob("*") if p.is_file() and arm.home() not in p.parents)
    store_facts = {"folder": str(store.root), "bytes": sum(p.stat().st_size for p in kept)}
    emulators = arm.facts()
    code = UNFIT if missing else PASSED
    if as_json:
        return json.dumps(
            {
                "environment": facts,
                "versions": versions,
                "missing": missing,
                "store": store_facts,
                "emulators": emulators,
                "advice": advice,
            },
            indent=2,
            default=str,
        ), code
    rows = [
        (
            k,
            ", ".join(map(str, v))
            if isinstance(v, (list, tuple))
            else json.dumps(v)
            if isinstance(v, dict)
            else str(v),
        )
        for k, v in facts.items()
    ]
    parts = [
        folded("this machine", ("fact", "value"), rows),
        folded("libraries", ("name", "version"), [(n, versions.get(n, "MISSING")) for n in wanted]),
        f"store: {store_facts['folder']} ({store_facts['bytes'] / 1e6:.1f} MB)",
        f"emulators: {'; '.join(f'{name}: {text}' for name, text in emulators.items())}",
        *[f"note: {line}" for line in advice],
    ]
    return "\n\n".join(parts), code
