"""What a small device can hold, as budgets: its flash bounds the file, its RAM the planned activations.

They stand beside the budgets that people write, marked as the device's: `file_bytes = ["max 100 kB", "max 64 KiB (flash
of mine)"]`. A device without flash of its own (a board with an operating system) has none: there, the system shares the
RAM, and no limit can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgekd.decisions.tables import ANY
from edgekd.records import Target


def budgets(target: Target) -> dict[str, str]:
    """{measurement: rule} of a device with flash. All of both memories: what firmware needs of them is known to its
    makers, whose own budget is tighter. Weights are read from flash, where microcontrollers' runtimes leave them, so
    RAM holds activations alone."""
    if target.flash_bytes is None:
        return {}
    found = {"file_bytes": f"max {_bytes(target.flash_bytes)} (flash of {target.name})"}
    if target.ram_bytes is not None:
        found["activation_bytes"] = f"max {_bytes(target.ram_bytes)} (RAM of {target.name})"
    return found


def added(gate: Mapping[str, Any], targets: Iterable[Target]) -> dict[str, Any]:
    """The gate with the devices' own budgets in the targets' tables, beside what `any` or the target's table say of the
    same measurement; a gate that has them stays as it is. Where one says `level = "warn"` of a measurement, the
    device's rule warns as well."""
    made = {name: dict(table) if isinstance(table, Mapping) else table for name, table in gate.items()}
    common = made.get(ANY) if isinstance(made.get(ANY), dict) else {}
    for target in targets:
        table = made.get(target.name, {})
        if not isinstance(table, dict):
            continue  # no table: told elsewhere
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
