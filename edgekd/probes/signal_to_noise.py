"""How far a quantized file's outputs are from its float model's: explain/fix.py makes the figure of answers to the same
samples."""

from edgekd.records import Quantity

SIGNAL_TO_NOISE = Quantity(
    "signal_to_noise", "dB", "outputs beside the float model's", better="higher", split=True, budget=False, column=None
)
MEASURES = (SIGNAL_TO_NOISE,)
