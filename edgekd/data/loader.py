"""Splits from torch DataLoaders. edgekd reads the data set's samples by position, which cached logits, views, paired
tests and exact resume need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekd.data.arrays import Splits, to_array
from edgekd.errors import THEIRS, Problem, UsageError
from edgekd.inputs import bare, each
from edgekd.records import Sample

LABELS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True)
class Items(Sequence[Sample]):
    """The `rows` of a map-style data set as samples, read on access. Their ids start with `split`."""

    dataset: Any = field(repr=False)
    rows: np.ndarray
    collate: Callable[[list], Any] | None
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        row = int(self.rows[position])
        return _sample(self.dataset[row], self.collate, f"{self.split}/{row}")


def from_loader(train: Any, test: Any, *, validation: Any = 0.2, seed: int = 0) -> Splits:
    """Splits of torch DataLoaders (or map-style data sets). `validation`: a third one, or the share of the training
    samples to hold out.

    Of a loader, its data set is used, and a SubsetRandomSampler's rows; its order, batch size, workers and `drop_last`
    are ignored. An item is (inputs, label), inputs only, a Sample, or a dict: its label is `label`, `labels`, `target`,
    `targets` or `y`, its id is `id`, and the rest are inputs. A label may be {output: label}. A custom `collate_fn` is
    called with one item at a time, and the batch axis of its result is removed: it may change or pad an item, but not
    mix several.

    Raises UsageError with every problem: a stream without positions, a sampler that weights or repeats samples, data
    that differ when read again (random transforms belong in the task's `augment`, so that teacher and student get the
    same inputs)."""
    problems: list[Problem] = []
    share = isinstance(validation, float | int) and not isinstance(validation, bool)
    if share and not 0 < validation < 1:
        problems.append(
            Problem(
                "validation",
                f"{validation} is not a share between 0 and 1",
                "give a number such as 0.2, or a DataLoader",
            )
        )
    given = {"train": train, "test": test} | ({} if share else {"validation": validation})
    parts = {name: _items(name, loader, problems) for name, loader in given.items()}
    if problems:
        raise UsageError(*problems)
    if share:
        whole = parts["train"]
        order = np.random.default_rng(seed).permutation(len(whole))
        held = min(max(1, round(validation * len(whole))), len(whole) - 1)
        kept, held = np.sort(whole.rows[order[held:]]), np.sort(whole.rows[order[:held]])
        parts |= {
            name: Items(whole.dataset, rows, whole.collate, "train")
            for name, rows in (("train", kept), ("validation", held))
        }
    return Splits(parts)


def _items(name: str, loader: Any, problems: list[Problem]) -> Items | None:
    from torch.utils import data as torch_data

    dataset, collate, sampler = loader, None, None
    if isinstance(loader, torch_data.DataLoader):
        dataset, sampler = loader.dataset, loader.sampler
        own = loader.collate_fn not in (torch_data.default_collate, torch_data.default_convert)
        collate = loader.collate_fn if own else None
        if loader.batch_sampler is not None and type(loader.batch_sampler) is not torch_data.BatchSampler:
            problems.append(
                Problem(
                    name,
                    f"the loader draws its batches with {type(loader.batch_sampler).__name__}",
                    "give the data set itself",
                )
            )
            return None
    if isinstance(dataset, torch_data.IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        hint = (
            "give a map-style data set (__getitem__ and __len__), or collect the stream into arrays: edgekd.arrays(...)"
        )
        problems.append(Problem(name, f"{type(dataset).__name__} has no samples by position", hint))
        return None
    rows = np.arange(len(dataset))
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        rows = np.sort(np.asarray(list(sampler.indices), dtype=np.int64))
    elif isinstance(sampler, torch_data.RandomSampler) and (sampler.replacement or sampler.num_samples != len(dataset)):
        problems.append(
            Problem(
                name,
                "the loader's RandomSampler repeats or omits samples",
                "give the data set itself, or a Subset of it",
            )
        )
    elif sampler is not None and type(sampler) not in (torch_data.SequentialSampler, torch_data.RandomSampler):
        text = f"the loader's {type(sampler).__name__} weights or selects samples"
        problems.append(Problem(name, text, "give the data set itself, or a Subset of it"))
    least = 2 if name == "train" else 1
    if len(rows) < least:
        problems.append(Problem(name, f"has {len(rows)} samples", f"give at least {least}"))
        return None
    items = Items(dataset, rows, collate, name)
    problems += _readable(items)
    return items


def _readable(items: Items) -> list[Problem]:
    """Reads up to 8 samples twice; returns the problem of the first that can't be read, or that differs."""
    for position in np.unique(np.linspace(0, len(items) - 1, 8).astype(int)):
        place = f"{items.split}: sample {position}"
        try:
            one, two = items[position], items[position]
        except UsageError as error:
            return [Problem(place, p.message, p.hint) for p in error.problems]
        except THEIRS as error:  # (the data set is the user's own code)
            return [
                Problem(place, f"reading raises {type(error).__name__}: {error}", "make dataset[i] work for every i")
            ]
        if not _same(one.inputs, two.inputs) or not _same(one.label, two.label):
            hint = "move random transforms from the data set to the task's `augment`, a pure function of its draws"
            return [Problem(place, "differs when it is read again", hint)]
    return []


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_same(one[k], two[k]) for k in one)
    if one is None or two is None:
        return one is two
    return np.array_equal(one, two, equal_nan=np.asarray(one).dtype.kind == "f")


def _sample(item: Any, collate: Callable[[list], Any] | None, name: str) -> Sample:
    if isinstance(item, Sample):
        return item
    item = item if collate is None else _first(collate([item]))
    label, inputs = None, item
    if isinstance(item, Mapping):
        item = dict(item)
        name = item.pop("id", name)
        found = [k for k in LABELS if k in item]
        if len(found) > 1:
            raise UsageError(Problem("", f"a sample has several labels: {', '.join(found)}", "keep only one"))
        label = item.pop(found[0]) if found else None
        inputs = bare(item)
    elif isinstance(item, tuple | list):
        if len(item) != 2:
            raise UsageError(
                Problem(
                    "",
                    f"a sample is a {type(item).__name__} of {len(item)}",
                    "give (inputs, label), of several outputs (inputs, {output: label}), or a dict with a `label`",
                )
            )
        inputs, label = item
    inputs = each(inputs, _numbers)
    if isinstance(name, np.ndarray | np.generic) or hasattr(name, "item"):
        name = name.item()
    return Sample(inputs, None if label is None else each(label, lambda v: _numbers(v)[()]), name)


def _first(batch: Any) -> Any:
    """The only row of a collated batch."""
    if isinstance(batch, Mapping):
        return {k: _first(v) for k, v in batch.items()}
    if isinstance(batch, tuple | list) and not isinstance(batch, str):
        return batch[0] if len(batch) == 1 else tuple(_first(v) for v in batch)
    if hasattr(batch, "shape") and len(batch.shape) and batch.shape[0] == 1:
        return batch[0]
    raise UsageError(
        Problem(
            "",
            f"collate_fn gives {_form(batch)} for one item",
            "for a list of one item, its result needs a first axis of 1",
        )
    )


def _form(value: Any) -> str:
    return f"shape {list(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _numbers(value: Any) -> np.ndarray:
    array = to_array(value) if not type(value).__module__.startswith("PIL.") else None
    if array is None or array.dtype.kind not in "fiub":
        hint = "give numbers: an array or a tensor (torchvision: transforms.ToTensor())"
        raise UsageError(Problem("", f"a value is a {type(value).__name__}", hint))
    return array.astype(np.int64) if array.ndim == 0 and array.dtype.kind in "iub" else array
