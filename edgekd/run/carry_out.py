"""A plan carried out: its steps are made, its files measured, and the folder of the run written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.run import mixed_precision, steps
from edgekd.run.conclude import conclude
from edgekd.run.evaluate import observe

if TYPE_CHECKING:
    from edgekd.progress import Silent
    from edgekd.records import Host
    from edgekd.run.outcome import Outcome
    from edgekd.run.plan import Plan
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store


def carry_out(
    resolved: Resolved,
    plan: Plan,
    folder: Path,
    text: str,
    store: Store,
    progress: Silent,
    log: Any,
    *,
    deadline: float | None = None,
    boards: Mapping[str, Host] = {},
) -> Outcome:
    """Makes what the time until `deadline` allows, measures, chooses, and writes `folder`. `text`: the recipe as
    resolved; `log(**event)`: adds to the log; `boards`: hosts of targets whose board is connected."""
    store.log = log
    made, done = steps.run_steps(plan, resolved, store, progress, log, deadline)
    observed = observe(resolved, plan, made, store, folder, progress, boards)
    wider = mixed_precision.extend(resolved, plan, made, observed, store, folder, progress)
    if len(wider.points) > len(plan.points):
        made, more = steps.run_steps(wider, resolved, store, progress, log, deadline, made)
        plan, done = wider, [*done, *more]
        observed = observe(resolved, plan, made, store, folder, progress, boards)
    outcome = conclude(resolved, plan, made, done, observed, folder, text, store, progress, boards)
    store.trim(keep=set(made))
    return outcome
