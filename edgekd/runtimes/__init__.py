"""What is copied to a device: `worker.py`, `facts.py`, and one file per runtime. They import nothing of edgekd, and
are read as Python 3.8.

A runtime is a file of this folder, or a module of one's own that a target names as `package.module`. It says

FORMAT      the format of the files that it reads: one of edgekd/formats, or `package.module` of one's own; or several
NEEDS       what must be installed where it runs, as pip names it, the library that runs the files first
VERSION     that library's version, once it is loaded
load(path, threads) -> infer      and optionally `operators(...)`; see `onnxruntime.py`

What a file says is read without importing it: where a plan is made its library may be missing.
"""

import ast
import importlib
import importlib.machinery
import re
import sys
from pathlib import Path


def names():
    """The runtimes: the files of this folder that offer a `FORMAT`. None is imported."""
    return sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if re.search(r"^FORMAT = ", _text(p), re.MULTILINE)
    )


def source(name):
    """The file of a runtime: of this folder, or where Python finds `package.module`; None without one."""
    if name in names():
        return Path(__file__).parent / (name + ".py")
    path, spec, parts = None, None, name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    importlib.invalidate_caches()
    for depth in range(1, len(parts) + 1):
        spec = _found(".".join(parts[:depth]), path)
        path = getattr(spec, "submodule_search_locations", None)
        if spec is None or (depth < len(parts) and path is None):
            return None
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def formats(name):
    """The formats that a runtime reads, the one that it is for first; () where there is no such runtime. Raises
    ValueError where its file can't be read, or says something else."""
    return _said(name, "FORMAT")


def needs(name):
    """What must be installed for a runtime."""
    return _said(name, "NEEDS")


def loaded(name):
    """The module of a runtime, imported here."""
    return importlib.import_module("edgekd.runtimes." + name if name in names() else name)


def about(name):
    """The first paragraph of what a runtime's file says of itself. Raises ValueError as `formats`."""
    return (ast.get_docstring(_module(source(name))) or "").split("\n\n")[0]


def offers(name, function):
    """Whether a runtime's file has this name at its top: a function, or what it imports or assigns. Raises ValueError
    as `formats`."""
    return any(function in _named(node) for node in _parsed(source(name)))


def _said(name, constant):
    """The texts of a constant at the top of a runtime's file. Raises ValueError where the file is not Python, or the
    constant is not text or a list of texts."""
    path = source(name)
    for node in _parsed(path):
        if constant in _targets(node):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return ()
            found = [value] if isinstance(value, str) else value
            if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) for text in found):
                raise ValueError(f"{constant} of {path.name} must be text or a list of texts, not {value!r}")
            return tuple(found)
    return ()


def _parsed(path):
    return _module(path).body if path else []


def _module(path):
    try:
        return ast.parse(_text(path))
    except (SyntaxError, ValueError) as error:  # (not UTF-8, NUL bytes)
        raise ValueError(f"{path.name} is not Python: {error}") from None


def _targets(node):
    """The names that an assignment at the top of a file is to."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [getattr(target, "id", "") for target in found]


def _named(node):
    """The names that a statement at the top of a file makes."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    return [getattr(node, "name", ""), *_targets(node)]


def _found(name, path):
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def _text(path):
    return path.read_text(encoding="utf-8")
