"""The agreement of a student with its teachers on the validation split, computed before every epoch: schedules can
follow it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgekd.models.scores import predicted

if TYPE_CHECKING:
    from edgekd.data.columns import Columns
    from edgekd.outputs import Output
    from edgekd.records import Artifact


class Agreement(nn.Module):
    """The share of validation samples whose class (argmax) a student predicts as a teacher does, for each teacher. Part
    of the training's checkpoints.

    `answers`: {teacher's name: labels.npy [1, rows, ...] of an answer stage}, `columns`: the validation split."""

    def __init__(self, answers: Mapping[str, Artifact], columns: Columns):
        super().__init__()
        self.register_buffer("shares", torch.zeros(len(answers), dtype=torch.float64))
        self.__dict__.update(answers=dict(answers), columns=columns)  # no part of the state

    def look(
        self,
        student: nn.Module,
        forward: Callable[[nn.Module, Any], torch.Tensor],
        size: int = 256,
        output: Output | None = None,
    ) -> None:
        """Computes the shares again. The student's mode is restored."""
        import numpy as np

        from edgekd.data.columns import batches
        from edgekd.models import device

        was, there = student.training, device.of(student)
        student.eval()
        with torch.no_grad():
            inputs = (device.moved(batch.inputs, there) for batch in batches(self.columns, size))
            own = torch.cat([predicted(output, forward(student, x)) for x in inputs]).cpu()
        student.train(was)
        for number, artifact in enumerate(self.answers.values()):
            theirs = np.load(artifact.folder / "labels.npy", allow_pickle=False)[0]
            self.shares[number] = float((own.numpy() == theirs).mean())

    def now(self) -> dict[str, float]:
        """{teacher's name: share}, and their mean under ""."""
        found = dict(zip(self.answers, self.shares.tolist(), strict=True))
        return {**found, "": sum(found.values()) / len(found)}
