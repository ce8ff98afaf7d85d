"""An int8 file before it is delivered: its bytes, and whether onnxruntime computes what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import Problem, RunFailed, UsageError
from edgekd.onnx_files import external
from edgekd.probes import static
from edgekd.quantization.qdq.compare import compare
from edgekd.samples.rows import Samples, fitting

if TYPE_CHECKING:
    import numpy as np
    import onnx

WORK = 5 * 10**8  # multiply-accumulates that the checks in numpy may take
KEPT = "edgekd.float_layers"  # the metadata that names layers which were asked to stay in float
SAMPLES = 16  # that they take at most


def finished(model: onnx.ModelProto, name: str, float_layers: Sequence[str] = ()) -> list[tuple[str, bytes]]:
    """(file name, content) of a model that is written as `name`, without what its exporter left in it: one file, or,
    where that can't hold its weights, these first. It names the `float_layers` that were asked for."""
    import onnx

    from edgekd import __version__

    model.producer_name, model.producer_version = "edgekd", __version__
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""  # stack traces of whoever exported it
        del part.metadata_props[:]
    kept = {p.key: p.value for p in model.metadata_props} | {"edgekd.schema": "edgekd.onnx/1"}
    kept = {k: v for k, v in kept.items() if k != KEPT} | ({KEPT: json.dumps(float_layers)} if float_layers else {})
    onnx.helper.set_model_props(model, kept)
    return list(external.parts(model, name))


def affordable(float_model: onnx.ModelProto, arrays: Mapping[str, np.ndarray] | Samples) -> dict[str, np.ndarray]:
    """The feed of the first samples, as many as the checks in numpy can take."""
    samples = fitting(arrays, float_model)
    try:
        macs = static.macs(float_model, samples.shapes)[0]
    except UsageError:  # shapes that stay open
        macs = WORK // 4
    return samples.some(min(SAMPLES, max(1, WORK // max(1, macs)))).feed()


def simulated(path: Path, feed: Mapping[str, np.ndarray]) -> tuple[int | None, str]:
    """(values of integer operators that differ from the simulation: 0; None and the reason where there is none). Raises
    RunFailed where some differ."""
    try:
        rows = compare(path, feed, integers=True)
    except Exception as error:  # operators that the reference doesn't have
        text = str(error).strip().splitlines() or ["it says no more"]
        what = f"it needs the value {text[0]}" if isinstance(error, KeyError) else text[0]
        return None, f"not compared with the simulation: {what[:200]}"
    wrong = [r for r in rows if r.integer and r.differ]
    if wrong:
        shown = "; ".join(
            f"{r.operator} {r.name.removesuffix('.q')}: {r.differ} of {r.values} values by up to {r.steps:.0f} steps"
            for r in wrong[:5]
        )
        what = f"onnxruntime does not compute these integer operators as the file says: {shown}"
        hint = "a CPU with AVX2 and without VNNI saturates products of weights of the full range; else report the file"
        raise RunFailed(Problem("", what, hint))
    return 0, ""


def float_layers(path: Path) -> tuple[str, ...]:
    """The layers that an int8 file of edgekd names as those that were asked to stay in float. Raises UsageError for
    other files."""
    known = {p.key: p.value for p in static.read(path).metadata_props}
    try:
        if "edgekd.schema" not in known:
            raise ValueError
        return tuple(map(str, json.loads(known.get(KEPT, "[]"))))
    except (TypeError, ValueError):
        hint = "give the options by which it was made"
        raise UsageError(Problem(str(path), "does not say which layers edgekd kept in float", hint)) from None
