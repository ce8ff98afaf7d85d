"""Keys of finished work, known before it runs: what code, which libraries, which data, which settings.

*Code* is the syntax tree, without docstrings, of every module that an object's own module reaches by import and that
lies outside the standard library and site-packages (`syntax.py`); site-packages count by version; a notebook's or a
prompt's functions by bytecode. What a module takes from elsewhere (files, environment, the clock) is invisible: a task
lists its files in `assets`, or raises its `version`.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import json
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import Problem, UsageError
from edgekd.files import reading, sha256
from edgekd.inputs import Column, chunks
from edgekd.store import parsed, syntax

PLAIN = (type(None), bool, int, float, complex, str, bytes)


def code_and_libraries(*objects: Any) -> tuple[str, dict[str, str]]:
    """(digest, versions). The digest is the sha256 of the code behind functions, classes, instances or modules, and of
    the values they carry along (arguments of a partial, cells of a closure, attributes of an instance): the same from
    a clone in another folder, whatever its comments and formatting. Versions are {distribution: version} of the
    third-party libraries that this code imports, and Python's minor version."""
    walk = Walk()
    digest = _sha256(_canonical(walk.all(objects), "code"))
    parsed.keep()
    versions = {name: syntax.version(name) for name in sorted(walk.distributions)}
    return digest, versions | {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}


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
    """The key of an artifact: sha256 of all that decides it. Raises TypeError, with the place, for what JSON can't
    say."""
    return _sha256(_canonical(dict(locals()), "key"))


def array_digest(arrays: Any) -> str:
    """sha256 of an array or column, or {name: array}: dtype, shape and values in C order, read in parts. Raises
    TypeError for arrays of Python objects."""
    hasher = hashlib.sha256()
    for name, array in sorted(arrays.items()) if isinstance(arrays, Mapping) else [(None, arrays)]:
        _add(hasher, name, array)
    return hasher.hexdigest()


def _add(hasher: Any, name: str | None, array: Any) -> None:
    array = array if isinstance(array, Column) else np.asarray(array)
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} has no digest: give it a dtype of numbers or of strings")
    hasher.update(repr((name, array.dtype.name, np.lib.format.dtype_to_descr(array.dtype), array.shape)).encode())
    for part in chunks(array) if array.ndim else [array]:
        hasher.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def data(
    inputs: Any,
    labels: Any,
    ids: Iterable[Any],
    weight: np.ndarray | None,
    tags: Sequence[Sequence[str]] | None = None,
) -> str:
    """sha256 of a split: inputs [N, ...] or {name: [N, ...]}, labels alike, ids in their order, weights, tags if
    there are any."""
    return data_read(inputs, lambda: (labels, ids, weight, tags))


def data_read(inputs: Any, rest: Callable[[], tuple[Any, Iterable[Any], Any, Any]]) -> str:
    """`data` where labels, ids, weights and tags are known once the inputs were read."""
    hasher = hashlib.sha256()
    named = inputs.items() if isinstance(inputs, Mapping) else [(None, inputs)]
    for name, array in sorted(named):
        _add(hasher, "inputs" if name is None else f"inputs.{name}", array)
    labels, ids, weight, tags = rest()
    of_outputs = sorted(labels.items()) if isinstance(labels, Mapping) else [(None, labels)]
    told = [("labels" if name is None else f"labels.{name}", array) for name, array in of_outputs]
    for name, array in (*told, ("weight", weight)):
        if array is not None:
            _add(hasher, name, array)
    names = json.dumps([i.item() if isinstance(i, np.generic) else i for i in ids], separators=(",", ":"))
    tagged = [] if tags is None else [_sha256([list(t) for t in tags])]
    return _sha256([hasher.hexdigest(), hashlib.sha256(names.encode()).hexdigest(), *tagged])


def files(paths: Iterable[str | Path], pattern: str = "*") -> str:
    """sha256 of files and folders, by name and content, of those in folders that match `pattern`; where they lie
    doesn't count. Raises UsageError with all that are missing."""
    given = [Path(path) for path in paths]
    missing = [
        Problem(str(path), "there is no such file or folder", "assets are files that the task reads")
        for path in given
        if not path.exists()
    ]
    if missing:
        raise UsageError(*missing)
    return _sha256([[path.name, _files(path, pattern)] for path in given])


def _files(path: Path, pattern: str) -> Any:
    if path.is_dir():
        return {p.relative_to(path).as_posix(): _files(p, pattern) for p in sorted(path.rglob(pattern)) if p.is_file()}
    with reading(path, "assets are files that the task reads"):
        return sha256(path)


def _sha256(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def _canonical(value: Any, place: str) -> Any:
    """`value` in JSON's types (tuples are lists), floats left to their shortest repr. Raises TypeError for all
    others."""
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise TypeError(f"{place}: the name {wrong[0]!r} is not a string")
        return {k: _canonical(v, f"{place}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v, f"{place}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(
        f"{place}: {value!r} can't stand in a key: give a string, a finite number, a boolean, None, or lists and "
        "tables of them"
    )


# ---------------------------------------------------------------- code


class Walk:
    """One traversal over objects and the modules they reach. `parts`: {module: digest}; `distributions`: the libraries
    met."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.distributions: set[str] = set()
        self.values: dict[int, tuple[Any, str]] = {}  # id -> the object, so that the id is used once, and its digest
        self.done: set[str] = set()

    def all(self, objects: Iterable[Any]) -> dict[str, Any]:
        """What decides the behaviour of the objects, in JSON's types."""
        return {"objects": [self.value(x) for x in objects], "modules": self.parts}

    # ------------------------------------------------------------ values

    def value(self, x: Any) -> Any:
        """A name or digest for a value that is the same in another process, if it can be had: addresses, paths and
        locks don't count."""
        if isinstance(x, (*PLAIN, np.generic)):
            return [type(x).__name__, repr(x)]
        if isinstance(x, Path):
            return ["path", x.name]
        if isinstance(x, types.ModuleType):
            self.module(x.__name__)
            return ["module", syntax.true_name(x.__name__)]
        if isinstance(
            x,
            types.BuiltinFunctionType
            | types.MethodDescriptorType
            | types.MethodWrapperType
            | types.WrapperDescriptorType,
        ):
            return ["built-in", x.__qualname__]
        if id(x) not in self.values:
            self.values[id(x)] = x, "itself"  # what a cycle comes back to
            self.values[id(x)] = x, _sha256([type(x).__name__, *self.compound(x)])
        return self.values[id(x)][1]

    def compound(self, x: Any) -> list[Any]:
        if isinstance(x, np.ndarray):
            return [self.value(x.tolist())] if x.dtype.hasobject else [array_digest(x)]
        if isinstance(x, type):
            return self.type(x)
        if isinstance(x, types.FunctionType):
            return self.function(x)
        if isinstance(x, types.CodeType):
            return self.bytecode(x)
        if isinstance(x, types.MethodType):
            return [self.value(x.__func__), self.value(x.__self__)]
        if isinstance(x, functools.partial):
            return [self.value(x.func), self.value(x.args), self.value(x.keywords)]
        if isinstance(x, Mapping):
            return [[self.value(k), self.value(v)] for k, v in x.items()]
        if isinstance(x, Set):
            return sorted((self.value(v) for v in x), key=repr)
        if isinstance(x, Sequence):
            return [self.value(v) for v in x]
        if (
            isinstance(x, property | classmethod | staticmethod)
            or hasattr(type(x), "__wrapped__")
            or "__wrapped__" in getattr(x, "__dict__", ())
        ):
            inner = x.fget if isinstance(x, property) else x.__wrapped__
            return [self.value(inner)]
        if hasattr(x, "detach") and hasattr(x, "numpy"):
            return self.tensor(x)
        return self.instance(x)

    def tensor(self, x: Any) -> list[Any]:
        """Of a torch tensor; those that numpy has no type for go by way of float32, sparse and quantized ones by their
        text."""
        x, kind = x.detach().cpu(), str(x.dtype)
        try:
            return [kind, array_digest((x.float() if kind.startswith(("torch.bfloat", "torch.float8")) else x).numpy())]
        except (TypeError, RuntimeError):
            return [kind, str(x.shape), repr(x)]

    def instance(self, x: Any) -> list[Any]:
        """Class and attributes; where there are none, and for the standard library's own objects, the text, unless it
        shows an address."""
        kind = self.value(type(x))
        slots = [name for c in type(x).__mro__ for name in _as_tuple(c.__dict__.get("__slots__", ()))]
        state = {
            name: getattr(x, name) for name in slots if hasattr(x, name) and name not in ("__dict__", "__weakref__")
        }
        state |= getattr(x, "__dict__", {})
        if not state or syntax.is_standard(type(x).__module__):
            return [kind, "" if " at 0x" in repr(x) else repr(x)]
        return [kind, self.value(state)]

    @staticmethod
    def _computed(x: type) -> bool:
        """Whether a class of a module with source is not the one that its name stands for there."""
        if syntax.is_standard(x.__module__) or syntax.distributions_of(x.__module__):
            return False
        found: Any = sys.modules.get(x.__module__)
        for name in x.__qualname__.split("."):
            found = getattr(found, name, None)
        return found is not x

    def type(self, x: type) -> list[Any]:
        self.module(x.__module__)
        for base in x.__mro__[1:]:
            self.module(base.__module__)
        name = f"{syntax.true_name(x.__module__)}:{x.__qualname__}"
        # what its methods' cells hold may differ from call to call, and what `type(...)` made stands in no source
        if syntax.is_loose(x.__module__) or "<locals>" in x.__qualname__ or self._computed(x):
            members = {
                k: v
                for k, v in vars(x).items()
                if k not in ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__")
            }
            members = {
                k: v
                for k, v in members.items()
                if isinstance(v, (*PLAIN, property, staticmethod, classmethod)) or callable(v)
            }
            return [name, self.value(x.__bases__), self.value(members)]
        return [name]

    def function(self, x: types.FunctionType) -> list[Any]:
        home = x.__globals__.get("__name__", "")
        self.module(home, x.__globals__.get("__file__"))
        cells = [_cell(cell) for cell in x.__closure__ or ()]
        carried = [self.value(v) for v in (cells, x.__defaults__, x.__kwdefaults__)]
        if syntax.is_loose(home, x.__globals__.get("__file__")):
            return [x.__qualname__, *carried, self.value(x.__code__), self.globals(x.__code__, x.__globals__)]
        # lambdas and functions inside of functions: the name does not say which of the module's they are
        if "<" in x.__qualname__:
            carried.append(self.value(x.__code__))
        return [f"{syntax.true_name(home)}:{x.__qualname__}", *carried]

    def bytecode(self, x: types.CodeType) -> list[Any]:
        # a docstring is the first
        consts = [None if i == 0 and isinstance(c, str) else c for i, c in enumerate(x.co_consts)]
        return [x.co_code.hex(), self.value(consts), list(x.co_names), list(x.co_varnames), list(x.co_freevars)]

    def globals(self, x: types.CodeType, space: Mapping[str, Any]) -> list[Any]:
        """The global values and modules that bytecode asks for."""
        found: list[Any] = []
        for step in dis.get_instructions(x):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in space:
                found.append([step.argval, self.value(space[step.argval])])
            elif step.opname == "IMPORT_NAME":
                self.module(step.argval)
        return found + [self.globals(c, space) for c in x.co_consts if isinstance(c, types.CodeType)]

    # ------------------------------------------------------------ modules

    def module(self, name: str, file: str | None = None) -> None:
        """Counts a module, the packages it lies in, and all that it imports."""
        waiting = [(name, file)]
        while waiting:
            name, file = waiting.pop()
            if not name or name in self.done or syntax.is_standard(name):
                continue
            self.done.add(name)
            library = syntax.distributions_of(name)
            if library:
                self.distributions.update(library)
                continue
            spec = syntax.locate(name, file)
            if spec is None:
                continue
            waiting += [(parent, None) for parent in syntax.parents(name)]
            if not syntax.off_path(name):
                waiting += [(found, None) for found in self.source(syntax.true_name(name), spec)]

    def source(self, name: str, spec: ModuleSpec) -> list[str]:
        """Counts one module by its syntax tree; returns the modules it imports."""
        if spec.origin is None or spec.origin == "namespace":
            return []
        path = Path(spec.origin)
        if path.suffix not in (".py", ".pyw") or not path.is_file():
            self.parts[name] = syntax.unreadable(name, path)
            return []
        self.parts[name], imports = parsed.tree(path)
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        found = [(module, entry[2]) for entry in imports for module in syntax.resolve(entry, package)]
        for module, names in found:
            if module in syntax.BY_NAME:
                self.definitions(module, names)
        return [module for module, _ in found]

    def definitions(self, module: str, names: Iterable[str]) -> None:
        """Counts what a module defines by these names, and all of its own that this is made of."""
        spec = syntax.locate(module)
        if spec is None or spec.origin is None:
            return
        known, waiting = parsed.definitions(Path(spec.origin)), list(names)
        while waiting:
            name = waiting.pop()
            if name in known and f"{module}:{name}" not in self.parts:
                self.parts[f"{module}:{name}"], used = known[name]
                waiting += used


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
