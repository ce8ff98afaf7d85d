"""What code an object stands on: its module and all that this imports, as digests of syntax trees, and the values it carries along.

Nothing is imported to find out: modules are located as Python would, imports are read from the syntax tree, also those inside functions
(not those under `if TYPE_CHECKING`, which never run). Where a module can't be read (a notebook, a prompt), its functions count by bytecode.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

# edgekd's modules that don't decide what a stage makes, so that work on them leaves finished work standing.
OFF_PATH = {
    *("records", "errors"),  # ground: plain records and messages; what a field means is in the code that uses it
    *("components", "store", "files", "locks", "fingerprint", "syntax", "intervals", "environment", "results"),  # tools: find, keep, count
    *("__init__", "__main__", "cli", "listing", "doctor"),  # surface
    *("recipe", "plan", "pipeline", "outcome", "measuring", "gating", "data.soundness"),  # flow: its products are settings, and those are in the key
    *("decisions", "report", "delivery"),  # read what was made
    *("measure", "hosts", "probes", "targets"),  # observe what was made
}  # fmt: skip
PLAIN = (type(None), bool, int, float, complex, str, bytes)


class Walk:
    """One traversal over objects and the modules they reach. `parts`: {module: digest}; `distributions`: the libraries met."""

    def __init__(self, array_digest: Callable[[np.ndarray], str]):
        self.array_digest = array_digest
        self.parts: dict[str, str] = {}
        self.distributions: set[str] = set()
        self.seen: dict[int, tuple[int, Any]] = {}  # id -> position, and the object, so that no id is used twice
        self.done: set[str] = set()

    def all(self, objects: Iterable[Any]) -> dict[str, Any]:
        """What decides the behaviour of the objects, in JSON's types."""
        return {"objects": [self.value(x) for x in objects], "modules": self.parts}

    # ------------------------------------------------------------ values

    def value(self, x: Any) -> Any:
        """A name or digest for a value that is the same in another process, if it can be had: addresses, paths and locks don't count."""
        if isinstance(x, (*PLAIN, np.generic)):
            return [type(x).__name__, repr(x)]
        if isinstance(x, Path):
            return ["path", x.name]
        if isinstance(x, types.ModuleType):
            self.module(x.__name__)
            return ["module", _true_name(x.__name__)]
        if isinstance(x, types.BuiltinFunctionType | types.MethodDescriptorType | types.MethodWrapperType | types.WrapperDescriptorType):
            return ["built-in", x.__qualname__]
        if id(x) in self.seen:
            return ["seen", self.seen[id(x)][0]]
        self.seen[id(x)] = len(self.seen), x
        return [type(x).__name__, *self.compound(x)]

    def compound(self, x: Any) -> list[Any]:
        if isinstance(x, np.ndarray):
            return [self.value(x.tolist())] if x.dtype.hasobject else [self.array_digest(x)]
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
        if isinstance(x, property | classmethod | staticmethod) or hasattr(type(x), "__wrapped__") or "__wrapped__" in getattr(x, "__dict__", ()):
            inner = x.fget if isinstance(x, property) else x.__wrapped__
            return [self.value(inner)]
        if hasattr(x, "detach") and hasattr(x, "numpy"):
            return self.tensor(x)
        return self.instance(x)

    def tensor(self, x: Any) -> list[Any]:
        x = x.detach().cpu()
        kind = str(x.dtype)
        return [kind, self.array_digest((x.float() if kind in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2") else x).numpy())]

    def instance(self, x: Any) -> list[Any]:
        """Class and attributes; of the standard library's own objects (locks, loggers, files) the class alone."""
        kind = self.value(type(x))
        if _is_standard(type(x).__module__):
            return [kind]
        slots = [name for c in type(x).__mro__ for name in _as_tuple(c.__dict__.get("__slots__", ()))]
        state = {name: getattr(x, name) for name in slots if hasattr(x, name) and name not in ("__dict__", "__weakref__")}
        return [kind, self.value({**state, **getattr(x, "__dict__", {})})]

    def type(self, x: type) -> list[Any]:
        self.module(x.__module__)
        for base in x.__mro__[1:]:
            self.module(base.__module__)
        name = f"{_true_name(x.__module__)}:{x.__qualname__}"
        if _is_loose(x.__module__) or "<locals>" in x.__qualname__:  # what its methods' cells hold may differ from call to call
            members = {k: v for k, v in vars(x).items() if k not in ("__dict__", "__weakref__", "__doc__", "__module__")}
            members = {k: v for k, v in members.items() if isinstance(v, (*PLAIN, property, staticmethod, classmethod)) or callable(v)}
            return [name, self.value(x.__bases__), self.value(members)]
        return [name]

    def function(self, x: types.FunctionType) -> list[Any]:
        home = x.__globals__.get("__name__", "")
        self.module(home, x.__globals__.get("__file__"))
        cells = [_cell(cell) for cell in x.__closure__ or ()]
        carried = [self.value(v) for v in (cells, x.__defaults__, x.__kwdefaults__)]
        if _is_loose(home, x.__globals__.get("__file__")):
            return [x.__qualname__, *carried, self.value(x.__code__), self.globals(x.__code__, x.__globals__)]
        return [f"{_true_name(home)}:{x.__qualname__}", *carried]

    def bytecode(self, x: types.CodeType) -> list[Any]:
        consts = [None if i == 0 and isinstance(c, str) else c for i, c in enumerate(x.co_consts)]  # a docstring is the first
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
            if not name or name in self.done or _is_standard(name):
                continue
            self.done.add(name)
            library = _distributions(name)
            if library:
                self.distributions.update(library)
                continue
            spec = _spec(name, file)
            if spec is None:
                continue
            waiting += [(parent, None) for parent in _parents(name)]
            if not _off_path(name):
                waiting += [(found, None) for found in self.source(_true_name(name), spec)]

    def source(self, name: str, spec: ModuleSpec) -> list[str]:
        """Counts one module by its syntax tree; returns the modules it imports."""
        if spec.origin is None or spec.origin == "namespace":
            return []
        path = Path(spec.origin)
        if path.suffix not in (".py", ".pyw") or not path.is_file():
            self.parts[name] = _unreadable(name, path)
            return []
        stat = path.stat()
        self.parts[name], imports = _parse(path, stat.st_mtime_ns, stat.st_size)
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        return [found for entry in imports for found in _resolve(entry, package)]


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


# ---------------------------------------------------------------- where modules lie


def _parents(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _off_path(name: str) -> bool:
    top, _, rest = name.partition(".")
    return top == "edgekd" and any(part in OFF_PATH for part in (rest or "__init__", *_parents(rest)))


def _true_name(name: str) -> str:
    """A script's module is called by its file, and what ran by `python -m` by its module, as if it were imported."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec is not None else Path(getattr(main, "__file__", None) or name).stem


def _spec(name: str, file: str | None = None) -> ModuleSpec | None:
    """Where Python finds the module, without importing it or its packages; None if it doesn't."""
    loaded = sys.modules.get(name) if name else None
    spec = getattr(loaded, "__spec__", None)
    if spec is None and loaded is not None:
        file = getattr(loaded, "__file__", None) or file
    if spec is None and file is not None and Path(file).is_file():
        return importlib.util.spec_from_file_location(name, file)
    if spec is not None or loaded is not None or not name:
        return spec
    parent, path = name.rpartition(".")[0], None
    if parent:
        package = _spec(parent)
        path = getattr(sys.modules.get(parent), "__path__", None) or getattr(package, "submodule_search_locations", None)
        if path is None:
            return None
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found
    return None


def _is_loose(name: str, file: str | None = None) -> bool:
    """Whether a module has no source that can be found: a notebook, a prompt, `python -c`."""
    spec = None if _is_standard(name) else _spec(name, file)
    return spec is None and not _is_standard(name)


@functools.cache
def _standard_folders() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


def _is_standard(name: str) -> bool:
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names or top == "__main__":
        return False
    spec = _spec(top)
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return True
    path = Path(spec.origin).resolve()
    return any(path.is_relative_to(folder) for folder in _standard_folders()) and not _in_site(path)


def _in_site(path: Path) -> bool:
    return "site-packages" in path.parts or "dist-packages" in path.parts


def _distributions(name: str) -> list[str]:
    """The distributions that a module in site-packages belongs to; none for code of one's own, and for edgekd."""
    top = name.partition(".")[0]
    if top in ("edgekd", "__main__"):
        return []
    spec = _spec(top)
    places = [] if spec is None else [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    if not any(_in_site(Path(place)) for place in places if place):
        return []
    return sorted(_installed().get(top, ()))


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    return {top: sorted(set(names)) for top, names in importlib.metadata.packages_distributions().items()}


def _unreadable(name: str, path: Path) -> str:
    """A module without source: the version of its distribution, else its bytes."""
    top = name.partition(".")[0]
    names = ["edgekd"] if top == "edgekd" else _installed().get(top, [])
    if names:
        return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no source"


# ---------------------------------------------------------------- syntax trees


@functools.lru_cache(maxsize=4096)
def _parse(path: Path, changed: int, size: int) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    """(digest, imports) of a source file. An import is (level, module, names from it)."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a file that this Python can't run either
        return hashlib.sha256(path.read_bytes()).hexdigest(), ()
    imports = tuple(_imports(tree))
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [line for line in block if not _is_text(line)])
        if isinstance(node, ast.Constant):
            node.kind = None  # u"" is ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _is_text(node: ast.AST) -> bool:
    """Docstrings, and all other strings that stand alone: they do nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST) -> Iterable[tuple[int, str, tuple[str, ...]]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and _last(node.func) in ("import_module", "__import__") and node.args:
            name = getattr(node.args[0], "value", None)
            if isinstance(name, str):
                yield len(name) - len(name.lstrip(".")), name.lstrip("."), ()
        never = isinstance(node, ast.If) and _last(node.test) == "TYPE_CHECKING"
        waiting += node.orelse if never else ast.iter_child_nodes(node)


def _last(node: ast.AST) -> str:
    """`name` of `name` and of `module.name`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def _resolve(entry: tuple[int, str, tuple[str, ...]], package: str) -> Iterable[str]:
    """The modules that an import statement may run: the one it names, and those of its names that are modules; `*` may be any."""
    level, module, names = entry
    if level:
        base = package.split(".")[: len(package.split(".")) - level + 1]
        if not package or not base:
            return
        module = ".".join([*base, *([module] if module else [])])
    yield module
    if not names or _is_standard(module) or _distributions(module):
        return
    spec = _spec(module)
    folders = getattr(spec, "submodule_search_locations", None)
    if folders is None:
        return
    if "*" in names:
        names = tuple({p.stem for folder in folders for p in Path(folder).glob("*.py") if p.stem not in ("__init__", "__main__")})
    yield from (f"{module}.{name}" for name in names if _spec(f"{module}.{name}") is not None)
