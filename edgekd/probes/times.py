"""Latency and memory of the processes that ran a file (measure/jobs.py), and the lower bound of a latency that is only
predicted (predicting/of_file.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgekd import intervals
from edgekd.probes import Subject, Times, figure
from edgekd.records import Measurement, Quantity

P50 = Quantity(
    "latency_p50_ms",
    "ms",
    "median latency of an inference",
    better="lower",
    heading="p50 ms",
    column=50,
    keep=90,
    words=("faster", "slower"),
)
P90 = Quantity(
    "latency_p90_ms", "ms", "90 % of inferences take less", better="lower", heading="p90 ms", column=60, keep=30
)
AT_LEAST = Quantity("latency_at_least_ms", "ms", "lower bound of the latency", better="lower", column=210)
LOAD = Quantity("load_ms", "ms", "loading the file", better="lower", column=230)
FIRST = Quantity("first_ms", "ms", "first inference", better="lower", column=240)
MEGABYTES = ("MB", 1e6)
PEAK = Quantity("peak_rss_bytes", "B", "peak memory of the process", better="lower", shown=MEGABYTES, column=None)
PEAK_OVER = Quantity(
    "peak_rss_over_runtime_bytes",
    "B",
    "peak memory over the runtime's own",
    better="lower",
    shown=MEGABYTES,
    heading="peak MB",
    column=70,
    keep=20,
)
MEASURES = (P50, P90, AT_LEAST, LOAD, FIRST, PEAK, PEAK_OVER)


def measure(subject: Subject) -> Iterator[Measurement]:
    """Latencies are medians over processes of each process's own p50 or p90; `n` counts processes. Where the A/A
    control is off, the intervals are wider by the same factor, and nothing is paired."""
    if subject.times is not None:
        yield from _latencies(subject.times)
        yield from _memory(subject.times.peaks, subject.times.bare)


def _latencies(times: Times) -> Iterator[Measurement]:
    processes, off = times.processes, times.off
    note = "; ".join(filter(None, (f"{sum(p['n'] for p in processes)} inferences", times.noise)))
    for quantity, key in ((P50, "p50_ms"), (P90, "p90_ms")):
        each = tuple(float(p[key]) for p in processes)
        value, low, high = intervals.median(each)
        paired = {} if off > 1 else {"each": each, "pairing": times.session}
        yield figure(quantity, value, low / off, high * off, len(each), note=note, **paired)
    for quantity in (LOAD, FIRST):
        yield figure(quantity, *intervals.median([p[quantity.name] for p in processes]), n=len(processes))


def _memory(peaks: Sequence[int], bare: Sequence[int]) -> Iterator[Measurement]:
    value, low, high = intervals.mean(peaks)
    base, base_low, base_high = intervals.mean(bare)
    yield figure(PEAK, value, low, high, len(peaks))
    # the limits of two independent means, added in squares (Howe, JASA 69 (1974) 789)
    difference, half = value - base, math.hypot((high - low) / 2, (base_high - base_low) / 2)
    yield figure(PEAK_OVER, difference, difference - half, difference + half, len(peaks))
