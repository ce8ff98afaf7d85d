"""Instructions of one inference, counted under emulation: measure/instructions.py makes the figure."""

from edgekd.records import Quantity

INSTRUCTIONS = Quantity(
    "instructions",
    "",
    "instructions of an inference",
    better="lower",
    origin="emulated",
    repeats="inferences",
    column=200,
)
MEASURES = (INSTRUCTIONS,)
