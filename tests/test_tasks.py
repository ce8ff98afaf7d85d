"""The built-in tasks: sound, deterministic, and honest about folders and files that are wrong."""

import json
import tarfile

import numpy as np
import pytest
import torch

from edgekd import components, signatures
from edgekd.data import check
from edgekd.data.augmentation import shifted
from edgekd.data.cifar import cifar10 as read_cifar10
from edgekd.errors import EnvironmentUnfit, UsageError
from edgekd.records import Task
from edgekd.tasks import digits
from edgekd.tasks.cifar10 import cifar10
from edgekd.tasks.image_folder import image_folder, split_of
from edgekd.tasks.npz import npz


def told(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert all(p.place for p in caught.value.problems)
    return str(caught.value)


# ---------------------------------------------------------------- digits


def test_digits_is_sound_and_split_as_promised():
    assert check(digits.task) == []
    sizes = {s: len(digits.task.data(s)) for s in ("train", "validation", "test")}
    assert sizes == {"train": 674, "validation": 224, "test": 899}
    for split in sizes:
        counts = np.bincount(digits.task.data(split).labels, minlength=10)
        assert counts.max() - counts.min() <= 5  # stratified: the whole set has 174 to 183 of a digit
    train, validation, test = (digits.task.data(s) for s in sizes)
    assert train.inputs.shape[1:] == (1, 8, 8) and train.inputs.dtype == np.float32
    known = np.concatenate([train.inputs, validation.inputs])
    assert abs(known.mean()) < 0.01 and abs(known.std() - 1) < 0.01
    assert not set(train.ids) & set(validation.ids) and not set(test.ids) & set(train.ids)


def test_digits_holds_every_image_once():
    from sklearn.datasets import load_digits

    everything = load_digits()
    rows = [s.inputs for split in ("train", "validation", "test") for s in digits.task.data(split)]
    values = np.rint((np.stack(rows)[:, 0] * digits.DEVIATION + digits.MEAN) * 16).reshape(-1, 64)
    assert sorted(map(tuple, values)) == sorted(map(tuple, everything.data))


def test_digits_are_scikit_learns_and_their_split_is_its_stratified_one(monkeypatch):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    _, test = train_test_split(np.arange(len(y)), test_size=0.5, random_state=0, stratify=y)
    assert np.array_equal(digits.task.data("test").labels, y[np.sort(test)])
    read = digits._digits()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # a scikit-learn that keeps its files elsewhere
    assert all(np.array_equal(a, b) for a, b in zip((*read, *digits._digits()), (x, y, x, y), strict=True))


def test_digits_student_has_room_to_be_pruned_and_is_a_quarter():
    import torch

    teacher, student = (digits.task.models[m]() for m in ("teacher", "student"))
    counts = [sum(p.numel() for p in m.parameters()) for m in (teacher, student)]
    assert 60_000 <= counts[0] <= 200_000 and 4 * counts[1] <= counts[0]
    widths = {m.out_channels for m in (*teacher.modules(), *student.modules()) if isinstance(m, torch.nn.Conv2d)}
    assert all(w % 8 == 0 for w in widths)


def test_digits_views_are_small_pure_and_centred():
    import torch

    x, u = (
        torch.from_numpy(digits.task.data("test").inputs[:64]),
        torch.rand(64, digits.task.draws, generator=torch.Generator().manual_seed(0)),
    )
    before, state = x.clone(), torch.get_rng_state()
    one = digits.augment(x, u)
    assert (
        torch.equal(one, digits.augment(x, u)) and torch.equal(x, before) and torch.equal(state, torch.get_rng_state())
    )
    assert torch.allclose(digits.augment(x, torch.full_like(u, 0.5)), x, atol=1e-5)
    assert torch.equal(one[7:9], digits.augment(x[7:9], u[7:9]))  # a view of a sample hangs on no other sample
    moved = ((one - x) ** 2).mean().sqrt()
    assert 0.1 < moved < 0.8  # views differ, and stay nearer than another digit is (about 1.2)


@pytest.mark.slow
def test_digits_can_be_learned():
    """Ten epochs of the student alone, on labels: far from chance, so images and labels belong together."""
    import torch

    train, test = digits.task.data("train"), digits.task.data("test")
    x, y = torch.from_numpy(train.inputs), torch.from_numpy(train.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits.student()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(10):
            for rows in torch.randperm(len(x)).split(64):
                loss = torch.nn.functional.cross_entropy(
                    model(digits.augment(x[rows], torch.rand(len(rows), 5))), y[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        records = digits.task.metrics[0].records(model.eval()(torch.from_numpy(test.inputs)).numpy(), test.labels)
    assert digits.task.metrics[0].value(records) > 94


# ---------------------------------------------------------------- a folder of images


def picture(path, colour, size=(12, 9)):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        picture(tmp_path / "red" / f"{i}.png", (200 + i, 0, 0))
        picture(tmp_path / "blue" / f"{i}.jpg", (0, 0, 150 + i))
    return tmp_path


def test_image_folder_reads_pixels_and_classes(folder):
    task = image_folder(path=folder, size=8, teacher=16, student=8)
    assert check(task) == [] and task.classes == 2 and task.name == folder.name
    rows = [sample for split in ("train", "validation", "test") for sample in task.data(split)]
    assert len(rows) == 80 and {r.label for r in rows} == {0, 1}
    for row in rows:  # classes in the order of their names: blue 0, red 1
        red, green, blue = (row.inputs.mean((1, 2)) * 0.25 + 0.5) * 255
        assert (blue > 140 and red < 10) if row.label == 0 else (red > 190 and blue < 10)
        assert row.inputs.shape == (3, 8, 8) and row.inputs.dtype == np.float32
    exact = next(r for r in rows if r.id.endswith("red/7.png"))
    assert np.allclose(exact.inputs[0], (207 / 255 - 0.5) / 0.25, atol=1e-6)  # by hand


def test_image_folder_split_hangs_on_names_alone(folder, tmp_path_factory):
    first = {
        s.id: split for split in ("train", "validation", "test") for s in image_folder(path=folder, size=8).data(split)
    }
    picture(folder / "blue" / "later.png", (0, 0, 99))
    second = {
        s.id: split for split in ("train", "validation", "test") for s in image_folder(path=folder, size=8).data(split)
    }
    assert len(second) == 81 and all(second[i] == split for i, split in first.items())
    drawn = [split_of(f"c/{i}.png", 0.1, 0.2) for i in range(20_000)]
    assert abs(drawn.count("test") / 20_000 - 0.2) < 0.01 and abs(drawn.count("validation") / 20_000 - 0.1) < 0.01


def test_image_folder_moved_elsewhere_gives_the_same_task(folder, tmp_path_factory):
    import shutil

    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(folder, other)
    one, two = image_folder(path=folder, size=8), image_folder(path=other, size=8)
    assert one.version == two.version
    for split in ("train", "validation", "test"):
        assert one.data(split).ids == two.data(split).ids
        assert np.array_equal(one.data(split).inputs, two.data(split).inputs)


def test_image_folder_already_split(tmp_path):
    for split, count in (("train", 30), ("val", 4), ("test", 5)):
        for i in range(count):
            picture(tmp_path / split / "a" / f"{i}.png", (count, i, 0))
            picture(tmp_path / split / "b" / f"{i}.png", (count, 0, i))
    task = image_folder(path=tmp_path, size=8)
    assert [len(task.data(s)) for s in ("train", "validation", "test")] == [60, 8, 10]


def test_image_folder_without_validation_takes_it_from_train(tmp_path):
    for split, count in (("train", 60), ("test", 5)):
        for i in range(count):
            picture(tmp_path / split / "a" / f"{i}.png", (count, i, 0))
            picture(tmp_path / split / "b" / f"{i}.png", (count, 0, i))
    task = image_folder(path=tmp_path, size=8, validation=0.25)
    sizes = [len(task.data(s)) for s in ("train", "validation", "test")]
    assert sizes[0] + sizes[1] == 120 and sizes[2] == 10 and 15 <= sizes[1] <= 45
    assert all("test/" not in s.id for s in task.data("validation"))


def test_image_folder_tells_everything_at_once(folder):
    (folder / "red" / "3.png").write_bytes(b"not an image")
    whole = (folder / "blue" / "5.jpg").read_bytes()
    (folder / "blue" / "5.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "green").mkdir()
    (folder / "green" / "notes.txt").write_text("none yet")
    text = told(lambda: image_folder(path=folder, size=8))
    assert "3.png" in text and "5.jpg" in text and "green" in text and text.count("hint") == 3


def test_image_folder_that_is_no_task(tmp_path):
    assert "no such folder" in told(lambda: image_folder(path=tmp_path / "nowhere"))
    assert "no class folder" in told(lambda: image_folder(path=tmp_path))
    picture(tmp_path / "only" / "1.png", (1, 2, 3))
    assert "only 'only'" in told(lambda: image_folder(path=tmp_path))
    picture(tmp_path / "other" / "1.png", (1, 2, 3))
    assert "leave no training images" in told(lambda: image_folder(path=tmp_path, validation=0.5, test=0.5))


def test_image_folder_names_the_extra(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EnvironmentUnfit, match=r"edgekd\[images\]"):
        image_folder(path=folder)


# ---------------------------------------------------------------- an .npz file


def columns(form=(6,), count=40, classes=3, **more):
    generator = np.random.default_rng(0)
    made = {}
    for split, n in (("train", count), ("test", count // 2)):
        made[f"x_{split}"] = generator.normal(size=(n, *form)).astype(np.float32)
        made[f"y_{split}"] = np.arange(n) % classes
    return {**made, **more}


@pytest.mark.parametrize("form, shape", [((6,), (6,)), ((8, 9), (1, 8, 9)), ((3, 8, 8), (3, 8, 8))])
def test_npz_vectors_and_images(tmp_path, form, shape):
    np.savez(tmp_path / "mine.npz", **columns(form))
    task = npz(path=tmp_path / "mine.npz")
    assert check(task) == [] and task.classes == 3 and task.name == "mine"
    assert task.data("train").inputs.shape[1:] == shape
    assert (task.augment is None) == (len(form) == 1)
    assert len(task.data("train")) + len(task.data("validation")) == 40 and len(task.data("test")) == 20


def test_npz_scales_bytes_and_leaves_floats(tmp_path):
    pixels = np.full((40, 8, 8), 255, np.uint8)
    pixels[:, 0, 0] = np.arange(40)
    np.savez(tmp_path / "bytes.npz", **columns((8, 8)) | {"x_train": pixels, "x_test": pixels[:20] // 2})
    rows = npz(path=tmp_path / "bytes.npz").data("train")
    assert rows.inputs.dtype == np.float32 and rows.inputs[0, 0, 7, 7] == 2.0  # (255 / 255 - 0.5) / 0.25
    given = columns((6,))
    np.savez(tmp_path / "floats.npz", **given)
    assert np.array_equal(npz(path=tmp_path / "floats.npz").data("test").inputs, given["x_test"])


def test_npz_own_validation(tmp_path):
    np.savez(tmp_path / "v.npz", **columns(), x_validation=np.ones((7, 6), np.float32), y_validation=np.zeros(7, int))
    task = npz(path=tmp_path / "v.npz")
    assert [len(task.data(s)) for s in ("train", "validation", "test")] == [40, 7, 20]


def test_npz_tells_everything_at_once(tmp_path):
    path = tmp_path / "bad.npz"
    objects = np.empty(40, object)
    np.savez(path, x_train=np.ones((40, 6)), y_train=objects, y_test=np.zeros(3), labels=np.zeros(2))
    text = told(lambda: npz(path=path))
    assert "y_train: can't be read" in text and "x_test: is missing" in text and "labels: unknown" in text
    np.savez(
        path,
        **columns() | {"y_train": np.full((40, 1), 1), "y_test": np.full(20, -1), "x_test": np.ones((20, 2, 2, 2, 2))},
    )
    text = told(lambda: npz(path=path))
    assert "int64 of shape [40, 1]" in text and "20 labels below 0" in text and "[20, 2, 2, 2, 2]" in text
    np.savez(path, **columns() | {"x_test": np.ones((20, 7), np.float32), "y_train": np.zeros(39, int)})
    text = told(lambda: npz(path=path))
    assert "x_train 40, y_train 39" in text and str(path) in text
    np.savez(path, **columns((8, 8, 3)))
    assert "the channels are last" in told(lambda: npz(path=path))


def test_npz_never_unpickles_and_survives_rubbish(tmp_path):
    for name, content in (("a.npz", b""), ("b.npz", b"PK\x03\x04 rubbish"), ("c.npz", b"\x80\x04N.")):
        (tmp_path / name).write_bytes(content)
        assert name in told(lambda name=name: npz(path=tmp_path / name))
    assert "no such file" in told(lambda: npz(path=tmp_path / "d.npz"))
    np.save(tmp_path / "e.npy", np.ones(3))
    assert "a single array" in told(lambda: npz(path=tmp_path / "e.npy"))


# ---------------------------------------------------------------- CIFAR-10


def cifar_rows(seed, count=20):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8), (np.arange(count) % 10).astype(np.uint8)


def cifar_folder(folder, kind):
    """The files of CIFAR-10 in one of their forms, 20 images each; returns (train images, train labels, test
    images)."""
    folder.mkdir(parents=True)
    parts = [cifar_rows(n) for n in range(6)]  # 0 is test
    for number, (images, labels) in enumerate(parts):
        if kind == "binary":
            rows = np.concatenate([labels[:, None], images.reshape(20, -1)], 1)
            (folder / (f"data_batch_{number}.bin" if number else "test_batch.bin")).write_bytes(rows.tobytes())
            continue
        name = folder / (f"train_{number}.npz" if number else "test.npz")
        if kind == "image":
            np.savez(name, image=images.transpose(0, 2, 3, 1), label=labels)
        else:
            # green is taken off red and blue, then differences along height and width, all modulo 256: undone by loops
            # in the other order
            planes = images.transpose(1, 0, 2, 3).copy()
            planes[0] -= planes[1]
            planes[2] -= planes[1]
            planes[:, :, :, 1:] = planes[:, :, :, 1:] - planes[:, :, :, :-1]
            planes[:, :, 1:] = planes[:, :, 1:] - planes[:, :, :-1]
            np.savez(name, residual=planes, label=labels)
    return np.concatenate([p[0] for p in parts[1:]]), np.concatenate([p[1] for p in parts[1:]]), parts[0][0]


@pytest.mark.parametrize("kind", ["binary", "archive", "image", "residual"])
def test_cifar10_gives_the_pixels_back_from_every_form(tmp_path, kind):
    x, y, x_test = cifar_folder(tmp_path / "cifar-10-batches-bin", "binary" if kind == "archive" else kind)
    path = tmp_path / "cifar-10-batches-bin"
    if kind == "archive":
        path = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    images, labels = read_cifar10(path, "train")
    assert np.array_equal(images, x) and np.array_equal(labels, y) and labels.dtype == np.int64
    assert np.array_equal(read_cifar10(path, "test")[0], x_test)
    if kind == "binary":
        assert np.array_equal(read_cifar10(tmp_path, "test")[0], x_test)  # the folder that holds the usual one


def test_cifar10_task_is_sound_and_holds_validation_out(tmp_path, monkeypatch):
    x, y, _ = cifar_folder(tmp_path / "data", "image")
    task = cifar10(path=tmp_path / "data", validation=30)
    assert check(task) == [] and [len(task.data(s)) for s in ("train", "validation", "test")] == [70, 30, 20]
    assert not set(task.data("train").ids) & set(task.data("validation").ids)
    assert np.bincount(task.data("validation").labels).tolist() == [3] * 10
    where = int(task.data("train").ids[5].split("/")[1])
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    assert np.allclose(
        task.data("train").inputs[5], (x[where] / 255 - mean[:, None, None]) / deviation[:, None, None], atol=1e-5
    )
    monkeypatch.setenv("EDGEKD_CIFAR10", str(tmp_path / "data"))
    assert cifar10(validation=30).data("test").inputs.shape == (20, 3, 32, 32)
    assert len({cifar10(**s).version for s in ({}, {"widths": (16, 24, 40)}, {"blocks": 2}, {"validation": 10})}) == 4
    monkeypatch.delenv("EDGEKD_CIFAR10")
    assert "EDGEKD_CIFAR10" in told(lambda: cifar10())


def test_cifar10_refuses_what_is_none(tmp_path):
    folder = tmp_path / "data"
    cifar_folder(folder, "binary")
    (folder / "data_batch_3.bin").write_bytes(b"x" * 5000)
    assert "data_batch_3.bin" in told(lambda: read_cifar10(folder, "train")) and "3073" in told(
        lambda: read_cifar10(folder, "train")
    )
    (folder / "data_batch_3.bin").write_bytes(b"\x0b" * 3073)
    assert "labels" in told(lambda: read_cifar10(folder, "train"))
    assert "no such" in told(lambda: read_cifar10(tmp_path / "none", "train"))
    (tmp_path / "py").mkdir()
    assert "has no CIFAR-10" in told(lambda: read_cifar10(tmp_path / "py", "train"))
    (tmp_path / "py" / "data_batch_1").write_bytes(b"\x80\x04N.")
    assert "pickle" in told(lambda: read_cifar10(tmp_path / "py", "train"))
    (tmp_path / "a.tar.gz").write_bytes(b"rubbish")
    assert "not a readable archive" in told(lambda: read_cifar10(tmp_path / "a.tar.gz", "train"))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(folder / "test_batch.bin", "test_batch.bin")
    assert "data_batch_1.bin" in told(lambda: read_cifar10(tmp_path / "b.tar.gz", "train"))
    for content in (
        {"label": np.zeros(3, np.uint8)},
        {"image": np.zeros((3, 32, 32, 3), np.uint8), "label": np.zeros(2, np.uint8)},
        {},
    ):
        np.savez(folder / "test.npz", **content)
        (folder / "test_batch.bin").unlink(missing_ok=True)
        assert "test.npz" in told(lambda: read_cifar10(folder, "test"))


def test_data_that_can_not_be_read_is_told_once(tmp_path):
    from edgekd.run import resolve

    given = {"task": {"use": "cifar10", "path": str(tmp_path)}, "stage": [{"use": "distill"}]}
    assert told(lambda: resolve.resolved(given)).count("has no CIFAR-10") == 1


def test_shifted_is_a_window_of_the_mirrored_image():
    x = torch.arange(2 * 3 * 7 * 9, dtype=torch.float32).view(2, 3, 7, 9)
    wide, mirrored = (torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect") for images in (x, x.flip(3)))
    for down in range(5):
        for right in range(5):
            u = torch.tensor([[(down + 0.5) / 5, (right + 0.5) / 5, 0.7], [(down + 0.5) / 5, (right + 0.5) / 5, 0.2]])
            seen = shifted(x, u, pixels=2, flip=True)
            window = (slice(None), slice(down, down + 7), slice(right, right + 9))
            assert torch.equal(seen[0], wide[0][window]) and torch.equal(seen[1], mirrored[1][window])
    assert torch.equal(shifted(x, torch.full((2, 2), 0.5), pixels=2), x)


# ---------------------------------------------------------------- as a recipe sees them


@pytest.mark.parametrize(
    "part, table, word",
    [
        (image_folder, {"path": "x", "size": 4}, "size"),
        (image_folder, {"path": "x", "student": 12}, "student"),
        (image_folder, {"path": "x", "validation": 1.0}, "validation"),
        (image_folder, {"path": "x", "chanels": 3}, "did you mean `channels`"),
        (npz, {}, "path: is missing"),
        (cifar10, {"path": "x", "blocks": 0}, "blocks"),
        (npz, {"path": "x", "teacher": 1}, "teacher"),
    ],
)
def test_settings_are_bounded(part, table, word):
    _, problems = signatures.settings_of(part, table, "task")
    assert len(problems) == 1 and word in str(problems[0])


def test_the_folder_is_the_list():
    import importlib

    for name in components.names("tasks"):
        module = importlib.import_module(f"edgekd.tasks.{name}")
        assert isinstance(getattr(module, "task", None), Task) or callable(getattr(module, name))


def test_settings_that_change_the_models_change_the_version(folder, tmp_path):
    versions = {
        image_folder(path=folder, size=8, **s).version
        for s in ({}, {"student": 8}, {"teacher": 64}, {"channels": 1}, {"flip": True})
    }
    assert len(versions) == 5 and str(folder) not in "".join(versions)
    json.loads(versions.pop().split(" ", 1)[1])
