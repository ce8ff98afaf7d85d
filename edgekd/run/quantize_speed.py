"""`quantize` is not slower than float: the int8 file is timed against the float file, and stretches of layers whose
int8 costs time go back to float. Decisions are functions of times, so that times can be given instead of taken."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd import environment, targets
from edgekd.errors import EdgekdError, UsageError
from edgekd.measure.machine import host_of, stands_for
from edgekd.measure.together import Bench
from edgekd.onnx_files import external
from edgekd.probes import static
from edgekd.progress import Silent
from edgekd.quantization.diagnosis.mixed_precision import by_value, layer_of
from edgekd.quantization.diagnosis.regions import Cost, proposals
from edgekd.quantization.onnx_graph import convert
from edgekd.quantization.onnx_graph.placement import ASKED, Layer
from edgekd.report.speed import Interval, Mix, Speed
from edgekd.store.scratch import scratch

if TYPE_CHECKING:
    import onnx

    from edgekd.quantization.onnx_graph.convert import Made
    from edgekd.records import Host
    from edgekd.run.quantize_inputs import Given

FEW = 16  # samples that calibrate a file which is only timed: no time depends on its ranges
HALF = 0.5  # the share of multiply-accumulates in int8 without which a file is no int8 file
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
LITTLE = 0.003  # ms of a conversion where none was seen
Ratios = Callable[[Sequence[frozenset[int]]], list[Interval]]


def slower(ratio: Interval) -> bool:
    return ratio[1] > 1


@dataclass(frozen=True)
class Decision:
    """`chosen`: layers in float; `tried` [(layers in float, ratio)], those that could be made."""

    chosen: frozenset[int]
    ratio: Interval
    tried: tuple[tuple[frozenset[int], Interval], ...]


def decide(costs: Callable[[], tuple[Sequence[Cost], float]], macs: Sequence[float], ratios: Ratios) -> Decision:
    """Which layers go back to float. `ratios` times files with such layers in float against the float file; `costs`
    (asked only if int8 is slower) are the layers' and that of a conversion.

    Of the files that are not shown slower, that with most multiply-accumulates in int8, if a second session does not
    show it slower either, else the next. If all are slower, the fastest that computes at least half of them in int8."""
    nothing = frozenset[int]()
    (first,) = ratios([nothing])
    if not slower(first):
        return Decision(nothing, first, ((nothing, first),))
    sets = proposals(*costs())
    tried = [(nothing, first), *zip(sets, ratios(sets) if sets else [], strict=True)]
    share = lambda chosen: in_int8(chosen, macs)
    for chosen, _ in sorted((t for t in tried if not slower(t[1])), key=lambda t: (-share(t[0]), t[1][0])):
        (again,) = ratios([chosen])
        if not slower(again):
            return Decision(chosen, again, tuple(tried))
        tried = [(c, again if c == chosen else r) for c, r in tried]
    chosen, ratio = min((t for t in tried if share(t[0]) >= HALF), key=lambda t: t[1][0])
    return Decision(chosen, ratio, tuple(tried))


def in_int8(chosen: frozenset[int], macs: Sequence[float]) -> float:
    """The share of multiply-accumulates that is left in int8."""
    return 1 - sum(macs[i] for i in chosen) / max(1.0, sum(macs))


# ---------------------------------------------------------------- the files and the machine


def measured(given: Given, made: Made, progress: Silent) -> Speed:
    """What to write of `given`, whose file with all layers in int8 is `made`. Raises EnvironmentUnfit where the board
    is not of the target's kind."""
    unfit = "" if given.on else unmeasurable(given)
    if unfit:
        return Speed(note=f"not timed: {unfit}; every layer that can be is in int8, whatever it takes there")
    with scratch() as folder, _machine(given, progress) as (host, threads):
        subject = _Subject(given, made, Bench(given.calibration, threads, Path(folder), host), progress)
        decision = decide(subject.costs, macs_of(given, made, subject.layers), subject.ratios)
        return subject.told(decision, "this machine" if given.on is None else host.name)


def again(given: Given, made: Made, before: Speed, progress: Silent) -> Speed:
    """What `before` says, with the time of another file in place of that which it took: more layers of it are in float
    for what may be lost. The command that makes it names them all."""
    if before.ratio is None:
        return before
    with scratch() as folder, _machine(given, progress) as (host, threads):
        subject = _Subject(given, made, Bench(given.calibration, threads, Path(folder), host), progress)
        (ratio,) = subject.ratios([frozenset()])
    note = "more layers in float, for what may be lost, are slower than float" if slower(ratio) else ""
    layers = [k for k in made.placement.layers if k.reason in ("", ASKED)]
    kept = frozenset(i for i, k in enumerate(layers) if k.reason)
    share = in_int8(kept, macs_of(given, made, layers)) * of_all(given, made, layers)
    return dataclasses.replace(before, ratio=ratio, note=note, share=share, float_layers=(), noise=subject.noise)


def macs_of(given: Given, made: Made, layers: Sequence[Layer]) -> list[float]:
    """The multiply-accumulates of each layer; the elements of the weights of all where one can't be counted."""
    found = _counted(given, made, layers)
    if None not in found:
        return [float(n or 0) for n in found]
    sizes = convert.stored_bytes(made)
    return [sizes[k.name][0] / 4 for k in layers]


def of_all(given: Given, made: Made, layers: Sequence[Layer]) -> float:
    """The share of these layers in the multiply-accumulates of the whole file: recurrent layers and subgraphs have some
    too. 1 where they can't be counted."""
    found = _counted(given, made, layers)
    try:
        total = static.macs(made.float_model, given.calibration.shapes)[0]
    except EdgekdError:
        return 1.0
    return 1.0 if None in found or not total else sum(n or 0 for n in found) / total


def _counted(given: Given, made: Made, layers: Sequence[Layer]) -> list[int | None]:
    try:
        counted = static.node_macs(made.float_model, given.calibration.shapes)
    except EdgekdError:
        counted = {}
    by_name = {n.output[0]: counted.get(i) for i, n in enumerate(made.float_model.graph.node)}
    return [by_name.get(k.name) for k in layers]


def unmeasurable(given: Given) -> str:
    """Why this machine can't time files for the target; "" if it can."""
    target, facts = given.target, environment.describe()
    if not targets.runs(target) or targets.deployment(target).format != "onnx":
        return f"no runtime of {target.name} takes the file here"
    differs = [*targets.lacking(target, facts), *(f"no {f}" for f in targets.surplus(target, facts))]
    return f"this machine is not a {target.name} ({', '.join(differs)}): --on ssh://... names one" if differs else ""


@contextlib.contextmanager
def _machine(given: Given, progress: Silent) -> Iterator[tuple[Host, int]]:
    with host_of(given.on, progress) as host:
        device, held = stands_for(host, None if given.target.name == targets.HOST else given.target)
        yield held, device.threads


class _Subject:
    """A file whose layers are numbered in the order in which they stand, those alone that can be in int8."""

    def __init__(self, given: Given, made: Made, bench: Bench, progress: Silent):
        self.given, self.made, self.bench, self.progress = given, made, bench, progress
        self.layers = [known for known in made.placement.layers if not known.reason]
        self.labels = [known.label for known in self.layers]
        self.files: dict[frozenset[int], Path] = {}
        self.sessions, self.noise = 0, ""
        self.float_file = self._written("float", given.model)
        self.files[frozenset()] = self._written("int8", made.model)

    def ratios(self, sets: Sequence[frozenset[int]]) -> list[Interval]:
        self.sessions += 1
        files = [self.files.get(s) or self._mixed(s) for s in sets]
        there = [f for f in files if f is not None]
        with self.progress.task("time int8 and float") as advance:
            found = iter(self.bench.ratios([self.float_file, *there], f"session{self.sessions}", advance))
        self.noise = self.noise or ", ".join(self.bench.noise)
        never = (float("inf"),) * 3
        return [next(found) if f is not None else never for f in files]

    def costs(self) -> tuple[list[Cost], float]:
        """What each layer takes in float and in int8, by the runtime's own clock, and a conversion."""
        models = {"float": self.made.float_model, "int8": self.made.model}
        files = [self._written(f"{name}-named", numbered(m, self.layers)) for name, m in models.items()]
        with self.progress.task("time operators"):
            clocks = self.bench.operators(files)
        each = [
            by_layer(clock, model, len(self.layers))
            for clock, model in zip(clocks, (numbered(m, self.layers) for m in models.values()), strict=True)
        ]
        conversions = sorted(ms for name, ms in clocks[1] if name.startswith(CONVERSIONS))
        middle = conversions[len(conversions) // 2] if conversions else LITTLE
        return [Cost(a, b) for a, b in zip(*each, strict=True)], middle

    def told(self, decision: Decision, where: str) -> Speed:
        name = lambda chosen: tuple(self.labels[i] for i in sorted(chosen))
        macs = macs_of(self.given, self.made, self.layers)
        whole = of_all(self.given, self.made, self.layers)
        tried = tuple(Mix(name(s), r, in_int8(s, macs) * whole) for s, r in decision.tried if r[0] != float("inf"))
        note = ""
        if slower(decision.ratio):
            kept = f"the fastest with at least {100 * HALF:.0f} % of the multiply-accumulates in int8 that can be"
            note = (
                f"no file with layers in int8 is as fast as float here: what is written, {kept}, is slower than float"
            )
        share = in_int8(decision.chosen, macs) * whole
        return Speed(decision.ratio, name(decision.chosen), tried, share, where, note, self.noise)

    def _mixed(self, chosen: frozenset[int]) -> Path | None:
        scheme = dataclasses.replace(self.given.scheme, float_layers=tuple(self.labels[i] for i in sorted(chosen)))
        few = self.given.calibration.take(slice(0, max(FEW, self.given.calibration.rows or 1)))
        try:
            known = {"place_name": str(self.given.path), "fixed": self.given.fixed}
            made = convert.quantize(self.given.model, few, scheme=scheme, **known, **self.given.adjust)
        except UsageError:  # none of the rest can be quantized alone
            return None
        self.files[chosen] = self._written(f"mixed{len(self.files)}", made.model)
        return self.files[chosen]

    def _written(self, name: str, model: onnx.ModelProto) -> Path:
        path = self.bench.folder / f"{name}.onnx"
        external.write(model, path)
        return path


# ---------------------------------------------------------------- operators of layers


def numbered(model: onnx.ModelProto, layers: Sequence[convert.Layer]) -> onnx.ModelProto:
    """A copy whose layers' nodes are called layer0, layer1, ... and no others have names: what onnxruntime's clock
    tells of them is found by name."""
    import onnx

    copy, names = onnx.ModelProto(), {known.name: f"layer{i}" for i, known in enumerate(layers)}
    copy.CopyFrom(model)
    for node in copy.graph.node:
        known = names.pop(node.output[0].removesuffix(".raw"), "") if node.op_type not in CONVERSIONS else ""
        node.name = known
    return copy


def by_layer(clock: Sequence[tuple[str, float]], model: onnx.ModelProto, count: int) -> list[float]:
    """Milliseconds of each of `count` layers of a `numbered` model with what runs behind it before the next layer; what
    runs before the first is the first's."""
    makers: Mapping[str, onnx.NodeProto] = {o: n for n in model.graph.node for o in n.output}
    names, total, now = [f"layer{i}" for i in range(count)], [0.0] * count, 0
    for operator, ms in clock:
        name = layer_of(operator, names) or by_value(operator, makers)
        now = names.index(name) if name in names else now
        total[now] += ms
    return total
