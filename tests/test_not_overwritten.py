"""What a command reads, and what is no regular file, is never replaced by what it writes."""

import os
import socket
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd import cli
from edgekd.files import write_atomic


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A float file with its weights in a second one, data, and what is no regular file."""
    monkeypatch.chdir(tmp_path)
    w = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x")], [value("y")], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "whole.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    inputs = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.savez("d.npz", x=inputs)
    Path("folder").mkdir()
    for i in range(3):
        np.savez(f"folder/{i}.npz", x=inputs[i])
    os.mkfifo("pipe")
    os.link("m.onnx", "linked.onnx")
    Path("short.onnx").symlink_to("d.npz")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
        yield tmp_path


def kept(place):
    return {p.name: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("out", "data"),
    [("w.bin", "d.npz"), ("m.onnx", "d.npz"), ("linked.onnx", "d.npz"), ("d.npz", "d.npz"), ("short.onnx", "d.npz"),
     ("folder/1.npz", "folder"), ("whole.onnx", "d.npz"), ("pipe", "d.npz"), ("socket", "d.npz"), ("q" * 300, "d.npz")],
)  # fmt: skip
def test_quantize_refuses_to_write_over_what_it_reads(place, capsys, out, data):
    before = kept(place)
    code = cli.run(["quantize", "m.onnx", "--data", data, "--out", out, "--like", "whole.onnx", "--quiet"])
    err = capsys.readouterr().err
    assert code == 2 and f"error: {out}: " in err and "--out" in err, err
    assert kept(place) == before


@pytest.mark.parametrize("json", ["m.onnx", "w.bin", "whole.onnx", "d.npz", "pipe"])
@pytest.mark.parametrize(
    "words",
    [("try", "m.onnx", "whole.onnx", "d.npz"), ("compare", "m.onnx", "whole.onnx", "--data", "d.npz"),
     ("explain", "whole.onnx", "--float", "m.onnx", "--data", "d.npz")],
)  # fmt: skip
def test_a_report_is_not_written_over_what_was_read(place, capsys, words, json):
    before = kept(place)
    code = cli.run([*words, "--json", json, "--quiet"])
    assert code == 2 and f"error: {json}: " in capsys.readouterr().err
    assert kept(place) == before


@pytest.mark.parametrize("words", [["--json"], ["--target", "cortex-m7-stm32f746", "--json"], ["--trace"]])
def test_nor_a_profile(place, capsys, words):
    assert cli.run(["profile", "m.onnx", *words, "w.bin", "--quiet"]) == 2
    assert "error: w.bin: is a file with weights of m.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe", "socket"])
def test_nothing_but_a_file_is_replaced(place, name):
    with pytest.raises(OSError, match="no regular file"):
        write_atomic(name, b"data")
    assert not Path(name).is_file()


def test_a_name_of_many_bytes_is_written(place):
    name = "重" * 80 + ".json"  # 245 bytes
    write_atomic(name, b"data")
    assert Path(name).read_bytes() == b"data"


def test_data_and_model_may_lie_beside_the_file_that_is_written_again(place, capsys):
    for _ in range(2):
        words = ["--data", "folder", "--out", "folder/q.onnx", "--slower-int8", "--quiet"]
        assert cli.run(["quantize", "m.onnx", *words]) == 0, capsys.readouterr().err
