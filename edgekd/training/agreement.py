"""The agreement of a student with its teachers on the validation split, computed before every epoch: schedules can
follow it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgekd.models.scores import file_of, shown
from edgekd.training.terms import agreement_on

if TYPE_CHECKING:
    from edgekd.data.columns import Columns
    from edgekd.outputs import Output
    from edgekd.records import Artifact


class Agreement(nn.Module):
    """The share of validation samples whose class (argmax) a student predicts as a teacher does, for each teacher, and
    of several outputs for each that has classes. Part of the training's checkpoints.

    `answers`: {teacher's name: labels.npy [1, rows, ...] of an answer stage}, `columns`: the validation split; `heads`:
    several outputs that the task declares."""

    def __init__(self, answers: Mapping[str, Artifact], columns: Columns, heads: Mapping[str, Output] | None = None):
        super().__init__()
        outputs = tuple(name for name, output in heads.items() if output.scored) if heads else ("",)
        self.register_buffer("shares", torch.zeros(len(answers) * len(outputs), dtype=torch.float64))
        self.__dict__.update(answers=dict(answers), columns=columns, outputs=outputs)  # no part of the state

    def look(
        self,
        student: nn.Module,
        forward: Callable[[nn.Module, Any], torch.Tensor],
        size: int = 256,
        output: Output | Mapping[str, Output] | None = None,
    ) -> None:
        """Computes the shares again. The student's mode is restored."""
        import numpy as np

        from edgekd.data.columns import batches
        from edgekd.models import device

        was, there = student.training, device.of(student)
        student.eval()
        pairs = [(name, a.folder / file_of("labels", name)) for a in self.answers.values() for name in self.outputs]
        answers = [(name, np.load(file, allow_pickle=False)[0]) for name, file in pairs]
        equal, count = np.zeros(len(answers)), np.zeros(len(answers))
        with torch.no_grad():
            for batch in batches(self.columns, size):
                answered = shown(output, forward(student, device.moved(batch.inputs, there)))
                for number, (name, every) in enumerate(answers):
                    own, theirs = answered[name].cpu().numpy(), every[batch.index.numpy()]
                    theirs = theirs if batch.steps is None else theirs[:, : own.shape[1]]
                    equal[number] += (own == theirs).sum()
                    count[number] += own.size
        student.train(was)
        self.shares.copy_(torch.from_numpy(equal / count))

    def now(self) -> dict[str, float]:
        """{teacher's name: share}, and their mean under ""; of several outputs {"teacher on output": share}, and the
        teachers' means."""
        shares = self.shares.reshape(len(self.answers), len(self.outputs)).tolist()
        found = {}
        for output, of_teachers in zip(self.outputs, zip(*shares, strict=True), strict=True):
            found |= {agreement_on(t, output): s for t, s in zip(self.answers, of_teachers, strict=True)}
            found[agreement_on("", output)] = sum(of_teachers) / len(of_teachers)
        return found
