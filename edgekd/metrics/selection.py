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


def pair(outputs: Any, labels: Any, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(the output `name`, its labels), or the only ones. Raises ValueError where it must be said, or there are none."""
    values = one(outputs, name)
    if not isinstance(labels, Mapping):
        return values, np.asarray(labels)
    if name is None:
        raise ValueError(f"labels are of {', '.join(labels)}: say which output the metric takes with `output`")
    if name not in labels:
        raise ValueError(f"the output {name} has no labels: there are some of {', '.join(labels)}")
    return values, np.asarray(labels[name])
