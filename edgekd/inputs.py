"""What a model takes or gives: one array, or {name: array}; tensors alike. Either is handled in one way here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def named(values: Any, name: str = "") -> dict[str, Any]:
    """{name: array}; one array is called `name`."""
    return dict(values) if isinstance(values, Mapping) else {name: values}


def bare(values: Mapping[str, Any]) -> Any:
    """The only array, or {name: array} where there is another number of them."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def each(values: Any, change: Callable[[Any], Any]) -> Any:
    """The same form with every array changed."""
    return {name: change(v) for name, v in values.items()} if isinstance(values, Mapping) else change(values)


def positional(values: Any) -> tuple[Any, ...]:
    """The arrays in their order, as a captured graph takes them."""
    return tuple(values.values()) if isinstance(values, Mapping) else (values,)


def length(values: Any) -> int:
    """How many samples there are."""
    return len(positional(values)[0])


def sample(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{input: shape [1, ...] of one of its samples [n, ...]}"""
    return {name: (1, *array.shape[1:]) for name, array in values.items()}
