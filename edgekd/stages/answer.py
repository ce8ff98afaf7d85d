"""A teacher's answers to the train split: it runs once per view, and its logits are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge

from edgekd.errors import RunFailed
from edgekd.records import Artifact, Made, Run
from edgekd.train import Precision


@dataclass(frozen=True, kw_only=True)
class Answer:
    """logits.npy float32 [views, rows, C], in the order of the split. `batch` rows at a time."""

    views: Annotated[int, Ge(1)] = 1
    augment_seed: int = 0
    precision: Precision = "float32"
    batch: Annotated[int, Ge(1)] = 256
    reads: ClassVar = ("train",)

    def __call__(self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None) -> Made:
        import numpy as np

        from edgekd import models
        from edgekd.sources.columns import take
        from edgekd.sources.epochs import see
        from edgekd.teachers.live import live
        from edgekd.train import seeded

        (model,), columns = teacher, run.data("train")
        teach, logits = live(models.load(model, run.task), run.task, self.precision), None
        with seeded(run.seed, run.threads):
            for view in range(self.views):
                for start in range(0, len(columns), self.batch):
                    index = np.arange(start, min(start + self.batch, len(columns)), dtype=np.int64)
                    rows = teach(see(take(columns, index, view), run.task, self.augment_seed)).output.float().numpy()
                    if logits is None:
                        shape = (self.views, len(columns), *rows.shape[1:])
                        logits = _room(run.folder / "logits.npy", shape)
                    if not np.isfinite(rows).all():
                        raise RunFailed(f"the teacher's output is not finite for samples {start} to {start + len(index) - 1} of view {view}")
                    logits[view, index] = rows
                run.progress(view + 1, self.views, f"view {view + 1}/{self.views}")
        logits.flush()
        return Made("logits", {"views": self.views, "rows": len(columns), "outputs": list(logits.shape[2:])})


def _room(path: Path, shape: tuple[int, ...]):
    """A new memory-mapped float32 array; its blocks are reserved, since a map that meets a full disk ends the process."""
    import numpy as np

    logits = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return logits
