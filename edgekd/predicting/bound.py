"""A lower bound of latency from a device's facts: multiply-accumulates divided by the peak rate of its vector units.

It is a bound, not an estimate: published networks take 1 to 100 times as long, 5 in the median. Memory is not included,
since its speed is not a fact of a core.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgekd.predicting.calibration import Prediction
from edgekd.predicting.costs import Precision, kernel_of
from edgekd.predicting.population import IN_ORDER, Device
from edgekd.predicting.work import Operator

# products that F(6x6, 3x3) saves: 36 outputs of 9 taps from 64 (Lavin & Gray, 1509.09308), the largest that runtimes
# use
WINOGRAD = 324 / 64

# 128-bit multiply-accumulates per cycle and core (Arm's Software Optimization Guides; Intel's and AMD's: two 256-bit or
# two 512-bit)
PIPES = {"cortex-x1": 4, "cortex-x2": 4, "cortex-x3": 4, "cortex-x4": 4, "sse42": 2, "avx2": 4, "avx512": 8}
# Apple's: measured (D. Johnson, Firestorm)
PIPES |= dict.fromkeys(("apple-m1", "apple-m2", "apple-m3", "apple-m4", "neoverse-v1", "neoverse-v2"), 4)
PIPES_IN_ORDER, PIPES_OTHER = 1, 2
FLOAT, HALF = 4, 8  # multiply-accumulates in one of them
INT8 = {"i8mm": 32, "dotprod": 16, "avx512_vnni": 16, "avx_vnni": 16}  # and of bytes; without such an instruction:
INT8_PLAIN = 16


def peak(device: Device, precision: Precision, features: Iterable[str] = ()) -> float:
    """Multiply-accumulates per millisecond of all threads."""
    pipes = PIPES.get(device.core, PIPES_IN_ORDER if device.core in IN_ORDER else PIPES_OTHER)
    each = (
        max((INT8[f] for f in features if f in INT8), default=INT8_PLAIN)
        if precision == "int8"
        else HALF
        if device.half
        else FLOAT
    )
    return pipes * each * device.clock_ghz * 1e6 * device.threads


def bound(
    work: Sequence[Operator], device: Device, *, precision: Precision | None = "float", features: Iterable[str] = ()
) -> Prediction:
    """The minimum of an inference in milliseconds; the interval is open above. `precision` None: as each operator has
    it in its file."""
    kind = lambda o: precision or ("int8" if o.int8 else "float")
    least = sum(
        o.macs / (WINOGRAD if kernel_of(o) == "winograd" else 1.0) / peak(device, kind(o), features)
        for o in work
        if o.macs
    )
    threads = f"{device.threads} thread{'s' * (device.threads > 1)}"
    note = (
        f"bound: not faster than this at {device.clock_ghz:g} GHz with {threads}; nothing like {device.core} was timed"
    )
    return Prediction(least, least, math.inf, "bound", note)
