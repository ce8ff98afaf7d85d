"""Bytes of the states that a streaming file gives and takes again at each step."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator

from edgekd.models.streams import STATE
from edgekd.probes import Subject, figure
from edgekd.records import Measurement, Quantity

STATE_BYTES = Quantity(
    "state_bytes",
    "B",
    "states of one sequence, kept from step to step",
    better="lower",
    origin="counted",
    heading="state B",
    column=45,
    keep=60,
)
MEASURES = (STATE_BYTES,)


def measure(subject: Subject) -> Iterator[Measurement]:
    """state_bytes of a file that takes a state, and says so; nothing of others."""
    if (stream := subject.facts.get("stream")) is not None:
        yield figure(MEASURES[0], stream["bytes"])
        return
    there = subject.file is not None and subject.file.is_file() and subject.model is not None
    said = {p.key: p.value for p in subject.model.metadata_props} if there else {}
    with contextlib.suppress(ValueError, TypeError, KeyError):  # what others wrote there
        shapes = [subject.known.shapes[name][1:] for name in json.loads(said[STATE])]
        yield figure(MEASURES[0], sum(4 * math.prod(shape) for shape in shapes))
