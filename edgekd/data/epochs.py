"""Epochs as pure functions: the order depends on (seed, epoch), a view on (seed, sample, view). No global generator is
used, so training resumes exactly, and a cached teacher gets exactly its student's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from edgekd.data.columns import Columns, taken
from edgekd.models import device
from edgekd.records import Batch, Task

ORDER, VIEW, GROUP = 1, 2, 3  # separate streams of one seed
POOL = 16  # batches that are sorted by length together


def mix(*words: np.ndarray | int) -> np.ndarray:
    """A 64-bit hash of integers, element by element (broadcast): the finalizer of splitmix64 (Steele, Lea, Flood 2014)
    chained."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            word = np.asarray(word).astype(np.int64).view(np.uint64)
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """[count] int64: a permutation of the samples for this epoch."""
    return np.argsort(mix(seed, ORDER, epoch, np.arange(count)), kind="stable")


def chance(seed: int, index: np.ndarray, view: int, draws: int) -> np.ndarray:
    """[B, draws] float32, uniform in [0, 1): all random numbers of view `view` of samples `index` [B]."""
    bits = mix(seed, VIEW, view, index[:, None], np.arange(draws)[None, :])
    return (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def see(batch: Batch, task: Task, seed: int) -> Batch:
    """The batch with its view's augmentation; unchanged if the task has none."""
    import torch

    if task.augment is None:
        return batch
    u = torch.from_numpy(chance(seed, device.positions(batch), batch.view, task.draws))
    return dataclasses.replace(batch, inputs=task.augment(batch.inputs, device.moved(u, batch.index.device)))


def epochs(
    columns: Columns,
    task: Task,
    *,
    batch: int,
    seed: int,
    augment_seed: int,
    views: int,
    on: str = device.CPU,
    part: tuple[int, int] = (0, 1),
    fewest: int = 2,
) -> Callable[[int, int], Iterator[Batch]]:
    """`source(epoch, start)`, which yields the batches of an epoch from batch `start` on, on the device `on`, where
    they are augmented. A last batch of fewer rows than `fewest` is added to the one before, since batch statistics of
    one row are NaN. `part` (number, count): only this process's rows of each batch, which are next to each other."""

    def source(epoch: int, start: int = 0) -> Iterator[Batch]:
        rows, view = order(seed, epoch, len(columns)), epoch % views
        parts = [rows[a:b] for a, b in spans(len(rows), batch, fewest)]
        if columns.lengths is not None:
            parts = grouped(rows, columns.lengths, batch, seed, epoch, fewest)
        if part[1] > 1:
            parts = [np.array_split(of_all, part[1])[part[0]] for of_all in parts]
        for found in device.ahead(taken(columns, parts[start:], view), on):
            yield see(found, task, augment_seed)

    return source


def grouped(
    rows: np.ndarray, lengths: np.ndarray, batch: int, seed: int, epoch: int, fewest: int = 2
) -> list[np.ndarray]:
    """The batches of an epoch's `rows`, each of samples of similar length: among every POOL batches they are sorted by
    length, and the batches are then shuffled."""
    pools = [rows[a : a + POOL * batch] for a in range(0, len(rows), POOL * batch)]
    near = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    parts = [near[a:b] for a, b in spans(len(near), batch, fewest)]
    return [parts[i] for i in np.argsort(mix(seed, GROUP, epoch, np.arange(len(parts))), kind="stable")]


def spans(count: int, batch: int, fewest: int = 2) -> list[tuple[int, int]]:
    """(start, end) of each batch of an epoch."""
    edges = list(range(0, count, batch)) + [count]
    if len(edges) > 2 and edges[-1] - edges[-2] < fewest:
        del edges[-2]
    return list(zip(edges, edges[1:], strict=False))
