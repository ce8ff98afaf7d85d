"""`edgekd try`: single inputs through two files, side by side."""

import json
import sys
import types
import wave

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from small_files import file

from edgekd import cli
from edgekd.report import tables

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A float file and one of other weights, which take an image [n, 3, 2, 2] and give the mean of each colour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    nodes = [h.make_node("GlobalAveragePool", ["x"], ["p"]), h.make_node("Flatten", ["p"], ["f"])]
    nodes.append(h.make_node("MatMul", ["f", "w"], ["y"]))
    for name, weights in {"float": np.eye(3), "int8": np.eye(3)[[0, 2, 1]]}.items():
        given = [("x", T.FLOAT, ["n", 3, 2, 2])]
        file(tmp_path / f"{name}.onnx", nodes, given, [("y", T.FLOAT, ["n", 3])], w=weights.astype(np.float32))
    for name, colour in {"red": (255, 0, 51), "green": (0, 255, 51)}.items():
        PIL.new("RGB", (2, 2), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


def say(capsys, *words):
    code = cli.run(["try", *words, "--quiet"])
    out, err = capsys.readouterr()
    return code, out, err


def test_images_side_by_side(place, capsys):
    words = ["float.onnx", "int8.onnx", "red.png", "green.png", "--preprocess", "unit", "--names", "names.txt"]
    code, out, _ = say(capsys, *words, "--json", "answers.json")
    rows = [line.split("  ") for line in out.splitlines()]
    cells = [[c.strip() for c in row if c.strip()] for row in rows]
    assert code == 0 and cells[0] == ["input", "output", "float.onnx", "int8.onnx"]
    assert cells[1][:4] == ["red.png", "y", "red 1, blue 0.2, green 0", "red 1, green 0.2, blue 0"]
    assert cells[1][4].startswith("same answer, ") and cells[2][4].startswith("ANOTHER ANSWER")
    assert cells[2][2:4] == ["green 1, blue 0.2, red 0", "blue 1, green 0.2, red 0"]
    assert out.endswith("1 of 2 answers are the same\n")
    kept = json.loads((place / "answers.json").read_text())
    assert kept["schema"] == "edgekd.answers/1"
    assert [(r["input"], r["same"]) for r in kept["answers"]["rows"]] == [("red.png", True), ("green.png", False)]


def test_samples_of_an_npz_beside_an_image(place, capsys):
    np.savez(place / "some.npz", inputs=np.random.default_rng(0).random((20, 3, 2, 2), np.float32))
    code, out, _ = say(capsys, "float.onnx", "float.onnx", "some.npz", "red.png", "--preprocess", "unit")
    lines = out.splitlines()
    assert code == 0 and lines[1].startswith("some.npz [0]") and "some.npz [15]" in out and "[16]" not in out
    assert lines[-2:] == ["17 of 17 answers are the same", "4 more samples are not shown"] and "equal" in lines[1]


def test_each_file_is_given_what_it_takes(place, capsys):
    """A file that takes bytes with the channels last, and answers a class number."""
    nodes = [
        h.make_node("Cast", ["x"], ["c"], to=T.FLOAT),
        h.make_node("ReduceMean", ["c"], ["m"], axes=[1, 2], keepdims=0),
    ]
    nodes.append(h.make_node("ArgMax", ["m"], ["y"], axis=1, keepdims=0))
    file(place / "camera.onnx", nodes, [("x", T.UINT8, ["n", 2, 2, 3])], [("y", T.INT64, ["n"])])
    code, out, _ = say(capsys, "float.onnx", "camera.onnx", "red.png", "green.png", "--preprocess", "unit")
    assert code == 0 and "2 of 2 answers are the same" in out and "dB" not in out


def test_a_sound(place, capsys):
    file(
        place / "loud.onnx",
        [h.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", T.FLOAT, ["n", 8])],
        [("y", T.FLOAT, ["n", 2])],
        w=np.repeat([[1.0, -1.0]], 8, 0).astype(np.float32),
    )
    with wave.open(str(place / "a.wav"), "wb") as made:
        made.setparams((1, 2, 8000, 8, "NONE", ""))
        made.writeframes(np.full(8, 16384, np.int16).tobytes())
    code, out, _ = say(capsys, "loud.onnx", "loud.onnx", "a.wav")
    assert code == 0 and "0 4, 1 -4" in out


def test_a_fixed_batch_takes_one(place, capsys, monkeypatch):
    """The batch is filled with the last sample, and only the first answers are shown."""
    monkeypatch.setattr(tables, "columns", lambda otherwise: 1000)  # paths are long: a wide table would be folded
    nodes = [h.make_node("GlobalAveragePool", ["x"], ["p"]), h.make_node("Flatten", ["p"], ["y"])]
    file(place / "8.onnx", nodes, [("x", T.FLOAT, [8, 3, 2, 2])], [("y", T.FLOAT, [8, 3])])
    np.savez(place / "one.npz", x=np.ones((1, 3, 2, 2), np.float32))
    code, out, err = say(
        capsys, "8.onnx", "8.onnx", str(place / "red.png"), "green.png", "one.npz", "--preprocess", "unit"
    )
    lines = out.splitlines()
    assert code == 0, err
    assert "0 1, 2 0.2, 1 0" in lines[1] and "1 1, 2 0.2, 0 0" in lines[2] and "one.npz" in lines[3]
    assert lines[-1] == "3 of 3 answers are the same"


def test_what_is_wrong_with_a_file_is_told_with_its_name(place, capsys):
    code, _, err = say(capsys, "float.onnx", "float.onnx", "red.png", "--preprocess", "unit", "--axis", "x=0")
    assert code == 0, err
    file(
        place / "5.onnx", [h.make_node("Relu", ["x"], ["y"])], [("x", T.FLOAT, ["n", 5, 2, 2])], [("y", T.FLOAT, None)]
    )
    code, _, err = say(capsys, "5.onnx", "5.onnx", "red.png", "--preprocess", "unit")
    assert code == 2 and "error: red.png: the input x takes [n, 5, 2, 2]" in err


@pytest.mark.filterwarnings("error")
def test_an_output_without_values(place, capsys):
    nodes = [h.make_node("Slice", ["x", "from", "from", "axis"], ["e"])]
    constants = {"from": np.array([0]), "axis": np.array([1])}
    file(place / "none.onnx", nodes, [("x", T.FLOAT, ["n", 8])], [("e", T.FLOAT, ["n", 0])], **constants)
    np.savez(place / "d.npz", x=np.ones((2, 8), np.float32))
    code, out, _ = say(capsys, "none.onnx", "none.onnx", "d.npz")
    assert code == 0 and "d.npz [1]" in out and "dB" not in out


class Tokenizer:
    """As far as the library's is called."""

    length = None

    @classmethod
    def from_str(cls, text):
        if text != "{}":
            raise Exception("expected value at line 1 column 1")
        return cls()

    def enable_truncation(self, length):
        self.length = length

    def enable_padding(self, length):
        assert length == self.length

    def encode(self, text):
        ids = [len(word) for word in text.split()][: self.length]
        mask = [1] * len(ids) + [0] * ((self.length or len(ids)) - len(ids))
        ids += [0] * (len(mask) - len(ids))
        return types.SimpleNamespace(ids=ids, attention_mask=mask, type_ids=[0] * len(ids))


@pytest.fixture
def texts(place, monkeypatch):
    given = [("input_ids", T.INT64, ["n", 4]), ("attention_mask", T.INT64, ["n", 4])]
    nodes = [h.make_node("Mul", ["input_ids", "attention_mask"], ["m"]), h.make_node("Cast", ["m"], ["y"], to=T.FLOAT)]
    file(place / "words.onnx", nodes, given, [("y", T.FLOAT, ["n", 4])])
    (place / "tokenizer.json").write_text("{}")
    (place / "said.txt").write_text("four words is enough here")
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    return place


def test_texts(texts, capsys):
    words = ["words.onnx", "words.onnx", "a bcd", "said.txt", "--tokenizer", "tokenizer.json"]
    code, out, _ = say(capsys, *words)
    assert code == 0 and "a bcd" in out and "1 3, 0 1, 2 0" in out and "said.txt" in out and "3 6, 1 5, 0 4" in out


def test_a_text_may_be_longer_than_the_name_of_a_file(texts, capsys):
    words = ["words.onnx", "words.onnx", "a bcd " * 1000, "--tokenizer", "tokenizer.json"]
    assert say(capsys, *words)[0] == 0
    code, _, err = say(capsys, *words[:3])
    assert code == 2 and "there is no such file" in err and len(err) < 500


@pytest.mark.parametrize("verb", [["profile"], ["explain"], ["gate"], ["compare", "float.onnx"]])
def test_a_name_that_is_too_long_is_told(place, capsys, verb):
    code = cli.run([*verb, "x" * 5000])
    told = capsys.readouterr().err
    assert code == 2 and "too long" in told and "internal" not in told


@pytest.mark.parametrize(
    "words, told",
    [
        (["words.onnx", "words.onnx", "bin.txt", "--tokenizer", "tokenizer.json"], ["bin.txt: is not text in UTF-8"]),
        (["float.onnx", "int8.onnx", "none.png"], ["none.png: there is no such file", "a text needs --tokenizer"]),
        (["no.onnx", "int8.onnx", "also.npz"], ["no.onnx", "also.npz: there is no such file"]),
        (["float.onnx", "int8.onnx", "names.txt"], ["names.txt: is .txt, and no image, .wav or .npz"]),
        (["float.onnx", "int8.onnx", "red.png"], ["--preprocess: is missing"]),
        (["float.onnx", "int8.onnx", "bad.png", "--preprocess", "unit"], ["bad.png: can't be read as an image"]),
        (
            ["float.onnx", "int8.onnx", "red.png", "--preprocess", "unit", "--names", "red.png"],
            ["is not text in UTF-8"],
        ),
        (["float.onnx", "words.onnx", "hello", "--tokenizer", "names.txt"], ["names.txt: is not a tokenizer file"]),
        (
            ["float.onnx", "words.onnx", "hello", "--tokenizer", "tokenizer.json"],
            ["the input x takes no token numbers"],
        ),
    ],
)
def test_what_can_not_be_is_told(texts, capsys, words, told):
    (texts / "bad.png").write_bytes(b"\x89PNG\r\n")
    (texts / "bin.txt").write_bytes(b"\xff")
    code, _, err = say(capsys, *words)
    assert "names.txt: is not a tok" not in err or "no such file" not in err
    assert code == 2 and [t for t in told if t not in err] == [], err


def test_without_the_library_the_extra_is_named(texts, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, err = say(capsys, "words.onnx", "words.onnx", "hello", "--tokenizer", "tokenizer.json")
    assert code == 4 and "edgekd[text]" in err
