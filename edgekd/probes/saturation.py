"""The number of layers of an int8 file that can saturate on x86 with AVX2 and without VNNI, by its weights. The export
stage checks them (quantization/qdq/saturation.py) and keeps the result among its facts."""

from __future__ import annotations

from collections.abc import Iterator

from edgekd.probes import Subject, figure
from edgekd.records import Measurement, Quantity

SATURABLE = Quantity(
    "saturable_layers", "", "layers that can saturate without VNNI", better="lower", origin="counted", column=None
)
MEASURES = (SATURABLE,)


def measure(subject: Subject) -> Iterator[Measurement]:
    """saturable_layers; the note has the result on samples. Yields nothing if the export did not check."""
    layers = subject.facts.get("saturation")
    if layers is not None:
        most = max((layer["changed"] or 0.0 for layer in layers), default=0.0)
        note = f"up to {100 * most:.2g} % of a layer's outputs change" if layers else ""
        yield figure(SATURABLE, len(layers), note=note)
