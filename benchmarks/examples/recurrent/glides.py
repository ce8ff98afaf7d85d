"""Does a tone rise, fall or stay? Spectra of 8 bands, 6 to 20 steps long, and a GRU that gets their lengths."""

import numpy as np
from torch import nn

import edgekd
from edgekd.models import sequences


def tones(seed: int, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    rng, ways = np.random.default_rng(seed), np.arange(count) % 3
    starts = [rng.uniform(2, 5) + (way - 1) * np.linspace(-2, 2, rng.integers(6, 21)) for way in ways]
    bands = [np.exp(-((np.arange(8) - at[:, None]) ** 2)) + rng.normal(0, 0.2, (len(at), 8)) for at in starts]
    return [b.astype(np.float32) for b in bands], ways


class Glides(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, inputs):  # {"bands": [n, T, 8], "lengths": [n]}
        return self.head(sequences.last(self.rnn(inputs["bands"])[0], inputs["lengths"]))


task = edgekd.Task(
    name="glides", version="1", classes=3, inputs=("bands",), lengths={"bands": "lengths"},
    models={"teacher": lambda: Glides(32), "student": lambda: Glides(12)},
    data=edgekd.arrays(*tones(0, 400), *tones(1, 300)), metrics=(edgekd.top1(),),
)  # fmt: skip
