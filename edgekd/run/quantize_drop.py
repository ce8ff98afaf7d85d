"""`quantize --max-drop`: settings are tried in the order of what they cost the device, until a file holds what was
asked for. They are selected on one half of the held-out samples, and what is promised is judged on the other half. The
search is a function of figures, so that figures can be given instead of measured."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import UsageError
from edgekd.progress import Silent
from edgekd.report.drop import Held, Row
from edgekd.report.speed import options

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.onnx_graph.convert import Made
    from edgekd.run.allowed_drop import Allowed
    from edgekd.run.quantize_inputs import Given
    from edgekd.samples.rows import Samples

RANGES = ("minmax", "percentile", "mse", "entropy")
TYPICAL = 12  # files that are tried where layers go into float
LOOKED = 64  # samples by which layers are put in order


@dataclass(frozen=True)
class Setting:
    """How a file is made: where its ranges come from, and the layers that stay in float besides those asked for."""

    ranges: str
    equalize: bool = False
    correct_bias: bool = False
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tried:
    """A setting and its figures: on the samples that select, and on those that judge (None: it was not selected)."""

    setting: Setting
    selected: float
    judged: float | None


Figure = Callable[[Setting], float]


def search(
    asked: Setting,
    order: Callable[[Setting], Sequence[str]],
    selected: Figure,
    judged: Figure,
    allowed: Allowed,
) -> tuple[Setting | None, list[Tried]]:
    """(the setting that is taken, or None; all that were tried). First those that cost the device nothing; then, on top
    of the best of them, layers in float in their `order`, twice as many each time, and at last as few as hold."""
    tried: list[Tried] = []

    def holds(setting: Setting) -> bool:
        first = selected(setting)
        second = judged(setting) if allowed.met(first) else None
        tried.append(Tried(setting, first, second))
        return second is not None and allowed.met(second)

    best = asked
    for stage in (ranged, *[flagged] * (not (asked.equalize or asked.correct_bias))):
        for setting in stage(best):
            if holds(setting):
                return setting, tried
        best = min(tried, key=lambda t: allowed.worse(t.selected)).setting
    names, failed, count = order(best), 0, 1
    with_floats = lambda n: dataclasses.replace(best, float_layers=(*best.float_layers, *names[:n]))
    most = len(names) - 1  # one at least is in int8
    while count <= most and not holds(with_floats(count)):
        failed, count = count, max(count + 1, min(2 * count, most))
    if count > most:
        return None, tried
    while count - failed > 1:
        middle = (failed + count) // 2
        failed, count = (failed, middle) if holds(with_floats(middle)) else (middle, count)
    return with_floats(count), tried


def ranged(asked: Setting) -> list[Setting]:
    return [dataclasses.replace(asked, ranges=r) for r in dict.fromkeys((asked.ranges, *RANGES))]


def flagged(best: Setting) -> list[Setting]:
    ways = ((True, False), (False, True), (True, True))
    return [dataclasses.replace(best, equalize=a, correct_bias=b) for a, b in ways]


def nearest(tried: Sequence[Tried], allowed: Allowed) -> Tried:
    """The setting that misses by least, where it was looked at."""
    return min(tried, key=lambda t: max(allowed.worse(f) for f in (t.selected, t.judged) if f is not None))


# ---------------------------------------------------------------- the files


def held(given: Given, made: Made, ranges: str, allowed: Allowed, progress: Silent) -> tuple[Given, Made, Held]:
    """(the request and the file of the setting that is taken, else those given; what was tried)."""
    asked = Setting(ranges, **given.adjust)
    bench = _Bench(given, made, asked, allowed)
    with progress.task("hold the drop") as advance:

        def selected(setting: Setting) -> float:
            bench.count += 1
            advance(bench.count, TYPICAL, text(setting))
            return bench.figure(setting, 0)

        taken, tried = search(asked, bench.order, selected, lambda s: bench.figure(s, 1), allowed)
    rows = tuple(
        Row(text(t.setting), allowed.shown(t.selected), "" if t.judged is None else allowed.shown(t.judged))
        for t in tried
    )
    last = taken or nearest(tried, allowed).setting
    judged = bench.figure(last, 1)
    told = Held(
        taken is not None,
        f"{allowed.kind}, {'at least' if allowed.unit == 'dB' else 'at most'} {allowed.shown(allowed.limit)}",
        rows,
        allowed.shown(judged),
        bench.sizes,
        bench.command(last),
    )
    settled = bench.given(last)
    return settled, bench.made(last) or made, told


def text(setting: Setting) -> str:
    count = len(setting.float_layers)
    more = "" if not count else ", 1 layer in float" if count == 1 else f", {count} layers in float"
    return " ".join(flags(setting)) + more


def flags(setting: Setting) -> list[str]:
    words = ["--ranges", setting.ranges]
    return words + ["--equalize"] * setting.equalize + ["--correct-bias"] * setting.correct_bias


class _Bench:
    """Makes files of settings, of which the first and the last are kept, and compares them on the two halves of the
    held-out samples."""

    def __init__(self, given: Given, made: Made, asked: Setting, allowed: Allowed):
        self.plain, self.allowed, self.asked, self.count = given, allowed, asked, 0
        self.files: dict[Setting, Made | None] = {asked: made}
        turns = np.arange(len(given.compared)) // (given.compared.rows or 1) % 2  # whole batches
        halves = [np.flatnonzero(turns == i) for i in (0, 1)]
        self.samples = [given.compared.take(rows) for rows in halves]
        self.wanted = [answers(given.model, samples) for samples in self.samples]
        self.sizes = len(halves[0]), len(halves[1])

    def given(self, setting: Setting) -> Given:
        names = tuple(dict.fromkeys((*self.plain.scheme.float_layers, *setting.float_layers)))
        return dataclasses.replace(self.plain, scheme=dataclasses.replace(self.plain.scheme, float_layers=names))

    def made(self, setting: Setting) -> Made | None:
        from edgekd.quantization.onnx_graph import convert

        if setting not in self.files:
            self.files = {s: made for s, made in self.files.items() if s == self.asked}  # files can be large
            given = self.given(setting)
            more: dict[str, Any] = {"scheme": given.scheme, "ranges": setting.ranges, "place_name": str(given.path)}
            more |= {"fixed": given.fixed}
            more |= {"equalize": setting.equalize, "correct_bias": setting.correct_bias}
            try:
                self.files[setting] = convert.quantize(given.model, given.calibration, **more)
            except UsageError:  # nothing is left that can be in int8, or values are not finite
                self.files[setting] = None
        return self.files[setting]

    def figure(self, setting: Setting, half: int) -> float:
        made = self.made(setting)
        if made is None:
            return math.nan
        found = answers(made.model, self.samples[half])
        return self.allowed.figure(self.wanted[half], found, self.samples[half].labels)

    def order(self, setting: Setting) -> list[str]:
        """The layers by what they give back in float, the one first that gives back most, on samples that select."""
        from edgekd.quantization.diagnosis.noise import shares
        from edgekd.quantization.qdq.pairing import pair

        made = self.made(setting)
        if made is None:
            return []
        few = self.samples[0].take(slice(0, LOOKED // (size := self.samples[0].rows or 1) * size or size))
        layers = [k for k in made.placement.layers if not k.reason]
        named = {f"{k.kind}({name})": k.label for k in layers for name in (k.name, f"{k.name}.raw")}
        found = [
            named[s.layer.name] for s in shares(pair(made.float_model, made.model), few)[1] if s.layer.name in named
        ]
        return [*found, *(k.label for k in layers if k.label not in found)]

    def command(self, setting: Setting) -> str:
        """What makes the same file without a search, and times nothing."""
        given = self.given(setting)
        words = [*given.words, *flags(setting)]
        kept = given.scheme.float_layers
        return f"{shlex.join(words)} {options(kept) if kept else '--slower-int8'}"


def answers(model: onnx.ModelProto, samples: Samples) -> dict[str, np.ndarray]:
    """{output: array} of a file, for all samples."""
    from edgekd.quantization.diagnosis.noise import outputs

    names = [o.name for o in model.graph.output]
    return dict(zip(names, outputs(model, samples), strict=True))
