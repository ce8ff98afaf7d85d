"""Tries the predictor on published latencies of boards that it was not given, and writes result.json and RESULTS.md.

    python benchmarks/latency/validate.py PUBLISHED.csv MORE.csv

Every board is left out of everything that is learned, with 0, 3 and 5 of its rows of each precision given back; and
once more with a fifth of the networks left out of everything, too, so that neither the board nor the network was ever
seen. What makes intervals as wide as they are (a board's own level, the reach) is estimated over boards, and for each
board from the others alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import baselines
import figures
import numpy as np
import published
import results
import themselves
from figures import Pair, Try
from published import Listing

from edgekd.predicting import calibration, costs
from edgekd.predicting.calibration import Calibration
from edgekd.predicting.population import BOARDS, Population, Table, learn, logarithm

SEED = 20240601
DRAWS = 3  # of rows that are given back, per table and count
GIVEN = (0, 3, 5)
FOLDS = 5  # of networks
PRIOR = 3.0  # boards
Terms = Mapping[str, Mapping[str, float]]
Shares = Mapping[str, baselines.Share]


@dataclass(frozen=True)
class Unseen:
    """What was learned without a board and without some networks: the population, the baselines, and the listings
    themselves."""

    board: str
    networks: frozenset[str]
    listings: tuple[Listing, ...]
    population: Population
    shares: Shares

    def known(self, listing: Listing, i: int) -> bool:
        return listing.networks[i] not in self.networks

    def relatives(self, core: str) -> list[Calibration]:
        kin = [x for x in self.listings if x.table.device.core == core]
        return [
            calibration.fit(restricted(x, self.known).rows, x.table.device, self.population, board=x.board) for x in kin
        ]


def restricted(listing: Listing, keep: baselines.Known) -> Table:
    return dataclasses.replace(
        listing.table, rows=tuple(r for i, r in enumerate(listing.table.rows) if keep(listing, i))
    )


def without(listings: Sequence[Listing], board: str, networks: Iterable[str] = ()) -> Unseen:
    gone, others = frozenset(networks), tuple(x for x in listings if x.board != board)
    keep: baselines.Known = lambda x, i: x.networks[i] not in gone
    shares = {name: make(listings if name == "macs" else others, keep) for name, make in baselines.WAYS.items()}
    if gone:  # the pooled costs can say every network; a number per network can't
        shares["pooled"] = baselines.pooled(others, keep)
    return Unseen(board, gone, others, learn([restricted(x, keep) for x in others], "ncnn"), shares)


def tries(
    listings: Sequence[Listing], unseen: Unseen, terms: Terms, counts: Sequence[int] = GIVEN
) -> tuple[list[Try], list[Pair]]:
    """The rows of a board (of the networks that were left out, where some were) from `counts` of its rows of each
    precision."""
    known = dataclasses.replace(unseen.population, boards=terms)
    unseen = dataclasses.replace(unseen, population=known)
    found: list[Try] = []
    pairs: list[Pair] = []
    for number, listing in enumerate(x for x in listings if x.board == unseen.board):
        device, rows = listing.table.device, listing.table.rows
        kin = unseen.relatives(device.core)
        for count in counts:
            for draw in range(DRAWS if count else 1):
                given = drawn(listing, unseen, count, np.random.default_rng([SEED, number, count, draw]))
                if given is None:
                    continue
                fitted = calibration.fit([rows[i] for i in sorted(given)], device, known, relatives=kin)
                levels = leveled(listing, unseen, given)
                asked = [
                    i
                    for i in range(len(rows))
                    if i not in given and (not unseen.networks or not unseen.known(listing, i))
                ]
                way = ("cores 0" if not kin and not count else f"boards {count}") + (
                    ", networks" if unseen.networks else ""
                )
                made = [tried(way, listing, i, fitted, unseen.shares, levels, draw) for i in asked]
                found += made
                pairs += paired(way, listing, asked, fitted, made)
    return found, pairs


def drawn(listing: Listing, unseen: Unseen, count: int, generator: np.random.Generator) -> frozenset[int] | None:
    """`count` rows of each precision of known networks; None where there aren't enough."""
    by: dict[str, list[int]] = {p: [] for p in costs.PRECISIONS}
    for i, row in enumerate(listing.table.rows):
        if unseen.known(listing, i):
            by[row.precision].append(i)
    if any(len(v) < count for v in by.values()):
        return None
    return (
        frozenset(int(i) for v in by.values() for i in generator.choice(v, count, replace=False))
        if count
        else frozenset()
    )


def leveled(listing: Listing, unseen: Unseen, given: frozenset[int]) -> dict[str, dict[str, float]]:
    """{baseline: level of the table by precision}."""
    if given:
        return {
            name: baselines.levels(listing, share, lambda x, i: i in given) for name, share in unseen.shares.items()
        }
    of = lambda share: [baselines.levels(x, share, unseen.known) for x in unseen.listings]
    return {
        name: baselines.carried(unseen.listings, of(share), listing.table.device)
        for name, share in unseen.shares.items()
    }


def tried(
    way: str,
    listing: Listing,
    i: int,
    fitted: Calibration,
    shares: Shares,
    levels: Mapping[str, Mapping[str, float]],
    draw: int = 0,
    board: str = "",
) -> Try:
    row, network, device = listing.table.rows[i], listing.networks[i], listing.table.device
    value, gradient = logarithm(fitted.mean, row.costs, row.precision)
    spread, truth = math.sqrt(float(gradient @ fitted.covariance @ gradient) + fitted.noise), math.log(row.milliseconds)
    key = (network, row.precision)
    off = {
        n: truth - share[key] - levels[n][row.precision]
        for n, share in shares.items()
        if key in share and row.precision in levels[n]
    }
    place = (board or listing.board, device.family, device.core, str(device.threads))
    return Try(way, listing.table.name, *place, network, row.precision, draw, truth - value, spread, off, truth)


def paired(way: str, listing: Listing, asked: Sequence[int], fitted: Calibration, made: Sequence[Try]) -> list[Pair]:
    """Int8 over float of the networks of which neither row was given."""
    by: dict[str, dict[str, tuple[int, Try]]] = {}
    for i, t in zip(asked, made, strict=True):
        by.setdefault(t.network, {})[t.precision] = (i, t)
    found = []
    for both in by.values():
        if len(both) == 2:
            (_, int8), (i, plain) = both["int8"], both["float"]
            value, spread = calibration.ratio_of(listing.table.rows[i].costs, fitted)
            found.append(Pair(plain, int8, value, spread))
    return found


# ---------------------------------------------------------------- what boards differ by


Own = Mapping[str, tuple[str, float, float, float]]


def own_terms(listings: Sequence[Listing], parts: Mapping[str, Unseen]) -> Own:
    """{board without rows: (family, how many times the variance that is expected of it its rows' errors have, the same
    of int8 over float: square of the mean error, and its expected variance)}: the mean over the tables of a board."""
    found = {}
    for board, unseen in parts.items():
        by: list[tuple[float, float, float]] = []
        for listing in (x for x in listings if x.board == board):
            device, rows = listing.table.device, listing.table.rows
            kin = unseen.relatives(device.core)
            if not kin:
                continue
            fitted = calibration.fit((), device, unseen.population, relatives=kin)
            told = [(r, *logarithm(fitted.mean, r.costs, r.precision)) for r in rows]
            error = np.array([math.log(r.milliseconds) - value for r, value, _ in told])
            slope = np.array([gradient for *_, gradient in told])
            times = (error**2 - fitted.noise) / np.einsum("ri,ij,rj->r", slope, fitted.covariance, slope)
            int8 = np.array([r.precision == "int8" for r in rows])
            apart = slope[int8].mean(0) - slope[~int8].mean(0)
            by.append(
                (
                    float(times.mean()),
                    float(error[int8].mean() - error[~int8].mean()) ** 2,
                    float(apart @ fitted.covariance @ apart),
                )
            )
        if by:
            found[board] = (device.family, *(float(v) for v in np.mean(by, axis=0)))
    return found


def terms_of(own: Own, board: str = "") -> dict[str, dict[str, float]]:
    """What boards of a family differ by, from all boards but one: each family's mean, drawn towards that of all boards
    as by PRIOR more of them."""

    def drawn_in(values: Sequence[tuple[str, float]]) -> dict[str, float]:
        middle = float(np.mean([v for _, v in values]))
        by = {family: [v for f, v in values if f == family] for family in BOARDS}
        return {family: (sum(v) + PRIOR * middle) / (len(v) + PRIOR) for family, v in by.items()}

    others = [v for b, v in own.items() if b != board]
    spread = drawn_in([(family, max(0.0, times)) for family, times, *_ in others])
    int8 = drawn_in([(family, square - spread[family] * expected) for family, _, square, expected in others])
    return {family: {"spread": round(spread[family], 4), "int8": round(max(0.0, int8[family]), 4)} for family in BOARDS}


# ---------------------------------------------------------------- known boards, other runtimes


def networks_out(
    listings: Sequence[Listing], folds: Sequence[Sequence[str]], terms: Terms
) -> tuple[list[Try], list[Pair]]:
    """Each table's rows of networks that were left out, from its rows of all others."""
    found: list[Try] = []
    pairs: list[Pair] = []
    for networks in folds:
        unseen = without(listings, "", networks)
        known = dataclasses.replace(unseen.population, boards=terms)
        for listing in listings:
            given = frozenset(i for i in range(len(listing.networks)) if unseen.known(listing, i))
            fitted = calibration.fit([listing.table.rows[i] for i in sorted(given)], listing.table.device, known)
            asked = [i for i in range(len(listing.networks)) if i not in given]
            levels = leveled(listing, unseen, given)
            made = [tried("networks", listing, i, fitted, unseen.shares, levels) for i in asked]
            found += made
            pairs += paired("networks", listing, asked, fitted, made)
    return found, pairs


def offsets(
    listings: Sequence[Listing], others: Sequence[tuple[str, Listing]], known: Population
) -> list[tuple[str, str, float, float]]:
    """(source, precision, mean logarithm of truth over prediction, its deviation over rows) of each table of another
    runtime, on cores that the listings have."""
    found = []
    for source, listing in others:
        device = listing.table.device
        kin = Unseen("", frozenset(), tuple(listings), known, {}).relatives(device.core)
        fitted = calibration.fit((), device, known, relatives=kin)
        by: dict[str, list[float]] = {}
        for row in listing.table.rows if kin else ():
            by.setdefault(row.precision, []).append(
                math.log(row.milliseconds) - logarithm(fitted.mean, row.costs, row.precision)[0]
            )
        found += [(source, p, float(np.mean(v)), float(np.std(v))) for p, v in by.items()]
    return found


def runtimes_of(found: Iterable[tuple[str, str, float, float]], source: str = "") -> dict[str, float]:
    """{precision: mean square of the offsets of the other sources}."""
    of = lambda p: [m for s, q, m, _ in found if q == p and s != source]
    return {p: round(float(np.mean(np.square(of(p)))), 4) for p in costs.PRECISIONS}


def other_runtimes(
    listings: Sequence[Listing],
    others: Sequence[tuple[str, Listing]],
    whole: Unseen,
    found: Sequence[tuple[str, str, float, float]],
) -> tuple[list[Try], list[Pair]]:
    """The rows of sources that used another runtime: from the core alone, and from 3 of its rows of each precision."""
    made: list[Try] = []
    pairs: list[Pair] = []
    for number, (source, listing) in enumerate(others):
        device, rows = listing.table.device, listing.table.rows
        known = dataclasses.replace(whole.population, runtimes=runtimes_of(found, source))
        kin = whole.relatives(device.core)
        shares = {
            name: whole.shares[name] | extra
            for name, extra in (("macs", baselines.multiplied([listing], whole.known)),)
        }
        counts = {p: sum(r.precision == p for r in rows) for p in costs.PRECISIONS}
        there = [i for i, r in enumerate(rows) if counts[r.precision] >= 5]
        for way in ("runtimes 0",) * bool(kin) + ("runtimes 3",) * DRAWS * bool(there):
            generator = np.random.default_rng([SEED, number, len(made)])
            of = lambda p, there=there, rows=rows: [i for i in there if rows[i].precision == p]
            given = frozenset(
                int(i)
                for p in costs.PRECISIONS
                if way == "runtimes 3" and of(p)
                for i in generator.choice(of(p), 3, replace=False)
            )
            fitted = calibration.fit([rows[i] for i in sorted(given)], device, known, relatives=kin, runtime=source)
            levels = leveled(listing, dataclasses.replace(whole, shares=shares), given)
            asked = [i for i in (there if given else range(len(rows))) if i not in given]
            now = [tried(way, listing, i, fitted, shares, levels, len(made), source) for i in asked]
            made += now
            pairs += paired(way, listing, asked, fitted, now)
    return made, pairs


def tried_all(path: Path, further: Path) -> tuple[dict[str, object], list[Try], list[Pair]]:
    """(what result.json says but for the ways' figures, all tries, all pairs)."""
    rows = published.read(path)
    more = published.read(further)
    listings = [*published.listings(rows), *published.more(more)]
    others = [(source, x) for source in published.OTHER_RUNTIMES for x in published.listings(rows, source)]
    names, boards = sorted({n for x in listings for n in x.networks}), list(dict.fromkeys(x.board for x in listings))
    mixed = np.random.default_rng(SEED).permutation(names).tolist()
    folds = [mixed[i::FOLDS] for i in range(FOLDS)]
    parts = {}
    for done, board in enumerate(boards, 1):
        parts[board] = [without(listings, board, networks) for networks in ((), *folds)]
        print(f"\rlearned without {done} of {len(boards)} boards", end="", file=sys.stderr, flush=True)
    own = own_terms(listings, {board: made[0] for board, made in parts.items()})
    terms = terms_of(own)
    whole = without(listings, "")
    whole = dataclasses.replace(whole, population=dataclasses.replace(whole.population, boards=terms))
    off = offsets(listings, others, whole.population)
    found: list[Try] = []
    pairs: list[Pair] = []
    steps: list[Callable[[], tuple[list[Try], list[Pair]]]] = [
        lambda board=board, part=part: tries(listings, part, terms_of(own, board))
        for board, made in parts.items()
        for part in made
    ]
    steps += [lambda: networks_out(listings, folds, terms), lambda: other_runtimes(listings, others, whole, off)]
    for done, step in enumerate(steps, 1):
        made, both = step()
        found, pairs = found + made, pairs + both
        print(f"\rtried {done} of {len(steps)}               ", end="", file=sys.stderr, flush=True)
    record = {
        "schema": "edgekd.latency/2",
        "rows": {
            "file": len(rows) + len(more),
            "used": sum(len(x.networks) for x in listings),
            "tables": len(listings),
            "boards": len(boards),
        },
        "networks": len(names),
        "other_runtimes": sum(len(x.networks) for _, x in others),
        "left_out": published.left_out(rows),
        "corrected": {published.TITLES.get(k, k): source for k, (_, source) in published.CORRECTED.items()},
        "noise": themselves.noise(listings),
        "bounds": themselves.bounds(listings),
        "offsets": off,
        "runtimes": runtimes_of(off),
        "boards": terms,
    }
    return record, found, pairs


def main(path: Path, further: Path) -> None:
    record, found, pairs = tried_all(path, further)
    record["ways"] = figures.summary(found, pairs)
    here = Path(__file__).parent
    (here / "result.json").write_text(json.dumps(results.rounded(record), indent=1) + "\n", encoding="utf-8")
    (here / "RESULTS.md").write_text(results.markdown(results.rounded(record)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
