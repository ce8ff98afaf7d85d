"""What could fix an int8 file, from the causes that were found: settings to quantize it again with, those that cost
nothing at run time first.

Whether one does help is not known here: it is tried and measured (`edgekd.explain.fix`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekd.quantization.diagnosis.layers import Finding

ENOUGH = 512  # samples that calibration is never short of
AGAIN = "quantize again"
# parts of a recipe that `quantize` has an option for
FLAGS = {"equalize": "--equalize", "bias_correction": "--correct-bias"}


@dataclass(frozen=True)
class Fix:
    """`settings` to quantize with instead of those now ({}: the same again), the layers' `causes` that it is for, and
    what it `costs` the device: nothing, or time. (Fewer bits are stored in a byte too.)"""

    settings: Mapping[str, Any]
    causes: tuple[str, ...] = ()
    costs: str = "nothing"

    @property
    def text(self) -> str:
        return ", ".join(f"{k} = {shown(v)}" for k, v in self.settings.items()) or AGAIN

    @property
    def typed(self) -> str:
        """The same as options of `edgekd quantize`."""
        return shlex.join(options(self.settings)) or "with its defaults"


@dataclass(frozen=True)
class Now:
    """How a file was made: `settings` as far as they are known, the most `samples` that there are, `keys` that can be
    given, `parts` that `before` and `after` may name (None: all), `bits` that weights may have; `layers` {layer of a
    finding: names of those whose weights go together with its}."""

    settings: Mapping[str, Any]
    samples: int
    keys: frozenset[str]
    bits: int = 8
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: bool = True  # whether the same settings make the same file, so that to do it again is idle
    parts: frozenset[str] | None = None

    def given(self, key: str, value: Any) -> Any:
        """A setting, as far as it can be given."""
        parts = None if key not in ("before", "after") else self.parts
        return value if parts is None else tuple(name for name in value if name in parts)


def fixes(findings: Sequence[Finding], now: Now) -> list[Fix]:
    """Fixes that cost the device nothing in the order to try them: those for the worst layer's cause first, at the
    end the first of each cause together."""
    found: list[Fix] = []
    firsts: dict[str, Mapping[str, Any]] = {}
    for cause in dict.fromkeys(f.cause for f in findings):
        mine = [r for s in _settings(cause, findings, now) if (r := _possible(s, cause, now)) is not None]
        if mine:
            firsts[cause] = mine[0].settings
        found += mine
    if len(firsts) > 1:
        together: dict[str, Any] = {}
        for settings in reversed(firsts.values()):  # the worst layer's cause has the last word
            together |= settings
        found.append(Fix(together, tuple(firsts)))
    unique = {repr(sorted(r.settings.items())): r for r in reversed(found)}
    return [r for r in found if unique[repr(sorted(r.settings.items()))] is r]


def offered(finding: Finding, now: Now) -> list[Mapping[str, Any]]:
    """Settings that could help one layer, as far as they can be given, the likeliest first; at the end, to keep it in
    float."""
    found: list[Mapping[str, Any]] = []
    for settings in _settings(finding.cause, [finding], now):
        fix = _possible(settings, finding.cause, now)
        found += [] if fix is None or fix.settings in found else [fix.settings]
    names = now.layers.get(finding.layer, ())
    return [*found, *([{"float_layers": names}] if names and "float_layers" in now.keys else [])]


def in_float(order: Iterable[str], now: Now, settings: Mapping[str, Any] = {}) -> Iterable[Fix]:
    """Fixes that keep 1, 2, 3, ... layers in float, in the given `order`, on top of `settings`."""
    if "float_layers" not in now.keys:
        return
    names: list[str] = list(now.settings.get("float_layers", ()))
    for layer in order:
        more = [n for n in now.layers.get(layer, ()) if n not in names]
        if not more:
            continue
        names += more
        bits = {k: v for k, v in {**now.settings, **settings}.get("layer_bits", {}).items() if k not in names}
        kept = (
            {**settings, "layer_bits": bits}
            if "layer_bits" in settings or bits != now.settings.get("layer_bits", {})
            else settings
        )
        yield Fix({**kept, "float_layers": tuple(names)}, costs="time")


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of `edgekd quantize`."""
    words: list[str] = []
    for key, value in sorted(settings.items()):
        if key == "float_layers":
            words += [w for name in value for w in ("--float-layer", name)]
        elif key in ("before", "after"):
            words += [FLAGS[name] for name in value]
        else:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def shown(value: Any) -> str:
    """A setting as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {shown(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _settings(cause: str, findings: Sequence[Finding], now: Now) -> list[dict[str, Any]]:
    """What to try for a cause, the likeliest first."""
    known = now.settings.get("ranges", "minmax" if not now.same else None)  # what AGAIN does
    ranges = lambda *names: [{"ranges": n} for n in names if n != known]
    trained = now.settings.get("mode") == "qat"
    learned = [{"observer": "learned"}] if trained and now.settings.get("observer") == "averaged" else []
    more = {"samples": min(ENOUGH, now.samples)}
    before = lambda *names: {"before": tuple(dict.fromkeys((*now.settings.get("before", ()), *names)))}
    again: list[dict[str, Any]] = [] if now.same else [{}]
    named = {n: now.bits for f in findings if f.cause == cause for n in now.layers.get(f.layer, ())}
    given: dict[str, list[dict[str, Any]]] = {
        "calibration too small": [more, *({**more, **r} for r in ranges("minmax"))],
        "clipped range": [*again, *learned, *ranges("minmax", "mse"), more],
        "outlier": ranges("percentile", "mse", "entropy"),
        "wrong scale": [*again, *ranges("mse", "percentile")],
        "outlier channel": [*again, before("equalize"), before("equalize", "smooth"), *ranges("mse")],
        "folded batch norm": [before("equalize"), {**before("equalize"), "after": ("bias_correction",)}],
        "per-tensor weights on depthwise": again,
        "few bits": [{"weight_bits": now.bits}, {"layer_bits": {**now.settings.get("layer_bits", {}), **named}}],
        "saturation": [*again, {"pairs16": True}, {"weight_bits": 7}],
        "activation shape": ranges("mse", "percentile"),
        "rounding": [{"after": ("adaround", "bias_correction")}] if not trained else [],
    }
    return given.get(cause, [])


def _possible(settings: Mapping[str, Any], cause: str, now: Now) -> Fix | None:
    """The fix without settings that can't be given; None if nothing is left, or nothing is new."""
    given = {k: now.given(k, v) for k, v in settings.items() if k in now.keys}
    changed = {k: v for k, v in given.items() if now.settings.get(k) != v and v not in ({}, ())}
    if now.settings.get("mode") == "qat":
        changed.pop("after", None)
    if settings and not changed:
        return None
    return Fix(changed, (cause,))
