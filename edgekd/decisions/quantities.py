"""The quantities that budgets may be on: those that probes declare (edgekd/probes), and edgekd's own metric. A task's
metrics are not among them: the task defines their units and directions."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd import probes
from edgekd.metrics import TOP1
from edgekd.outputs import Output
from edgekd.probes.quality import ERROR
from edgekd.records import Quantity

METRICS = (TOP1,)  # measured where the task has them
OF_METRIC = ("target_spread", "gain")  # of the task's first metric, not of an output


def known() -> Mapping[str, Quantity]:
    """{name: quantity} that a budget may be on."""
    return {q.name: q for q in (*METRICS, *probes.declared().values()) if q.budget}


def of(name: str) -> Quantity | None:
    """The quantity of this name, which may be of one of several outputs: `agreement-sex`."""
    found = known().get(name) or probes.quantity(name)
    return found if found is not None and found.budget else None


def of_each() -> dict[str, Quantity]:
    """{name: quantity} that is measured of each of several outputs, under a name such as `agreement-sex`."""
    return {n: q for n, q in known().items() if q.split and n not in (*OF_METRIC, *(m.name for m in METRICS))}


def of_outputs(heads: Mapping[str, Output]) -> dict[str, str]:
    """{name: unit} of what is measured of each of several outputs, besides the task's metrics."""
    scores = [q for name, q in of_each().items() if name != ERROR.name]
    found = {probes.of_output(q.name, name): q.unit for name, o in heads.items() if o.scored for q in scores}
    numbers = {name: o.unit for name, o in heads.items() if o.kind == "numbers"}
    return found | {probes.of_output(ERROR.name, name): unit for name, unit in numbers.items()}


def units() -> dict[str, str]:
    """{name: its unit}."""
    return {name: quantity.unit for name, quantity in known().items()}


def lower(name: str) -> bool:
    """Whether lower is better; False for a task's own metric."""
    found = of(name)
    return found is not None and found.better == "lower"


def cost(name: str) -> bool:
    """Whether it is a cost of the file, not its quality."""
    found = of(name)
    return found is not None and not found.split


def has_origin(name: str, origin: str) -> bool:
    """Whether its figures have this origin."""
    found = of(name)
    return found is not None and found.origin == origin


def counted() -> str:
    """`file_bytes, macs or parameters`: the names of counted quantities."""
    *names, last = (q.name for q in known().values() if q.origin == "counted")
    return f"{', '.join(names)} or {last}"


def repeats(name: str) -> str:
    """The unit of its figures' `n`: samples, processes or inferences."""
    found = of(name)
    return "samples" if found is None or found.split else found.repeats
