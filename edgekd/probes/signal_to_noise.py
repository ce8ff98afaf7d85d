"""The signal-to-noise ratio of a quantized file's outputs against its float model's: explain/fix.py computes the figure
on the same samples."""

from edgekd.records import Quantity

SIGNAL_TO_NOISE = Quantity(
    "signal_to_noise",
    "dB",
    "outputs compared with the float model's",
    better="higher",
    split=True,
    budget=False,
    column=None,
)
MEASURES = (SIGNAL_TO_NOISE,)
