"""One way of making an int8 file, in a process of its own: `python ways.py WAY FLOAT.onnx DATA.npz OUT.onnx FORM`.

DATA.npz holds the samples for calibration, {input: array}; FORM is JSON, {"axes": {input: the axis of its samples, null
for a constant}, "batch": samples at once}. NNCF runs in a Python that has it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Form = Mapping[str, Any]


def edgekd(model: Path, data: Path, out: Path, form: Form) -> list[str]:
    """The command line, with what a person has to add for inputs whose samples lie elsewhere."""
    given = [(name, "none" if axis is None else axis) for name, axis in form["axes"].items() if axis != 0]
    more = [part for name, axis in given for part in ("--axis", f"{name}={axis}")]
    return ["-m", "edgekd", "quantize", str(model), "--data", str(data), "--out", str(out), "--quiet", *more]


def batches(data: Path, form: Form) -> list[dict[str, np.ndarray]]:
    """The samples as the file takes them."""
    axes, size = form["axes"], form["batch"]
    with np.load(data) as file:
        arrays = {name: file[name] for name in file.files}
    count = next(arrays[name].shape[axis] for name, axis in axes.items() if axis is not None)
    return [
        {
            name: a if axes[name] is None else a[(slice(None),) * axes[name] + (slice(i, i + size),)]
            for name, a in arrays.items()
        }
        for i in range(0, count - size + 1, size)
    ]


def _reader(data: Path, form: Form) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches(data, form))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return Reader()


def static(model: Path, data: Path, out: Path, form: Form) -> None:
    """quantize_static as it is."""
    from onnxruntime.quantization import quantize_static

    quantize_static(model, out, _reader(data, form))


def tuned(model: Path, data: Path, out: Path, form: Form) -> None:
    """quantize_static as its documentation advises for x86, on what quant_pre_process makes of the file (without its
    symbolic shapes where these fail), of opset 13 at least, which scales per channel need."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        loaded = onnx.load(model)
        if next(o.version for o in loaded.opset_import if o.domain in ("", "ai.onnx")) < 13:
            model = Path(folder) / "newer.onnx"
            onnx.save(onnx.version_converter.convert_version(loaded, 13), model)
        try:
            quant_pre_process(model, ready)
        except Exception:  # AssertionError, KeyError, Exception, ...
            quant_pre_process(model, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            out,
            _reader(data, form),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def dynamic(model: Path, data: Path, out: Path, form: Form) -> None:
    """quantize_dynamic as it is: weights ahead, activations while it runs."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, out)


def nncf(model: Path, data: Path, out: Path, form: Form) -> None:
    """nncf.quantize as it is."""
    import nncf
    import onnx

    rows = batches(data, form)
    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(rows), subset_size=len(rows)), out)


OTHERS: Mapping[str, Callable[[Path, Path, Path, Form], None]] = {f.__name__: f for f in (static, tuned, dynamic, nncf)}
WAYS = ("edgekd", *OTHERS)


def command(way: str, model: Path, data: Path, out: Path, form: Form) -> list[str]:
    """The arguments of Python that make a file."""
    if way == "edgekd":
        return edgekd(model, data, out, form)
    return [__file__, way, str(model), str(data), str(out), json.dumps(form)]


if __name__ == "__main__":
    OTHERS[sys.argv[1]](*map(Path, sys.argv[2:5]), json.loads(sys.argv[5]))
