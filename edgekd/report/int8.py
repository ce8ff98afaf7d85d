"""The result of the verb `quantize`, printed as tables."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import PASSED, plain
from edgekd.quantization.diagnosis.signal_to_noise import SIGNAL, Agreement
from edgekd.report.drop import Held
from edgekd.report.speed import Speed
from edgekd.report.tables import aligned


@dataclass(frozen=True)
class Row:
    """A layer. `before`, `after`: bytes of its weights and bias (0 for a product of two values); `reason`: why it stays
    in float, or ""; `can_saturate`: whether sums of its products can overflow 16 bits on AVX2 without VNNI; `changed`:
    the share of its outputs that changes then."""

    name: str
    kind: str
    before: int
    after: int
    reason: str = ""
    can_saturate: bool = False
    changed: float | None = None


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize`, printed as a table. `samples`: of calibration; `compared`: samples of the agreements
    and of `top1` (float, int8; if the data has labels); `unused`: whether these were not used for calibration;
    `differ`: the number of values of integer operators for which onnxruntime and the simulation differ, None if not
    checked; `audited`: whether saturation was checked; `full_range`: the option or setting that requested full-range
    weights; `speed`: beside float, None if nothing was to be timed; `held`: what it may lose, None
    if nothing was asked for; `larger`: why the file would not be smaller."""

    model: str
    out: str
    before: int
    after: int
    target: str
    weight_bits: int
    samples: int
    layers: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    differ: int | None
    compared: int = 0
    unused: bool = False
    audited: bool = True
    full_range: str = "--full-range"
    top1: tuple[float, float] | None = None
    speed: Speed | None = None
    held: Held | None = None
    notes: tuple[str, ...] = ()
    larger: str = ""
    exit_code: int = PASSED

    def __str__(self) -> str:
        self = plain(self)
        integer = [r for r in self.layers if not r.reason]
        head = f"{self.model} -> {self.out}: {self.before:,} -> {self.after:,} bytes ({_ratio(self)}), "
        head += (
            f"{len(integer)} of {len(self.layers)} layers in int8, weights of {self.weight_bits} bits for {self.target}"
        )
        parts = [
            head,
            _table(self.layers),
            _agreement(self),
            _saturation(self),
            str(self.speed or ""),
            str(self.held or ""),
            _worse(self),
        ]
        return "\n\n".join(p for p in (*parts, "\n".join(self.notes)) if p)


def _ratio(made: Quantized) -> str:
    if made.after < made.before:
        return f"{made.before / made.after:.2f}x smaller"
    return f"not smaller: {made.larger or 'few of its weights are in int8'}"


def _worse(made: Quantized) -> str:
    """What to do with a file that is neither smaller nor shown faster."""
    ratio = made.speed.ratio if made.speed is not None else None
    if made.after < made.before or ratio is None or ratio[2] < 1:
        return ""
    return "larger, and not faster than float: keep the float file"


def _table(layers: tuple[Row, ...]) -> str:
    rows = [("layer", "operator", "float", "int8", "")]
    for r in layers:
        rows.append(
            (
                r.name,
                r.kind,
                f"{r.before:,} B" if r.before else "",
                f"{r.after:,} B" if r.after and not r.reason else "",
                _state(r),
            )
        )
    return aligned(rows, right=(2, 3))


def _state(row: Row) -> str:
    return f"stays in float: {row.reason}" if row.reason else "" if not row.can_saturate else "can saturate"


def _agreement(made: Quantized) -> str:
    whose = (
        f"held-out samples (every fourth; calibration used {made.samples})" if made.unused else "calibration samples"
    )
    whose = whose if made.compared != 1 else whose.replace("samples", "sample", 1)
    lines = [f"int8 compared with float on {made.compared} {whose}"]
    lines += [f"  {a}" for a in made.agreements]
    if any(a.snr_db is not None for a in made.agreements):
        lines[0] += f"; {SIGNAL}"
    if made.top1 is not None:
        lines.append(f"  top1: {100 * made.top1[0]:.2f} % float, {100 * made.top1[1]:.2f} % int8")
    if made.differ is not None:
        lines.append("  every integer operator computes what the file says: 0 values differ from the simulation")
    return "\n".join(lines)


def _saturation(made: Quantized) -> str:
    found = [r for r in made.layers if r.can_saturate]
    if not made.audited:
        return ""
    if not found:
        return "on AVX2 without VNNI: no layer saturates"
    count = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    lines = [f"on AVX2 without VNNI {count} can saturate; without {made.full_range} the file is exact on every CPU"]
    told = ["not simulated" if r.changed is None else f"{100 * r.changed:.2f} % of its outputs change" for r in found]
    return "\n".join([*lines, aligned(zip((r.name for r in found), told, strict=True), indent="  ")])
