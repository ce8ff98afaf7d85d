"""A device's costs, and what they say of a network: the value, a 95 % interval, and how far it can be trusted.

calibrated    the device itself was timed, with this runtime and this number of threads
transferred   a device of the same core was, or another runtime, number of threads, or clock: the interval widens by how much such pairs differ
bound         nothing like it was timed: no number, only what no device of these facts goes below
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekd.predicting import costs
from edgekd.predicting.costs import Precision
from edgekd.predicting.population import COUNT, MISFIT, Device, Population, Row, logarithm, posterior
from edgekd.predicting.work import Operator
from edgekd.records import Measurement

Kind = Literal["calibrated", "transferred", "bound"]
ENOUGH = 3  # rows from which a device counts as timed


@dataclass(frozen=True)
class Calibration:
    """Costs of one device, runtime and number of threads: logarithms of milliseconds per million (`costs.NAMES`, float then int8) with
    covariance; `noise`: variance of a row's logarithm; `rows`: how many networks were timed; `reach`: standard deviations to each side."""

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


@dataclass(frozen=True)
class Prediction:
    """Milliseconds per inference at batch 1 with a 95 % interval; of kind `bound`: value and low are the bound, high is infinite."""

    value: float
    low: float
    high: float
    kind: Kind
    note: str = ""


def expected(device: Device, population: Population, relatives: Sequence[Calibration] = ()) -> tuple[np.ndarray, np.ndarray]:
    """(mean [22], covariance [22, 22]) of a device's costs before its own rows: the population's, drawn towards devices of the same core.

    Two devices of one core share `likeness` of the population's covariance: the best linear guess from n of them is their mean offset times
    n l / (1 + (n - 1) l), and what it leaves is (1 - n l**2 / (1 + (n - 1) l)) of the covariance (Henderson, Biometrics 31 (1975) 423)."""
    mean = device.traits() @ population.weights
    kin = [r for r in relatives if r.device.core == device.core and r.rows]
    if not kin:
        return mean, population.spread
    n, like = len(kin), population.likeness
    pull = n * like / (1 + (n - 1) * like)
    offset = np.mean([r.mean - r.device.traits() @ population.weights for r in kin], axis=0)
    return mean + pull * offset, population.spread * (1 - pull * like)


def fit(
    rows: Sequence[Row], device: Device, population: Population, *, name: str = "", runtime: str | None = None, relatives: Sequence[Calibration] = ()
) -> Calibration:
    """A device's costs from timed networks: any number of them, from none on. `relatives`: calibrations of devices that may share its core."""
    mean, spread = expected(device, population, relatives)
    found = posterior(rows, mean, spread, population.noise)
    kind: Kind = "calibrated" if len(rows) >= ENOUGH else "transferred"
    kin = sorted({r.name for r in relatives if r.device.core == device.core and r.rows})
    note = f"{len(rows)} timed networks" if kind == "calibrated" else f"from {', '.join(kin)}" if kin else "from devices of other cores"
    sources = tuple(dict.fromkeys(r.source for r in rows if r.source))
    reach = population.reach[kind]
    return Calibration(
        name, device, runtime or population.runtime, found.mean, found.covariance, found.noise + MISFIT, len(rows), reach, kind, sources, note
    )


def widened(calibration: Calibration, variance: float, why: str) -> Calibration:
    """The same, for something else than what was timed: `variance` of the logarithm of a ratio is added, and the kind is `transferred`."""
    return replace(calibration, noise=calibration.noise + variance, kind="transferred", note="; ".join(filter(None, (calibration.note, why))))


def predict(work: Sequence[Operator], calibration: Calibration, *, threads: int | None = None, precision: Precision = "float") -> Prediction:
    """Milliseconds of a network on a device. ValueError where the calibration is for another number of threads, or the network does nothing."""
    if threads is not None and threads != calibration.device.threads:
        raise ValueError(f"the calibration is for {calibration.device.threads} threads, not {threads}")
    return of(costs.costs(work), calibration, precision)


def of(amounts: np.ndarray, calibration: Calibration, precision: Precision) -> Prediction:
    """The prediction for `costs.costs` of a network."""
    if not amounts.any():
        raise ValueError("a network without operators takes no time that could be predicted")
    value, gradient = logarithm(calibration.mean, amounts, precision)
    half = calibration.reach * math.sqrt(float(gradient @ calibration.covariance @ gradient) + calibration.noise)
    note = f"{calibration.kind}: {calibration.runtime} on {calibration.name or calibration.device.core}, {calibration.note}"
    return Prediction(math.exp(value), math.exp(value - half), math.exp(value + half), calibration.kind, note)


def ratio(work: Sequence[Operator], calibration: Calibration) -> Prediction:
    """Time in int8 over time in float, with its interval: the errors that both share cancel through the joint covariance."""
    amounts = costs.costs(work)
    (a, ga), (b, gb) = (logarithm(calibration.mean, amounts, p) for p in costs.PRECISIONS)
    gradient = gb - ga
    half = calibration.reach * math.sqrt(float(gradient @ calibration.covariance @ gradient) + 2 * calibration.noise)
    value = b - a
    return Prediction(math.exp(value), math.exp(value - half), math.exp(value + half), calibration.kind, calibration.note)


def measurement(prediction: Prediction, *, target: str, threads: int) -> Measurement:
    """`latency_p50_ms` as a record: origin `predicted`, the note begins with the kind."""
    note = prediction.note if prediction.note.startswith(prediction.kind) else f"{prediction.kind}: {prediction.note}"
    return Measurement("latency_p50_ms", "ms", prediction.value, prediction.low, prediction.high, 1, None, target, "predicted", threads, note=note)


def costs_of(calibration: Calibration, precision: Precision) -> dict[str, float]:
    """{kind of work: milliseconds per million}: what a person can read in a calibration."""
    start = COUNT * costs.PRECISIONS.index(precision)
    return {name: math.exp(calibration.mean[start + i]) for i, name in enumerate(costs.NAMES)}
