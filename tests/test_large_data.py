"""Data larger than memory: columns read by rows, with the digests and results of arrays."""

import dataclasses
import multiprocessing
import os
import signal
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import edgekd
from edgekd import cli, inputs
from edgekd.data import column, columns, workers
from edgekd.data.checks import check
from edgekd.data.column import Cast, Chain, Mapped, Rows
from edgekd.errors import RunFailed
from edgekd.inputs import Column, chunks, save
from edgekd.run import passed
from edgekd.store import fingerprint
from edgekd.store.store import Store
from edgekd.tasks import image_folder

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
        mask = np.arange(len(wanted)) % 3 == 0
        assert np.array_equal(found[mask], wanted[mask]), name
        for index in (12 + 5, -18, np.array([17]), 1.5, mask[1:]):
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


def test_a_mapped_file_is_read_without_its_map(tmp_path):
    """Pages of a map count as memory of the process. A file that became shorter ends no process by a bus error."""
    array = N.normal(size=(40, 3, 7))
    for made in (mapped(tmp_path, array), mapped(tmp_path, array)[5:33], mapped(tmp_path, array, mode="r+")):
        far, want = Mapped(made), np.array(made)
        for index in ([3], [0, 1, 2, 9, 10, 4], [27, 26, 26], [], range(len(want))):
            assert np.array_equal(far[np.array(index, np.int64)], want[np.array(index, np.int64)])
        assert np.array_equal(far[2:9], want[2:9]) and np.array_equal(far[-1], want[-1])
        assert far.read == [0]  # bytes that came from the map
    wide = Mapped(mapped(tmp_path, array)[:, :, 2:4])  # not in one piece: from the map
    assert np.array_equal(wide[3:5], array[3:5, :, 2:4]) and wide.read != [0]
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(OSError, match="x.npy has become shorter"):
        far[30]


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


# ---------------------------------------------------------------- samples that are read when they are asked for


class Set:
    """A map-style data set of images whose values tell their number, and which counts what is read."""

    def __init__(self, count=60, changes=None):
        self.count, self.changes, self.reads = count, changes or {}, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.reads.append(i)
        if i in self.changes:
            return self.changes[i]()
        return {"a": np.full((2, 3), i, np.float64), "b": np.array([i]), "label": i % 3, "id": f"s{i}"}


@pytest.fixture
def large(monkeypatch):
    """Every split is too large for memory."""
    monkeypatch.setattr(column, "HELD", 0)


def loaded(data, split="train"):
    return columns.load(_task(edgekd.data.from_loader(data, Set(5)) if isinstance(data, Set) else data), split)


def test_a_data_set_is_read_by_rows_with_the_digest_of_arrays(monkeypatch):
    near = loaded(Set())
    monkeypatch.setattr(column, "HELD", 0)
    given = Set()
    far = loaded(given)
    assert not isinstance(near.inputs["a"], Column) and isinstance(far.inputs["a"], Column)
    assert far.digest == near.digest and far.ids == near.ids and np.array_equal(far.labels, near.labels)
    given.reads.clear()
    batch = columns.take(far, np.array([3, 1]))
    assert len(given.reads) == 2  # both inputs of a sample are read together
    assert all(torch.equal(v, columns.take(near, np.array([3, 1])).inputs[n]) for n, v in batch.inputs.items())
    assert batch.inputs["a"][:, 0, 0].tolist() == [int(far.ids[i][1:]) for i in (3, 1)]


def test_every_sample_that_cannot_be_read_is_told(large):
    def broken():
        raise OSError("bad block")

    changes = dict.fromkeys(range(1, 14), broken)  # (8 samples are tried when the data set is given)
    given = Set()
    data = edgekd.data.from_loader(given, Set(5), validation=Set(5))
    given.changes = changes
    with pytest.raises(edgekd.UsageError) as caught:
        loaded(data)
    text = str(caught.value)
    assert text.count("reading raises OSError: bad block") == 10 and "and 3 more samples" in text
    for odd, said in (
        ({"a": np.zeros((3, 2)), "b": np.array([0]), "label": 0}, "sample 7 is a float32 [3, 2]; b int64 [1], unlike"),
        ({"a": np.zeros((2, 3)), "b": np.array([0])}, "1 of 60 samples have no label"),
        ({"a": np.zeros((2, 3)), "b": np.array([0]), "label": 0.5}, "the label of sample 7 is float32 []"),
    ):
        given.changes = {7: lambda odd=odd: odd}
        with pytest.raises(edgekd.UsageError) as caught:
            loaded(data)
        assert said in str(caught.value)


# ---------------------------------------------------------------- processes that read ahead


def rows_of(batches):
    return [b.inputs["b"].ravel().tolist() for b in batches]


@pytest.mark.parametrize("count", ["0", "1", "3"])
def test_workers_read_in_order_and_leave_no_process(large, monkeypatch, count):
    far = loaded(Set())
    wanted = rows_of(columns.batches(far, 5))
    monkeypatch.setenv("EDGEKD_WORKERS", count)
    assert rows_of(columns.batches(far, 5)) == wanted
    assert not multiprocessing.active_children()
    some = columns.batches(far, 5)
    assert [next(some).inputs["b"].ravel().tolist() for _ in range(3)] == wanted[:3]
    assert len(multiprocessing.active_children()) == int(count)
    some.close()
    assert not multiprocessing.active_children()


def test_a_killed_worker_ends_the_run_clearly(large, monkeypatch):
    monkeypatch.setenv("EDGEKD_WORKERS", "1")
    given = Set()
    far = loaded(edgekd.data.from_loader(given, Set(5), validation=Set(5)))
    before = signal.signal(signal.SIGTERM, cli._interrupt)  # as the command line does
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            given.changes = {30: lambda number=number: os.kill(os.getpid(), number)}
            with pytest.raises(RunFailed, match="a process that reads samples ended"):
                list(columns.batches(far, 5))
            assert not multiprocessing.active_children()
    finally:
        signal.signal(signal.SIGTERM, before)
    given.changes = {30: lambda: 1 / 0}
    with pytest.raises(edgekd.UsageError, match="sample 30: reading raises ZeroDivisionError"):
        list(columns.batches(far, 5))
    assert not multiprocessing.active_children()


def test_the_number_of_workers_is_checked(monkeypatch):
    for text in ("-1", "many", "1.5"):
        monkeypatch.setenv("EDGEKD_WORKERS", text)
        with pytest.raises(edgekd.UsageError, match=f"EDGEKD_WORKERS: is '{text}'"):
            workers.count()


# ---------------------------------------------------------------- digests that are kept


def images(folder, count=12, size=16):
    for i in range(count):
        place = folder / ("train", "train", "test")[i % 3] / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(N.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


def test_a_folder_of_images_is_decoded_when_asked_and_its_digest_kept(tmp_path, monkeypatch):
    folder, store = images(tmp_path / "images"), Store(tmp_path / "store")
    kept = partial(passed.kept, store, "digest")
    read = []
    monkeypatch.setattr(
        image_folder, "_image", lambda *given, own=image_folder._image: read.append(given[-1]) or own(*given)
    )
    make = lambda: columns.load(image_folder.image_folder(path=folder, size=8, validation=0.4), "train", kept)
    near = make()
    monkeypatch.setattr(column, "HELD", 0)
    read.clear()
    far = make()
    assert isinstance(far.inputs, Column) and far.digest == near.digest and len(read) == len(far)
    assert np.array_equal(far.inputs[:], near.inputs)
    make()
    assert len(read) == 2 * len(far)  # the files are too new: their times may not show the next change
    monkeypatch.setattr(column, "SETTLED", 0)
    make()
    read.clear()
    assert make().digest == near.digest and not read
    one = folder / far.ids[0]
    was = one.stat()
    pixels = np.asarray(Image.open(one)).copy()
    size = was.st_size
    one.write_bytes(one.read_bytes()[:-12] + b"\0" * 12)  # the same size, and its time set back
    os.utime(one, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert one.stat().st_size == size
    make()
    assert len(read) == len(far)
    Image.fromarray(255 - pixels).save(one)
    assert make().digest != near.digest
    one.write_bytes(b"nothing")
    with pytest.raises(edgekd.UsageError, match=f"{one.name}: can't be read as an image"):
        make()


def test_the_digest_of_a_mapped_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(column, "SETTLED", 0)
    kept, x = partial(passed.kept, Store(tmp_path / "store"), "digest"), N.normal(size=(40, 3)).astype(np.float32)
    far = mapped(tmp_path, x)
    made = []
    count = lambda identity, make: kept(identity, lambda: made.append(1) or make())
    load = lambda a, b: columns.load(_task(edgekd.arrays(far[a:b], None, far[30:], None)), "train", count)
    one = load(0, 30)
    assert load(0, 30).digest == one.digest and len(made) == 1
    assert load(1, 30).digest != one.digest and len(made) == 2  # other rows of the file
    x[3] += 1
    np.save(tmp_path / "new.npy", x)
    os.replace(tmp_path / "new.npy", tmp_path / "x.npy")
    far = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert load(0, 30).digest != one.digest and len(made) == 3


def test_no_digest_is_kept_of_a_map_that_its_file_does_not_tell(tmp_path, monkeypatch):
    """A map that is written through, and one whose file was replaced or removed."""
    monkeypatch.setattr(column, "SETTLED", 0)
    path, zeros = tmp_path / "x.npy", np.zeros((4, 3), np.float32)
    assert Mapped(mapped(tmp_path, zeros)).stamp() is not None
    for mode in ("r+", "c"):
        assert Mapped(mapped(tmp_path, zeros, mode=mode)).stamp() is None
    old = mapped(tmp_path, zeros)
    np.save(tmp_path / "new.npy", zeros + 1)
    os.replace(tmp_path / "new.npy", path)
    assert Mapped(old).stamp() is None and Mapped(np.load(path, mmap_mode="r")).stamp() is not None
    path.unlink()
    assert Mapped(old).stamp() is None


# ---------------------------------------------------------------- a whole run


def test_a_whole_run_never_has_a_split_in_memory(tmp_path, monkeypatch):
    """The same files as from arrays; no more rows are asked for at once than a batch of the answers has."""
    tiny.settle(tmp_path, monkeypatch)
    monkeypatch.setattr(inputs, "CHUNK", 100 * tiny.x[0].nbytes)
    x, y = tiny.blobs(count=1500)
    files = {}
    for name, of in (("near", lambda part: part), ("far", lambda part: Counted(part, 256))):
        data = edgekd.arrays(
            of(x[:900]), y[:900], of(x[900:1200]), y[900:1200], x_validation=of(x[1200:]), y_validation=y[1200:]
        )
        monkeypatch.setattr(tiny, "task", dataclasses.replace(tiny.task, data=data))
        monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / f"store-{name}"))
        (tmp_path / f"{name}.toml").write_text(tiny.SHORT)
        edgekd.compress(tmp_path / f"{name}.toml", out=tmp_path / name)
        models = sorted((tmp_path / name / "models").iterdir())
        files[name] = {f.name: f.read_bytes() for f in (*models, *(tmp_path / name / "predictions").iterdir())}
    both = files["near"].keys() & files["far"].keys()  # which are on the front is decided by time
    assert len(both) >= 4 and all(files["near"][name] == files["far"][name] for name in both)
