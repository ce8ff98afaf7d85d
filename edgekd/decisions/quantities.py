"""What budgets may be on: what probes declare (edgekd/probes), and the metric that edgekd brings. A metric of a task is
not among them: its unit and direction are the task's."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd import probes
from edgekd.metrics import TOP1
from edgekd.records import Quantity

METRICS = (TOP1,)  # measured where the task has them


def known() -> Mapping[str, Quantity]:
    """{name: what a budget may be on}."""
    return {q.name: q for q in (*METRICS, *probes.declared().values()) if q.budget}


def units() -> dict[str, str]:
    """{name: its unit}."""
    return {name: quantity.unit for name, quantity in known().items()}


def lower(name: str) -> bool:
    """Whether less is better; of a task's metric that nobody says more of, more is."""
    found = known().get(name)
    return found is not None and found.better == "lower"


def cost(name: str) -> bool:
    """Whether it tells what a file costs, and nothing of its quality."""
    found = known().get(name)
    return found is not None and not found.split


def has_origin(name: str, origin: str) -> bool:
    """Whether its figures are counted, or had by emulation alone."""
    found = known().get(name)
    return found is not None and found.origin == origin


def counted() -> str:
    """`file_bytes, macs or parameters`: the names of what is deterministic."""
    *names, last = (q.name for q in known().values() if q.origin == "counted")
    return f"{', '.join(names)} or {last}"


def repeats(name: str) -> str:
    """What the `n` of its figures counts: samples, processes, inferences."""
    found = known().get(name)
    return "samples" if found is None or found.split else found.repeats
