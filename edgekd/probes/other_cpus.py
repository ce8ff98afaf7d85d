"""A file's outputs on the CPUs of other targets, compared with this machine: run/cross_cpu.py computes the figures."""

from edgekd.records import Quantity

SPREAD = Quantity(
    "target_spread",
    "pt",
    "largest difference of the first metric between CPUs",
    better="lower",
    origin="emulated",
    split=True,
    column=140,
)
HOST_AGREEMENT = Quantity(
    "host_agreement", "%", "classes equal to this machine's", better="higher", origin="emulated", split=True, column=150
)
EQUAL = Quantity(
    "equal_outputs",
    "%",
    "numbers equal to this machine's, where outputs are not classes",
    better="higher",
    origin="emulated",
    split=True,
    budget=False,
    column=None,
)
MEASURES = (SPREAD, HOST_AGREEMENT, EQUAL)
