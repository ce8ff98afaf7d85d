"""Order and augmentation are pure functions of the seed: what exact resume and cached teachers stand on."""

import numpy as np
import pytest
import torch
from scipy import stats

from edgekd import Sample, Task
from edgekd.data.columns import batches, load, take
from edgekd.data.epochs import chance, epochs, mix, order, spans
from edgekd.errors import UsageError


def make(samples, **more):
    return Task(name="t", version="1", models={}, data=lambda split: samples, metrics=(), **more)


def test_mix_is_splitmix64():
    """One word, against the published recurrence in plain integers (Steele, Lea, Flood 2014)."""
    z = (5 + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    assert int(mix(5)) == z ^ (z >> 31)


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = {(s, e): order(s, e, 100) for s in range(3) for e in range(3)}
    assert all(sorted(o) == list(range(100)) for o in orders.values())
    assert len({tuple(o) for o in orders.values()}) == 9
    assert (order(1, 2, 100) == orders[1, 2]).all()


def test_chance_is_uniform_and_independent_of_the_batch():
    u = chance(3, np.arange(4000), 1, 5)
    assert u.dtype == np.float32 and (u >= 0).all() and (u < 1).all()
    assert all(stats.kstest(u[:, k], "uniform").pvalue > 1e-3 for k in range(5))
    assert (chance(3, np.array([17, 5]), 1, 5) == u[[17, 5]]).all()
    assert abs(np.corrcoef(u[:, 0], chance(3, np.arange(4000), 2, 5)[:, 0])[0, 1]) < 0.06


def test_an_epoch_shows_every_sample_once_and_resumes_in_the_middle():
    columns = load(make([Sample(np.full(3, i, np.float32), i % 2) for i in range(21)]), "train")
    task = make([], augment=lambda x, u: x + u[:, :1], draws=2)
    source = epochs(columns, task, batch=4, seed=1, augment_seed=2, views=3)
    whole = list(source(4, 0))
    assert sorted(i for b in whole for i in b.index.tolist()) == list(range(21))
    assert {b.view for b in whole} == {1}
    rest = list(source(4, 2))
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.index, b.index) for a, b in zip(whole[2:], rest, strict=True)
    )


@pytest.mark.parametrize(
    "count, batch, sizes", [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 8, [3])]
)
def test_no_batch_of_one_row(count, batch, sizes):
    assert [b - a for a, b in spans(count, batch)] == sizes


def test_columns_of_arrays_and_of_samples_are_the_same():
    from edgekd import arrays

    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 3
    split = arrays(x, y, x, y, x_validation=x, y_validation=y)
    quick = load(
        make(None)._replace(data=split) if hasattr(Task, "_replace") else Task("t", "1", {}, split, ()), "test"
    )
    slow = load(make([split("test")[i] for i in range(6)]), "test")
    assert (
        quick.digest == slow.digest
        and np.array_equal(quick.inputs, slow.inputs)
        and np.array_equal(quick.labels, slow.labels)
    )
    assert [len(b.index) for b in batches(quick, 4)] == [4, 2]
    assert torch.equal(take(quick, np.array([5, 0])).inputs, torch.tensor([[10.0, 11.0], [0.0, 1.0]]))


@pytest.mark.parametrize(
    "samples, text",
    [
        ([], "the split is empty"),
        ([Sample(np.zeros(2), 0), Sample(np.zeros(3), 0)], "can't be stacked"),
        ([Sample(np.zeros(2), 0), Sample(np.zeros(2))], "1 of 2 samples have no label"),
    ],
)
def test_what_is_wrong_with_a_split_is_named(samples, text):
    with pytest.raises(UsageError, match=text):
        load(make(samples), "train")


def test_digest_sees_every_part():
    base = [Sample(np.zeros(2, np.float32), 0, id="a"), Sample(np.ones(2, np.float32), 1, id="b")]
    digest = lambda samples: load(make(samples), "train").digest
    assert digest(base) == digest(list(base))
    others = [
        [base[0], Sample(np.ones(2, np.float32), 0, id="b")],
        [base[0], Sample(np.full(2, 2, np.float32), 1, id="b")],
        [base[0], Sample(np.ones(2, np.float32), 1, id="c")],
        [base[0], Sample(np.ones(2, np.float32), 1, id="b", weight=2.0)],
        [base[1], base[0]],
    ]
    assert len({digest(o) for o in [base, *others]}) == 6
