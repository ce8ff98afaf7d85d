"""Which notes does a melody have? 3 to 5 tones of unknown place and length in noise, as spectra of 12 bands."""

import numpy as np
from torch import nn

import edgekd

NOTES = edgekd.classes(6, axis=1, blank=0)  # scores [n, 6, T] of no note and five notes, labels [n, L] filled with -1


def melodies(seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng, sounds, labels = np.random.default_rng(seed), [], []
    for _ in range(count):
        notes = rng.integers(1, 6, rng.integers(3, 6))
        steps = [part for note in notes for part in ([0] * rng.integers(1, 4), [note] * rng.integers(3, 7))]
        tone = 2 * np.concatenate([*steps, [0, 0]])[:, None]
        bands = (tone > 0) * np.exp(-((np.arange(12) - tone) ** 2) / 2) + rng.normal(0, 0.3, (len(tone), 12))
        sounds.append(bands.astype(np.float32))
        labels.append(notes)
    return sounds, labels


class Reader(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        layer = lambda ins: (nn.Conv1d(ins, width, 5, padding=2), nn.ReLU())
        self.net = nn.Sequential(*layer(12), *layer(width), nn.Conv1d(width, 6, 1))

    def forward(self, inputs):  # {"bands": [n, T, 12], "lengths": [n]}
        return self.net(inputs["bands"].transpose(1, 2))


task = edgekd.Task(
    name="melody", version="1", inputs=("bands",), lengths={"bands": "lengths"}, outputs={"notes": NOTES},
    models={"teacher": lambda: Reader(48), "student": lambda: Reader(12)},
    data=edgekd.arrays(*melodies(0, 400), *melodies(1, 200)), metrics=(edgekd.character_error_rate(NOTES),),
)  # fmt: skip
