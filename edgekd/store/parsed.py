"""What source files parse to, kept in the store from run to run: parsing is most of the time that keys take.

    ROOT/syntax.json    {sha256 of a file's content: what `syntax.parse` or `syntax.definitions` makes of it}

The content decides, never the name or the time of a file, so an entry is right whatever was edited. What another
version of Python or of `syntax.py` made is thrown away.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import UsageError
from edgekd.files import home, sealed, unsealed, write_atomic
from edgekd.store import syntax

SCHEMA, NAME = "edgekd.syntax/1", "syntax.json"
MOST = 5000  # entries; beyond it the file begins anew

_new: dict[str, Any] = {}  # since `keep` was called last


def tree(path: Path) -> syntax.Parsed:
    """(digest, imports) of a source file. Raises OSError."""
    digest, imports = _made(path, "tree", syntax.parse)
    return digest, tuple((level, module, tuple(names)) for level, module, names in imports)


def definitions(path: Path) -> Mapping[str, tuple[str, list[str]]]:
    """{name that a module defines: (digest of the definition, names that stand in it)}. Raises OSError."""
    return {name: (digest, used) for name, (digest, used) in _made(path, "definitions", syntax.definitions).items()}


def keep() -> None:
    """Writes what was parsed since into the store; one that can't be written is left as it is."""
    place = _place()
    if not _new or place is None:
        return
    _kept.cache_clear()  # another process may have written
    entries = _kept(place) | _new
    record = {"of": _made_by(), "entries": entries if len(entries) <= MOST else _new}
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, sealed(SCHEMA, record))
        _kept.cache_clear()
        _new.clear()


def _made(path: Path, kind: str, make: Callable[[bytes], Any]) -> Any:
    source = path.read_bytes()
    name = f"{kind} {hashlib.sha256(source).hexdigest()}"
    found = _new.get(name) or _kept(_place()).get(name)
    if found is None:
        found = _new[name] = make(source)
    return found


def _place() -> Path | None:
    with contextlib.suppress(UsageError):  # told by what needs the store
        return home("XDG_CACHE_HOME", ".cache", "EDGEKD_STORE") / NAME
    return None


@functools.lru_cache(maxsize=1)
def _kept(place: Path | None) -> dict[str, Any]:
    try:
        record = {} if place is None else unsealed(place, SCHEMA)
        return dict(record["entries"]) if record.get("of") == _made_by() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@functools.cache
def _made_by() -> str:
    """What decides how a source is parsed."""
    rules = hashlib.sha256(Path(syntax.__file__).read_bytes()).hexdigest()
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} {rules}"
