"""Classifies spoken words from .wav files or .npz: log-mel spectrograms of one length, depthwise-separable networks,
and optionally a held-out speaker."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from edgekd.data import Arrays, Splits, arrays
from edgekd.data.augmentation import spectral
from edgekd.data.logmel import LogMel, frontend_onnx, logmel
from edgekd.data.speech import Clips, read
from edgekd.errors import Problem, UsageError
from edgekd.metrics import top1
from edgekd.models.networks import ds_cnn
from edgekd.records import Task

VARIABLE = "EDGEKD_SPEECH"
WINDOW, HOP = 0.032, 0.020  # seconds
LOUDER = 2.76  # of ln power: 12 dB, as much as two speakers in front of two microphones may differ


def speech(
    *,
    path: Path | None = None,
    speaker: str | None = None,
    seconds: Annotated[float, Ge(0.1), Le(10)] = 1.0,
    mels: Annotated[int, Ge(8), Le(128)] = 32,
    teacher: Annotated[int, Ge(8), Le(512), MultipleOf(8)] = 160,
    student: Annotated[int, Ge(8), Le(512), MultipleOf(8)] = 64,
    validation: Annotated[float, Gt(0), Lt(1)] = 0.1,
    shareable: bool = False,
) -> Task:
    """Classifies spoken words: the middle `seconds` of a clip as [1, frames, mels] float32, 32 ms every 20 ms.

    `path` (default: the environment variable EDGEKD_SPEECH): see `edgekd.data.speech`. With a `speaker`, the test split
    is all clips of that speaker; without, it is the recordings' own test part. Of the other clips, the share
    `validation` is held out by class. Mean and deviation are those of the training clips; a clip's tag is its speaker.
    `teacher` (5 blocks) and `student` (4 blocks): widths of DS-CNN networks; 64 is the paper's small one. Raises
    UsageError where the data can't be read or a split is empty."""
    where = path or os.environ.get(VARIABLE)
    if not where:
        raise UsageError(
            Problem("task speech", "has no data", f'task = {{ use = "speech", path = "..." }}, or set {VARIABLE}')
        )
    clips = read(Path(where))
    rows = _split(Path(where), clips, speaker, validation)
    front = frontend(clips, rows["train"], seconds, mels)
    tags = [(s,) if s else () for s in clips.speakers]
    data = Splits(
        {
            name: Arrays(
                logmel([clips.audio[i] for i in at], front),
                clips.labels[at],
                [clips.ids[i] for i in at],
                [tags[i] for i in at],
            )
            for name, at in rows.items()
        }
    )
    classes = len(clips.classes)
    settings = {
        "speaker": speaker,
        "classes": classes,
        "teacher": teacher,
        "student": student,
        "validation": validation,
    }
    return Task(
        name="speech",
        version=f"1 {json.dumps(settings | {'frontend': dataclasses.asdict(front)})}",
        models={
            "teacher": partial(ds_cnn, (teacher,) * 6, classes=classes),
            "student": partial(ds_cnn, (student,) * 5, classes=classes),
        },
        data=data,
        metrics=(top1(),),
        classes=classes,
        augment=partial(
            spectral,
            shift=max(1, front.frames // 10),
            gain=LOUDER / front.deviation,
            bands=front.mels // 5,
            frames=front.frames // 5,
            ground=front.ground,
        ),
        draws=6,
        views=16,
        before=lambda: frontend_onnx(front).SerializeToString(deterministic=True),
        shareable=shareable,
    )


def frontend(clips: Clips, train: np.ndarray, seconds: float, mels: int) -> LogMel:
    """The front end at the clips' sample rate, with the mean and deviation of the rows `train`, rounded to three
    digits."""
    window, hop = round(WINDOW * clips.rate), round(HOP * clips.rate)
    plain = LogMel(
        clips.rate, max(window, round(seconds * clips.rate)), window, hop, mels, high=min(8000.0, clips.rate / 2)
    )
    values = logmel([clips.audio[i] for i in train], plain)
    mean, deviation = (round(float(v), 3) for v in (values.mean(dtype=np.float64), values.std(dtype=np.float64)))
    return dataclasses.replace(plain, mean=mean, deviation=max(deviation, 0.001))


def _split(path: Path, clips: Clips, speaker: str | None, validation: float) -> dict[str, np.ndarray]:
    """{split: rows}, each in the order of the clips. It doesn't depend on a run's seed."""
    known = sorted({s for s in clips.speakers if s})
    if speaker is not None and speaker not in known:
        raise UsageError(
            Problem(
                f"{path}: speaker",
                f"there is no speaker {speaker!r}",
                f"one of {', '.join(known)}" if known else "no file name contains a speaker",
            )
        )
    if speaker is not None and "" in clips.speakers:
        unknown = clips.ids[clips.speakers.index("")]
        raise UsageError(
            Problem(
                f"{path}: {unknown}",
                "has no speaker in its name, so no speaker can be held out",
                "name all files SPEAKER_more.wav",
            )
        )
    test = clips.test if speaker is None else np.array([s == speaker for s in clips.speakers])
    rest, tested = np.flatnonzero(~test), np.flatnonzero(test)
    if not len(tested) or len(rest) < 2:
        text = f"there are {len(rest)} clips for training and {len(tested)} for testing"
        raise UsageError(
            Problem(str(path), text, f"hold a speaker out, one of {', '.join(known)}" if known else "give more clips")
        )
    missing = sorted(set(range(len(clips.classes))) - set(clips.labels[rest].tolist()))
    if missing:
        raise UsageError(
            Problem(
                str(path),
                f"no training clip is of the class {clips.classes[missing[0]]!r}",
                "remove the class, or add clips",
            )
        )
    splits = arrays(rest, clips.labels[rest], tested, clips.labels[tested], validation=validation, seed=0)
    return {name: part.inputs for name, part in splits.parts.items()}  # type: ignore[attr-defined]
