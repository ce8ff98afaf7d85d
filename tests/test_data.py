"""One's own data: arrays, loaders taken apart, metrics, and the check that tells all that is wrong with a task."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import data as torch_data

from edgekd import components
from edgekd.data import Splits, arrays, check, from_loader
from edgekd.data.augmentation import affine
from edgekd.data.columns import load
from edgekd.errors import UsageError
from edgekd.metrics import mean_error, top1
from edgekd.models.networks import perceptron, residual
from edgekd.records import Metric, Sample, Task

N = np.random.default_rng(0)
X, Y = N.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
XT, YT = N.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3


def task(**changes) -> Task:
    given = {
        "name": "mine",
        "version": "1",
        "models": {"teacher": lambda: nn.Linear(4, 3), "student": lambda: nn.Linear(4, 3)},
        "data": arrays(X, Y, XT, YT),
        "metrics": (top1(),),
        "classes": 3,
    }
    return Task(**given | changes)


def told(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def found(**changes) -> str:
    return "\n".join(map(str, check(task(**changes))))


# ---------------------------------------------------------------- arrays


@settings(max_examples=60, deadline=None)
@given(count=st.integers(4, 200), classes=st.integers(1, 12), share=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_every_sample_lands_in_one_split_and_classes_give_their_share(count, classes, share, seed):
    y = N.integers(0, classes, count)
    data = arrays(np.arange(count, dtype=np.float32)[:, None], y, XT[:, :1], YT, validation=share, seed=seed)
    train, held = data("train"), data("validation")
    assert sorted([*train.inputs[:, 0], *held.inputs[:, 0]]) == list(range(count))
    assert len(held) == min(max(1, round(share * count)), count - 1)
    for one in (train, held):  # rows still belong together
        assert all(
            y[int(sample.inputs[0])] == sample.label and sample.id == f"train/{int(sample.inputs[0])}" for sample in one
        )
    for c in range(classes):
        assert abs((held.labels == c).sum() - (y == c).sum() * len(held) / count) <= 1 + 1e-9


def test_the_split_is_fixed_by_its_own_seed():
    assert np.array_equal(arrays(X, Y, XT, YT)("validation").inputs, arrays(X, Y, XT, YT)("validation").inputs)
    assert not np.array_equal(
        arrays(X, Y, XT, YT)("validation").inputs, arrays(X, Y, XT, YT, seed=1)("validation").inputs
    )


def test_arrays_takes_tensors_names_and_values():
    named = {"a": torch.ones(10, 2, dtype=torch.float64), "b": torch.arange(10)}
    data = arrays(named, torch.rand(10, 2), {"a": np.ones((4, 2)), "b": np.arange(4)}, np.ones((4, 2)))
    sample = data("train")[0]
    assert (
        set(sample.inputs) == {"a", "b"}
        and sample.inputs["a"].dtype == np.float32
        and sample.inputs["b"].dtype == np.int64
    )
    assert sample.label.dtype == np.float32 and len(data("train")) == 8 and len(data("train")[2:5]) == 3
    assert len(data("unlabelled")) == 0 and arrays(X, None, XT, None)("test")[0].label is None
    assert arrays(X, Y.astype(np.uint8), XT, YT)("train").labels.dtype == np.int64
    assert "no split 'val'" in told(lambda: data("val"))


def test_arrays_becomes_columns_without_a_copy_of_samples():
    one, two = arrays(X, Y, XT, YT), task(data=lambda split: list(arrays(X, Y, XT, YT)(split)))
    assert load(task(data=one), "train").digest == load(two, "train").digest


def test_arrays_tells_everything_at_once():
    ragged = [[1.0, 2.0], [3.0]]
    text = told(lambda: arrays(X, Y[:-1], ragged, np.array(["cat", "dog"]), y_validation=Y, validation=1.5))
    assert (
        "x_train 60, y_train 59" in text
        and "x_test: values are of type object" in text
        and "y_test: values are of type str" in text
    )
    assert "y_validation: is given without" in text and "validation: 1.5" in text and text.count("hint") == 5
    assert "x_test: samples are float32 [5], those of x_train float32 [4]" in told(
        lambda: arrays(X, Y, N.normal(size=(30, 5)), YT)
    )
    assert "is empty" in told(lambda: arrays(X, Y, X[:0], Y[:0]))
    assert "x_validation" in told(lambda: arrays(X, Y, XT, YT, x_validation=X[:5, :3], y_validation=Y[:5]))


# ---------------------------------------------------------------- loaders


class Pairs(torch_data.Dataset):
    def __init__(self, count=20, item=lambda i: (torch.full((4,), float(i)), i % 3)):
        self.count, self.item = count, item

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.item(i)


def test_a_loader_gives_its_data_set_in_order():
    loader = torch_data.DataLoader(Pairs(), batch_size=7, shuffle=True, drop_last=True)
    data = from_loader(loader, torch_data.DataLoader(Pairs(8)), validation=torch_data.DataLoader(Pairs(5)))
    assert [len(data(s)) for s in ("train", "validation", "test")] == [20, 5, 8]
    columns = load(task(data=data), "train")
    assert np.array_equal(columns.inputs[:, 0], np.arange(20)) and np.array_equal(columns.labels, np.arange(20) % 3)
    assert columns.inputs.dtype == np.float32 and columns.labels.dtype == np.int64 and columns.ids[3] == "train/3"


def test_a_share_of_the_loader_is_held_out():
    data = from_loader(Pairs(20), Pairs(8), validation=0.25)
    rows = {s: {int(x.inputs[0]) for x in data(s)} for s in ("train", "validation")}
    assert (
        len(rows["validation"]) == 5
        and rows["train"] | rows["validation"] == set(range(20))
        and not rows["train"] & rows["validation"]
    )
    assert (
        from_loader(Pairs(20), Pairs(8), validation=0.25)("validation").rows.tolist()
        == data("validation").rows.tolist()
    )
    assert not any("both" in str(p) for p in check(task(data=data)))


def test_a_subset_sampler_is_a_choice_of_rows():
    sampler = torch_data.SubsetRandomSampler([9, 2, 4])
    data = from_loader(
        torch_data.DataLoader(Pairs(), sampler=sampler), torch_data.Subset(Pairs(), [11, 12]), validation=Pairs(3)
    )
    assert [x.inputs[0] for x in data("train")] == [2, 4, 9] and [x.inputs[0] for x in data("test")] == [11, 12]


@pytest.mark.parametrize(
    "item, inputs, label, name",
    [
        (lambda i: {"image": np.full(4, i), "label": torch.tensor(2), "id": f"file{i}"}, [1, 1, 1, 1], 2, "file1"),
        (lambda i: Sample(np.full(4, i), 1, f"own{i}"), [1, 1, 1, 1], 1, "own1"),
        (lambda i: [np.full(4, i), np.int32(2)], [1, 1, 1, 1], 2, "train/1"),
        (lambda i: torch.full((4,), i), [1, 1, 1, 1], None, "train/1"),
        (lambda i: {"x": np.ones(2), "mask": np.zeros(2), "target": 0}, {"x": [1, 1], "mask": [0, 0]}, 0, "train/1"),
    ],
)
def test_items_of_every_usual_form(item, inputs, label, name):
    sample = from_loader(Pairs(6, item), Pairs(3, item), validation=Pairs(2, item))("train")[1]
    got = (
        {k: v.tolist() for k, v in sample.inputs.items()}
        if isinstance(sample.inputs, dict)
        else np.asarray(sample.inputs).tolist()
    )
    assert got == inputs and sample.label == label and sample.id == name


def test_a_collate_of_ones_own_is_kept():
    def collate(items):  # pads to 6, and names the label
        x = torch.stack([torch.nn.functional.pad(x, (0, 2)) for x, _ in items])
        return {"input": x, "label": torch.tensor([y + 1 for _, y in items])}

    data = from_loader(
        torch_data.DataLoader(Pairs(), collate_fn=collate),
        torch_data.DataLoader(Pairs(4), collate_fn=collate),
        validation=Pairs(2),
    )
    assert data("train")[5].inputs.tolist() == [5, 5, 5, 5, 0, 0] and data("train")[5].label == 3

    def mixes(items):
        return torch.stack([x for x, _ in items] * 2), torch.tensor([y for _, y in items])

    assert "collate_fn gives shape [2, 4] for one item" in told(
        lambda: from_loader(torch_data.DataLoader(Pairs(), collate_fn=mixes), Pairs(4))
    )


class Stream(torch_data.IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(4), 0)])


def test_loaders_that_cannot_be_taken_apart_are_refused_together():
    weighted = torch_data.DataLoader(Pairs(), sampler=torch_data.WeightedRandomSampler([1.0] * 20, 20))
    text = told(lambda: from_loader(torch_data.DataLoader(Stream()), weighted, validation=2.0))
    assert (
        "train: Stream has no samples by position" in text
        and "test: the loader's WeightedRandomSampler" in text
        and "2.0 is not a share" in text
    )

    class Batches(torch_data.Sampler):
        def __iter__(self):
            return iter([[0, 1]])

        def __len__(self):
            return 1

    again = torch_data.DataLoader(Pairs(), sampler=torch_data.RandomSampler(Pairs(), replacement=True))
    text = told(
        lambda: from_loader(torch_data.DataLoader(Pairs(), batch_sampler=Batches()), again, validation=Pairs(0))
    )
    assert (
        "train: the loader draws its batches with Batches" in text
        and "RandomSampler repeats" in text
        and "validation: has 0 samples" in text
    )


def test_random_transforms_are_noticed():
    noisy = Pairs(20, lambda i: (torch.rand(4), i % 3))
    text = told(lambda: from_loader(noisy, Pairs(3)))
    assert "train: sample 0: differs when it is read again" in text and "augment" in text
    assert "a value is a str" in told(lambda: from_loader(Pairs(4, lambda i: ("text", 0)), Pairs(3)))
    assert "tuple of 3" in told(lambda: from_loader(Pairs(4, lambda i: (1, 2, 3)), Pairs(3)))
    assert "raises ZeroDivisionError" in told(lambda: from_loader(Pairs(4, lambda i: 1 / 0), Pairs(3)))
    pictures = pytest.importorskip("PIL.Image")
    assert "ToTensor" in told(lambda: from_loader(Pairs(4, lambda i: (pictures.new("L", (4, 4)), 0)), Pairs(3)))


# ---------------------------------------------------------------- metrics


def test_top1_by_hand():
    metric = top1()
    records = metric.records(np.array([[0.1, 0.9], [2, 1], [3, 3], [np.nan, 1]]), np.array([1, 1, 0, 0]))
    # a tie is the first class, a NaN is wrong
    assert records.tolist() == [1, 0, 1, 0] and metric.value(records) == 50.0
    assert metric.records(np.array([[-1.0], [0.5], [0.0]]), np.array([0, 1, 1])).tolist() == [1, 1, 0]
    assert metric.records({"scores": np.eye(3)}, np.arange(3)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[3\]"):
        metric.records(np.ones((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="a, b"):
        metric.records({"a": np.eye(2), "b": np.eye(2)}, np.arange(2))


def test_top1_is_scikit_learns_accuracy():
    from sklearn.metrics import accuracy_score

    z, y = N.normal(size=(500, 7)), N.integers(0, 7, 500)
    assert top1().value(top1().records(z, y)) == pytest.approx(100 * accuracy_score(y, z.argmax(1)))


def test_mean_error_by_hand():
    metric = mean_error(unit="mm")
    records = metric.records(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [0.0, 1.0]]))
    assert (
        records.tolist() == [1.5, 0.5]
        and metric.value(records) == 1.0
        and (metric.better, metric.unit) == ("lower", "mm")
    )
    # [n, 1] against [n] doesn't broadcast
    assert metric.records(np.array([[1.0], [2.0]]), np.array([2.0, 2.0])).tolist() == [1, 0]
    with pytest.raises(ValueError):
        metric.records(np.ones((3, 2)), np.ones(3))


# ---------------------------------------------------------------- views


def image(h=6, w=6):
    return torch.from_numpy(N.normal(size=(5, 2, h, w)).astype(np.float32))


def test_affine_by_hand():
    x, still = image(), torch.full((5, 6), 0.5)
    assert torch.allclose(affine(x, still, turn=1, scale=0.5, shift=0.5), x, atol=1e-5)
    right = still.clone()
    right[:, 3] = 1 - 1e-7  # one pixel of six is a third of half the image
    assert torch.allclose(affine(x, right, shift=1 / 3, ground=9.0)[..., :-1], x[..., 1:], atol=1e-4)
    assert torch.allclose(affine(x, right, shift=1 / 3, ground=9.0)[..., -1], torch.full((5, 2, 6), 9.0), atol=1e-4)
    assert torch.allclose(affine(x, right, shift=1 / 3, ground="edge")[..., -1], x[..., -1], atol=1e-4)
    mirrored = still.clone()
    mirrored[:, 5] = 0.2
    assert torch.allclose(affine(x, mirrored, flip=True), x.flip(3), atol=1e-5)
    assert torch.allclose(affine(x, still, flip=True), x, atol=1e-5)


@pytest.mark.parametrize("h, w", [(8, 8), (8, 16), (12, 4)])
def test_affine_turn_is_a_turn_on_oblong_images(h, w):
    """A quarter turn of a centred square stays a square of the same pixels, whatever the image's form."""
    x = torch.zeros(1, 1, h, w)
    inside = torch.from_numpy(N.normal(size=(4, 4)).astype(np.float32))
    x[0, 0, h // 2 - 2 : h // 2 + 2, w // 2 - 2 : w // 2 + 2] = inside
    u = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5]])
    turned = affine(x, u, turn=np.pi / 2)[0, 0, h // 2 - 2 : h // 2 + 2, w // 2 - 2 : w // 2 + 2]
    assert any(torch.allclose(turned, torch.rot90(inside, k), atol=1e-4) for k in (1, 3))


def test_networks_have_the_promised_forms():
    x = torch.randn(2, 3, 16, 16)
    assert residual((8, 16), channels=3, classes=5, blocks=2)(x).shape == (2, 5)
    assert residual((8, 16), channels=3, classes=5, stem_stride=2)(x).shape == (2, 5)
    assert perceptron((8, 8), features=4, classes=5)(torch.randn(2, 4)).shape == (2, 5)
    # by hand: stem 3*8*9 + 16; block 2 * (8*8*9 + 16); head 8*5 + 5
    assert sum(p.numel() for p in residual((8,), channels=3, classes=5).parameters()) == 232 + 2 * 592 + 45


# ---------------------------------------------------------------- the check


def test_a_sound_task_has_no_problems_and_torchs_generator_stays():
    state = torch.get_rng_state()
    assert check(task()) == []
    assert check(task(augment=lambda x, u: x + u[:, :1])) == []
    assert check(task(data=from_loader(Pairs(20), Pairs(8, lambda i: (torch.full((4,), i + 0.5), i % 3))))) == []
    assert torch.equal(state, torch.get_rng_state())


def test_everything_is_told_at_once():
    bad, labels = X.copy(), Y.copy()
    bad[[7, 9], 2] = np.nan, np.inf
    labels[[3, 5, 8]] = 3, -1, 12
    wrong = task(
        data=arrays(bad, labels, XT, YT, x_validation=XT + 1, y_validation=YT * 0.5),
        models={"teacher": lambda: nn.Linear(4, 10), "student": lambda: nn.Linear(4, 12)},
        metrics=(top1(), Metric("broken", "", "more", lambda o, y: o[0] / 0, float)),
        views=0,
    )
    text = "\n".join(map(str, check(wrong)))
    for line in (
        "data('train'): 2 of 60 samples have NaN or infinite inputs, the first at 7",
        "data('train'): 3 of 60 labels are outside 0 to 2, the first is 3 at 3",
        "data('validation'): labels are float32, not integers",
        "models['teacher']: gives [B, 10] for 3 classes",
        "models: teacher gives [B, 10], student gives [B, 12]",
        "metrics['broken']: better is 'more'",
        "metrics['broken']: ",
        "views: is 0",
    ):
        assert f"task mine: {line}" in text
    assert all(p.place.startswith("task mine") for p in check(wrong))


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\n(2x4 and 5x3)")


@pytest.mark.parametrize(
    "models, words",
    [
        ({"teacher": lambda: nn.Linear(4, 3)}, "models: has no 'student' (it has teacher)"),
        (
            {"teacher": nn.Linear(4, 3), "student": lambda: nn.Linear(4, 3)},
            "models['teacher']: is a Linear, not a function that returns a module",
        ),
        (
            {"teacher": lambda: 3, "student": lambda: nn.Linear(4, 3)},
            "models['teacher']: makes a int, not a torch.nn.Module",
        ),
        (
            {"teacher": Raises, "student": lambda: nn.Linear(4, 3)},
            "models['teacher']: raises RuntimeError: mat1 and mat2",
        ),
        (
            {"teacher": lambda: nn.LSTM(4, 3), "student": lambda: nn.Linear(4, 3)},
            "models['teacher']: gives a tuple, not a tensor",
        ),
        (
            {"teacher": lambda: nn.Flatten(0), "student": lambda: nn.Linear(4, 3)},
            "models['teacher']: gives shape [8] for 2 samples",
        ),
    ],
)
def test_models_that_do_not_work(models, words):
    assert words in found(models=models)


def test_classes_that_do_not_fit():
    assert found(classes=2).count("labels are outside 0 to 1") == 3
    single = {"teacher": lambda: nn.Linear(4, 1), "student": lambda: nn.Linear(4, 1)}
    assert found(classes=2, data=arrays(X, Y % 2, XT, YT % 2), models=single) == ""
    assert "one class number per sample" in found(data=arrays(X, Y[:, None], XT, YT[:, None]))
    assert "samples have no label" in found(data=arrays(X, None, XT, None))
    text = found(data=arrays(X, Y - 1, XT, YT - 1))
    assert (
        "labels are outside 0 to 2" in text and "hint: labels are numbered from 0" in text and "set classes" not in text
    )
    assert "hint: set classes=4" in found(data=arrays(X, Y + 1, XT, YT + 1))


def test_splits_that_are_empty_missing_or_mixed_up():
    whole = arrays(X, Y, XT, YT)
    assert "data('test'): the split is empty" in found(data=lambda s: [] if s == "test" else whole(s))
    assert "data('validation'): raises KeyError" in found(
        data=lambda s: {"train": whole("train"), "test": whole("test")}[s]
    )
    assert "no split" in found(data=lambda s: whole("val") if s == "validation" else whole(s))
    assert "8 of 12 test samples are also in train" in found(data=arrays(X, Y, np.concatenate([X[:8], XT[:4]]), Y[:12]))
    # a few twins are no mistake
    assert found(data=arrays(X, Y, np.concatenate([X[:3], XT]), np.concatenate([Y[:3], YT]))) == ""
    named = [Sample(x, int(y), f"scan{i}") for i, (x, y) in enumerate(zip(X, Y, strict=True))]
    parts = {"train": named[:40], "validation": named[38:50], "test": named[50:]}
    assert "2 ids are in both train and validation, such as 'scan38'" in found(data=parts.get)
    assert "the splits' inputs differ" in found(
        data=Splits({**whole.parts, "test": [Sample(np.ones(5, np.float32), 0)] * 3})
    )


@pytest.mark.parametrize(
    "augment, words",
    [
        (lambda x, u: x + torch.rand_like(x), "gives different results for the same u"),
        (lambda x, u: x.add_(u[:, :1]), "changes its inputs in place"),
        (lambda x, u: x[:, :2], "gives torch.float32 [2, 2] for torch.float32 [2, 4]"),
        (lambda x, u: x.double(), "gives torch.float64 [2, 4]"),
        (lambda x, u: x + u[:, 99:100], "raises RuntimeError: The size of tensor"),
        (lambda x, u: x / 0 + u[:, 99], "raises IndexError"),
    ],
)
def test_augmentation_that_is_not_pure(augment, words):
    text = found(augment=augment)
    assert words in text and "augment" in text


def test_metrics_that_do_not_work():
    assert "metrics: is empty" in found(metrics=())
    assert "two metrics are named 'top1'" in found(metrics=(top1(), top1()))
    assert "gives records of shape [] for 2 samples" in found(
        metrics=(dataclasses.replace(top1(), records=lambda o, y: 0.5),)
    )
    assert "its value is a str" in found(metrics=(dataclasses.replace(top1(), value=lambda r: "good"),))
    assert "not a Metric" in found(metrics=(len,))
    text = found(metrics=(dataclasses.replace(top1(), value=lambda r: None),))
    assert "metrics['top1']: its value is None" in text and "records of shape" not in text
    for name in ("", " ", None):
        assert f"metrics: a metric is named {name!r}" in found(metrics=(dataclasses.replace(top1(), name=name),))


def test_loaded_columns_are_not_read_again():
    sound = task()
    columns = {split: load(sound, split) for split in ("train", "validation", "test")}
    assert check(dataclasses.replace(sound, data=None), columns.__getitem__) == []
    assert check(task(models={"student": lambda: nn.Linear(4, 3)}), roles=("student",)) == []


def test_what_a_module_makes_at_its_top_is_told_plainly(tmp_path, monkeypatch):
    (tmp_path / "named_labels.py").write_text(
        "import edgekd\nedgekd.arrays([[0.0]] * 4, list('abab'), [[1.0]] * 2, list('ab'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = told(lambda: components.imported("named_labels:task"))
    assert text.startswith("importing `named_labels`: y_train: values are of type str\n  hint: number the classes")
    assert "UsageError" not in text and "\\n" not in text and text.count("hint: ") == 2
