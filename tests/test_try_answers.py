"""`edgekd try`: what is judged and told of answers, and streaming models."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from small_files import file

from edgekd import cli
from edgekd.run import answer_notes
from edgekd.run.answer_notes import Output
from edgekd.run.side_by_side import Answer


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    return tmp_path


def say(capsys, *words):
    code = cli.run(["try", *words, "--quiet", "--json", "answers.json"])
    out, err = capsys.readouterr()
    return code, out, err


def rows():
    with open("answers.json") as made:
        return json.load(made)["answers"]["rows"]


def whole(path, add, dims=(), type=T.INT64):
    """Integers of x [n, *dims], each with `add` more."""
    nodes = [("Cast", ["x"], ["c"], {"to": type}), ("Add", ["c", "a"], ["y"])]
    array = np.asarray(add, h.tensor_dtype_to_np_dtype(type))
    file(path, nodes, [("x", T.FLOAT, ["n", *dims])], [("y", type, ["n", *dims])], a=array)


def test_integers_are_judged(place, capsys):
    whole("a.onnx", 0)
    whole("b.onnx", 1)
    np.savez("d.npz", x=np.array([2, 5], np.float32))
    (place / "names.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    code, out, _ = say(capsys, "a.onnx", "a.onnx", "d.npz")
    assert code == 0 and [r["same"] for r in rows()] == [True, True] and "2 of 2 answers are the same" in out
    code, out, _ = say(capsys, "a.onnx", "b.onnx", "d.npz", "--names", "names.txt")
    assert [r["same"] for r in rows()] == [False, False] and "0 of 2 answers are the same" in out
    assert "output y: an integer, such as a class index" in out
    assert out.splitlines()[1].split() == ["d.npz", "[0]", "y", "c", "d", "ANOTHER", "ANSWER"]


def test_large_integers_are_shown_whole(place, capsys):
    whole("a.onnx", 0)
    np.savez("d.npz", x=np.array([123456], np.float32))
    assert "123456" in say(capsys, "a.onnx", "a.onnx", "d.npz")[1]


def test_several_integers(place, capsys):
    whole("a.onnx", [0, 0, 0, 0], [4])
    whole("b.onnx", [0, 1, 0, 0], [4])
    np.savez("d.npz", x=np.arange(4, dtype=np.float32)[None])
    code, out, _ = say(capsys, "a.onnx", "b.onnx", "d.npz")
    assert code == 0 and rows()[0]["same"] is False and rows()[0]["equal"] == 0.75 and "75.0 % equal values" in out


def test_scores_of_places_beside_class_indices(place, capsys):
    """[n, classes, 2] beside [n, 2]."""
    given = [("x", T.FLOAT, ["n", 3, 2])]
    file("a.onnx", [("Identity", ["x"], ["y"])], given, [("y", T.FLOAT, ["n", 3, 2])])
    file("b.onnx", [("ArgMax", ["x"], ["y"], {"axis": 1, "keepdims": 0})], given, [("y", T.INT64, ["n", 2])])
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32))
    code, _, err = say(capsys, "a.onnx", "b.onnx", "d.npz")
    assert code == 0 and [r["same"] for r in rows()] == [True] * 3, err


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("dims", [[3], [2, 2], [1]])
def test_nan_is_no_answer(place, capsys, both, dims):
    values = np.ones((1, *dims), np.float32)
    broken = values.copy()
    broken.flat[0] = np.nan
    for name, more in {"a.onnx": broken if both else 0 * values, "b.onnx": broken}.items():
        file(name, [("Add", ["x", "m"], ["y"])], [("x", T.FLOAT, ["n", *dims])], [("y", T.FLOAT, ["n", *dims])], m=more)
    np.savez("d.npz", x=values)
    code, out, _ = say(capsys, "a.onnx", "b.onnx", "d.npz")
    assert code == 0 and ("NaN in a.onnx and b.onnx" if both else "NaN in b.onnx") in out
    assert "same answer" not in out and "equal" not in out and rows()[0]["snr_db"] is None and not rows()[0]["same"]


def test_a_value_that_is_not_a_number_beside_scores(place, capsys):
    file("a.onnx", [("Identity", ["x"], ["y"])], [("x", T.FLOAT, ["n", 3])], [("y", T.FLOAT, ["n", 3])])
    nodes = [("ReduceMean", ["x"], ["r"], {"axes": [1]}), ("Add", ["r", "m"], ["y"])]
    file("b.onnx", nodes, [("x", T.FLOAT, ["n", 3])], [("y", T.FLOAT, ["n", 1])], m=np.full(1, np.nan, np.float32))
    np.savez("d.npz", x=np.ones((1, 3), np.float32))
    code, _, err = say(capsys, "a.onnx", "b.onnx", "d.npz")
    assert code == 0 and rows()[0]["same"] is None, err


def product(path, weights, name="87"):
    dims = [["n", weights.shape[0]], ["n", weights.shape[1]]]
    w = weights.astype(np.float32)
    file(path, [("MatMul", ["x", "w"], [name])], [("x", T.FLOAT, dims[0])], [(name, T.FLOAT, dims[1])], w=w)


def test_outputs_are_told_apart(place, capsys):
    product("a.onnx", np.eye(3))
    np.savez("d.npz", x=np.eye(3, dtype=np.float32))
    code, out, _ = say(capsys, "a.onnx", "a.onnx", "d.npz")
    assert (
        code == 0
        and "output 87 [3]: probabilities of 3 classes, of which the greatest are shown as class and score\n" in out
    )
    assert "samples are taken along: x axis 0; --axis NAME=K names another\n" in out
    assert "--axis" not in say(capsys, "a.onnx", "a.onnx", "d.npz", "--axis", "x=0")[1]


def test_answers_that_tell_nothing_are_told(place, capsys):
    product("a.onnx", np.eye(5))
    product("b.onnx", np.roll(np.eye(5), 1, 0))
    product("c.onnx", np.eye(5)[[0] * 5])
    np.savez("d.npz", x=np.eye(5, dtype=np.float32))
    out = say(capsys, "a.onnx", "b.onnx", "d.npz")[1]
    assert "87: 0 of 5 equal answers of 5 classes is no more than by chance" in out and "to all" not in out
    out = say(capsys, "a.onnx", "c.onnx", "d.npz")[1]
    assert "\nc.onnx gives one class of 87 to all 5 inputs: " in out
    assert "\nboth files give one class of 87 to all 5 inputs: " in say(capsys, "c.onnx", "c.onnx", "d.npz")[1]
    out = say(capsys, "a.onnx", "a.onnx", "d.npz")[1]
    assert "chance" not in out and "to all" not in out


@pytest.mark.parametrize("equal, of, classes, told", [(4, 4, 2, 0), (4, 5, 2, 0), (5, 10, 2, 1), (0, 4, 1000, 1)])
def test_chance_is_told_only_where_a_sound_file_would_agree_more(equal, of, classes, told):
    answer = lambda i: Answer(f"{i}", "y", ((i % 2, 1.0),), ((i % 2, 1.0),), i < equal, 1.0)
    outputs = [Output("y", (classes,), "scores", classes)]
    found = list(answer_notes.told([answer(i) for i in range(of)], outputs, (Path("a"), Path("b"))))
    assert len(found) == told


def test_a_table_is_no_wider_than_the_terminal(place, capsys, monkeypatch):
    from edgekd.report import tables

    product("a.onnx", np.eye(3))
    np.savez("d.npz", x=np.random.default_rng(0).random((2, 3), np.float32))
    (place / "names.txt").write_text("\n".join(f"a class with a long name {i}" for i in range(3)))
    monkeypatch.setattr(tables, "columns", lambda otherwise: 60)
    monkeypatch.setattr("edgekd.verbs.try.WIDTH", 60)
    code, out, _ = say(capsys, "a.onnx", "a.onnx", "d.npz", "--names", "names.txt", "--axis", "x=0")
    table = out.split("\n\n")[0]
    assert code == 0 and max(map(len, table.splitlines())) <= 60 and "".join(table.split()).count("longname") >= 2


def test_chance_among_many_inputs():
    assert answer_notes._tail(3, 10, 0.5) == pytest.approx(1 - (1 + 10 + 45) / 1024)
    assert answer_notes._tail(0, 5000, 0.1) == pytest.approx(1)


@pytest.fixture
def streaming(place):
    """h grows by x; the answer is x + h, twice in the other file, whose h is half of it besides."""
    given = [("x", T.FLOAT, [1, 3]), ("h", T.FLOAT, [1, 3])]
    made = [("y", T.FLOAT, [1, 3]), ("hn", T.FLOAT, [1, 3])]
    for name, scale in {"a.onnx": 1.0, "b.onnx": 0.5}.items():
        nodes = [("Add", ["x", "h"], ["y"]), ("Mul", ["y", "s"], ["hn"])]
        file(place / name, nodes, given, made, s=np.float32(scale))
    return np.random.default_rng(0).normal(size=(2, 10, 3)).astype(np.float32)


def test_each_file_goes_on_with_its_own_state(streaming, place, capsys):
    np.savez("s.npz", x=streaming)
    code, out, err = say(capsys, "a.onnx", "b.onnx", "s.npz", "--state", "hn=h")
    assert code == 0, err
    found = [(r["input"], r["output"], dict(r["plain"]), dict(r["int8"])) for r in rows()]
    assert [f[0] for f in found][9:11] == ["s.npz, step 9 of sequence 0", "s.npz, step 0 of sequence 1"]
    assert len(found) == 16 and {f[1] for f in found} == {"y"} and "4 more samples are not shown" in out
    for name, column in {"a.onnx": 2, "b.onnx": 3}.items():
        session = onnxruntime.InferenceSession(name)
        wanted = []
        for sequence in streaming:
            h_ = np.zeros((1, 3), np.float32)
            for x in sequence:
                y, h_ = session.run(None, {"x": x[None], "h": h_})
                wanted.append(y[0])
        for row, values in zip(found, wanted, strict=False):
            assert np.allclose([row[column][i] for i in range(3)], values, rtol=1e-6)


@pytest.mark.parametrize("verb", ["try", "quantize"])
def test_a_state_the_wrong_way_round(streaming, place, capsys, verb):
    np.savez("s.npz", x=streaming)
    words = ["a.onnx", "b.onnx", "s.npz"] if verb == "try" else ["a.onnx", "--data", "s.npz", "--out", "o.onnx"]
    code = cli.run([verb, *words, "--state", "h=hn", "--quiet"])
    err = capsys.readouterr().err
    assert code == 2 and "--state h=hn: is the wrong way round: hn is the output, and h the input" in err
    assert "hint: --state hn=h" in err and "is not an output" not in err


def test_images_are_no_sequences(streaming, place, capsys):
    (place / "a.png").write_bytes(b"\x89PNG\r\n")
    code, _, err = say(capsys, "a.onnx", "b.onnx", "a.png", "--state", "hn=h")
    assert code == 2 and "a.png: is no .npz, and --state needs sequences" in err
