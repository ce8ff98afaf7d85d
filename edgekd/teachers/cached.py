"""A teacher that ran once per view: its logits, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable

from edgekd.errors import RunFailed
from edgekd.records import Artifact, Batch, Signals


def cached(answers: Artifact, rows: int, views: int) -> Callable[[Batch], Signals]:
    """Reads logits.npy [views, rows, C] of an `answer` artifact. Raises RunFailed if it is of another shape than the data needs."""
    import numpy as np
    import torch

    logits = np.load(answers.folder / "logits.npy", mmap_mode="r", allow_pickle=False)
    if logits.shape[:2] != (views, rows):
        raise RunFailed(f"the teacher's cached logits have shape {list(logits.shape)}, the data needs [{views}, {rows}, classes]")

    def teach(batch: Batch) -> Signals:
        return Signals(torch.from_numpy(logits[batch.view, batch.index.numpy()]))

    return teach
