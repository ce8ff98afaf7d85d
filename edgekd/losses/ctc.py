"""Connectionist temporal classification: strings of symbols whose places in the input are not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import Problem, UsageError
from edgekd.losses._takes import scores
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch

DECLARED = 'outputs = {"text": edgekd.classes(axis=2, blank=0)} says that labels are strings'


def ctc(student: Signals, teacher: Signals | None, batch: Batch) -> torch.Tensor:
    """-log p(string | frames) / T for each of the T frames of a sample: logits [frames of all samples, C] -> [frames].

    p sums the probabilities of all ways to write the string, with symbols repeated and blanks between (Graves et al.
    2006, "Connectionist Temporal Classification", eq. 3). So the mean over rows is the total over samples divided by
    their frames. For outputs that are declared with a `blank`; `batch.part` begins each sample with 0.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([[1], [1]]), torch.zeros(2), torch.ones(2), part=torch.arange(2), blank=0)
    >>> ctc(Signals(torch.zeros(2, 2)), None, batch)  # 3 of 4 paths: (1, 1), (0, 1), (1, 0)
    tensor([0.1438, 0.1438])
    """
    import torch
    from torch.nn import functional as F
    from torch.nn.utils.rnn import pad_sequence

    z = scores(student)
    if batch.blank is None or batch.part is None:
        raise UsageError(Problem("", "takes an output with a blank", DECLARED))
    if batch.labels is None:
        raise UsageError(Problem("", "the samples have no labels", "use losses that need only a teacher"))
    first = (batch.part == 0).nonzero()[:, 0]
    counts = torch.diff(first, append=first.new_tensor([len(z)]))
    wanted = batch.labels[first]
    lengths = (wanted >= 0).sum(1)
    if z.device.type == "cpu":
        _enough(wanted, lengths, counts)
    paths = pad_sequence(torch.split(z.log_softmax(-1), counts.tolist()))  # [T, n, C]
    losses = F.ctc_loss(paths, wanted.clamp_min(0), counts, lengths, batch.blank, reduction="none")
    return (losses / counts).repeat_interleave(counts)


def _enough(wanted: torch.Tensor, lengths: torch.Tensor, counts: torch.Tensor) -> None:
    """Raises UsageError where a sample has too few frames for its string, whose probability is then 0."""
    least = lengths + ((wanted[:, 1:] == wanted[:, :-1]) & (wanted[:, 1:] >= 0)).sum(1)
    if (least > counts).any():
        at = int((least > counts).nonzero()[0, 0])
        text = f"{int(counts[at])} frames can't give a label that needs {int(least[at])}: one for each symbol, and a"
        hint = "leave such samples out, or give the model more frames: smaller strides"
        raise UsageError(Problem("", f"{text} blank between equal ones", hint))
