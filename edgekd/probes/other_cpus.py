"""What a file answers as the CPUs of other targets, held against this machine: run/cross_cpu.py makes the figures."""

from edgekd.records import Quantity

SPREAD = Quantity(
    "target_spread",
    "pt",
    "greatest difference of the first metric between CPUs",
    better="lower",
    origin="emulated",
    split=True,
    column=140,
)
HOST_AGREEMENT = Quantity(
    "host_agreement", "%", "answers that are this machine's", better="higher", origin="emulated", split=True, column=150
)
EQUAL = Quantity(
    "equal_outputs",
    "%",
    "numbers that are this machine's, where answers are no classes",
    better="higher",
    origin="emulated",
    split=True,
    budget=False,
    column=None,
)
MEASURES = (SPREAD, HOST_AGREEMENT, EQUAL)
