"""What a file that is no ONNX is, by its content, and how it becomes one. Nothing of it is loaded: a pickle can run
anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgekd.errors import Problem

TORCH = "load it with the code that made it, then torch.onnx.export(model, example, 'model.onnx', dynamo=True)"
KERAS = "pip install tf2onnx, then python -m tf2onnx.convert --{} {} --output model.onnx"


def kind(path: Path, head: bytes) -> tuple[str, str]:
    """(what a file is, the way from it to ONNX) by its first bytes, at least 512 of them; ("", "") if it is nothing
    known."""
    for known in (_signature, _zip, _protobuf):
        found = known(path, head)
        if found is not None:
            return found
    return "", ""


def folder(path: Path) -> tuple[str, str]:
    """The same of a folder."""
    if (path / "saved_model.pb").is_file():
        return "is a TensorFlow SavedModel", KERAS.format("saved-model", path.name)
    if (path / "Manifest.json").is_file() and path.suffix == ".mlpackage":
        return "is a Core ML package", "export the model that it was made from to ONNX"
    return "", ""


def problem(path: Path, head: bytes) -> Problem:
    """Why a file is not read as ONNX."""
    what, hint = kind(path, head)
    if not what:
        return Problem(str(path), "is not an ONNX file, or is truncated", "give a .onnx file that a runtime can load")
    return Problem(str(path), f"{what}, not an ONNX file", hint)


def _signature(path: Path, head: bytes) -> tuple[str, str] | None:
    name = path.name
    if head[4:8] == b"TFL3":
        return (
            "is a TensorFlow Lite file (.tflite)",
            f"pip install tf2onnx, then python -m tf2onnx.convert --tflite {name} --output model.onnx",
        )
    if head[4:8] == b"ORTM":
        return "is a file in onnxruntime's own format (.ort)", "give the .onnx file that it was made from"
    if head[4:8] in (b"ET12", b"ET13"):
        return "is an ExecuTorch program (.pte)", "export the PyTorch model that it was made from: torch.onnx.export"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        what = "is an HDF5 file, as Keras saves models and weights (.h5)"
        return what, "load it in Keras 3, then model.export('model.onnx', format='onnx')"
    if _safetensors(head):
        return "is a safetensors file: weights without a model", TORCH
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "is a pickle, as old versions of torch.save write (.pt, .pth); it is not opened, as it could run anything",
            TORCH,
        )
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text.startswith((b"<?xml", b"<net")) and b"<net" in head:
        return (
            "is an OpenVINO model (.xml, its weights in a .bin)",
            "give the ONNX file that it was converted from; OpenVINO writes none",
        )
    if head.startswith(b"7767517"):
        return "is an ncnn model (.param, its weights in a .bin)", "give the ONNX file that it was converted from"
    if head.startswith(b"GGUF"):
        return "is a GGUF file of a language model", "export the model that it was made from to ONNX"
    return None


def _safetensors(head: bytes) -> bool:
    """A length in 8 bytes, then JSON."""
    return head[8:10] in (b'{"', b"{}") and int.from_bytes(head[:8], "little") < 2**30


def _zip(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:100_000]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    if any(n.endswith("/constants.pkl") for n in names):
        load = "torch.onnx.export(torch.jit.load(file), example, 'model.onnx', dynamo=False)"
        return "is a TorchScript archive (.pt)", load
    if any("/models/" in n and n.endswith(".json") for n in names) or "serialized_exported_program.json" in names:
        return (
            "is a torch.export archive (.pt2)",
            "torch.onnx.export(torch.export.load(file), (example,), 'model.onnx')",
        )
    if any(n.endswith("data.pkl") for n in names):
        return "is a PyTorch checkpoint (.pt, .pth); it is not opened, as its pickle could run anything", TORCH
    if "config.json" in names and any(n.endswith(".weights.h5") for n in names):
        return "is a Keras model (.keras)", "load it in Keras 3, then model.export('model.onnx', format='onnx')"
    if any(n.endswith(".npy") for n in names):
        return "is an archive of arrays (.npz)", "give the model first, and this with --data"
    return None


def _protobuf(path: Path, head: bytes) -> tuple[str, str] | None:
    """TensorFlow's and Core ML's protobufs, by their first fields and the names of operators near their beginning."""
    name = path.name
    saved = head[:1] == b"\x08" and head[2:3] == b"\x12" and b"\n" in head[3:12]
    if saved and path.name == "saved_model.pb":
        return "is a TensorFlow SavedModel", KERAS.format("saved-model", path.resolve().parent.name)
    if any(word in head for word in (b"Placeholder", b"\x12\x05Const", b"dtype\x12\x02", b"NoOp", b"VarHandleOp")):
        return (
            "is a frozen TensorFlow graph (.pb)",
            f"python -m tf2onnx.convert --graphdef {name} --inputs NAME:0 --outputs NAME:0 --output model.onnx",
        )
    if path.suffix == ".mlmodel" and head[:1] == b"\x08":
        return "is a Core ML model (.mlmodel)", "export the model that it was made from to ONNX"
    return None
