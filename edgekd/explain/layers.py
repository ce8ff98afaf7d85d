"""The layers of an int8 file that lose accuracy, as a table."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekd.errors import plain
from edgekd.explain import requantize
from edgekd.explain.inputs import FromFiles
from edgekd.progress import foretold
from edgekd.quantization.diagnosis.fixes import offered, options
from edgekd.quantization.diagnosis.layers import Finding, Looked, look
from edgekd.quantization.diagnosis.signal_to_noise import SIGNAL
from edgekd.quantization.qdq.graph import LAYERS
from edgekd.report.tables import aligned

if TYPE_CHECKING:
    from edgekd.explain.inputs import Subject
    from edgekd.progress import Silent

SAMPLES = 512
UNLIKE = (
    "most weights are others, and no output agrees\n  hint: give the file that it was made of with --float; if this is "
    "it, its weights were trained in int8"
)
NOTHING = "no layer shows a significant loss in int8"
# of outputs below POOR dB
SPREAD = "no layer alone explains the loss; `edgekd quantize --max-drop` looks for what loses less"
POOR = 20.0


def found(subject: Subject, progress: Silent) -> tuple[str, tuple[Finding, ...], Looked]:
    """(as text, what was found, all that was looked at) of the layers of an int8 file; of files that a person gave by
    the names and with the options that `quantize` takes."""
    few = subject.looked.first(SAMPLES)
    labels = few.labels if subject.classes else None
    files = subject.float_file, subject.int8_file
    with progress.task(f"look at the layers of {subject.id}") as told:
        advance = foretold(progress, told, "looking at the layers")
        looked = look(
            *files,
            few.inputs,
            labels,
            saturates=subject.saturates,
            norms=subject.norms,
            progress=lambda done, of: advance(done, of, ""),
        )
    head = f"{plain(subject.id)} beside {plain(subject.parent)}, {len(few)} samples of {few.split}; {SIGNAL}"
    head += "; every step with the states of the float file" if few.inputs.states else ""
    head += "".join(f"\n  {plain(a)}" for a in looked.agreements)
    files_given = isinstance(subject.source, FromFiles)
    if files_given and _unlike(looked):
        names = f"{plain(subject.parent)} may not be the float file that {plain(subject.id)} was made of"
        head = f"{names}: {UNLIKE}\n\n{head}"
    elif looked.trained:
        head += "\nits weights were trained in int8: what follows is of the values' quantization only"
    if not looked.findings:
        poor = any(a.snr_db is not None and a.snr_db < POOR for a in looked.agreements)
        return f"{head}\n{SPREAD if poor else NOTHING}", (), looked
    findings = tuple(_for_quantize(f, subject) for f in looked.findings) if files_given else looked.findings
    rows = [("layer", "cause", "given back in float", "evidence", "edgekd quantize" if files_given else "fix")]
    rows += [(f.layer, f.cause, _given(f), f.evidence, f.fix) for f in findings]
    return f"{head}\n{aligned(rows)}", findings, looked


def _unlike(looked: Looked) -> bool:
    """Whether most weights are others, and every output has more noise than signal: of two files of one architecture,
    where one was not made of the other. Training in int8 changes weights too, and keeps the outputs."""
    ratios = [a.snr_db for a in looked.agreements if a.snr_db is not None]
    return looked.trained and bool(ratios) and max(ratios) < 0


def _for_quantize(finding: Finding, subject: Subject) -> Finding:
    """A finding as `quantize` names the layer, with the options that could help."""
    now = requantize.of_file(len(subject.source.samples), subject.labels, same=subject.ours)
    ways = [shlex.join(options(settings)) for settings in offered(finding, now)]
    kind = finding.layer.partition("(")[0]
    label = next(iter(subject.labels.get(finding.layer, ())), "") if kind in LAYERS else ""
    label = label or finding.layer.replace(".raw)", ")")
    return replace(finding, layer=label, fix=" or ".join(way or "with its defaults" for way in ways))


def _given(f: Finding) -> str:
    if f.lost.snr is None:
        return "not measured here"
    return f"{f.lost.snr:.1f} dB" + ("" if f.lost.points is None else f", {f.lost.points:+.2f} pt")
