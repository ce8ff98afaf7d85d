"""Rows of tables as samples: Hugging Face data sets (`datasets`, map-style) and Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import environment
from edgekd.data.arrays import Splits, arrays, to_array
from edgekd.data.column import stamp
from edgekd.data.reading import Reader, small
from edgekd.errors import EnvironmentUnfit, Problem, UsageError
from edgekd.inputs import bare, room

READ = 64  # rows of a Parquet file that are read at once


def from_datasets(
    train: Any, test: Any, *, inputs: Sequence[str], label: str | None, validation: Any = 0.2, seed: int = 0
) -> Splits:
    """Splits of Hugging Face data sets: the columns `inputs`, numbers, lists of one shape or images, and the column
    `label` (None: there is none). Rows are read and decoded when they are asked for, unless they are small; an image is
    uint8 [channels, height, width]. `validation`: a third data set, or the share of the training rows to hold out.
    Raises UsageError with every problem."""

    def read(name: str, table: Any) -> tuple[Any, Any]:
        pictures = {k for k in inputs if type(table.features[k]).__name__ == "Image"}
        rows = table.select_columns(list(inputs))
        rows = rows if pictures else rows.with_format("numpy")
        files = [Path(file["filename"]) for file in table.cache_files]
        sample = lambda i: bare({k: _picture(v) if k in pictures else to_array(v) for k, v in rows[i].items()})
        known = lambda: [stamp(files), table._fingerprint] if files and stamp(files) else None
        return small(Reader(len(table), sample, name, known).columns()), (
            None if label is None else to_array(table.with_format("numpy")[label][:])
        )

    def names(name: str, table: Any) -> Sequence[str]:
        known = getattr(table, "column_names", None)
        if not isinstance(known, list) or not hasattr(table, "__len__"):
            text = f"{type(table).__name__} is no map-style data set of `datasets`"
            raise UsageError(Problem(name, text, 'load_dataset(..., split="train"), without streaming'))
        return known

    return _splits(train, test, [*inputs], label, validation, seed, names, read)


def from_parquet(
    train: Path | str,
    test: Path | str,
    *,
    inputs: Sequence[str],
    label: str | None,
    validation: Any = 0.2,
    seed: int = 0,
) -> Splits:
    """Splits of Parquet files: the columns `inputs`, numbers, lists of one shape or encoded images ({bytes, path}, as
    `datasets` writes them: uint8 [channels, height, width]), and the column `label` (None: there is none). A file is
    read once, into a mapped temporary file, for its rows can't be read one by one: TMPDIR needs room for the values.
    `validation`: a third file, or the share of the training rows to hold out. Needs pyarrow
    (`pip install "edgekd[tables]"`). Raises UsageError with every problem."""
    try:
        from pyarrow import parquet
    except ImportError:
        hint = environment.extra("tables")
        raise EnvironmentUnfit(Problem("from_parquet", "reading Parquet needs pyarrow", hint)) from None

    def names(name: str, path: Any) -> Sequence[str]:
        if not Path(path).is_file():
            raise UsageError(Problem(name, f"there is no file {path}"))
        with parquet.ParquetFile(path) as file:
            return [] if not file.metadata.num_rows else list(file.schema_arrow.names)

    def read(name: str, path: Any) -> tuple[Any, Any]:
        with parquet.ParquetFile(path) as file:
            count = file.metadata.num_rows
            parts = ((k, column) for b in file.iter_batches(READ, columns=[*inputs]) for k, column in _columns(b))
            x = bare(_filled(name, parts, count))
            return x, None if label is None else to_array(file.read([label]).column(label).to_pylist())

    return _splits(train, test, [*inputs], label, validation, seed, names, read)


def _splits(
    train: Any,
    test: Any,
    inputs: list[str],
    label: str | None,
    validation: Any,
    seed: int,
    names: Callable[[str, Any], Sequence[str]],
    read: Callable[[str, Any], tuple[Any, Any]],
) -> Splits:
    """`names(split, given)`: the columns that are there; `read(split, given)`: (inputs, labels)."""
    share = isinstance(validation, float)
    given = {"train": train, "test": test} | ({} if share else {"validation": validation})
    problems: list[Problem] = []
    for name, table in given.items():
        try:
            known = names(name, table)
        except UsageError as error:
            problems += error.problems
            continue
        for wanted in [*inputs, *([] if label is None else [label])]:
            if wanted not in known:
                problems.append(Problem(name, f"has no column `{wanted}`", f"it has {', '.join(known) or 'no rows'}"))
    if problems:
        raise UsageError(*problems)
    found = {name: read(name, table) for name, table in given.items()}
    held = {} if share else dict(zip(("x_validation", "y_validation"), found["validation"], strict=True))
    part = validation if share else 0.5
    return arrays(*found["train"], *found["test"], **held, validation=part, seed=seed)


def _columns(batch: Any) -> list[tuple[str, list[np.ndarray]]]:
    """(name, the values of each row) of the columns of a batch of a Parquet file."""
    return [(name, [_values(name, row) for row in batch.column(name)]) for name in batch.schema.names]


def _values(name: str, row: Any) -> np.ndarray:
    """One row's value: a number, a list of numbers or of lists, or an encoded image."""
    value = row.as_py()
    if isinstance(value, Mapping) and value.get("bytes"):
        return _picture(_opened(value["bytes"]))
    found = to_array(value)
    if found.dtype.kind not in "fiub":
        hint = "name columns of numbers, of lists of one shape, or of images"
        raise UsageError(Problem(name, f"a value is a {type(value).__name__}, not numbers", hint))
    flat = row.type
    while hasattr(flat, "value_type"):
        flat = flat.value_type
    return found if found.dtype.kind == "f" else found.astype(flat.to_pandas_dtype())


def _filled(place: str, parts: Any, count: int) -> dict[str, np.ndarray]:
    """{name: [count, ...]}, mapped where they are large. Raises UsageError for rows of another shape than the first."""
    found: dict[str, np.ndarray] = {}
    done: dict[str, int] = {}
    for name, rows in parts:
        if name not in found:
            found[name] = room((count, *rows[0].shape), rows[0].dtype)
        for row in rows:
            at = done.get(name, 0)
            if row.shape != found[name].shape[1:]:
                text = f"row {at} of `{name}` has shape {list(row.shape)}, rows before it {list(found[name].shape[1:])}"
                raise UsageError(Problem(place, text, "give all rows one shape"))
            found[name][at] = row
            done[name] = at + 1
    return found


def _opened(data: bytes) -> Any:
    import io

    try:
        from PIL import Image
    except ImportError:
        raise EnvironmentUnfit(Problem("", "reading images needs Pillow", environment.extra("images"))) from None
    return Image.open(io.BytesIO(data))


def _picture(image: Any) -> np.ndarray:
    """uint8 [channels, height, width] of an image of Pillow, of one with a palette its colours."""
    pixels = np.asarray(
        image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
    )
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
