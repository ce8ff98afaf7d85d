"""Was there a rising chirp? Spectra of 12 bands come frame by frame, and the model keeps a state between them."""

import numpy as np
from torch import nn

import edgekd


def sounds(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng, ways = np.random.default_rng(seed), np.arange(count)[:, None] % 3 - 1  # falls, silence, rises
    since = np.arange(32) - rng.integers(2, 20, (count, 1))  # frames since the chirp began, [n, 32]
    at = np.where((since >= 0) & (since < 6) & (ways != 0), 5.5 + ways * (1.6 * since - 4), 99)
    frames = rng.normal(0, 0.3, (count, 32, 12)) + np.exp(-((np.arange(12) - at[..., None]) ** 2))
    return frames.astype(np.float32), ((since >= 6) & (ways == 1)).astype(int)


class Step(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.cell, self.head, self.state_shapes = nn.GRUCell(12, width), nn.Linear(width, 2), {"h_in": (width,)}

    def forward(self, frame, h):  # one step: [n, 12] and [n, width]
        return self.head(h := self.cell(frame, h)), h


task = edgekd.Task(
    name="chirps", version="1", inputs=("frame",), outputs={"chirp": edgekd.classes(2, axis=2)},
    models={"teacher": lambda: Step(48), "student": lambda: Step(16)}, metrics=(edgekd.f1(edgekd.classes(2, axis=2)),),
    data=edgekd.arrays(*sounds(0, 300), *sounds(1, 200)), stream=edgekd.streaming({"h_out": "h_in"}),
)  # fmt: skip
