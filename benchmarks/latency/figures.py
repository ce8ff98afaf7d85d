"""Figures of predictions that were tried: errors, coverage with an interval over boards, the width that holds 95 %, the
sign of int8 over float."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
PAIRS = 20
RESAMPLED = 2000
SEED = 7
ENOUGH = 5  # boards from which a core or family is judged; smaller ones are listed
KEYS = ("family", "core", "board", "precision", "threads")


@dataclass(frozen=True)
class Try:
    """One prediction of one row. `error`: logarithm of truth over prediction; `spread`: its standard deviation;
    `baselines` {name: their error}."""

    way: str
    table: str
    board: str
    family: str
    core: str
    threads: str
    network: str
    precision: str
    draw: int
    error: float
    spread: float
    baselines: Mapping[str, float]
    truth: float


@dataclass(frozen=True)
class Pair:
    """Both rows of a network, and what was said of int8 over float: logarithm and standard deviation."""

    plain: Try
    int8: Try
    value: float
    spread: float


def reach(tries: Sequence[Try], without: str = "") -> float:
    """Standard deviations to each side that hold 95 % of the rows, where every board counts once (pooling of the
    boards' distributions: Dunn, Wasserman & Ramdas, Distribution-Free Prediction Sets for Two-Layer Hierarchical
    Models, JASA 118 (2023) 2491)."""
    chosen = [t for t in tries if t.board != without]
    boards = [t.board for t in chosen]
    share = {b: 1 / boards.count(b) for b in set(boards)}
    ratios, shares = np.array([abs(t.error) / t.spread for t in chosen]), np.array([share[b] for b in boards])
    order = np.argsort(ratios)
    sums = np.cumsum(shares[order]) / shares.sum()
    return float(ratios[order][min(len(order) - 1, int(np.searchsorted(sums, LEVEL - 1e-9)))])


def resampled(
    values: Mapping[str, Sequence[float]], of: Callable[[np.ndarray], float] = np.mean
) -> tuple[float, float]:
    """95 % interval of a figure pooled over boards, by drawing whole boards with replacement (percentiles)."""
    boards, generator = [np.asarray(v, float) for v in values.values()], np.random.default_rng(SEED)
    drawn = [
        of(np.concatenate([boards[i] for i in generator.integers(0, len(boards), len(boards))]))
        for _ in range(RESAMPLED)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def figures(tries: Sequence[Try], reached: Mapping[str, float]) -> dict[str, Any]:
    """Median and 90th percentile of |prediction / truth - 1|, share inside the interval, its median width as a factor
    to each side, ranks; the median error of the baselines on the rows where they apply, and how many those are."""
    errors = np.array([abs(math.expm1(-t.error)) for t in tries])
    inside: dict[str, list[float]] = {}
    for t in tries:
        inside.setdefault(t.board, []).append(float(abs(t.error) <= reached[t.board] * t.spread))
    low, high = resampled(inside)
    found = {
        "rows": len(tries),
        "boards": len(inside),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "inside": float(np.mean([i for v in inside.values() for i in v])),
        "inside_low": low,
        "inside_high": high,
        "interval_factor": float(np.median([math.exp(reached[t.board] * t.spread) for t in tries])),
        "wider_than_2": float(np.mean([reached[t.board] * t.spread > math.log(2) for t in tries])),
        "rank_correlation": ranks(tries, lambda t: t.truth - t.error),
    }
    for name in ("additive", "pooled", "macs"):
        off = [abs(math.expm1(-t.baselines[name])) for t in tries if name in t.baselines]
        found[name] = {"rows": len(off), "median_error": float(np.median(off)) if off else None}
    return found


def ranks(tries: Sequence[Try], value: Callable[[Try], float]) -> float | None:
    """Mean over tables and precisions of Spearman's correlation of prediction and truth."""
    groups: dict[tuple[str, str, int], list[Try]] = {}
    for t in tries:
        groups.setdefault((t.table, t.precision, t.draw), []).append(t)
    order = lambda values: np.argsort(np.argsort(np.array(values))).astype(float)
    found = [
        float(np.corrcoef(order([value(t) for t in g]), order([t.truth for t in g]))[0, 1])
        for g in groups.values()
        if len(g) >= 5
    ]
    return float(np.mean(found)) if found else None


def signs(pairs: Sequence[Pair], reached: float) -> dict[str, Any]:
    """How often the prediction says rightly whether int8 is faster than float. `always`: how often the more frequent
    answer is right; `decided`: the share of which the interval of the ratio excludes 1, `right_decided` how often that
    sign is right; `inside`: of the ratio; `clear`: the smallest factor between both predictions from which on 95 % of
    the signs are right, None where fewer than PAIRS are so far apart; `least`, `most`: the median ratio of a board."""
    truth = np.array([p.int8.truth - p.plain.truth for p in pairs])
    said, spread = np.array([p.value for p in pairs]), np.array([p.spread for p in pairs])
    right, decided = (truth < 0) == (said < 0), np.abs(said) > reached * spread
    boards = np.array([p.plain.board for p in pairs])
    ratios = [math.exp(float(np.median(truth[boards == b]))) for b in set(boards.tolist())]
    order = np.argsort(-np.abs(said))
    sure = np.flatnonzero(np.cumsum(right[order]) >= LEVEL * np.arange(1, len(order) + 1))
    last = int(sure[-1]) if len(sure) else -1
    return {
        "clear": math.exp(abs(said[order[last]])) if last + 1 >= PAIRS else None,
        "least": min(ratios),
        "most": max(ratios),
        "pairs": len(pairs),
        "boards": len(ratios),
        "right": float(right.mean()),
        "always": float(max((truth < 0).mean(), (truth > 0).mean())),
        "decided": float(decided.mean()),
        "right_decided": float(right[decided].mean()) if decided.any() else None,
        "inside": float((np.abs(truth - said) <= reached * spread).mean()),
    }


def summary(tries: Sequence[Try], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Of each way: all rows, and by family, core, board, precision and threads; an interval's reach is that of the
    other boards."""
    found: dict[str, Any] = {}
    for way in dict.fromkeys(t.way for t in tries):
        chosen, both = [t for t in tries if t.way == way], [p for p in pairs if p.plain.way == way]
        reached = (
            {b: reach(chosen, b) for b in {t.board for t in chosen}}
            if len({t.board for t in chosen}) > 1
            else {chosen[0].board: reach(chosen)}
        )
        found[way] = {"all": figures(chosen, reached), "reach": reach(chosen)}
        if both:
            by = {f: [p for p in both if p.plain.family == f] for f in sorted({p.plain.family for p in both})}
            found[way]["signs"] = {
                "all": signs(both, reach(chosen)),
                **{f: signs(v, reach(chosen)) for f, v in by.items()},
            }
        for key in KEYS:
            values = sorted({getattr(t, key) for t in chosen})
            found[way][key] = {v: figures([t for t in chosen if getattr(t, key) == v], reached) for v in values}
    return found
