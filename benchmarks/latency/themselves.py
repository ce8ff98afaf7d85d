"""What the published rows say of themselves: how far rows of the same facts are apart, and whether any lies below what
can be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from networks import NETWORKS
from published import Listing

from edgekd.predicting import bound
from edgekd.predicting.population import Device


def noise(listings: Sequence[Listing]) -> dict[str, float]:
    """Rows of one network, precision, core, clock and number of threads in two tables: how far they are apart, of one
    board and of two."""
    groups: dict[tuple[Device, str, str], list[tuple[str, float]]] = {}
    for x in listings:
        for n, row in zip(x.networks, x.table.rows, strict=True):
            groups.setdefault((x.table.device, n, row.precision), []).append((x.board, math.log(row.milliseconds)))
    apart = [(a[0] == b[0], abs(b[1] - a[1])) for v in groups.values() for j, a in enumerate(v) for b in v[j + 1 :]]
    found: dict[str, float] = {}
    for name, same in (("one board", True), ("two boards", False)):
        ratios = [r for s, r in apart if s == same]
        found |= {f"pairs of {name}": len(ratios), f"median of {name}": float(np.expm1(np.median(ratios)))}
    return found


def bounds(listings: Sequence[Listing]) -> dict[str, object]:
    """How far published times lie above what the predictor calls a bound; `below` should be 0."""
    work = {name: make().work for name, make in NETWORKS.items()}
    plain = {"cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73", "ftc662", "ftc663", "ftc664"}
    features: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(plain, ()),
        "avx2": ("avx_vnni",),
        "avx512": ("avx512_vnni",),
    }
    features |= dict.fromkeys(("neoverse-n2", "apple-m3"), ("i8mm",))
    found = []
    for x in listings:
        device = x.table.device
        for name, row in zip(x.networks, x.table.rows, strict=True):
            least = bound.bound(
                work[name], device, precision=row.precision, features=features.get(device.core, ("dotprod",))
            ).low
            found.append((row.milliseconds / least, name, x.board))
    below = [(name, board) for ratio, name, board in found if ratio < 1]
    ratios = np.array([ratio for ratio, *_ in found])
    extent = {"least": float(ratios.min()), "median": float(np.median(ratios)), "most": float(ratios.max())}
    return {"rows": len(found), "below": len(below), "of": sorted({f"{n} on {b}" for n, b in below}), **extent}
