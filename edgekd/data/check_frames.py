"""Checks of strings beside the frames that a model gives: a string needs a frame for each of its symbols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgekd import outputs
from edgekd.errors import Problem
from edgekd.inputs import each, length
from edgekd.models import saved
from edgekd.models.scores import steps_of
from edgekd.records import Task


def frame_problems(task: Task, splits: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Problems of the labels of splits, where the task's output has a blank. The student runs once on the longest
    sample of each."""
    output = task.output
    if output is None or output.blank is None or "student" not in task.models:
        return
    for name, split in splits.items():
        lengths = np.zeros(length(split.inputs), np.int64) if split.lengths is None else split.lengths
        longest = int(lengths.argmax())
        given = _frames(task, split, longest)
        try:
            counts = lengths * 0 + given if split.lengths is None else outputs.frames(lengths, lengths[longest], given)
        except ValueError as error:
            hint = "a stride of K with padding, so that T steps give T / K frames, rounded up"
            yield Problem(f"{place}: models['student']", str(error), hint)
            return
        least = outputs.least_frames(output, np.asarray(split.labels))
        short = np.flatnonzero(least > counts)
        if len(short):
            at = short[0]
            text = (
                f"{len(short)} of {len(least)} samples have too few frames for their labels: sample {at} has "
                f"{counts[at]}, and needs {least[at]}, one for each symbol, and a blank between equal ones"
            )
            yield Problem(f"{place}: data({name!r})", text, "leave them out, or give the model smaller strides")


def _frames(task: Task, split: Any, row: int) -> int:
    """How many frames the student gives for a sample."""
    import torch

    inputs = each(split.inputs, lambda values: torch.from_numpy(np.ascontiguousarray(values[row : row + 1])))
    with torch.no_grad():
        answer = task.call(saved.create(task, "student", 0).eval(), inputs)
    return answer.shape[steps_of(task.output)]
