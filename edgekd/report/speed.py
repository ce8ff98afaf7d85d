"""How fast an int8 file is beside the float file, and which layers stay in float for it: text."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from edgekd.report.tables import aligned

Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Mix:
    """A file that was timed: its layers that are in float for the sake of time, its time over that of the float file,
    and the share of multiply-accumulates that it computes in int8."""

    float_layers: tuple[str, ...]
    ratio: Interval
    share: float


@dataclass(frozen=True)
class Speed:
    """How the file that is written was decided on by time. `ratio`: its time over float's, None where nothing was timed
    and `note` says why; `tried`: the files that were timed, all layers in int8 first; `float_layers`: those that went
    back to float; `where`: the machine; `noise`: what
    speaks against the times."""

    ratio: Interval | None = None
    float_layers: tuple[str, ...] = ()
    tried: tuple[Mix, ...] = ()
    share: float = 1.0
    where: str = ""
    note: str = ""
    noise: str = ""

    def __str__(self) -> str:
        if self.ratio is None:
            return self.note
        lines = [f"int8 takes {_shown(self.ratio)} of float's time on {self.where} (p50, interleaved, 95 %)"]
        lines += [self.noise] * bool(self.noise)
        if len(self.tried) > 1:
            rows = [("layers in float", "MACs in int8", "time over float")]
            rows += [(str(len(m.float_layers)), f"{100 * m.share:.0f} %", _shown(m.ratio)) for m in self.tried]
            lines += ["with all layers in int8 it was slower, so that layers were tried in float:"]
            lines += [aligned(rows, indent="  ", right=(0, 1))]
        if self.note:
            lines.append(self.note)
        if self.float_layers:
            lines.append(f"these go back to float: {options(self.float_layers)}")
            lines.append("the file names them, so that --like with it makes the same file again, and times nothing")
        return "\n".join(lines)


def options(layers: tuple[str, ...]) -> str:
    """The layers as options of `quantize`."""
    return " ".join(f"--float-layer {shlex.quote(name)}" for name in layers)


def _shown(ratio: Interval) -> str:
    return f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"
