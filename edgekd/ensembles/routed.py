"""Chooses for each sample the teacher of its class, or of its tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekd.ensembles._given import check_shown, class_numbers
from edgekd.records import Batch, Signals

if TYPE_CHECKING:
    import torch


def routed(
    signals: Mapping[str, Signals],
    batch: Batch,
    *,
    classes: dict[str, tuple[int, ...]] | None = None,
    tags: dict[str, tuple[str, ...]] | None = None,
) -> Signals:
    """The logits [B, C] of the teacher whose `classes` {teacher: class numbers} contain the sample's label; or whose
    `tags` {teacher: tags} contain one of the sample's. A teacher with an empty list of tags gets all samples that no
    other teacher gets.

    Raises ValueError if both or neither are given, a class or sample has no teacher or two, or a teacher is not in the
    ensemble.

    >>> import torch
    >>> from edgekd import Batch, Signals
    >>> batch = Batch(None, torch.tensor([0, 1]), torch.arange(2), torch.ones(2))
    >>> sure = Signals(torch.tensor([[4.0, 0.0], [4.0, 0.0]]))
    >>> unsure = Signals(torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
    >>> routes = {"sure": (0,), "unsure": (1,)}
    >>> routed({"sure": sure, "unsure": unsure}, batch, classes=routes).output  # by the label: 0, then 1
    tensor([[4.0000, 0.0000],
            [0.0000, 0.1000]])
    """
    import torch

    if (classes is None) == (tags is None):
        raise ValueError("give either `classes` or `tags`")
    strangers = [name for name in (classes or tags or {}) if name not in signals]
    if strangers:
        raise ValueError(f"no teacher of the ensemble is named {', '.join(strangers)}; it has {', '.join(signals)}")
    check_shown(signals)
    every = torch.stack([s.output.float() for s in signals.values()])
    owner = (
        by_class(list(signals), classes, batch, every.shape[-1])
        if classes is not None
        else by_tag(list(signals), tags or {}, batch)
    )
    return Signals(every[owner.to(every.device), torch.arange(len(batch.index), device=every.device)])


def by_class(names: Sequence[str], classes: Mapping[str, Sequence[int]], batch: Batch, count: int) -> torch.Tensor:
    """[B] the number of the teacher for each sample's class."""
    import torch

    owner = torch.full((count,), -1)
    for number, name in enumerate(names):
        for label in classes.get(name, ()):
            if not 0 <= label < count or owner[label] >= 0:
                raise ValueError(
                    f"class {label} of {name} "
                    + ("also has another teacher" if 0 <= label < count else f"is not one of the {count} classes")
                )
            owner[label] = number
    if (owner < 0).any():
        raise ValueError(
            f"no teacher for the classes {', '.join(str(c) for c in torch.nonzero(owner < 0).flatten().tolist())}"
        )
    return owner.to(batch.labels.device)[class_numbers(batch)]


def by_tag(names: Sequence[str], tags: Mapping[str, Sequence[str]], batch: Batch) -> torch.Tensor:
    """[B] the number of the teacher for each sample's tags."""
    import torch

    if batch.tags is None:
        raise ValueError("the samples have no tags: a task's data gives them, Sample(tags=...)")
    rest = [names.index(name) for name, own in tags.items() if not own]
    if len(rest) > 1:
        raise ValueError(f"more than one teacher has no tags: {', '.join(names[i] for i in rest)}")
    owner = []
    for row, own in enumerate(batch.tags):
        found = [i for i, name in enumerate(names) if set(own) & set(tags.get(name, ()))] or rest
        if len(found) != 1:
            text = (
                f"has the teachers {' and '.join(names[i] for i in found)}"
                if found
                else "has no teacher; give one teacher tags = [] to get all other samples"
            )
            raise ValueError(f"sample {int(batch.index[row])}, tagged {', '.join(own) or 'with nothing'}, {text}")
        owner.append(found[0])
    return torch.tensor(owner)
