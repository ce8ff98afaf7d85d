"""Strings of 3 to 5 spoken digits: recordings of the Free Spoken Digit Dataset, joined with pauses, as log-mel frames
of 20 ms; a label is the string alone, not where its digits are. Training, validation and test use different recordings.

DIGITS_DATA names the folder with train.npz and test.npz: `audio` int16 at 8 kHz, `offset` of each clip, `label`.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

import edgekd
from edgekd.data.logmel import LogMel, logmel
from edgekd.models import sequences

TEXT = edgekd.classes(11, axis=1, blank=10)
SOUND = LogMel(rate=8000, length=8000, window=256, hop=160, mels=32, mean=-9.0, deviation=4.0)


def strings(name: str, rows: slice, count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`count` strings of these recordings: (frames [T, 32], digits [L])."""
    rng = np.random.default_rng(seed)
    with np.load(Path(os.environ["DIGITS_DATA"]) / name) as file:
        audio, offset, digit = file["audio"], file["offset"], file["label"]
    known = np.arange(len(digit))[rows]
    sounds, labels = [], []
    for _ in range(count):
        chosen = rng.choice(known, rng.integers(3, 6))
        pause = lambda: rng.normal(0, 4, rng.integers(400, 2400)).astype(np.int16)
        parts = [part for i in chosen for part in (audio[offset[i] : offset[i + 1]], pause())]
        sound = np.concatenate([pause(), *parts])
        sounds.append(logmel([sound], dataclasses.replace(SOUND, length=len(sound)))[0, 0])
        labels.append(digit[chosen].astype(np.int64))
    return sounds, labels


class Reader(nn.Module):
    """Convolutions over time with a frame of scores for each two steps: [n, 11, T / 2]."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(32, width, 5, 2, 2), nn.BatchNorm1d(width), nn.ReLU())
        block = lambda k: nn.Sequential(nn.Conv1d(width, width, 5, 1, 2 * k, k), nn.BatchNorm1d(width), nn.ReLU())
        self.blocks, self.head = nn.ModuleList(block(k) for k in (1, 2, 4)), nn.Conv1d(width, 11, 1)

    def forward(self, inputs):  # {"sound": [n, T, 32], "lengths": [n]}
        x = self.first(inputs["sound"].transpose(1, 2))
        there = sequences.mask(x.transpose(1, 2), (inputs["lengths"] + 1) // 2)[:, None]
        for block in self.blocks:
            x = x + block(x * there)
        return self.head(F.relu(x))


def data() -> Any:
    train, validation = strings("train.npz", slice(300, None), 2000, 0), strings("train.npz", slice(300), 300, 1)
    (x, y), test = validation, strings("test.npz", slice(None), 300, 2)
    return edgekd.arrays(*train, *test, x_validation=x, y_validation=y)


task = edgekd.Task(
    name="digit_strings",
    version="1",
    inputs=("sound",),
    lengths={"sound": "lengths"},
    outputs={"digits": TEXT},
    models={"teacher": lambda: Reader(64), "student": lambda: Reader(16)},
    data=data(),
    metrics=(edgekd.character_error_rate(TEXT, name="word_error_rate"),),
)
