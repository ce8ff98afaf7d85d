"""How much better a candidate is than another by the task's first metric: decisions/gains.py says beside which, and
makes the figure of both."""

from edgekd.records import Quantity

GAIN = Quantity(
    "gain", "pt", "what learning from a teacher brought", better="higher", split=True, budget=False, column=160
)
MEASURES = (GAIN,)
