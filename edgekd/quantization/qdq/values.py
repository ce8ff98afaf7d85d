"""Values inside an ONNX file, as onnxruntime computes them: from a copy that has them as outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.onnx_files import external

if TYPE_CHECKING:
    import numpy as np
    import onnx


def shown(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that has the values of these names as outputs too."""
    import onnx

    copy = external.copied(model)
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(names) if n not in known
    )
    return copy


def session(model: onnx.ModelProto, names: Iterable[str] = ()) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """A model in onnxruntime, on one thread: {input: array} -> {output: array}, with the values of `names` among
    them."""
    from edgekd.runtimes.onnxruntime import load

    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        path = Path(folder) / "model.onnx"
        external.write(shown(model, names), path)
        return load(str(path), 1)


def file_values(path: Path, names: Iterable[str], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{value: array} of a file's outputs and of the values of these names."""
    import onnx

    return session(onnx.load(path), names)(dict(feed))
