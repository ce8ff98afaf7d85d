"""Sentences of film reviews, good or bad, told by a small transformer encoder: the text row of the int8 benchmark.

EDGEKD_SST2 names a folder with `sst2/` and `sst2_phrases/` of lines {"text": ..., "label": 0 or 1} (.jsonl.gz; Socher
et al. 2013, binary). Trained on the phrases, whose sentences are none of the test's: the 872 and 1,821 sentences of the
two held-out parts."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekd.data import Arrays, Splits
from edgekd.errors import Problem, UsageError
from edgekd.metrics import top1
from edgekd.records import Task

# words of a sentence that are read; rows of the embedding; how often a word must occur
LENGTH, WORDS, OFTEN = 24, 8192, 3


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        b, t, w = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, t, self.heads, w // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = torch.softmax(q @ k.transpose(-1, -2) * self.scale, -1)
        x = x + self.o((a @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Word numbers [B, LENGTH] int64 -> logits [B, 2]; number 0 is no word, and learned like any other."""

    def __init__(self, width: int, depth: int, heads: int = 4, dropout: float = 0.2):
        super().__init__()
        self.words, self.position = nn.Embedding(WORDS, width), nn.Parameter(torch.zeros(1, LENGTH, width))
        nn.init.normal_(self.words.weight, std=0.1)
        self.dropout, self.norm, self.head = nn.Dropout(dropout), nn.LayerNorm(width), nn.Linear(width, 2)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))

    def forward(self, ids):
        x = self.blocks(self.dropout(self.words(ids) + self.position))
        return self.head(self.norm(x).mean(1))


def sst2() -> Task:
    """The task; its data must be where EDGEKD_SST2 says."""
    if not os.environ.get("EDGEKD_SST2"):
        raise UsageError(Problem("task sst2", "has no data", "set EDGEKD_SST2"))
    folder = Path(os.environ["EDGEKD_SST2"])
    train, held = _rows(folder / "sst2_phrases/train.jsonl.gz"), _rows(folder / "sst2_phrases/dev.jsonl.gz")
    test = _rows(folder / "sst2/dev.jsonl.gz") + _rows(folder / "sst2/test.jsonl.gz")
    counts = Counter(word for row in train for word in set(row["text"].split()))
    known = {
        w: i
        for i, (w, n) in enumerate(sorted(counts.items(), key=lambda c: (-c[1], c[0]))[: WORDS - 2], 2)
        if n >= OFTEN
    }
    parts = {"train": train, "validation": held, "test": test}
    return Task(
        name="sst2",
        version=f"1 {LENGTH} {WORDS} {OFTEN}",
        models={"teacher": partial(Encoder, 128, 3), "student": partial(Encoder, 64, 2)},
        data=Splits({name: _arrays(rows, known, name) for name, rows in parts.items()}),
        metrics=(top1(),),
        classes=2,
    )


def _rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _arrays(rows: list[dict], known: dict[str, int], name: str) -> Arrays:
    ids = np.zeros((len(rows), LENGTH), np.int64)
    for i, row in enumerate(rows):
        numbers = [known.get(word, 1) for word in row["text"].split()[:LENGTH]]
        ids[i, : len(numbers)] = numbers
    return Arrays(ids, np.array([row["label"] for row in rows], np.int64), [f"{name}/{i}" for i in range(len(rows))])
