"""What came of a fix, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import plain
from edgekd.explain.trial import State, Tried
from edgekd.measure import jobs
from edgekd.quantization.diagnosis.fixes import Fix
from edgekd.quantization.diagnosis.signal_to_noise import decibel
from edgekd.records import Measurement
from edgekd.report.numbers import number
from edgekd.report.tables import aligned


@dataclass(frozen=True)
class Fixed:
    """What came of a candidate. `file` of the fixed file; None where nothing helped, or nothing had to. `remedy`: the
    fix that was taken; `lasting`: what makes the same file from now on. `now` how it was; `plain`, `before` and
    `after`: figures of the float file and the two others on the samples that judge, `change` of the metric (above 0 is
    better) and `ratio` of the latency, after / before, with 95 % intervals (`control`: before / before); `saturation`:
    layers that saturate, before and after. `helped` None: no layer needed a fix. `typed`: fixes are options of
    `quantize`, not lines of a recipe."""

    id: str
    helped: bool | None
    recovered: bool = False
    file: str | None = None
    sha256: str | None = None
    remedy: Fix | None = None
    lasting: str = ""
    proof: str = ""
    note: str = ""
    tried: tuple[Tried, ...] = ()
    now: State | None = None
    plain: tuple[Measurement, ...] = ()
    before: tuple[Measurement, ...] = ()
    after: tuple[Measurement, ...] = ()
    change: tuple[float, float, float] | None = None
    ratio: tuple[float, float, float] | None = None
    control: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: tuple[int, int] = (0, 0)
    typed: bool = False

    def __str__(self) -> str:
        return _text(self)


def _text(f: Fixed) -> str:
    lasting, f = "\n".join(map(plain, f.lasting.split("\n"))), plain(f)  # lines of our own
    head = f"fix of {f.id}"
    if f.helped is None:
        return f"{head}: {f.note}"
    rows = [("fix", "for", "lost to float", "signal to noise", ""), ("(as it is)", "", *_state(f.now), "")]
    lines = [f"{head}: tried on validation", aligned([*rows, *(_row(t, f.typed) for t in f.tried)])]
    if f.file is None and not f.after:
        return "\n".join([*lines, f.note])
    says = "gives back what was lost" if f.recovered else "gives back a part of what was lost"
    if f.change is not None and f.change[1] <= 0:
        says = f"the outputs have less noise; {f.before[0].name} does not change significantly"
    lines += [
        "",
        f"{f.file or 'not kept'}: {_named(f.remedy, f.typed)}; {says if f.helped else f.note}",
        _beside(f),
        f.proof,
        f"layers that these samples saturate on AVX2 without VNNI: {f.saturation[0]} before, {f.saturation[1]} after",
    ]
    if f.helped:
        lines += [f.note] * bool(f.note) + ["", f"to make it so from now on: {lasting}"]
    return "\n".join(lines)


def _named(remedy: Fix, typed: bool) -> str:
    return remedy.typed if typed else remedy.text


def _row(t: Tried, typed: bool) -> tuple[str, ...]:
    state = ("", "") if t.state is None else _state(t.state)
    return _named(t.remedy, typed), ", ".join(t.remedy.causes), *state, t.verdict


def _state(state: State) -> tuple[str, str]:
    return "" if state.lost is None else f"{state.lost:.2f}", f"{-decibel(state.noise):.1f} dB"


def _beside(f: Fixed) -> str:
    rows = [("", "float", "before", "after", "")]
    plain = {m.name: m for m in f.plain}
    for a, b in zip(f.before, f.after, strict=True):
        both = [_figure(m) for m in (plain.get(a.name), a, b)]
        rows.append((a.name, *both, _change(f, a) if a is f.before[0] else ""))
    if f.ratio is not None:
        trusted = jobs.agrees(f.control)
        told = "interleaved, on this machine" if trusted else "not to be trusted: the A/A control excludes 1"
        rows.append(("latency", "", "1", f"{f.ratio[0]:.3f} [{f.ratio[1]:.3f}, {f.ratio[2]:.3f}]", told))
    return aligned(rows)


def _change(f: Fixed, m: Measurement) -> str:
    """How much better the metric is than before."""
    if f.change is None:
        return ""
    unit, (value, low, high) = "pt" if m.unit == "%" else m.unit, f.change
    told = "better" if low > 0 else "worse" if high < 0 else "not significant"
    return f"{value:+.2f} {unit} [{low:+.2f}, {high:+.2f}], {told}, {m.n} samples of {m.split}"


def _figure(m: Measurement | None) -> str:
    if m is None:
        return ""
    interval = f" [{number(m.low, 2)}, {number(m.high, 2)}]" if m.low < m.high else ""
    return (f"{m.value:,.0f}" if m.origin == "counted" else number(m.value, 2)) + f" {m.unit}{interval}"
