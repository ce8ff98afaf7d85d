"""What is known of devices before one is timed: mean cost of every kind of work by traits of a device, and how devices spread around it.

A device's costs are the logarithms of milliseconds per million, eleven for float and eleven for int8 (`costs.NAMES` twice). Over devices they are
normal around a linear function of the device's traits, with one covariance for all: a linear mixed model (Laird & Ware, Biometrics 38 (1982)
963), fitted by expectation and maximization with the covariance held towards a stated one (an inverse-Wishart prior). The posterior of one
device is taken at its mode (Laplace); rows far off weigh less (Student's t, 6 degrees of freedom: Lange et al., JASA 84 (1989) 881).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekd.predicting import costs
from edgekd.predicting.costs import NAMES, START, Precision
from edgekd.predicting.work import Operator

IN_ORDER = frozenset({"cortex-a7", "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520"})
WIDE = frozenset({"cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4", "cortex-a710", "cortex-a715", "cortex-a720"})
TRAITS = ("one", "log GHz", "log threads", "in-order", "x86", "avx512", "half", "wide", "cortex-a55")
MOST_THREADS = 8  # beyond, a batch of one has nothing to share

COUNT = len(NAMES)
LIKENESS = 0.7  # of two devices of one core; left-out boards hardly tell 0.5 from 0.85
REACH = {"calibrated": 2.6, "transferred": 2.6}  # until rows were left out
RUNTIMES = {"float": 0.27**2, "int8": 0.73**2}  # root mean square over XNNPACK, TFLite, TNN, MNN on cores of the ncnn rows
APART = 0.15**2  # variance of one cost's logarithm, besides, when the runtime is another: tables of other runtimes spread so around their mean
MISFIT = 0.1**2  # variance of the logarithm that a network which was never timed adds: what eleven costs can't say of it
FREEDOM = 6.0  # of the rows' errors
DEVICES = 12.0  # how many devices the stated covariance counts for
SPREAD = 0.35  # standard deviation of one cost in it, and of what all costs of a device share
STEADY = 5.0  # how many rows the common noise counts for in a device's own


@dataclass(frozen=True)
class Device:
    """Traits that costs depend on. `core`: as a compiler names it (cortex-a72), or avx2, avx512; `half`: float networks run in 16 bits."""

    core: str
    clock_ghz: float
    threads: int
    half: bool = False

    def traits(self) -> np.ndarray:
        core = self.core
        marks = (core in IN_ORDER, core in ("sse42", "avx2", "avx512"), core == "avx512", self.half, core in WIDE, core == "cortex-a55")
        return np.array([1.0, np.log(self.clock_ghz), np.log(min(self.threads, MOST_THREADS)), *map(float, marks)])


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
    """The rows of one device, runtime and number of threads."""

    name: str
    device: Device
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Population:
    """weights [9, 22]: mean costs by trait; spread [22, 22]: covariance of devices around it; noise: variance of a row's logarithm;
    likeness: correlation between two devices of one core; reach {kind: how many standard deviations hold 95 % of left-out rows};
    runtimes {precision: variance of the logarithm that all costs share when the runtime is another}."""

    runtime: str
    weights: np.ndarray
    spread: np.ndarray
    noise: float
    likeness: float = LIKENESS
    reach: Mapping[str, float] = field(default_factory=lambda: dict(REACH))
    runtimes: Mapping[str, float] = field(default_factory=lambda: dict(RUNTIMES))


@dataclass(frozen=True)
class Posterior:
    """A device's costs after its rows: mode [22], covariance [22, 22], variance of a row's logarithm, residuals [rows]
    as large as if the rows had no say in the costs (divided by the root of 1 - leverage)."""

    mean: np.ndarray
    covariance: np.ndarray
    noise: float
    residuals: np.ndarray


def logarithm(theta: np.ndarray, amounts: np.ndarray, precision: Precision | None = None) -> tuple[float, np.ndarray]:
    """(logarithm of the milliseconds, gradient [22] by the logarithms of the costs): each cost's share of the time. `amounts`: [11] of one
    precision, or [22] of both."""
    parts = np.exp(theta) * (amounts if precision is None else halves({precision: amounts}))
    total = float(parts.sum())
    return float(np.log(total)), parts / total


def halves(amounts: Mapping[Precision, np.ndarray]) -> np.ndarray:
    """[22]: amounts [11] in the half of their precision, 0 where there are none."""
    return np.concatenate([amounts.get(p, np.zeros(COUNT)) for p in costs.PRECISIONS])


def posterior(rows: Sequence[Row], mean: np.ndarray, spread: np.ndarray, noise: float) -> Posterior:
    """A device's costs from its rows and what is expected of it; the expectation itself where there are no rows.

    Gauss-Newton steps of at most 1.5 in any logarithm: from an expectation that is far off, full ones oscillate. The device's own noise is that of
    its rows as if each were left out (residual over 1 - leverage: Allen's PRESS, Technometrics 16 (1974) 125), held towards the common one."""
    if not rows:
        return Posterior(mean, spread, noise, np.zeros(0))
    y, amounts = np.log([r.milliseconds for r in rows]), _wide(rows)
    prior, theta = np.linalg.inv(spread), mean.copy()
    for _ in range(25):
        left, jacobian, weight = _linear(y, amounts, theta, noise)
        curvature = prior + jacobian.T @ (weight[:, None] * jacobian)
        step = np.linalg.solve(curvature, jacobian.T @ (weight * left) - prior @ (theta - mean))
        theta = theta + step * min(1.0, 1.5 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-4:
            break
    left, jacobian, weight = _linear(y, amounts, theta, noise)
    covariance = np.linalg.inv(prior + jacobian.T @ (weight[:, None] * jacobian))
    leverage = np.minimum(weight * np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian), 0.9)
    own = (float(np.sum(weight * noise * (left / (1 - leverage)) ** 2)) + STEADY * noise) / (len(rows) + STEADY)
    return Posterior(theta, covariance, own, left / np.sqrt(1 - leverage))


def _wide(rows: Sequence[Row]) -> np.ndarray:
    """[rows, 22]: the amounts in the half of the row's precision, 0 in the other."""
    return np.array([halves({r.precision: r.costs}) for r in rows])


def _linear(y: np.ndarray, amounts: np.ndarray, theta: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(what is left of y, gradient by theta, weight of each row) at theta."""
    parts = amounts * np.exp(theta)
    total = parts.sum(1)
    left = y - np.log(total)
    return left, parts / total[:, None], (FREEDOM + 1) / (FREEDOM + left**2 / noise) / noise


def learn(tables: Sequence[Table], runtime: str, *, rounds: int = 25) -> Population:
    """The population that the tables are drawn from. Tables without rows count for nothing."""
    tables = [t for t in tables if t.rows]
    traits = np.array([t.device.traits() for t in tables])
    start = np.tile(np.log([START[n] for n in NAMES]), 2)
    stated = SPREAD**2 * (np.eye(2 * COUNT) + 1)
    ridge = np.diag([1e-3] + [1.0] * (len(TRAITS) - 1))
    weights, spread, noise = np.zeros((len(TRAITS), 2 * COUNT)), np.eye(2 * COUNT), 0.03
    weights[0] = start
    for _ in range(rounds):
        found = [posterior(t.rows, z @ weights, spread, noise) for t, z in zip(tables, traits, strict=True)]
        theta = np.array([p.mean for p in found])
        weights = np.linalg.solve(traits.T @ traits + ridge, traits.T @ (theta - start))
        weights[0] += start
        off = theta - traits @ weights
        spread = (off.T @ off + sum(p.covariance for p in found) + DEVICES * stated) / (len(tables) + DEVICES)
        noise = max(1.4826 * float(np.median(np.abs(np.concatenate([p.residuals for p in found])))), 0.02) ** 2
    return Population(runtime, weights, spread, noise)
