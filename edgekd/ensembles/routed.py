"""Each sample is taught by the teacher that is responsible for its class."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.records import Batch, Signals


def routed(signals: Mapping[str, Signals], batch: Batch, *, classes: dict[str, tuple[int, ...]]) -> Signals:
    """The logits [B, C] of the teacher whose `classes` {teacher: class numbers} hold the sample's label.

    Raises ValueError where a class has no teacher, or two, or a teacher is not of the ensemble."""
    import torch

    strangers = [name for name in classes if name not in signals]
    if strangers:
        raise ValueError(f"no teacher of the ensemble is named {', '.join(strangers)}; it has {', '.join(signals)}")
    count = next(iter(signals.values())).output.shape[-1]
    owner = torch.full((count,), -1)
    for number, name in enumerate(signals):
        for label in classes.get(name, ()):
            if not 0 <= label < count or owner[label] >= 0:
                raise ValueError(f"class {label} of {name} " + ("has another teacher too" if 0 <= label < count else f"is none of the {count}"))
            owner[label] = number
    if (owner < 0).any():
        raise ValueError(f"no teacher for the classes {', '.join(str(c) for c in torch.nonzero(owner < 0).flatten().tolist())}")
    every = torch.stack([s.output.float() for s in signals.values()])
    return Signals(every[owner[batch.labels.long()], torch.arange(len(batch.labels))])
