"""What is known of devices before one is timed: mean cost of every kind of work by traits of a device, and how devices
spread around it.

A device's costs are the logarithms of milliseconds per million, eleven for float and eleven for int8 (`costs.NAMES`
twice). They are normal around a linear function of the device's traits, with one covariance for all, of which devices
share a part: those of one core some, tables of one board more. What is left is the board's own, more in some families
of cores than in others (`boards`). A linear mixed model (Laird & Ware, Biometrics 38 (1982) 963), fitted by expectation
and maximization in which every board counts once, however many tables it has, with the covariance held towards a stated
one (an inverse-Wishart prior). A device's posterior is taken at its mode (Laplace); rows far off weigh less (Student's
t, 6 degrees of freedom: Lange et al., JASA 84 (1989) 881).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekd.predicting import costs
from edgekd.predicting.costs import NAMES, START, Precision
from edgekd.predicting.work import Operator

IN_ORDER = frozenset({"cortex-a7", "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520"})
X86 = frozenset({"sse42", "avx2", "avx512"})
# no half precision, no 8-bit products
V80 = frozenset({"cortex-a7", "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73"})
V80 |= frozenset({"ftc662", "ftc663", "ftc664"})
# decode five and more
WIDE = frozenset({"cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4", "cortex-a710", "cortex-a715", "cortex-a720"})
WIDE |= frozenset({"neoverse-n2", "neoverse-v1", "neoverse-v2", "apple-m1", "apple-m2", "apple-m3", "apple-m4"})
TRAITS = (
    "one",
    "log GHz",
    "log threads",
    "in-order",
    "x86",
    "avx512",
    "half",
    "wide",
    "cortex-a55",
    "log more threads",
)
FEW_THREADS = 8  # beyond, a batch of one has little to share: another slope

COUNT = len(NAMES)
# of two boards of one core: what left-out boards are predicted best with (0.3 to 0.5 make no difference; 0.7 is worse)
LIKENESS = 0.4
SAME = 0.8  # of two tables of one board
FAMILIES = ("ARM in order, v8.0", "ARM in order", "ARM out of order, v8.0", "ARM out of order", "x86")
BOARDS = {family: {"spread": 1.0, "int8": 0.0} for family in FAMILIES}  # until boards were left out
REACH = {"calibrated": 2.6, "transferred": 2.6}  # until rows were left out
# root mean square over XNNPACK, TFLite, TNN, MNN on cores of the ncnn rows
RUNTIMES = {"float": 0.27**2, "int8": 0.73**2}
# variance of one cost's logarithm, besides, when the runtime is another: tables of other runtimes spread so around
# their mean
APART = 0.15**2
# variance of the logarithm that a network which was never timed adds: what eleven costs can't say of it
MISFIT = 0.1**2
FREEDOM = 6.0  # of the rows' errors
DEVICES = 12.0  # how many boards the stated covariance counts for
SPREAD = 0.35  # standard deviation of one cost in it, and of what all costs of a device share
LEVEL = 0.5  # and of what those of one precision share: kernels for int8 come and go with versions of a runtime
ROUNDS = 25  # of posteriors of all devices, and of what they have in common after these
STEADY = 5.0  # how many rows the common noise counts for in a device's own


@dataclass(frozen=True)
class Device:
    """Traits that costs depend on. `core`: as a compiler names it (cortex-a72), or avx2, avx512; `half`: float networks
    run in 16 bits."""

    core: str
    clock_ghz: float
    threads: int
    half: bool = False

    def traits(self) -> np.ndarray:
        core = self.core
        marks = (core in IN_ORDER, core in X86, core == "avx512", self.half, core in WIDE, core == "cortex-a55")
        few, more = min(self.threads, FEW_THREADS), max(self.threads, FEW_THREADS) / FEW_THREADS
        return np.array([1.0, np.log(self.clock_ghz), np.log(few), *map(float, marks), np.log(more)])

    @property
    def family(self) -> str:
        """Of cores: which differ alike from board to board."""
        if self.core in X86:
            return "x86"
        return f"ARM {'in' if self.core in IN_ORDER else 'out of'} order{', v8.0' * (self.core in V80)}"


@dataclass(frozen=True)
class Row:
    """One timed network: its costs (`costs.costs`), milliseconds per inference, where the figure is from."""

    costs: np.ndarray
    milliseconds: float
    precision: Precision = "float"
    source: str = ""


def row(work: Sequence[Operator], milliseconds: float, precision: Precision = "float", source: str = "") -> Row:
    return Row(costs.costs(work), milliseconds, precision, source)


@dataclass(frozen=True)
class Table:
    """The rows of one device, runtime and number of threads. `board`: tables of one board share its name; a table
    without is a board of its own."""

    name: str
    device: Device
    rows: tuple[Row, ...]
    board: str = ""


@dataclass(frozen=True)
class Population:
    """weights [10, 22]: mean costs by trait; spread [22, 22]: covariance of devices around it; noise: variance of a
    row's logarithm; likeness: correlation between two boards of one core; reach {kind: how many standard deviations
    hold 95 % of the rows of left-out boards}; runtimes {precision: variance of the logarithm that all costs share when
    the runtime is another}; same: correlation between two tables of one board; boards {family: {spread: how many times
    `spread` its boards differ by; int8: variance of what all costs of int8 share besides}}."""

    runtime: str
    weights: np.ndarray
    spread: np.ndarray
    noise: float
    likeness: float = LIKENESS
    reach: Mapping[str, float] = field(default_factory=lambda: dict(REACH))
    runtimes: Mapping[str, float] = field(default_factory=lambda: dict(RUNTIMES))
    same: float = SAME
    boards: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {k: dict(v) for k, v in BOARDS.items()})

    def board(self, device: Device, left: float = 1.0) -> np.ndarray:
        """[22, 22]: covariance of a board's costs by its family, where other boards leave a part of the
        population's."""
        own, int8 = self.boards[device.family], np.repeat([0.0, 1.0], COUNT)
        return left * own["spread"] * self.spread + own["int8"] * np.outer(int8, int8)


@dataclass(frozen=True)
class Posterior:
    """A device's costs after its rows: mode [22], covariance [22, 22], variance of a row's logarithm, residuals [rows]
    as large as if the rows had no say in the costs (divided by the root of 1 - leverage)."""

    mean: np.ndarray
    covariance: np.ndarray
    noise: float
    residuals: np.ndarray


def logarithm(theta: np.ndarray, amounts: np.ndarray, precision: Precision | None = None) -> tuple[float, np.ndarray]:
    """(logarithm of the milliseconds, gradient [22] by the logarithms of the costs): each cost's share of the time.
    `amounts`: [11] of one precision, or [22] of both."""
    parts = np.exp(theta) * (amounts if precision is None else halves({precision: amounts}))
    total = float(parts.sum())
    return float(np.log(total)), parts / total


def halves(amounts: Mapping[Precision, np.ndarray]) -> np.ndarray:
    """[22]: amounts [11] in the half of their precision, 0 where there are none."""
    return np.concatenate([amounts.get(p, np.zeros(COUNT)) for p in costs.PRECISIONS])


def posterior(rows: Sequence[Row], mean: np.ndarray, spread: np.ndarray, noise: float) -> Posterior:
    """A device's costs from its rows and their expectation; the expectation itself if there are no rows."""
    if not rows:
        return Posterior(mean, spread, noise, np.zeros(0))
    found = _posteriors(*_stacked([rows]), mean[None], spread, noise)
    return Posterior(found[0][0], found[1][0], float(found[2][0]), found[3][0])


def _stacked(tables: Sequence[Sequence[Row]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logarithms of times [tables, rows], amounts in the half of the row's precision [tables, rows, 22], 1 where there
    is a row)."""
    most = max(map(len, tables))
    y, amounts, there = (
        np.zeros((len(tables), most)),
        np.ones((len(tables), most, 2 * COUNT)),
        np.zeros((len(tables), most)),
    )
    for i, rows in enumerate(tables):
        y[i, : len(rows)] = np.log([r.milliseconds for r in rows])
        amounts[i, : len(rows)] = [halves({r.precision: r.costs}) for r in rows]
        there[i, : len(rows)] = 1.0
    return y, amounts, there


def _posteriors(
    y: np.ndarray,
    amounts: np.ndarray,
    there: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    noise: float,
    start: np.ndarray | None = None,
    steps: int = 25,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`Posterior`'s four for many tables at once, of which `mean` [tables, 22] is expected; sought from `start`
    (default: there) in at most `steps`.

    Gauss-Newton steps of at most 1.5 in any logarithm: from an expectation that is far off, full ones oscillate. A
    device's own noise is that of its rows as if each were left out (residual over 1 - leverage: Allen's PRESS,
    Technometrics 16 (1974) 125), held towards the common one."""
    prior, theta = np.linalg.inv(spread), (mean if start is None else start).copy()
    for _ in range(steps):
        left, jacobian, weight = _linear(y, amounts, there, theta, noise)
        curvature = prior + np.swapaxes(jacobian, 1, 2) @ (weight[..., None] * jacobian)
        slope = np.einsum("tri,tr->ti", jacobian, weight * left) - (theta - mean) @ prior
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        most = np.abs(step).max(1)
        theta = theta + step * np.minimum(1.0, 1.5 / np.maximum(most, 1e-12))[:, None]
        if most.max() < 1e-4:
            break
    left, jacobian, weight = _linear(y, amounts, there, theta, noise)
    covariance = np.linalg.inv(prior + np.swapaxes(jacobian, 1, 2) @ (weight[..., None] * jacobian))
    leverage = np.minimum(weight * np.einsum("tri,tri->tr", jacobian @ covariance, jacobian), 0.9)
    own = ((weight * noise * (left / (1 - leverage)) ** 2).sum(1) + STEADY * noise) / (there.sum(1) + STEADY)
    return theta, covariance, own, left / np.sqrt(1 - leverage)


def _linear(
    y: np.ndarray, amounts: np.ndarray, there: np.ndarray, theta: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(what is left of y, gradient by theta, weight of each row) at theta."""
    parts = amounts * np.exp(theta)[:, None, :]
    total = parts.sum(2)
    left = (y - np.log(total)) * there
    return left, parts / total[..., None], (FREEDOM + 1) / (FREEDOM + left**2 / noise) / noise * there


def learn(tables: Sequence[Table], runtime: str) -> Population:
    """The population that the tables' boards are drawn from: each counts once. Tables without rows count for
    nothing."""
    tables = [t for t in tables if t.rows]
    stacked, traits = _stacked([t.rows for t in tables]), np.array([t.device.traits() for t in tables])
    listed = Counter(t.board or t.name for t in tables)
    share = np.array([1 / listed[t.board or t.name] for t in tables])
    start = np.tile(np.log([START[n] for n in NAMES]), 2)
    stated = SPREAD**2 * (np.eye(2 * COUNT) + 1) + LEVEL**2 * np.kron(np.eye(2), np.ones((COUNT, COUNT)))
    ridge = np.diag([1e-3] + [1.0] * (len(TRAITS) - 1))
    weights, spread, noise = np.zeros((len(TRAITS), 2 * COUNT)), np.eye(2 * COUNT), 0.03
    weights[0], theta = start, None
    for _ in range(ROUNDS):
        steps = 25 if theta is None else 4  # further rounds go on from where the last one stood
        theta, covariance, _, residuals = _posteriors(*stacked, traits @ weights, spread, noise, theta, steps)
        weights = np.linalg.solve(
            traits.T @ (share[:, None] * traits) + ridge, traits.T @ (share[:, None] * (theta - start))
        )
        weights[0] += start
        off = theta - traits @ weights
        spread = (off.T @ (share[:, None] * off) + np.tensordot(share, covariance, 1) + DEVICES * stated) / (
            share.sum() + DEVICES
        )
        noise = max(1.4826 * float(np.median(np.abs(residuals[stacked[2] > 0]))), 0.02) ** 2
    return Population(runtime, weights, spread, noise)
