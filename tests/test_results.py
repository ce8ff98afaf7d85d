"""result.json and predictions: what is written is read back, and what is wrong is told with its place, whatever it
is."""

import dataclasses
import json
import math
import os
import pickle
import zipfile

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import results
from edgekd.errors import RunFailed, UsageError
from edgekd.metrics import top1
from edgekd.records import Candidate, Check, Measurement, Result, TargetResult
from edgekd.run.schemas import KINDS, schema

FIGURES = (
    Measurement("top1", "%", 95.0, 93.0, 96.5, 360, "test", "host", "measured", 1, "abc", "noisy"),
    Measurement("file_bytes", "B", 4096, 4096, 4096, 1, None, None, "counted"),
)
RESULT = Result(
    "digits",
    "ab" * 32,
    {"abc": {"cpu": "Example", "caches": {"l1d": 32768}, "virtual": False, "governor": None}},
    {"teacher": "teacher"},
    (
        Candidate("teacher", "teacher", 0, (), ("teacher",), "onnx", "models/teacher.onnx", "00" * 32, FIGURES),
        Candidate("prune-0.5.s1", "prune-0.5", 1, ("teacher",), ("distill", "prune"), "onnx", None, "11" * 32, FIGURES),
    ),
    {
        "host": TargetResult(
            ("prune-0.5.s1",),
            "prune-0.5.s1",
            "pass",
            (Check("host", "prune-0.5.s1", "top1", "min 88 %", "pass", "error", 95.0, 93.0, 96.5, "%", "measured"),),
        )
    },
    ({"step": "teacher", "reused": True, "seconds": 1.5},),
)
TARGET = {"front": [], "chosen": None, "verdict": None}


@pytest.fixture
def path(tmp_path):
    results.write(RESULT, tmp_path / "result.json")
    return tmp_path / "result.json"


def changed(path, *keys, value=..., drop=False):
    table = json.loads(path.read_text())
    where = table
    for key in keys[:-1]:
        where = where[key]
    if drop:
        del where[keys[-1]]
    else:
        where[keys[-1]] = value
    path.write_text(json.dumps(table))
    return path


def refused(path):
    with pytest.raises(UsageError) as error:
        results.read(path)
    return [str(p).replace(str(path), "result.json") for p in error.value.problems]


def test_what_is_written_is_read_back(path):
    assert results.read(path) == results.read(path.parent) == RESULT
    assert not list(path.parent.glob(".*"))


def test_numpy_values_are_written_as_numbers(tmp_path):
    odd = dataclasses.replace(
        RESULT, steps=({"loss": np.float32(0.5), "epochs": np.int64(3), "list": np.arange(2), "file": tmp_path},)
    )
    results.write(odd, tmp_path / "result.json")
    assert results.read(tmp_path).steps == ({"loss": 0.5, "epochs": 3, "list": [0, 1], "file": str(tmp_path)},)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_not_written(path, number):
    before = path.read_bytes()
    bad = dataclasses.replace(RESULT.candidates[1], measurements=(dataclasses.replace(FIGURES[0], value=number),))
    with pytest.raises(RunFailed, match="prune-0.5.s1: top1"):
        results.write(dataclasses.replace(RESULT, candidates=(RESULT.candidates[0], bad)), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "keys, value, told",
    [
        (("task",), 5, "result.json: task"),
        (("candidates", 1, "seed"), "one", "candidates.1.seed"),
        (("candidates", 1, "seed"), 1.0, "candidates.1.seed"),
        (("candidates", 0, "measurements", 0, "origin"), "guessed", "candidates.0.measurements.0.origin"),
        (("candidates", 0, "measurements", 0, "value"), "95", "candidates.0.measurements.0.value"),
        (("candidates", 0, "measurements", 0, "value"), math.nan, "is not a finite value"),
        (("candidates", 0, "measurements", 0, "high"), math.inf, "is not a finite value"),
        (("candidates", 0, "measurements", 0, "low"), 99.0, "95.0 [99.0, 96.5]"),
        (("candidates", 0, "measurements", 1, "high"), 5000, "counted figure has no interval"),
        (("candidates", 0, "id"), "../../x", "not valid as a file name"),
        (("candidates", 1, "id"), "teacher", "occurs twice"),
        (("candidates", 0, "file"), "/etc/passwd", "is outside"),
        (("candidates", 0, "file"), "models/../../x", "is outside"),
        (("candidates", 0, "file"), "C:\\x", "is outside"),
        (("candidates", 0, "id"), "x" * 201, "not valid as a file name"),
        (("targets", "/../../../etc/x"), TARGET, "is not a valid target name"),
        (("targets", "a\x1b[31m"), TARGET, "is not a valid target name"),
        (("targets", "x" * 300), TARGET, "too long for a file name"),
        (("references", "teacher"), "nobody", "no candidate is `nobody`"),
        (("targets", "host", "chosen"), "nobody", "targets.host.chosen"),
        (("targets", "host", "front"), ["teacher", "x"], "targets.host.front.1"),
        (("targets", "host", "verdict"), "passed", "targets.host.verdict"),
        (("schema",), "edgekd.result/3", "too new"),
        (("schema",), "edgekd.result/0", "is not edgekd.result/2"),
        (("schema",), "edgekd.manifest/1", "is not edgekd.result/2"),
        (("schema",), 1, "is not edgekd.result/2"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(path, keys, value, told):
    assert any(told in line for line in refused(changed(path, *keys, value=value)))


def test_every_problem_is_told(path):
    changed(path, "task", value=5)
    changed(path, "candidates", 0, "seed", value=None)
    assert len(refused(changed(path, "targets", "host", "chosen", drop=True))) == 3


def test_missing_keys_are_told(path):
    assert any("candidates.0.measurements.0.unit: field required" in p for p in refused(changed(path, "candidates", 0, "measurements", 0, "unit", drop=True)))  # fmt: skip  # noqa: E501
    assert "is missing" in refused(changed(path, "schema", drop=True))[0]


def test_newer_writers_of_the_same_schema_may_add_keys(path):
    changed(path, "later", value={"x": 1})
    assert results.read(changed(path, "candidates", 0, "extra", value=3)) == RESULT


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 100_000, b'{"schema": "edgekd.result/1"}']
)
def test_what_is_no_result_is_refused(path, text):
    path.write_bytes(text)
    assert refused(path)


def test_files_that_are_missing_or_huge_are_refused(tmp_path, monkeypatch, path):
    assert "can't be read" in refused(tmp_path / "none.json")[0]
    monkeypatch.setattr(results, "TEXT_LIMIT", 100)
    assert "more than 100 bytes" in refused(path)[0]


def test_the_schema_holds_for_what_is_written(path):
    validator = jsonschema.Draft202012Validator(schema("result"))
    assert not list(validator.iter_errors(json.loads(path.read_text())))
    for keys, value in (
        (("schema",), "edgekd.result/3"),
        (("candidates", 0, "measurements", 0, "origin"), "guessed"),
        (("task",), 5),
    ):
        before = path.read_text()
        assert list(validator.iter_errors(json.loads(changed(path, *keys, value=value).read_text())))
        path.write_text(before)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_file_has_a_schema(kind):
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    assert schema(kind)["$schema"].endswith("2020-12/schema")
    with pytest.raises(UsageError, match="one of result"):
        schema("nothing")


# ---------------------------------------------------------------- predictions


def save(path, outputs=None, rows=3):
    outputs = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) if outputs is None else outputs
    results.save_predictions(
        path, range(rows), "d" * 64, outputs, {"top1": np.ones(rows)}, [top1()], {"top1": np.zeros(rows)}
    )
    return path


@pytest.mark.parametrize("outputs", [None, {"boxes": np.ones((3, 2, 4)), "scores": np.zeros((3,))}])
def test_predictions_are_read_back(tmp_path, outputs):
    path = save(tmp_path / "a.npz", outputs)
    found = results.load_predictions(path)
    assert found.ids.tolist() == ["0", "1", "2"] and found.digest == "d" * 64 and found.better == {"top1": "higher"}
    assert found.records["top1"].tolist() == [1, 1, 1] and results.load_teacher(path)["top1"].tolist() == [0, 0, 0]
    if outputs is None:
        assert found.outputs.dtype == np.float32 and found.outputs.tolist() == np.arange(12).reshape(3, 4).tolist()
    else:
        assert {k: v.tolist() for k, v in found.outputs.items()} == {k: v.tolist() for k, v in outputs.items()}


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    one, two = save(tmp_path / "a.npz"), tmp_path / "b.npz"
    os.utime(one, (0, 0))
    assert save(two).read_bytes() == one.read_bytes()
    with np.load(one, allow_pickle=False) as file:  # and numpy alone can read them
        assert set(file.files) == {"sample_id", "test_digest", "outputs", "top1.records", "top1.teacher", "top1.better"}


def told_of(path):
    with pytest.raises(UsageError) as error:
        results.load_predictions(path)
    return "; ".join(p.message for p in error.value.problems)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"sample_id": None}, "is missing"),
        ({"sample_id": np.arange(3)}, "strings"),
        ({"test_digest": np.zeros(2)}, "one string"),
        ({"outputs": np.ones((2, 4))}, "there are 3 samples"),
        ({"top1.records": np.ones(4)}, "there are 3 samples"),
        ({"top1.records": np.array(["a", "b", "c"])}, "must hold numbers"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path, change, told):
    path = save(tmp_path / "a.npz")
    arrays = results.load_arrays(path) | change
    results.save_arrays(path, {k: v for k, v in arrays.items() if v is not None})
    assert told in told_of(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", sample_id=np.array([Evil()], dtype=object))
    assert "not a valid .npz of plain arrays" in told_of(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Evil()))
    assert told_of(tmp_path / "b.npz")
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(TypeError):
        results.save_arrays(tmp_path / "c.npz", {"x": np.array([Evil()], dtype=object)})


def test_an_array_that_claims_more_than_it_has_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8)
    assert "header declares" in told_of(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "load_arrays", lambda path, original=results.load_arrays: original(path, 1000))
    results.save_arrays(tmp_path / "a.npz", {"x": np.zeros(10_000)})
    assert (tmp_path / "a.npz").stat().st_size < 1000
    assert "more than 1000 bytes" in told_of(tmp_path / "a.npz")


@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_an_input_that_is_wrong_or_still_itself(tmp_path_factory, position, byte, cut):
    path = save(tmp_path_factory.mktemp("damaged") / "a.npz")
    data = bytearray(path.read_bytes())
    position %= len(data)
    if cut:
        data = data[:position]
    else:
        data[position] = byte
    path.write_bytes(data)
    try:
        assert results.load_predictions(path).records["top1"].shape == (3,)
    except UsageError:
        pass
    except KeyError as error:  # the name of an array was hit
        assert error.args == ("top1",)


# ---------------------------------------------------------------- arrays that are not held in memory


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("front", [b"", b"something before the archive"])
def test_mapped_arrays_are_those_that_are_read(tmp_path, save, order, front):
    given = {"a": np.arange(24.0).reshape(2, 3, 4), "b": np.arange(5, dtype=np.int8), "none": np.zeros((0, 3))}
    save(tmp_path / "a.npz", **{name: np.asarray(a, order=order) for name, a in given.items()})
    (tmp_path / "b.npz").write_bytes(front + (tmp_path / "a.npz").read_bytes())
    found = results.load_arrays(tmp_path / "b.npz", mapped=0)
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    if save is np.savez:
        assert isinstance(found["a"], np.memmap) and not found["a"].flags.writeable


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_in_mapped_arrays_is_told(tmp_path, save):
    """Any byte of the archive that is another one, and any end of it: an error of use, or the same arrays."""
    path, given = tmp_path / "a.npz", np.arange(600, dtype=np.float32)
    save(path, a=given)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                found = results.load_arrays(path, mapped=0)
            except UsageError:
                continue
            assert all(np.array_equal(a, given) for a in found.values())


@pytest.mark.parametrize("shape", ["(-2, -3)", "(2, 4)", "(4611686018427387904, 4)", "(6,), 'x'"])
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_mapped_headers_that_lie_are_refused(tmp_path, shape, how):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(24)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", how) as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(UsageError, match="a.npz: is not a valid .npz"):
        results.load_arrays(tmp_path / "a.npz", mapped=0)
