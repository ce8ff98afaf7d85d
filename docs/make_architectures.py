"""Writes docs/architectures.md: what each step makes of common architectures.

    python docs/make_architectures.py [NAME ...]

tests/test_architectures.py builds them, and fails where a row is not what this writes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architectures.md"
HEAD = """# Architectures

<!-- written by docs/make_architectures.py, which runs the small networks of tests/architectures.py -->

Small versions of common architectures, each distilled for an epoch, pruned to at most 75 % of its multiply-accumulates,
calibrated, exported as int8 and run in onnxruntime, where its outputs are compared with those of the pruned model.
Pruned: the share of the parameters that went. Int8: layers that onnxruntime computes in integers, of all.

| architecture | distilled | pruned | int8 | exported | not so, and why |
|---|---|---|---|---|---|
"""
WHY = {
    "ConvTranspose": "onnxruntime has no integer kernel for ConvTranspose on CPUs",
    "LSTM": "recurrent layers stay in float",
    "GRU": "recurrent layers stay in float",
}


def row(shown: str, result: Any) -> str:
    """The line of one architecture."""
    whole = "pruned" in result.failed
    reasons = [f"{step}: {text.splitlines()[0]}" for step, text in result.failed.items()]
    reasons += [str(r) for r in result.refused if "the model's output" not in str(r)]
    reasons += [f"{name} in float: {WHY.get(name, 'no integer kernel')}" for name in dict.fromkeys(result.floats)]
    exported = "exported" not in result.failed
    cells = [
        shown,
        "yes",
        "no" if whole else f"{result.parameters:.0%}",
        "{} of {}".format(*result.int8) if exported else "no",
        "yes" if exported else "no",
        "; ".join(reasons).replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def rows(names: Iterable[str], architectures: Mapping[str, Any], chain: Any) -> dict[str, str]:
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = row(architectures[name].shown, chain(name, Path(folder)))
            print(found[name], flush=True)
    return found


def main(names: list[str]) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from architectures import ARCHITECTURES, chain

    lines = PAGE.read_text("utf-8").splitlines() if PAGE.is_file() else []
    kept = {a.shown: line for a in ARCHITECTURES.values() for line in lines if line.startswith(f"| {a.shown} |")}
    made = rows(names or ARCHITECTURES, ARCHITECTURES, chain)
    kept |= {ARCHITECTURES[name].shown: line for name, line in made.items()}
    PAGE.write_text(HEAD + "".join(f"{kept[a.shown]}\n" for a in ARCHITECTURES.values() if a.shown in kept), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
