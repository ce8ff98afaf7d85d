"""ONNX files in onnxruntime, on the CPU: `load(path, threads) -> infer`, `infer({name: array}) -> {name: array}`.

One operator at a time, `threads` threads within it, all graph optimizations. `infer.inputs` is {name: (numpy dtype or
None, shape)} with None for a dimension that is open; `infer.outputs` the output names. Errors are onnxruntime's own.
"""

import os
import time

import numpy as np

# before it is loaded: it would send events to its maker, keep an identifier on the device, and run a thread of its own
# beside what is measured
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

FORMAT = "onnx"
NEEDS = ("onnxruntime", "numpy")
VERSION = ort.__version__

_TYPES = {"float": "float32", "double": "float64"}
_TYPES.update(
    {
        name: name
        for name in ("float16", "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
    }
)


def load(path, threads=1):
    """Opens a file: (path, number of threads) -> infer."""
    session = ort.InferenceSession(os.fspath(path), _options(threads), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def infer(arrays):
        return dict(zip(names, session.run(names, arrays)))  # noqa: B905 - Python 3.8 has no `strict`

    infer.inputs = {value.name: (_dtype(value.type), _shape(value.shape)) for value in session.get_inputs()}
    infer.outputs = tuple(names)
    return infer


def operators(path, threads, arrays, warmup, runs, seconds, prefix):
    """`warmup` + `runs` inferences (fewer after `seconds`, but one at least) with the operators' clock on, which
    perturbs: not for latency.

    Returns onnxruntime's trace file, named `prefix` + time + .json; its clock ticks in microseconds, so small models
    need many runs."""
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = os.fspath(prefix)
    session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    end = time.monotonic() + seconds
    for i in range(warmup + runs):
        if i > warmup and time.monotonic() > end:
            break
        session.run(None, arrays)
    return session.end_profiling()


def _options(threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what goes wrong comes as an exception
    # waiting threads sleep: spinning ones take the time of whatever else runs, and hide how much the model needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _dtype(text):
    inner = text[len("tensor(") : -1] if text.startswith("tensor(") else ""
    return np.dtype(_TYPES[inner]).name if inner in _TYPES else None


def _shape(shape):
    return tuple(d if isinstance(d, int) and d >= 0 else None for d in shape or ())
