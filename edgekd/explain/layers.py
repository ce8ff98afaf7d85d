"""The layers of an int8 file that lose accuracy, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.errors import plain
from edgekd.quantization.diagnosis.layers import Finding, Looked, look
from edgekd.quantization.diagnosis.signal_to_noise import SIGNAL
from edgekd.report.tables import aligned

if TYPE_CHECKING:
    from edgekd.explain.inputs import Subject
    from edgekd.progress import Silent

SAMPLES = 512
NOTHING = "int8 shows no significant loss here, in no layer"


def found(subject: Subject, progress: Silent) -> tuple[str, tuple[Finding, ...], Looked]:
    """(as text, what was found, all that was looked at) of the layers of an int8 file."""
    few = subject.looked.first(SAMPLES)
    labels = few.labels if subject.classes else None
    files = subject.float_file, subject.int8_file
    with progress.task(f"look at the layers of {subject.id}") as advance:
        looked = look(
            *files, few.inputs, labels, saturates=subject.saturates, progress=lambda done, of: advance(done, of, "")
        )
    head = f"{plain(subject.id)} beside {plain(subject.parent)}, {len(few)} samples of {few.split}; {SIGNAL}"
    head += "".join(f"\n  {plain(a)}" for a in looked.agreements)
    if looked.trained:
        head += "\nits weights were trained in int8: what follows is of the values' quantization only"
    if not looked.findings:
        return f"{head}\n{NOTHING}", (), looked
    rows = [("layer", "cause", "given back in float", "evidence", "fix")]
    rows += [(f.layer, f.cause, _given(f), f.evidence, f.fix) for f in looked.findings]
    return f"{head}\n{aligned(rows)}", looked.findings, looked


def _given(f: Finding) -> str:
    if f.lost.snr is None:
        return "not measured here"
    return f"{f.lost.snr:.1f} dB" + ("" if f.lost.points is None else f", {f.lost.points:+.2f} pt")
