"""Which output a metric takes, where a model has several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def one(outputs: Any, name: str | None) -> np.ndarray:
    """The output `name`, or the only one. Raises ValueError where it must be said, or there is none of this name."""
    if not isinstance(outputs, Mapping):
        return np.asarray(outputs)
    if name is None and len(outputs) == 1:
        return np.asarray(next(iter(outputs.values())))
    if name not in outputs:
        raise ValueError(f"the model has outputs {', '.join(outputs)}: say which one the metric takes with `output`")
    return np.asarray(outputs[name])
