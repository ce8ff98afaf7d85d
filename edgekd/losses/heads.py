"""Be your own teacher: classifiers on the student's layers learn from labels and from the student's own output."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import nn
from torch.nn import functional as F

from edgekd.errors import Problem, UsageError
from edgekd.losses._takes import class_numbers, scores
from edgekd.losses._taps import pooled
from edgekd.records import Batch, Signals


class Heads(nn.Module):
    """`labels` x cross-entropy + `output` x T^2 KL(own output || head) + `hint` x hint, per row: the student's taps and
    logits [B, C] -> [B].

    Zhang et al. 2019 ("Be Your Own Teacher"), section 3, with their alpha = 0.3, but the mean over heads instead of the
    sum, and T^2 as in Hinton et al. 2015. A head is the pooled tap and one Linear, where the paper has convolutions
    before it. The hint is the mean square between a Linear of each tap but the last and the last one (pooled, detached:
    give the deepest last), where the paper has the sum. The output is detached: it learns from the terms beside this
    one. No teacher is needed.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> student = Signals(torch.zeros(2, 10), {"layer1": torch.zeros(2, 8, 4, 4)})
    >>> loss = Heads(student, None, batch)
    >>> [tuple(p.shape) for p in loss.parameters()]  # one linear layer per tap
    [(10, 8), (10,)]
    >>> loss(student, None, batch).shape
    torch.Size([2])
    """

    changing: ClassVar = ("labels", "output", "temperature")

    def __init__(
        self,
        student: Signals,
        teacher: Signals | None,
        batch: Batch,
        *,
        labels: Annotated[float, Ge(0)] = 0.7,
        output: Annotated[float, Ge(0)] = 0.3,
        hint: Annotated[float, Ge(0)] = 0.0,
        temperature: Annotated[float, Gt(0)] = 3.0,
    ):
        super().__init__()
        if not student.taps:
            raise ValueError("heads need at least one tap of the student")
        rows, samples = len(scores(student)), len(next(iter(student.taps.values())))
        if rows != samples:
            text = f"a head gives one class per sample, and the output of {samples} samples has {rows} positions"
            raise UsageError(Problem("", text, "attention, hint and others on layers take several positions"))
        if labels and batch.labels is None:
            raise ValueError("the samples have no labels: set `labels` to 0")
        if hint and len(student.taps) < 2:
            raise ValueError("the hint compares each tap with the last: give two or more, or set `hint` to 0")
        self.labels, self.output, self.hint, self.temperature = labels, output, hint, temperature
        widths = [pooled(tap).shape[1] for tap in student.taps.values()]
        self.classifiers = nn.ModuleList(nn.Linear(width, student.output.shape[-1]) for width in widths)
        self.adapters = nn.ModuleList(nn.Linear(width, widths[-1]) for width in widths[:-1] if hint)

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
        features = [pooled(tap.float()) for tap in student.taps.values()]
        final = F.log_softmax(scores(student).detach() / self.temperature, dim=-1)
        rows = []
        for classify, feature in zip(self.classifiers, features, strict=True):
            z = classify(feature)
            divergence = F.kl_div(
                F.log_softmax(z / self.temperature, dim=-1), final, reduction="none", log_target=True
            ).sum(-1)
            row = self.output * self.temperature**2 * divergence
            if self.labels:
                row = row + self.labels * F.cross_entropy(z, class_numbers(batch, z.shape[1]), reduction="none")
            rows.append(row)
        value = torch.stack(rows).mean(0)
        if self.hint:
            gaps = [
                (adapt(f) - features[-1].detach()).square().mean(1)
                for adapt, f in zip(self.adapters, features[:-1], strict=True)
            ]
            value = value + self.hint * torch.stack(gaps).mean(0)
        return value
