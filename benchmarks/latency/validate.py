"""Tries the predictor on published latencies that it was not given, and writes result.json and RESULTS.md.

    python benchmarks/latency/validate.py PUBLISHED.csv

Every prediction is of a row whose network was in no row that anything was learned from (`models`), or whose board was not (`boards`), or
neither (`both`). The baseline has the same rows: one throughput in multiply-accumulates per device and precision.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import published
import results
from networks import NETWORKS
from published import Listing

from edgekd.predicting import bound, calibration
from edgekd.predicting.calibration import Calibration
from edgekd.predicting.population import Device, Row, Table, learn, logarithm

SEED = 20240601
DRAWS = 5  # of probe rows per table
Chosen = Callable[[Listing, int], bool]


@dataclass(frozen=True)
class Try:
    """One prediction of one row. `error`, `spread`: of the logarithm; `baseline`: error of the multiply-accumulates. `fold`: what was left out."""

    way: str
    fold: str
    table: str
    board: str
    core: str
    threads: int
    network: str
    precision: str
    value: float
    truth: float
    spread: float
    baseline: float
    draw: int = 0

    @property
    def error(self) -> float:
        return math.log(self.truth / self.value)


def restricted(listing: Listing, keep: Chosen) -> Table:
    return dataclasses.replace(listing.table, rows=tuple(r for i, r in enumerate(listing.table.rows) if keep(listing, i)))


def throughputs(listings: Sequence[Listing], keep: Chosen) -> list[dict[str, float]]:
    """{precision: logarithm of milliseconds per million multiply-accumulates} of each table: the median of its rows."""
    found = []
    for listing in listings:
        by: dict[str, list[float]] = {}
        for i, row in enumerate(listing.table.rows):
            if keep(listing, i):
                by.setdefault(row.precision, []).append(math.log(row.milliseconds / listing.macs[i]))
        found.append({p: float(np.median(v)) for p, v in by.items()})
    return found


def transferred_throughput(listings: Sequence[Listing], known: Sequence[dict[str, float]], device: Device, precision: str) -> float:
    """What the baseline says of a device that was not timed: ridge regression on the same traits as the predictor's."""
    chosen = [(listing, k[precision]) for listing, k in zip(listings, known, strict=True) if precision in k]
    traits = np.array([x.table.device.traits() for x, _ in chosen])
    y = np.array([v for _, v in chosen])
    ridge = np.diag([1e-3] + [1.0] * (traits.shape[1] - 1))
    same = [i for i, (x, _) in enumerate(chosen) if x.table.device.core == device.core]
    weights = np.linalg.solve(traits.T @ traits + ridge, traits.T @ y)
    left = y - traits @ weights
    return float(device.traits() @ weights + (np.mean(left[same]) * 0.75 if same else 0.0))


def tried(way: str, fold: str, listing: Listing, i: int, fitted: Calibration, throughput: float, draw: int = 0) -> Try:
    row, device = listing.table.rows[i], listing.table.device
    value, gradient = logarithm(fitted.mean, row.costs, row.precision)
    spread = math.sqrt(float(gradient @ fitted.covariance @ gradient) + fitted.noise)
    baseline = math.log(row.milliseconds / listing.macs[i]) - throughput
    where = (listing.table.name, listing.board, device.core, device.threads, listing.networks[i], row.precision)
    return Try(way, fold, *where, math.exp(value), row.milliseconds, spread, baseline, draw)


def without_network(listings: Sequence[Listing], name: str, boards: Sequence[str] = ()) -> list[Try]:
    """Each table's rows of a network from its other rows. With `boards`: the population has seen neither the network nor the board."""

    def keep(listing: Listing, i: int) -> bool:
        return listing.networks[i] != name

    found = []
    for board in boards or ("",):
        taught = [x for x in listings if x.board != board]
        population = learn([restricted(x, keep) for x in taught], "ncnn")
        for listing in listings if not board else [x for x in listings if x.board == board]:
            given = restricted(listing, keep).rows
            fitted = calibration.fit(given, listing.table.device, population)
            scale = throughputs([listing], keep)[0]
            for i, n in enumerate(listing.networks):
                p = listing.table.rows[i].precision
                if n == name and p in scale:
                    found.append(tried("both" if board else "models", board or name, listing, i, fitted, scale[p]))
    return found


def without_board(listings: Sequence[Listing], board: str) -> list[Try]:
    """The rows of a board that no row was seen of (`boards 0`), or 3 or 5 rows of each precision, drawn five times."""
    others, own = [x for x in listings if x.board != board], [x for x in listings if x.board == board]
    population = learn([x.table for x in others], "ncnn")
    kin = [calibration.fit(x.table.rows, x.table.device, population, name=x.table.name) for x in others]
    known = throughputs(others, lambda x, i: True)
    found = []
    for number, listing in enumerate(own):
        device, rows = listing.table.device, listing.table.rows
        fitted = calibration.fit((), device, population, relatives=kin)
        for i in range(len(rows) if any(k.device.core == device.core for k in kin) else 0):  # else there is a bound only
            found.append(tried("boards 0", board, listing, i, fitted, transferred_throughput(others, known, device, rows[i].precision)))
        for k in (3, 5):
            for draw in range(DRAWS):
                probes = drawn(rows, k, np.random.default_rng([SEED, number, k, draw]))
                fitted = calibration.fit([rows[i] for i in probes], device, population, relatives=kin)
                scale = throughputs([listing], lambda x, i, probes=probes: i in probes)[0]
                rest = [i for i in range(len(rows)) if i not in probes]
                found += [tried(f"boards {k}", board, listing, i, fitted, scale[rows[i].precision], draw) for i in rest]
    return found


def offsets(listings: Sequence[Listing], others: Sequence[tuple[str, Listing]]) -> list[tuple[str, str, float, float]]:
    """(source, precision, mean logarithm of truth over prediction, its deviation over rows) of each table of another runtime, on cores that the
    listings have."""
    population = learn([x.table for x in listings], "ncnn")
    kin = [calibration.fit(x.table.rows, x.table.device, population, name=x.table.name) for x in listings]
    found = []
    for source, listing in others:
        fitted = calibration.fit((), listing.table.device, population, relatives=kin)
        by: dict[str, list[float]] = {}
        for row in listing.table.rows if any(k.device.core == listing.table.device.core for k in kin) else ():
            by.setdefault(row.precision, []).append(math.log(row.milliseconds) - logarithm(fitted.mean, row.costs, row.precision)[0])
        found += [(source, p, float(np.mean(v)), float(np.std(v))) for p, v in by.items()]
    return found


def without_runtime(listings: Sequence[Listing], others: Sequence[tuple[str, Listing]], source: str) -> list[Try]:
    """The rows of a source that used another runtime: from the core alone (`runtimes 0`), and from 3 of its rows of each precision."""
    shifts = {p: [m for s, q, m, _ in offsets(listings, others) if q == p and s != source] for p in ("float", "int8")}
    variances = {p: float(np.mean(np.square(v))) for p, v in shifts.items()}
    population = dataclasses.replace(learn([x.table for x in listings], "ncnn"), runtimes=variances)
    kin = [calibration.fit(x.table.rows, x.table.device, population, name=x.table.name) for x in listings]
    known = throughputs(listings, lambda x, i: True)
    found = []
    for number, listing in enumerate(x for s, x in others if s == source):
        device, rows = listing.table.device, listing.table.rows
        if any(k.device.core == device.core for k in kin):
            fitted = calibration.fit((), device, population, relatives=kin, runtime=source)
            for i, row in enumerate(rows):
                found.append(tried("runtimes 0", source, listing, i, fitted, transferred_throughput(listings, known, device, row.precision)))
        counts = {p: sum(r.precision == p for r in rows) for p in ("float", "int8")}
        enough = [i for i, r in enumerate(rows) if counts[r.precision] >= 5]
        for draw in range(DRAWS if enough else 0):
            probes = {enough[j] for j in drawn([rows[i] for i in enough], 3, np.random.default_rng([SEED, number, draw]))}
            fitted = calibration.fit([rows[i] for i in probes], device, population, relatives=kin, runtime=source)
            scale = throughputs([listing], lambda x, i, probes=probes: i in probes)[0]
            found += [tried("runtimes 3", source, listing, i, fitted, scale[rows[i].precision], draw) for i in enough if i not in probes]
    return found


def drawn(rows: Sequence[Row], k: int, generator: np.random.Generator) -> set[int]:
    """k rows of each precision."""
    by: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by.setdefault(row.precision, []).append(i)
    return {int(i) for indices in by.values() for i in generator.choice(indices, k, replace=False)}


# ---------------------------------------------------------------- figures


def reaches(tries: Sequence[Try]) -> dict[str, float]:
    """{fold: standard deviations that hold 95 % of the rows of all other folds}: conformal, with each fold's own rows left out."""
    return {fold: reach([t for t in tries if t.fold != fold]) for fold in sorted({t.fold for t in tries})}


def reach(tries: Sequence[Try]) -> float:
    """The quantile of the standardized errors that holds 95 % (split conformal: Lei et al., JASA 113 (2018) 1094)."""
    ratios = np.sort([abs(t.error) / t.spread for t in tries])
    return float(ratios[min(len(ratios) - 1, math.ceil(0.95 * (len(ratios) + 1)) - 1)])


def figures(tries: Sequence[Try], reached: dict[str, float]) -> dict[str, Any]:
    """Median and 90th percentile of |prediction / truth - 1|, share inside the interval, its median width as a factor to each side, ranks."""
    errors = np.array([abs(t.value / t.truth - 1) for t in tries])
    baseline = np.array([abs(math.exp(-t.baseline) - 1) for t in tries])
    inside = [abs(t.error) <= reached[t.fold] * t.spread for t in tries]
    width = [math.exp(reached[t.fold] * t.spread) for t in tries]
    return {
        "rows": len(tries),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "macs_median_error": float(np.median(baseline)),
        "macs_p90_error": float(np.quantile(baseline, 0.9)),
        "inside": float(np.mean(inside)),
        "interval_factor": float(np.median(width)),
        "rank_correlation": ranks(tries, lambda t: t.value),
        "macs_rank_correlation": ranks(tries, lambda t: t.truth * math.exp(-t.baseline)),
    }


def ranks(tries: Sequence[Try], value: Callable[[Try], float]) -> float | None:
    """Mean over tables and precisions of Spearman's correlation of prediction and truth."""
    groups: dict[tuple[str, str, int], list[Try]] = {}
    for t in tries:
        groups.setdefault((t.table, t.precision, t.draw), []).append(t)
    found = [float(np.corrcoef(_order([value(t) for t in g]), _order([t.truth for t in g]))[0, 1]) for g in groups.values() if len(g) >= 5]
    return float(np.mean(found)) if found else None


def _order(values: Iterable[float]) -> np.ndarray:
    return np.argsort(np.argsort(np.array(list(values)))).astype(float)


def signs(tries: Sequence[Try]) -> dict[str, Any]:
    """How often the prediction says rightly whether int8 is faster than float: same network, table and draw, both left out.

    `always`: how often the more frequent answer is right. The baseline's is whether int8 has the greater throughput."""
    pairs: dict[tuple[Any, ...], dict[str, Try]] = {}
    for t in tries:
        pairs.setdefault((t.table, t.network, t.draw), {})[t.precision] = t
    both = [p for p in pairs.values() if len(p) == 2]
    if not both:
        return {"pairs": 0}
    truth = np.array([p["int8"].truth < p["float"].truth for p in both])
    said = np.array([p["int8"].value < p["float"].value for p in both])
    macs = np.array([p["int8"].truth * math.exp(-p["int8"].baseline) < p["float"].truth * math.exp(-p["float"].baseline) for p in both])
    clear = np.array([abs(math.log(p["int8"].truth / p["float"].truth)) > 0.1 for p in both])
    return {
        "pairs": len(both),
        "right": float((truth == said).mean()),
        "macs_right": float((truth == macs).mean()),
        "always": float(max(truth.mean(), 1 - truth.mean())),
        "right_where_10_percent": float((truth == said)[clear].mean()),
    }


def noise(listings: Sequence[Listing]) -> dict[str, Any]:
    """What the tables say of themselves: rows of one network, precision, core, clock and number of threads in two tables."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for listing in listings:
        for i, row in enumerate(listing.table.rows):
            groups.setdefault((listing.table.device, listing.networks[i], row.precision), []).append(math.log(row.milliseconds))
    ratios = np.array([abs(b - a) for v in groups.values() for j, a in enumerate(v) for b in v[j + 1 :]])
    return {
        "pairs": len(ratios),
        "median_difference": float(np.expm1(np.median(ratios))),
        "p90_difference": float(np.expm1(np.quantile(ratios, 0.9))),
    }


def bounds(listings: Sequence[Listing]) -> dict[str, Any]:
    """How far published times lie above what the predictor calls a bound; `below` must be 0."""
    work = {name: make().work for name, make in NETWORKS.items()}
    features = {"cortex-a53": (), "cortex-a72": (), "avx2": ("avx_vnni",), "avx512": ("avx512_vnni",)}
    found = []
    for listing in listings:
        device = listing.table.device
        for name, row in zip(listing.networks, listing.table.rows, strict=True):
            least = bound.bound(work[name], device, precision=row.precision, features=features.get(device.core, ("dotprod",))).low
            found.append((row.milliseconds / least, name))
    below = [name for ratio, name in found if ratio < 1]
    ratios = np.array([ratio for ratio, _ in found])
    extent = {"least": float(ratios.min()), "median": float(np.median(ratios)), "most": float(ratios.max())}
    return {"rows": len(found), "below": len(below), "networks": sorted(set(below)), **extent}


def summary(tries: Sequence[Try]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in dict.fromkeys(t.way for t in tries):
        chosen = [t for t in tries if t.way == way]
        reached = reaches(chosen)
        found[way] = {"all": figures(chosen, reached), "signs": signs(chosen), "reach": reach(chosen)}
        for key in ("precision", "threads", "core", "board"):
            values = sorted({getattr(t, key) for t in chosen})
            found[way][key] = {str(v): figures([t for t in chosen if getattr(t, key) == v], reached) for v in values}
    return found


def main(path: Path) -> None:
    rows = published.read(path)
    listings = published.listings(rows)
    others = [(source, x) for source in published.OTHER_RUNTIMES for x in published.listings(rows, source)]
    names, boards = sorted({n for x in listings for n in x.networks}), sorted({x.board for x in listings})
    work: list[tuple[Callable[..., list[Try]], tuple[Any, ...]]] = [(without_network, (listings, name)) for name in names]
    work += [(without_board, (listings, board)) for board in boards]
    work += [(without_runtime, (listings, others, source)) for source in published.OTHER_RUNTIMES]
    work += [(without_network, (listings, name, boards)) for name in names]
    tries = []
    for done, (part, arguments) in enumerate(work, 1):
        tries += part(*arguments)
        print(f"\r{done}/{len(work)}", end="", file=sys.stderr, flush=True)
    found = {
        "schema": "edgekd.latency/1",
        "rows": {"file": len(rows), "used": sum(len(x.networks) for x in listings), "tables": len(listings), "boards": len(boards)},
        "networks": len(names),
        "other_runtimes": sum(len(x.networks) for _, x in others),
        "left_out": published.left_out(rows),
        "noise": noise(listings),
        "bounds": bounds(listings),
        "offsets": offsets(listings, others),
        "ways": summary(tries),
    }
    here = Path(__file__).parent
    (here / "result.json").write_text(json.dumps(results.rounded(found), indent=1) + "\n", encoding="utf-8")
    (here / "RESULTS.md").write_text(results.markdown(results.rounded(found)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
