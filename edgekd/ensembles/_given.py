"""What ensembles of distributions are given: scores of classes, of every teacher."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.records import Signals


def check_scores(signals: Mapping[str, Signals]) -> None:
    """Raises ValueError where a teacher shows labels only, or its output is declared as no scores: a softmax of one
    number is always 1."""
    check_shown(signals)
    for signal in signals.values():
        if signal.kind not in ("", "classes", "yes_no"):
            raise ValueError(
                f"takes scores of classes, and the output is declared as {signal.kind}; mean_logits takes any output"
            )


def check_shown(signals: Mapping[str, Signals]) -> None:
    """Raises ValueError where a teacher shows labels only."""
    for name, signal in signals.items():
        if signal.output is None:
            raise ValueError(
                f"the teacher {name} shows labels only (a black box): several teachers are combined by their outputs; "
                'name one for each loss, { use = "hard", teacher = "..." }'
            )
