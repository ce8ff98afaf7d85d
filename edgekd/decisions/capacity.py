"""The memory of a small device as budgets: its flash limits the file, its RAM the planned activations.

They are added to a user's budgets and marked as the device's: `file_bytes = ["max 100 kB", "max 64 KiB (flash of
mine)"]`. A device without flash (a board with an operating system) has no such budgets: its system shares the RAM, so
its limit is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgekd.decisions.tables import ANY
from edgekd.records import Target


def budgets(target: Target) -> dict[str, str]:
    """{measurement: rule} of a device with flash. The rules allow all of both memories; users who know what their
    firmware needs give tighter budgets. Microcontroller runtimes read weights from flash, so RAM holds only
    activations."""
    if target.flash_bytes is None:
        return {}
    found = {"file_bytes": f"max {_bytes(target.flash_bytes)} (flash of {target.name})"}
    if target.ram_bytes is not None:
        found["activation_bytes"] = f"max {_bytes(target.ram_bytes)} (RAM of {target.name})"
    return found


def added(gate: Mapping[str, Any], targets: Iterable[Target]) -> dict[str, Any]:
    """The gate with the devices' budgets added to the targets' tables, next to the rules of `any` or the target's table
    on the same measurement; a gate that has them already is unchanged. If a table has `level = "warn"` for a
    measurement, the device's rule warns too."""
    made = {name: dict(table) if isinstance(table, Mapping) else table for name, table in gate.items()}
    common = made.get(ANY) if isinstance(made.get(ANY), dict) else {}
    for target in targets:
        table = made.get(target.name, {})
        if not isinstance(table, dict):
            continue  # not a table: reported elsewhere
        for name, rule in budgets(target).items():
            table[name] = _joined(table.get(name, common.get(name)), rule)
            made[target.name] = table
    return made


def _joined(value: Any, rule: str) -> Any:
    """A budget's value with one more rule."""
    if isinstance(value, Mapping):
        return {**value, "is": _joined(value["is"], rule)} if "is" in value else value
    rules = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    rules += [] if rule in rules else [rule]
    return rules if len(rules) > 1 else rules[0]


def _bytes(count: int) -> str:
    """`64 KiB` where that is exact, else bytes."""
    unit, size = next(((u, s) for u, s in (("MiB", 2**20), ("KiB", 2**10)) if count % s == 0), ("B", 1))
    return f"{count // size} {unit}"
