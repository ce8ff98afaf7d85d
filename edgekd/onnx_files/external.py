"""Weights in files beside an ONNX file, as torch writes them: read only from the model's own folder, after their places
were checked against the files' sizes and the tensors' shapes; written where a model is too large for one file.

ONNX's external data: a tensor names `location` (a relative path), `offset` and `length` in bytes.
"""

from __future__ import annotations

import contextlib
import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from edgekd.errors import Problem, UsageError
from edgekd.files import content, regular, write_atomic

if TYPE_CHECKING:
    import onnx

LIMIT = 2**31 - 1  # bytes that one protobuf can hold
ROOM = 2**20  # bytes of them that are left for everything but weights
SMALL = 1024  # bytes of a tensor that stays inside
MARK = b"location"  # what a file that has external data contains
OVERLAP = 2  # how often the bytes of a file may be read, at most
HINT = "keep both files together as they were exported, or save it with all tensors inside"


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: in initializers, attributes, subgraphs and functions."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for entry, value in message.ListFields():
        if entry.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(part) if hasattr(part, "ListFields") else ()


def outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors of a model that lie in other files."""
    import onnx

    return [t for t in tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]


def load(model: onnx.ModelProto, path: Path) -> None:
    """Reads the external tensors of the model at `path` into it. Raises UsageError with every place that is wrong."""
    wrong: dict[str, list[str]] = {}
    wanted = []
    for tensor in outside(model):
        try:
            wanted.append((tensor, *_place(tensor, path)))
        except ValueError as error:
            wrong.setdefault(str(error), []).append(tensor.name[:80])
    problems = [
        Problem(str(path), f"keeps {_named(names)} where it can't be: {why}", HINT) for why, names in wrong.items()
    ]
    sizes = {file: file.lstat().st_size for _, file, _, _ in wanted}
    if sum(length for *_, length in wanted) > OVERLAP * sum(sizes.values()):
        problems.append(Problem(str(path), "reads the same bytes of its second file for many tensors", HINT))
    if problems:
        raise UsageError(*problems[:20])
    with contextlib.ExitStack() as stack:
        handles = {file: stack.enter_context(open(regular(file), "rb")) for file in sizes}
        for tensor, file, offset, length in wanted:
            handles[file].seek(offset)
            tensor.raw_data = handles[file].read(length)
            del tensor.external_data[:]
            tensor.ClearField("data_location")


def _named(names: list[str]) -> str:
    return f"the tensor {names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _place(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int, int]:
    """(file, offset, bytes) of an external tensor. Raises ValueError with what is wrong."""
    import onnx

    told = {e.key: e.value for e in tensor.external_data}
    if tensor.data_location != onnx.TensorProto.EXTERNAL or "location" not in told:
        raise ValueError("it names no file")
    file, wanted = beside(path, told["location"]), _bytes(tensor)
    offset, length = (_number(told, name) for name in ("offset", "length"))
    if length is not None and length != wanted:
        raise ValueError(f"it has {length:,} bytes, and its shape {list(tensor.dims)[:8]} takes {wanted:,}")
    size = file.lstat().st_size
    if (offset or 0) + wanted > size:
        raise ValueError(f"it ends at byte {(offset or 0) + wanted:,}, and {file.name} has {size:,}")
    return file, offset or 0, wanted


def beside(path: Path, location: str) -> Path:
    """The file of this location beside a model. Raises ValueError where it is none of the model's folder."""
    shown = location[:80]
    windows, parts = PureWindowsPath(location), PurePosixPath(location).parts
    if not parts or "\0" in location or windows.drive or windows.root or PurePosixPath(location).is_absolute():
        raise ValueError(f"`{shown}` is no relative path")
    if ".." in parts or ".." in windows.parts:
        raise ValueError(f"`{shown}` leads out of the model's folder")
    file = path.parent
    for part in parts:
        file = file / part
        try:
            mode = file.lstat().st_mode
        except OSError as error:
            raise ValueError(f"`{shown}` can't be read: {error.strerror or error}") from None
        if stat.S_ISLNK(mode):
            raise ValueError(f"`{shown}` is a link")
    if not stat.S_ISREG(mode):
        raise ValueError(f"`{shown}` is not a regular file")
    return file


def _number(told: dict[str, str], name: str) -> int | None:
    text = told.get(name, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"its {name} is `{text[:40]}`")
    return int(text) if text else None


def _bytes(tensor: onnx.TensorProto) -> int:
    """What a tensor of its type and shape takes."""
    from onnx import TensorProto, helper

    kind = tensor.data_type
    if kind == TensorProto.STRING or kind not in helper.get_all_tensor_dtypes():
        raise ValueError(f"its type {kind} can't be stored so")
    if any(d < 0 for d in tensor.dims):
        raise ValueError(f"its shape is {list(tensor.dims)[:8]}")
    name = TensorProto.DataType.Name(kind)
    bits = 4 if name in ("INT4", "UINT4", "FLOAT4E2M1") else 2 if name in ("INT2", "UINT2") else 0
    elements = math.prod(tensor.dims)
    return -(-elements * bits // 8) if bits else elements * helper.tensor_dtype_to_np_dtype(kind).itemsize


def files(path: Path) -> tuple[Path, ...]:
    """The files that hold weights of the ONNX file at `path`, in a fixed order; () where it holds all itself, and where
    it can't be read. Raises UsageError where a place is wrong."""
    model = _marked(path)
    return () if model is None else _files(model, path)


def _marked(path: Path) -> onnx.ModelProto | None:
    """The model of a file that may name others; None of one that does not, or can't be read."""
    try:
        data = content(path, LIMIT)
    except OSError:
        return None
    if MARK not in data:
        return None
    import onnx

    try:
        return onnx.load_model_from_string(data)
    except Exception:  # protobuf's own error classes differ between its builds
        return None


def _files(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted({_place(tensor, path)[0] for tensor in outside(model)}))
    except ValueError as error:
        raise UsageError(Problem(str(path), f"keeps a tensor where it can't be: {error}", HINT)) from None


def size(path: Path | str) -> int:
    """Bytes of a file, and of those that hold its weights. Raises UsageError, OSError."""
    own = Path(path)
    return own.stat().st_size + sum(file.lstat().st_size for file in files(own))


def located(path: Path, name: str) -> tuple[bytes, dict[str, Path]]:
    """(the ONNX file at `path` as it is put elsewhere as `name`, {file name: the file that has its weights}): these are
    called after that name, and it names them so. (b"", {}) of a file that holds all itself."""
    model = _marked(path)
    found = () if model is None else _files(model, path)
    if model is None or not found:
        return b"", {}
    names = {file: f"{name}.{i}.data" for i, file in enumerate(found)}
    for tensor in outside(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[beside(path, entry.value)]
    return model.SerializeToString(deterministic=True), {name: file for file, name in names.items()}


def large(model: onnx.ModelProto) -> bool:
    """Whether a model is too large for one file."""
    return sum(len(t.raw_data) for t in tensors(model)) > LIMIT - ROOM


def parts(model: onnx.ModelProto, name: str) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of a model that is written as `name`: of its weights first, where one file can't hold them.
    The same bytes every time."""
    import onnx

    if not large(model):
        yield name, model.SerializeToString(deterministic=True)
        return
    light, offset, second = _lightened(model), 0, f"{name}.data"
    pieces = []
    for tensor, whole in zip(light.graph.initializer, model.graph.initializer, strict=True):
        if len(whole.raw_data) > SMALL:
            pieces.append(whole.raw_data)
            onnx.external_data_helper.set_external_data(tensor, second, offset, len(whole.raw_data))
            tensor.ClearField("raw_data")
            offset += len(whole.raw_data)
    yield second, b"".join(pieces)
    yield name, light.SerializeToString(deterministic=True)


def _lightened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the bytes of large initializers."""
    import onnx

    light = onnx.ModelProto()
    for entry, value in model.ListFields():
        if entry.name == "graph":
            continue
        if hasattr(value, "extend"):
            getattr(light, entry.name).extend(value)
        else:
            setattr(light, entry.name, value)
    for entry, value in model.graph.ListFields():
        if entry.name == "initializer":
            for tensor in value:
                kept = light.graph.initializer.add()
                if len(tensor.raw_data) <= SMALL:
                    kept.CopyFrom(tensor)
                else:
                    for part, held in tensor.ListFields():
                        if part.name == "dims":
                            kept.dims.extend(held)
                        elif part.name == "raw_data":
                            kept.raw_data = b"-"  # set_external_data asks for some
                        elif part.name in ("name", "data_type", "doc_string"):
                            setattr(kept, part.name, held)
        elif hasattr(value, "extend"):
            getattr(light.graph, entry.name).extend(value)
        else:
            setattr(light.graph, entry.name, value)
    return light


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, of a model of any size: protobuf's own makes one message of all bytes on the way."""
    copy = _lightened(model)
    for tensor, whole in zip(copy.graph.initializer, model.graph.initializer, strict=True):
        if len(whole.raw_data) > SMALL:
            tensor.raw_data = whole.raw_data
    return copy


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model, with its weights in a second file where one can't hold them. Each file is whole or absent, the
    model's comes last. Raises OSError."""
    put(parts(model, path.name), path.parent)


def put(given: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Writes the `parts` of a model. Raises OSError."""
    for name, data in given:
        write_atomic(folder / name, data)
