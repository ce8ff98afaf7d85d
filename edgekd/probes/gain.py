"""The gain of a candidate over another in the task's first metric: decisions/gains.py chooses the other candidate and
computes the figure."""

from edgekd.records import Quantity

GAIN = Quantity(
    "gain", "pt", "gain from learning from a teacher", better="higher", split=True, budget=False, column=160
)
MEASURES = (GAIN,)
