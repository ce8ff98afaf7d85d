"""Keys of finished work, known before it runs: what code, which libraries, which data, which settings.

*Code* is the syntax tree, without docstrings, of every module that an object's own module reaches by import and that lies outside the
standard library and site-packages (`syntax.py`); site-packages count by version. What a module takes from elsewhere (files, environment,
the clock) is invisible: a task lists its files in `assets`, or raises its `version`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.syntax import Walk


def code(*objects: Any) -> str:
    """sha256 of the code behind functions, classes, instances or modules, and of the values they carry along (arguments of a partial,
    cells of a closure, attributes of an instance). The same from a clone in another folder, whatever its comments and formatting."""
    return _sha256(_canonical(Walk(array_digest).all(objects), "code"))


def libraries(*objects: Any) -> dict[str, str]:
    """{distribution: version} of the third-party libraries that this code imports, and Python's minor version."""
    walk = Walk(array_digest)
    walk.all(objects)
    versions = {name: importlib.metadata.version(name) for name in sorted(walk.distributions)}
    return versions | {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def key(
    *,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    seed: int | None,
    code: str,
    data: Mapping[str, Any],
    threads: int,
    device: str,
    dtype: str,
    libraries: Mapping[str, str],
) -> str:
    """The key of an artifact: sha256 of all that decides it. Raises TypeError, with the place, for what JSON can't say."""
    return _sha256(_canonical(dict(locals()), "key"))


def array_digest(arrays: Any) -> str:
    """sha256 of an array or {name: array}: dtype, shape and values in C order. Raises TypeError for arrays of Python objects."""
    hasher = hashlib.sha256()
    for name, array in sorted(arrays.items()) if isinstance(arrays, Mapping) else [(None, arrays)]:
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise TypeError(f"an array of {array.dtype} has no digest: give it a dtype of numbers or of strings")
        hasher.update(repr((name, array.dtype.name, np.lib.format.dtype_to_descr(array.dtype), array.shape)).encode())
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return hasher.hexdigest()


def data(inputs: Any, labels: np.ndarray | None, ids: Iterable[Any], weight: np.ndarray | None) -> str:
    """sha256 of a split: inputs [N, ...] or {name: [N, ...]}, labels, ids in their order, weights."""
    named = {f"inputs.{name}": array for name, array in inputs.items()} if isinstance(inputs, Mapping) else {"inputs": inputs}
    named |= {name: array for name, array in (("labels", labels), ("weight", weight)) if array is not None}
    names = json.dumps([i.item() if isinstance(i, np.generic) else i for i in ids], separators=(",", ":"))
    return _sha256([array_digest(named), hashlib.sha256(names.encode()).hexdigest()])


def files(paths: Iterable[str | Path]) -> str:
    """sha256 of files and folders, by name and content; where they lie doesn't count. Raises UsageError with all that are missing."""
    paths = [Path(path) for path in paths]
    missing = [Problem(str(path), "there is no such file or folder", "assets are files that the task reads") for path in paths if not path.exists()]
    if missing:
        raise UsageError(*missing)
    return _sha256([[path.name, _files(path)] for path in paths])


def _files(path: Path) -> Any:
    if path.is_dir():
        return {p.relative_to(path).as_posix(): _files(p) for p in sorted(path.rglob("*")) if p.is_file()}
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _canonical(value: Any, place: str) -> Any:
    """`value` in JSON's types (tuples are lists), floats left to their shortest repr. Raises TypeError for all others."""
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise TypeError(f"{place}: the name {wrong[0]!r} is no string")
        return {k: _canonical(v, f"{place}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v, f"{place}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"{place}: {value!r} can't stand in a key: give a string, a finite number, a boolean, None, or lists and tables of them")
