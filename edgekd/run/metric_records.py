"""The records of the task's metrics (one number per sample) of a run's candidates: on this machine, on boards, and
emulated as other CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekd.inputs import each, length
from edgekd.run.cross_cpu import Answers, Proven
from edgekd.run.evaluate import Observed
from edgekd.run.resolve import Resolved

Records = Mapping[str, np.ndarray]  # {metric: one number per sample}
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Answered:
    """`here` {split: {candidate: records}} of all samples on this machine; `boards` {split: {(candidate, target):
    outputs on its board}}; `proven` {candidate: results of emulation on the test split}; `teacher`: the id of the
    teacher, "" if there is none."""

    resolved: Resolved
    here: Mapping[str, Mapping[str, Records]]
    boards: Mapping[str, Mapping[tuple[str, str], Answers]]
    teacher: str
    proven: Mapping[str, Proven] = field(default_factory=dict)

    def of(self, candidate: str, target: str, split: str) -> tuple[Records, Records | None]:
        """(records of a candidate for a target, the teacher's for the same samples or None): with the target's own
        kernels, where these were run."""
        elsewhere = self.elsewhere(candidate, split).get(target)
        theirs = self.here[split].get(self.teacher)
        if elsewhere is None:
            return self.here[split][candidate], theirs
        return self.records(elsewhere, split), None if theirs is None else at(theirs, elsewhere.rows)

    def elsewhere(self, candidate: str, split: str) -> dict[str, Answers]:
        """{target: a candidate's outputs on the target's board, or emulated as its CPU}."""
        emulated = self.proven[candidate].answers if split == "test" and candidate in self.proven else {}
        return dict(emulated) | {t: a for (id, t), a in self.boards[split].items() if id == candidate}

    def records(self, answers: Answers, split: str) -> Records:
        """The records of outputs from elsewhere, for the samples that ran there."""
        labels = self.resolved.data(split).labels
        chosen = None if labels is None else each(labels, lambda column: column[answers.rows])
        return _records(self.resolved, answers.there, chosen)


def answered(resolved: Resolved, observed: Sequence[Observed], teacher: str) -> Answered:
    """The records of all observed candidates, before emulation."""
    here = {
        split: {o.point.id: _records(resolved, o.outputs[split], resolved.data(split).labels) for o in observed}
        for split in SPLITS
    }
    return Answered(resolved, here, {split: _on_boards(observed, split) for split in SPLITS}, teacher)


def at(records: Records, rows: np.ndarray) -> Records:
    """The records of some samples."""
    return {name: r[rows] for name, r in records.items()}


def _records(resolved: Resolved, outputs: object, labels: Any) -> Records:
    return {m.name: np.asarray(m.records(outputs, labels), np.float64) for m in resolved.task.metrics}


def _on_boards(observed: Sequence[Observed], split: str) -> dict[tuple[str, str], Answers]:
    found = {}
    for o in observed:
        for target, outputs in o.there.items():
            found[o.point.id, target] = Answers(
                target, "", np.arange(length(outputs[split])), o.outputs[split], outputs[split]
            )
    return found
