"""Modules as Python would find them, without importing any: where they lie, to which distribution they belong, what
they import, and the digest of their syntax tree without docstrings.

Imports are read from the tree, also those inside functions; not those under `if TYPE_CHECKING`, which never run. What a
source file parses to is kept in the store by the digest of its content (`parsed.py`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

Import = tuple[int, str, tuple[str, ...]]  # level, module, names from it
Parsed = tuple[str, tuple[Import, ...]]  # digest, imports

# edgekd's modules that don't decide what a stage makes, so that work on them leaves finished work standing.
OFF_PATH = {
    "errors",
    "records",  # but for the definitions that are imported by name: BY_NAME
    *("components", "signatures", "training.read_terms"),  # what they find and read is in the key
    *("files", "intervals", "environment", "results", "progress", "store"),  # keep, count, show
    *("__init__", "__main__", "cli", "verbs", "explain"),  # what users call
    "run",  # what it decides is in the key
    *("data.checks", "data.cifar"),  # what was read is in the data's digest
    *("decisions", "report", "delivery"),  # read what was made
    *("measure", "hosts", "probes", "targets"),  # observe what was made
}

BY_NAME = {"edgekd.records"}  # of these modules those definitions count that the code imports


def parents(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def off_path(name: str) -> bool:
    top, _, rest = name.partition(".")
    return top == "edgekd" and any(part in OFF_PATH for part in (rest or "__init__", *parents(rest)))


def true_name(name: str) -> str:
    """A script's module is called by its file, and what ran by `python -m` by its module, as if it were imported."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return spec.name if spec is not None else Path(getattr(main, "__file__", None) or name).stem


def locate(name: str, file: str | None = None) -> ModuleSpec | None:
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
        package = locate(parent)
        path = getattr(sys.modules.get(parent), "__path__", None) or getattr(
            package, "submodule_search_locations", None
        )
        if path is None:
            return None
    for finder in sys.meta_path:
        found = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found
    return None


def is_loose(name: str, file: str | None = None) -> bool:
    """Whether a module has no source that can be found: a notebook, a prompt, `python -c`."""
    spec = None if is_standard(name) else locate(name, file)
    return spec is None and not is_standard(name)


@functools.cache
def _standard_folders() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


def is_standard(name: str) -> bool:
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names or top == "__main__":
        return False
    spec = locate(top)
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return True
    return _standard_file(spec.origin)


@functools.cache
def _standard_file(origin: str) -> bool:
    path = Path(origin).resolve()
    return any(path.is_relative_to(folder) for folder in _standard_folders()) and not _in_site(path)


def _in_site(path: Path) -> bool:
    return "site-packages" in path.parts or "dist-packages" in path.parts


def distributions_of(name: str) -> list[str]:
    """The distributions that a module in site-packages belongs to; none for code of one's own, and for edgekd."""
    top = name.partition(".")[0]
    if top in ("edgekd", "__main__"):
        return []
    spec = locate(top)
    places = [] if spec is None else [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    if not any(_in_site(Path(place)) for place in places if place):
        return []
    return sorted(_installed().get(top, ()))


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    return {top: sorted(set(names)) for top, names in importlib.metadata.packages_distributions().items()}


@functools.cache
def version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def unreadable(name: str, path: Path) -> str:
    """A module without source: the version of its distribution, else its bytes."""
    top = name.partition(".")[0]
    names = ["edgekd"] if top == "edgekd" else _installed().get(top, [])
    if names:
        return ", ".join(f"{n} {version(n)}" for n in names)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no source"


# ---------------------------------------------------------------- syntax trees


def parse(source: bytes) -> Parsed:
    """(digest, imports) of the content of a source file."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a file that this Python can't run either
        return hashlib.sha256(source).hexdigest(), ()
    imports = tuple(_imports(tree))
    return hashlib.sha256(ast.dump(_stripped(tree)).encode()).hexdigest(), imports


def definitions(source: bytes) -> Mapping[str, tuple[str, list[str]]]:
    """{name that a module defines: (digest of the definition without docstrings, names that stand in it)}."""
    found: dict[str, tuple[str, list[str]]] = {}
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        named = [getattr(target, "name", getattr(target, "id", None)) for target in targets]
        used = sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)})
        digest = hashlib.sha256(ast.dump(_stripped(node)).encode()).hexdigest()
        found |= {name: (digest, used) for name in named if name is not None}
    return found


def _stripped(tree: ast.AST) -> ast.AST:
    """The tree without what does nothing: docstrings, and prefixes of strings."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [line for line in block if not _is_text(line)])
        if isinstance(node, ast.Constant):
            node.kind = None  # u"" is ""
    return tree


def _is_text(node: ast.AST) -> bool:
    """Docstrings, and all other strings that stand alone: they do nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST) -> Iterable[Import]:
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
        if isinstance(node, ast.If) and _last(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _last(node: ast.AST) -> str:
    """`name` of `name` and of `module.name`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def resolve(entry: Import, package: str) -> Iterable[str]:
    """The modules that an import statement may run: the one it names, and those of its names that are modules; `*` may
    be any."""
    level, module, names = entry
    if level:
        base = package.split(".")[: len(package.split(".")) - level + 1]
        if not package or not base:
            return
        module = ".".join([*base, *([module] if module else [])])
    yield module
    if not names or is_standard(module) or distributions_of(module):
        return
    spec = locate(module)
    folders = getattr(spec, "submodule_search_locations", None)
    if folders is None:
        return
    if "*" in names:
        names = tuple(
            {p.stem for folder in folders for p in Path(folder).glob("*.py") if p.stem not in ("__init__", "__main__")}
        )
    yield from (f"{module}.{name}" for name in names if locate(f"{module}.{name}") is not None)
