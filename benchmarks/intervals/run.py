"""Whether intervals hold: data are drawn whose true figure is known, and how often the interval has it is counted.

    python benchmarks/intervals/run.py [ece means pairs extremes] [--repeats 100] [--jobs 1] [--out FILE]

`ece`: the calibration error's interval and what a budget of 1.5 % makes of calibrated models. `means`: one-sided bounds
of means of skewed values, which the gate's paired comparisons rest on. `pairs`: the same of right or wrong answers that
seldom differ. `extremes`: figures that are the greatest of several. Parts that are not named stay in the file as they
were. RESULTS.md is made of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import environment, intervals
from edgekd.probes import ece, quality

HERE = Path(__file__).parent
Generator = np.random.Generator

# ---------------------------------------------------------------- calibration error

ERRORS, SIZES, BUDGET = (0.0, 0.01, 0.02, 0.05, 0.10), (100, 300, 900, 5000), 0.015
CONFIDENCES: dict[str, Callable[[Generator, int], np.ndarray]] = {
    "85 % at 0.99 and above": lambda g, n: np.where(
        g.random(n) < 0.85, 1 - 0.01 * g.beta(1, 2, n) ** 2, g.uniform(0.3, 1, n)
    ),
    "95 % at 0.999 and above": lambda g, n: np.where(
        g.random(n) < 0.95, 0.999 + 0.001 * g.random(n), g.uniform(0.4, 1, n)
    ),
    "even from 0.2 to 1": lambda g, n: g.uniform(0.2, 1, n),
}


def _too_sure(confidence: np.ndarray, by: float) -> np.ndarray:
    return np.clip(confidence - by, 0, 1)


def _too_hot(confidence: np.ndarray, by: float) -> np.ndarray:
    return 1 / (1 + ((1 - confidence) / confidence) ** (1 - by))


WAYS = {"less by one amount": _too_sure, "of a temperature too low": _too_hot}


def true_error(confidence: np.ndarray, rate: np.ndarray) -> float:
    """Of the 15 bins, of confidences and rates of right answers of very many samples."""
    index = np.clip(np.ceil(confidence * ece.BINS).astype(int) - 1, 0, ece.BINS - 1)
    return float(np.abs(np.bincount(index, weights=rate - confidence, minlength=ece.BINS)).sum()) / len(confidence)


@functools.cache
def amount(kind: str, how: str, error: float) -> float | None:
    """By how much answers are less often right for this error; None where this way can't."""
    way, low, high = WAYS[how], 0.0, 1.0
    many = CONFIDENCES[kind](np.random.default_rng(99), 200_000)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if true_error(many, way(many, middle)) < error else (low, middle)
    return low if abs(true_error(many, way(many, low)) - error) < 1e-3 else None


def calibration(given: tuple[str, str, float, int, int]) -> dict[str, Any] | None:
    kind, how, error, n, repeats = given
    draw, way = CONFIDENCES[kind], WAYS[how]
    by = amount(kind, how, error) if error else 0.0
    if by is None:
        return None
    found = []
    for seed in range(repeats):
        generator = np.random.default_rng([seed, n])
        confidence = draw(generator, n)
        right = (generator.random(n) < way(confidence, by)).astype(float)
        before = (math.nan, math.nan)
        if n == 900 and seed < 40:  # the way until now: the plain sum, bootstrapped
            rows = np.stack([confidence, right], axis=1)
            before = intervals.bootstrap(rows, lambda r: ece.plain(r[:, 0], r[:, 1]), resamples=1000)
        found.append((ece.plain(confidence, right), *ece.interval(confidence, right), *before))
    plain, value, low, high, *before = np.array(found).T
    row = {"confidences": kind, "right": how if error else "as sure", "error": error, "n": n, "repeats": repeats}
    row |= {
        "covered": float(((low <= error + 1e-12) & (error <= high + 1e-12)).mean()),
        "too high": float((low > error + 1e-12).mean()),
    }
    row |= {
        "plain": plain.mean(),
        "value": value.mean(),
        "rmse": float(np.sqrt(((value - error) ** 2).mean())),
        "width": (high - low).mean(),
    }
    row |= {"fails": float((low > BUDGET).mean()), "passes": float((high <= BUDGET).mean())}
    if n == 900:
        low, high = (b[:40] for b in before)
        row |= {
            "bootstrap covered": float(((low <= error) & (error <= high)).mean()),
            "bootstrap fails": float((low > BUDGET).mean()),
        }
    return row


# ---------------------------------------------------------------- means of skewed values


def _log_losses(g: Generator, n: int) -> np.ndarray:
    """How much greater the loss of a copy with noise on its logits is: two classes."""
    margin = g.normal(2, 2, n)
    return np.log1p(np.exp(-(margin + g.normal(0, 1, n)))) - np.log1p(np.exp(-margin))


VALUES: dict[str, tuple[Callable[[Generator, int], np.ndarray], float | None]] = {
    "normal": (lambda g, n: g.normal(size=n), 0.0),
    "Student's t, 3 degrees": (lambda g, n: g.standard_t(3, n), 0.0),
    "differences of log losses": (_log_losses, None),
    "exponential": (lambda g, n: g.exponential(size=n), 1.0),
    "gamma, shape 0.5": (lambda g, n: g.gamma(0.5, size=n), 0.5),
    "lognormal, sigma 0.5": (lambda g, n: np.exp(0.5 * g.normal(size=n)), math.exp(0.125)),
    "lognormal, sigma 1": (lambda g, n: np.exp(g.normal(size=n)), math.exp(0.5)),
    "lognormal, sigma 1.5": (lambda g, n: np.exp(1.5 * g.normal(size=n)), math.exp(1.125)),
    "Weibull, shape 0.5": (lambda g, n: g.exponential(size=n) ** 2, 2.0),
    "90 % zeros, else exponential": (lambda g, n: np.where(g.random(n) < 0.1, g.exponential(size=n), 0.0), 0.1),
    "exponential, 5 % ten times it": (lambda g, n: g.exponential(size=n) * np.where(g.random(n) < 0.05, 10, 1), 1.45),
    "1 % ones, noise of 0.01": (lambda g, n: (g.random(n) < 0.01) + g.normal(0, 0.01, n), 0.01),
}


@functools.cache
def _mean_of_many(kind: str) -> float:
    return float(np.mean([VALUES[kind][0](np.random.default_rng(seed), 10**6).mean() for seed in range(10)]))


def means(given: tuple[str, int, int]) -> dict[str, Any]:
    """Bounds at 95 %, one-sided. `wrong high`: of the bound above, on the side of the long tail; `wrong low`: of the
    one below."""
    kind, n, repeats = given
    (draw, true), generator = VALUES[kind], np.random.default_rng(n)
    true = _mean_of_many(kind) if true is None else true
    found = []
    for seed in range(repeats):
        x = draw(generator, n)
        boot = (
            intervals.bootstrap(x, lambda r: float(r.mean()), 0.9, resamples=1000)
            if seed < 400 and n <= 100
            else (math.nan, math.nan)
        )
        found.append((*intervals.skewed_mean(x, 0.9), *intervals.mean(x, 0.9)[1:], *boot))
    centre, low, high, _, t_high, _, boot_high = np.array(found).T
    boot_high, usual = boot_high[np.isfinite(boot_high)], np.median(t_high - centre)
    row = {
        "values": kind,
        "n": n,
        "repeats": repeats,
        "wrong high": float((high < true).mean()),
        "wrong low": float((low > true).mean()),
    }
    row |= {
        "Student wrong high": float((t_high < true).mean()),
        "bootstrap wrong high": float((boot_high < true).mean()) if len(boot_high) else None,
    }
    return row | {"reach": float(np.median(high - centre) / usual) if usual > 0 else None}


def pairs(given: tuple[float, float, int, int]) -> dict[str, Any]:
    """Right or wrong answers: the candidate alone is wrong on a share, the reference alone on another. Bounds as in
    `means`, by Tango."""
    worse, better, n, repeats = given
    generator, wrong = np.random.default_rng(n), np.zeros(2)
    for _ in range(repeats):
        kind = generator.choice(3, n, p=(worse, better, 1 - worse - better))
        _, low, high = intervals.paired((kind != 1).astype(float), (kind != 0).astype(float), 0.9)
        wrong += (high < worse - better, low > worse - better)
    return {"candidate alone wrong": worse, "reference alone wrong": better, "n": n, "repeats": repeats,
            "wrong high": wrong[0] / repeats,
            "wrong low": wrong[1] / repeats}  # fmt: skip


# ---------------------------------------------------------------- the greatest of several


def extremes(given: tuple[str, int, int, int]) -> dict[str, Any]:
    """`worst_class_drop` where classes lose nothing, all 5 points, or one 20 points; `kl_to_teacher` where few samples
    make up most of it."""
    kind, parts, n, repeats = given
    found, generator = [], np.random.default_rng(n)
    lost = {
        "no class loses": np.zeros(parts),
        "all classes lose 5 pt": np.full(parts, 0.05),
        "one class loses 20 pt": 0.2 * (np.arange(parts) == 0),
    }
    for _ in range(repeats):
        if kind == "kl_to_teacher":
            true, figures = 100 * math.exp(0.5), tuple(100 * x for x in quality._mean(np.exp(generator.normal(size=n))))
        else:
            labels = np.repeat(np.arange(parts), n // parts)
            theirs = (generator.random(len(labels)) < 0.92).astype(float)
            flip = generator.random(len(labels))  # both ways alike, and what is lost on top
            ours = np.where(theirs == 1, flip >= 0.03 + lost[kind][labels] / 0.92, flip < 0.03 * 0.92 / 0.08).astype(
                float
            )
            true, figures = 100 * float(lost[kind].max()), quality.worst_class_drop(ours, theirs, labels)
        found.append((*figures, true))
    value, low, high, true = np.array(found).T
    row = {"figure": kind, "parts": parts, "n": n, "repeats": repeats, "true": float(true[0])}
    return row | {
        "covered": float(((low <= true) & (true <= high)).mean()),
        "value": value.mean(),
        "low": low.mean(),
        "high": high.mean(),
    }


# ---------------------------------------------------------------- the run


def work(repeats: int) -> Iterator[tuple[str, Callable, list]]:
    kinds = [
        (kind, how, error)
        for kind in CONFIDENCES
        for how in WAYS
        for error in ERRORS
        if error or how == "less by one amount"
    ]
    yield "ece", calibration, [(*k, n, repeats) for k in kinds for n in SIZES]
    yield "means", means, [(kind, n, repeats * (40 if n < 1000 else 20)) for kind in VALUES for n in (30, 100, 1000)]
    rates = ((0.01, 0.0), (0.01, 0.01), (0.03, 0.005), (0.05, 0.05), (0.2, 0.1))
    yield "pairs", pairs, [(*rate, n, repeats * 40) for rate in rates for n in (30, 100, 1000)]
    losing = ("no class loses", "all classes lose 5 pt", "one class loses 20 pt")
    drops = [(kind, parts, n) for kind in losing for parts, n in ((10, 900), (100, 1000))]
    yield (
        "extremes",
        extremes,
        [(*d, repeats * 2) for d in (*drops, ("kl_to_teacher", 1, 300), ("kl_to_teacher", 1, 900))],
    )


def tables(result: dict[str, Any]) -> str:
    """RESULTS.md."""
    parts = [
        "# Intervals that hold: results\n\nWritten by `run.py` from `result.json`; don't edit. Shares in per cent.\n"
    ]
    for name, says in SAID.items():
        rows = result.get(name, [])
        if rows:
            heads = list(dict.fromkeys(head for row in rows for head in row))
            lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            lines += ["| " + " | ".join(_cell(row.get(head), head, name) for head in heads) + " |" for row in rows]
            parts.append(f"## {name}\n\n{says(rows)}\n\n" + "\n".join(lines) + "\n")
    machine = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return "\n".join(
        [
            *parts,
            f"Again: `{result['command']}`, seeds 0 and up. {machine['cpu']}, "
            f"Python {machine['python']}, {versions}.\n",
        ]
    )


def _cell(value: Any, head: str, part: str) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2f}" if part == "extremes" and head != "covered" or head == "reach" else f"{100 * value:.1f}"


def _ece_says(rows: list) -> str:
    pooled = {n: np.mean([r["covered"] for r in rows if r["n"] == n]) for n in SIZES}
    least, perfect = min(rows, key=lambda r: r["covered"]), [r for r in rows if r["error"] == 0 and r["n"] == 900]
    told = ", ".join(f"{100 * share:.1f} % of n = {n}" for n, share in pooled.items())
    return (
        f"95 % intervals hold the true error in {told}; the least of {len(rows)} cells is {100 * least['covered']:.1f} "
        f"% ({least['repeats']} repeats a cell: one standard deviation is "
        f"{100 * math.sqrt(0.95 * 0.05 / least['repeats']):.1f}). A budget of 1.5 % fails "
        f"{100 * np.mean([r['fails'] for r in perfect]):.1f} % of calibrated models at 900 samples; a bootstrap of "
        f"the plain sum fails {100 * np.mean([r['bootstrap fails'] for r in perfect]):.0f} % of them and holds 0 in "
        f"{100 * np.mean([r['bootstrap covered'] for r in perfect]):.0f} %."
    )


SAID: dict[str, Callable[[list], str]] = {
    "ece": _ece_says,
    "means": lambda rows: (
        "How often a one-sided bound at 95 % is wrong: 5.0 is promised. `reach`: how far the bound is from the mean, "
        "Student's = 1. Where one value in twenty or a hundred makes up most of the mean, 30 samples often hold none "
        "of them, and no bound that knows the sample alone can tell: Student's t, the bootstrap (BCa and of t) and "
        "Hall's t were tried."
    ),
    "pairs": lambda rows: (
        "One-sided bounds at 95 % of the difference of two shares on the same samples, by Tango: 5.0 is promised."
    ),
    "extremes": lambda rows: (
        "Points, and 0.01 nat for `kl_to_teacher`. The limits of `worst_class_drop` are simultaneous over the classes, "
        "so they hold and are wide; its value is what the sample shows of its worst class, which is more than the "
        "true drop of any where classes are small."
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(SAID))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    options = parser.parse_args()
    facts = environment.describe()
    result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result |= {
        "schema": "edgekd.benchmark/1",
        "command": f"python benchmarks/intervals/run.py --repeats {options.repeats}",
        "environment": facts,
    }
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name, one, given in work(options.repeats):
            if name in options.parts:
                result[name] = [row for row in pool.imap(one, given) if row is not None]
                options.out.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{name}: {len(result[name])} rows", flush=True)
    options.out.with_name("RESULTS.md").write_text(tables(result))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
