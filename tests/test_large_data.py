"""Data larger than memory: columns read by rows, with the digests and results of arrays."""

import numpy as np
import pytest

import edgekd
from edgekd.data import column, columns
from edgekd.data.checks import check
from edgekd.data.column import Cast, Chain, Mapped, Rows
from edgekd.inputs import Column, chunks, save
from edgekd.store import fingerprint

N = np.random.default_rng(0)


class Counted(Column):
    """An array as a column that allows `most` rows at a time."""

    def __init__(self, array, most):
        self.array, self.most, self.asked = array, most, 0
        self.shape, self.dtype = array.shape, array.dtype

    def rows(self, index):
        assert len(index) <= self.most, f"{len(index)} rows at once"
        self.asked += len(index)
        return self.array[index]


def mapped(folder, array, name="x.npy", mode="r"):
    np.save(folder / name, array)
    return np.load(folder / name, mmap_mode=mode)


def test_columns_index_as_arrays_do(tmp_path):
    array = N.integers(0, 255, (12, 3, 2), dtype=np.uint8)
    order = N.permutation(12)
    forms = {
        "mapped": (array, Mapped(mapped(tmp_path, array))),
        "rows": (array[order], Rows(array, order)),
        "cast": (array.astype(np.float32), Cast(array, np.dtype(np.float32))),
        "chain": (np.concatenate([array, array[:5]]), Chain([Mapped(mapped(tmp_path, array)), array[:5]])),
    }
    for name, (wanted, found) in forms.items():
        assert (found.shape, found.dtype, len(found), found.ndim) == (wanted.shape, wanted.dtype, len(wanted), 3), name
        for index in (0, -1, np.int64(3), slice(2, 9, 3), slice(None), np.array([11, 0, 0, -2]), np.array([], int)):
            got = found[index]
            assert type(got) is np.ndarray and got.dtype == wanted.dtype and np.array_equal(got, wanted[index]), name
        for index in (12 + 5, -18, np.array([17]), 1.5):
            with pytest.raises(IndexError):
                found[index]
        with pytest.raises(TypeError, match="not in memory"):
            np.asarray(found)
        save(tmp_path / "saved.npy", found)
        assert np.array_equal(np.load(tmp_path / "saved.npy"), wanted)
        assert fingerprint.array_digest({"a": found}) == fingerprint.array_digest({"a": wanted})


def test_chunks_are_small_and_in_order():
    array = np.arange(1000, dtype=np.int64).reshape(100, 10)
    parts = list(chunks(Counted(array, 3), 240))
    assert np.array_equal(np.concatenate(parts), array) and max(map(len, parts)) == 3
    assert len(list(chunks(array, 1))) == 100 and not list(chunks(array[:0]))


def test_a_private_map_keeps_its_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(column, "RESIDENT", 1)
    array = mapped(tmp_path, np.zeros((4, 2), np.float32), mode="c")
    array[1] = 7
    found = Mapped(array)
    assert found[1].tolist() == found[1].tolist() == [7, 7]


def test_mapped_arrays_stay_in_their_file_and_have_the_digest_of_arrays(tmp_path):
    for dtype in (np.uint8, np.float32, np.float64, np.float16):
        x, y = N.integers(0, 200, (40, 3, 4)).astype(dtype), np.arange(40) % 2
        one = edgekd.arrays(x[:30], y[:30], x[30:], y[30:])
        far = mapped(tmp_path, x, f"{np.dtype(dtype)}.npy")
        two = edgekd.arrays(far[:30], y[:30], far[30:], y[30:])
        for split in ("train", "validation", "test"):
            (a, b) = (columns.load(_task(data), split) for data in (one, two))
            assert isinstance(two(split).inputs, Column) and isinstance(b.inputs, Column)
            assert a.digest == b.digest and a.ids == b.ids and a.inputs.dtype == b.inputs.dtype
            index = np.array([2, 0, 1])
            assert all(np.array_equal(columns.take(c, index).inputs, a.inputs[index]) for c in (a, b))
            assert np.array_equal(one(split)[1].inputs, two(split)[1].inputs)


def _task(data):
    return edgekd.Task(name="far", version="1", models={}, data=data, metrics=(edgekd.top1(),))


def test_the_check_of_data_reads_in_parts():
    """The samples that it names are those of arrays; it never has more than a part of them."""
    x = N.normal(size=(500, 64, 64)).astype(np.float32)
    x[7, 3, 1], x[431] = np.nan, np.inf
    far = Counted(x, 2**23 // x[0].nbytes)
    splits = {"train": far, "validation": x[:6] + 1, "test": x[:5]}
    data = edgekd.data.Splits(
        {n: edgekd.data.Arrays(v, None, [f"{n}/{i}" for i in range(len(v))]) for n, v in splits.items()}
    )
    text = "\n".join(map(str, check(_task(data), roles=())))
    assert "2 of 500 samples have NaN or infinite inputs, the first at 7" in text
    assert "5 of 5 test samples are also in train or validation" in text and far.asked == 3 * 500
