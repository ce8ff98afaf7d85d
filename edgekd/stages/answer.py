"""Caches a teacher's outputs for a split: the teacher runs once per view, and its logits are saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from edgekd.errors import RunFailed
from edgekd.inputs import each, named, unload
from edgekd.models.precision import Precision
from edgekd.models.scores import file_of, steps_of
from edgekd.records import Artifact, Made, Run


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Writes logits.npy float32 [views, rows, C], in the order of the split, `batch` rows at a time. `shows` "top": of
    a grey box, the `top` largest log-probabilities (values.npy [views, rows, top], classes.npy); "label": of a black
    box, only the predicted class (labels.npy [views, rows]). Of several outputs each has its files, such as
    logits.NAME.npy. Only the train split is augmented."""

    split: Literal["train", "validation"] = "train"

    views: Annotated[int, Ge(1)] = 1
    augment_seed: int = 0
    precision: Precision = "float32"
    shows: Literal["logits", "top", "label"] = "logits"
    top: Annotated[int, Ge(1)] = 5
    batch: Annotated[int, Ge(1)] = 256

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.split,)

    def __call__(
        self, source: Artifact | None, run: Run, *, teacher: tuple[Artifact, ...] = (), data: None = None
    ) -> Made:
        import numpy as np

        from edgekd.data.columns import batches
        from edgekd.data.epochs import see
        from edgekd.models import device, saved
        from edgekd.teachers.live import live
        from edgekd.training.loop import seeded

        (model,), columns = teacher, run.data(self.split)
        module, rooms, outputs = device.placed(saved.load(model, run.task), run.device), {}, []
        teach = live(module, run.task, self.precision)
        axis = steps_of(run.task.output) if self.shows == "logits" else 1

        def full(array: Any) -> tuple[int, ...]:
            """The shape of an answer with room for the steps of the longest sample."""
            if not columns.stepwise:
                return array.shape[1:]
            return (*array.shape[1:axis], int(columns.lengths.max()), *array.shape[axis + 1 :])

        with seeded(run.seed, run.threads, run.device), device.arithmetic(run.device):
            for view in range(self.views):
                for found in batches(columns, self.batch, view):
                    index, batch = found.index.numpy(), device.on(found, run.device)
                    seen = see(batch, run.task, self.augment_seed) if self.split == "train" else batch
                    answered = each(teach(seen).output, lambda z: z.float().cpu())
                    for name, rows in named(answered).items():
                        if not np.isfinite(rows.numpy()).all():
                            raise RunFailed(
                                f"the teacher's output{f' {name}' if name else ''} is not finite for samples "
                                f"{index[0]} to {index[-1]} of view {view}"
                            )
                    outputs = each(answered, lambda z: list(z.shape[1:]))
                    for file, array in self.files(answered, run.task.declared).items():
                        if file not in rooms:
                            rooms[file] = _room(
                                run.folder / file, (self.views, len(columns), *full(array)), array.dtype
                            )
                        rooms[file][(view, index, *map(slice, array.shape[1:]))] = array
                        unload(rooms[file])
                run.progress(view + 1, self.views, f"view {view + 1}/{self.views}")
        for room in rooms.values():
            room.flush()
        return Made("logits", {"views": self.views, "rows": len(columns), "outputs": outputs, "shows": self.shows})

    def files(self, answered, declared=None):
        """{file: array} of what the teacher shows of its output, or of each of several; of classes only of those that
        have some."""
        if not isinstance(declared, Mapping):
            return {f"{what}.npy": a for what, a in self.shown(answered, declared).items()}
        told = {n: o for n, o in declared.items() if o.scored or self.shows == "logits"}
        return {file_of(what, n): a for n, o in told.items() for what, a in self.shown(answered[n], o).items()}

    def shown(self, logits, output=None):
        """{file: array} of the part of logits [B, C] that the teacher shows, or of an output that the task declares."""
        from edgekd.models.scores import classes_last, predicted

        if self.shows == "label":
            return {"labels": predicted(output, logits).numpy().astype("int32")}
        if self.shows == "top":
            scores = classes_last(output, logits)
            values, classes = scores.log_softmax(-1).topk(min(self.top, scores.shape[-1]), -1)
            return {"values": values.numpy(), "classes": classes.numpy().astype("int32")}
        return {"logits": logits.numpy()}


def _room(path: Path, shape: tuple[int, ...], dtype: Any):
    """A new memory-mapped array. Its disk blocks are reserved: writing to a map on a full disk would kill the
    process."""
    import numpy as np

    logits = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return logits
