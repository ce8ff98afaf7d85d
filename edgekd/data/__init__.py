"""A user's data as a task's splits: `arrays` from memory, `from_loader` from a torch DataLoader; and `check`, which
finds every problem of a task."""

from edgekd.data.arrays import Arrays, Splits, arrays
from edgekd.data.checks import check
from edgekd.data.loader import Items, from_loader

__all__ = ["Arrays", "Items", "Splits", "arrays", "check", "from_loader"]
