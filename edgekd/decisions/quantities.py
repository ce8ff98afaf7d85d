"""The quantities that budgets may be on: those that probes declare (edgekd/probes), and edgekd's own metric. A task's
metrics are not among them: the task defines their units and directions."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd import probes
from edgekd.metrics import TOP1
from edgekd.records import Quantity

METRICS = (TOP1,)  # measured where the task has them


def known() -> Mapping[str, Quantity]:
    """{name: quantity} that a budget may be on."""
    return {q.name: q for q in (*METRICS, *probes.declared().values()) if q.budget}


def units() -> dict[str, str]:
    """{name: its unit}."""
    return {name: quantity.unit for name, quantity in known().items()}


def lower(name: str) -> bool:
    """Whether lower is better; False for a task's own metric."""
    found = known().get(name)
    return found is not None and found.better == "lower"


def cost(name: str) -> bool:
    """Whether it is a cost of the file, not its quality."""
    found = known().get(name)
    return found is not None and not found.split


def has_origin(name: str, origin: str) -> bool:
    """Whether its figures have this origin."""
    found = known().get(name)
    return found is not None and found.origin == origin


def counted() -> str:
    """`file_bytes, macs or parameters`: the names of counted quantities."""
    *names, last = (q.name for q in known().values() if q.origin == "counted")
    return f"{', '.join(names)} or {last}"


def repeats(name: str) -> str:
    """The unit of its figures' `n`: samples, processes or inferences."""
    found = known().get(name)
    return "samples" if found is None or found.split else found.repeats
