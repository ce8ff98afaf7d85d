"""Which notes does a melody have? 3 to 5 tones of unknown place and length in noise, as spectra of 12 bands."""

import numpy as np
from torch import nn

import edgekd


def melodies(seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng, sounds = np.random.default_rng(seed), []
    labels = [rng.integers(1, 6, rng.integers(3, 6)) for _ in range(count)]
    for notes in labels:
        tone = 2 * np.concatenate([np.repeat([0, note], rng.integers((1, 3), (4, 7))) for note in notes])[:, None]
        bands = (tone > 0) * np.exp(-((np.arange(12) - tone) ** 2) / 2)
        sounds.append((bands + rng.normal(0, 0.3, bands.shape)).astype(np.float32))
    return sounds, labels


def network(width: int) -> nn.Module:
    first, second = nn.Conv1d(12, width, 5, padding=2), nn.Conv1d(width, width, 5, padding=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv1d(width, 6, 1))


NOTES = edgekd.classes(6, axis=1, blank=0)  # scores [n, 6, T] of no note and five notes, labels [n, L] filled with -1
task = edgekd.Task(
    name="melody", version="1", inputs=("bands",), lengths={"bands": "lengths"}, outputs={"notes": NOTES},
    models={"teacher": lambda: network(48), "student": lambda: network(12)},
    forward=lambda model, inputs: model(inputs["bands"].transpose(1, 2)),  # [n, T, 12], beside "lengths": [n]
    data=edgekd.arrays(*melodies(0, 400), *melodies(1, 200)), metrics=(edgekd.character_error_rate(NOTES),),
)  # fmt: skip
