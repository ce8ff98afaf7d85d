"""Other tools' int8 files of a float ONNX file, at their defaults: `python peers.py FLOAT.onnx CALIBRATION.npz FOLDER`
prints {way: path}.

Runs in a Python of its own that has nncf (and onnx, onnxruntime); a tool that is missing or refuses the file is left
out, and told on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def nncf(model: Path, arrays: dict, out: Path) -> None:
    import nncf
    import onnx

    count = len(next(iter(arrays.values())))
    rows = nncf.Dataset(range(count), lambda i: {name: a[i : i + 1] for name, a in arrays.items()})
    onnx.save(nncf.quantize(onnx.load(model), rows, subset_size=count), out)


def main(model: Path, calibration: Path, folder: Path) -> None:
    import numpy as np

    with np.load(calibration, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    found = {}
    for name, make in {"nncf, defaults": nncf}.items():
        out = folder / f"{make.__name__}.onnx"
        try:
            make(model, arrays, out)
        except Exception as error:  # whatever another tool raises is its result
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            found[name] = str(out)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
