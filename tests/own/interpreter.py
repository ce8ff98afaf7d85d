"""`own.layers` files in plain numpy."""

import json

import numpy as np

FORMAT = "own.layers"
NEEDS = ("numpy",)
VERSION = "0.9"


def load(path, threads=1):
    with open(str(path), encoding="utf-8") as file:
        network = json.load(file)
    tensors = {n: np.frombuffer(bytes.fromhex(b), t).reshape(s) for n, (t, s, b) in network["tensors"].items()}

    def infer(arrays):
        values = dict(tensors, **arrays)
        for kind, read, made, attributes in network["layers"]:
            values[made] = LAYERS[kind](attributes, *[values[name] for name in read])
        return {name: values[name] for name in network["outputs"]}

    infer.inputs = {name: ("float32", tuple(shape)) for name, shape in network["inputs"].items()}
    infer.outputs = tuple(network["outputs"])
    return infer


def conv(attributes, x, w, b=None):
    top, left, bottom, right = attributes["pads"]
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    windows = windows[:, :, :: attributes["strides"][0], :: attributes["strides"][1]]
    groups = np.split(windows, attributes["group"], 1), np.split(w.astype(np.float64), attributes["group"])
    y = np.concatenate([np.einsum("nchwij,ocij->nohw", *pair) for pair in zip(*groups)], 1)  # noqa: B905
    return (y if b is None else y + b[:, None, None]).astype(np.float32)


def gemm(attributes, x, w, b):
    return (x.astype(np.float64) @ (w.T if attributes["transB"] else w) + b).astype(np.float32)


def quantize(attributes, x, scale, zero):
    limits = np.iinfo(zero.dtype)
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(zero.dtype)


def dequantize(attributes, q, scale, zero=0):
    along = [-1 if d == attributes.get("axis", 1) else 1 for d in range(q.ndim)] if scale.ndim else []
    zero = np.asarray(zero, np.float32)
    return ((q - (zero.reshape(along) if zero.ndim else zero)) * scale.reshape(along)).astype(np.float32)


LAYERS = {
    "Conv": conv,
    "Gemm": gemm,
    "Relu": lambda attributes, x: np.maximum(x, 0),
    "Add": lambda attributes, x, y: x + y,
    "GlobalAveragePool": lambda attributes, x: x.mean((2, 3), keepdims=True),
    "Reshape": lambda attributes, x, shape: x.reshape([len(x), *shape[1:]]),
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
}
