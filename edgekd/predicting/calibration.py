"""Predictions from a device's costs: the value for a network, a 95 % interval, and its kind.

calibrated    the device itself was timed, with this runtime and this number of threads
transferred   a device of the same core was timed, or another runtime, number of threads, or clock: the interval is
              wider by how much such pairs differ
bound         nothing similar was timed: only a lower bound from the device's facts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekd.predicting import costs
from edgekd.predicting.costs import Precision
from edgekd.predicting.population import APART, COUNT, MISFIT, Device, Population, Row, halves, logarithm, posterior
from edgekd.predicting.work import Operator
from edgekd.probes import figure
from edgekd.probes.times import P50
from edgekd.records import Measurement

Kind = Literal["calibrated", "transferred", "bound"]
ENOUGH = 3  # rows from which a device counts as timed


@dataclass(frozen=True)
class Calibration:
    """Costs of one device, runtime and number of threads: logarithms of milliseconds per million (`costs.NAMES`, float
    then int8) with covariance; `noise`: variance of a row's logarithm; `rows`: how many networks were timed; `reach`:
    standard deviations to each side."""

    name: str
    device: Device
    runtime: str
    mean: np.ndarray
    covariance: np.ndarray
    noise: float
    rows: int
    reach: float
    kind: Kind = "calibrated"
    sources: tuple[str, ...] = ()
    note: str = ""
    board: str = ""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds per inference at batch 1 with a 95 % interval; of kind `bound`: value and low are the bound, high is
    infinite."""

    value: float
    low: float
    high: float
    kind: Kind
    note: str = ""


def expected(
    device: Device, population: Population, relatives: Sequence[Calibration] = (), runtime: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(mean [22], covariance [22, 22]) of a device's costs before its own rows: the population's, drawn towards boards
    of the same core.

    A new board shares `likeness` of the population's covariance with each board of its core, whose tables share `same`
    of it: with K the tables' correlations and k = likeness, the best linear guess weighs their offsets by w = k K**-1
    (Henderson, Biometrics 31 (1975) 423), and leaves 1 - w k of the covariance, which boards of the device's family
    have more or less of. Another runtime than the population's shifts all costs of a precision together by an amount of
    variance `runtimes`, and each a little besides."""
    mean, left = device.traits() @ population.weights, 1.0
    kin = [r for r in relatives if r.device.core == device.core and r.rows]
    if kin:
        board = np.array([r.board or f"{i}" for i, r in enumerate(kin)])
        alike = np.where(board[:, None] == board, population.same, population.likeness)
        np.fill_diagonal(alike, 1.0)
        pull = np.linalg.solve(alike, np.full(len(kin), population.likeness))
        mean = mean + pull @ np.array([r.mean - r.device.traits() @ population.weights for r in kin])
        left -= population.likeness * float(pull.sum())
    spread = population.board(device, left)
    if runtime not in (None, population.runtime):
        shared = np.kron(np.diag([population.runtimes[p] for p in costs.PRECISIONS]), np.ones((COUNT, COUNT)))
        spread = spread + shared + APART * np.eye(2 * COUNT)
    return mean, spread


def fit(
    rows: Sequence[Row],
    device: Device,
    population: Population,
    *,
    name: str = "",
    runtime: str | None = None,
    relatives: Sequence[Calibration] = (),
    board: str = "",
) -> Calibration:
    """A device's costs from timed networks: any number of them, from none on. `runtime`: what timed the rows, or will
    run the networks; `relatives`: calibrations with the population's runtime, of which those of the device's core are
    used; those of one `board` count together."""
    mean, spread = expected(device, population, relatives, runtime)
    found = posterior(rows, mean, spread, population.noise)
    kind: Kind = "calibrated" if len(rows) >= ENOUGH else "transferred"
    sources = tuple(dict.fromkeys(r.source for r in rows if r.source))
    noise = found.noise + MISFIT
    made = Calibration(
        name,
        device,
        runtime or population.runtime,
        found.mean,
        found.covariance,
        noise,
        len(rows),
        population.reach[kind],
        kind,
        sources,
        "",
        board,
    )
    return replace(made, note=_note(made, population, relatives))


def _note(made: Calibration, population: Population, relatives: Sequence[Calibration]) -> str:
    """The source of the figures as text."""
    where = f"{made.runtime}, {made.device.threads} thread{'s' * (made.device.threads > 1)}"
    if made.kind == "calibrated":
        return f"{made.rows} files timed on {made.name or made.device.core} with {where}"
    kin = [r for r in relatives if r.device.core == made.device.core and r.rows]
    text = (
        f"from {len(kin)} published table{'s' * (len(kin) > 1)} of {made.device.core}"
        if kin
        else f"from other cores than {made.device.core}"
    )
    if made.runtime == population.runtime:
        return f"{text} for {where}"
    factors = " and ".join(
        f"{math.exp(made.reach * math.sqrt(population.runtimes[p])):.1f} in {p}" for p in costs.PRECISIONS
    )
    return (
        f"{text} with {population.runtime} for {where}: the other runtime alone widens by a factor of {factors} to "
        "each side"
    )


def predict(
    work: Sequence[Operator],
    calibration: Calibration,
    *,
    precision: Precision | None = "float",
) -> Prediction:
    """Predicts the milliseconds of a network on a device; `precision` None: as each operator has it in its file. Raises
    ValueError for a network without operators."""
    if precision is None:
        return of(
            halves({p: costs.costs([o for o in work if o.int8 == (p == "int8")]) for p in costs.PRECISIONS}),
            calibration,
        )
    return of(costs.costs(work), calibration, precision)


def of(amounts: np.ndarray, calibration: Calibration, precision: Precision | None = None) -> Prediction:
    """The prediction for `costs.costs` of a network: [11] of one precision, or [22] of both."""
    if not amounts.any():
        raise ValueError("the latency of a network without operators can't be predicted")
    value, gradient = logarithm(calibration.mean, amounts, precision)
    half = calibration.reach * math.sqrt(float(gradient @ calibration.covariance @ gradient) + calibration.noise)
    note = f"{calibration.kind}: {calibration.note}"
    return Prediction(math.exp(value), math.exp(value - half), math.exp(value + half), calibration.kind, note)


def ratio_of(amounts: np.ndarray, calibration: Calibration) -> tuple[float, float]:
    """(logarithm of the ratio of int8 time to float time, its standard deviation) for `costs.costs` of a network.
    Errors of the device that both share cancel through the joint covariance; errors of the network cancel
    completely."""
    (a, ga), (b, gb) = (logarithm(calibration.mean, amounts, p) for p in costs.PRECISIONS)
    gradient = gb - ga
    return b - a, math.sqrt(float(gradient @ calibration.covariance @ gradient) + 2 * (calibration.noise - MISFIT))


def measurement(prediction: Prediction, *, target: str, threads: int) -> Measurement:
    """`latency_p50_ms` as a record: origin `predicted`, the note begins with the kind."""
    note = prediction.note if prediction.note.startswith(prediction.kind) else f"{prediction.kind}: {prediction.note}"
    limits = (prediction.value, prediction.low, prediction.high)
    return figure(P50, *limits, target=target, origin="predicted", threads=threads, note=note)
