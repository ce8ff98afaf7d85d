"""Metrics of every kind of output against scikit-learn's, and what gate can compute again."""

import numpy as np
import pytest
from sklearn import metrics as theirs

import edgekd
from edgekd import intervals
from edgekd.metrics.formulas import FORMULAS

G = np.random.default_rng


def value(metric, outputs, labels):
    records = np.asarray(metric.records(outputs, labels))
    assert len(records) == len(labels) and np.isfinite(records).all()
    return metric.value(records)


@pytest.fixture
def masks():
    z, y = G(0).normal(size=(6, 4, 5, 5)), G(1).integers(0, 4, (6, 5, 5))
    y[0, 0] = 255
    return z, y, z.argmax(1)[y != 255], y[y != 255]


def test_mean_iou(masks):
    z, y, said, true = masks
    got = value(edgekd.mean_iou(edgekd.classes(ignore_index=255)), z, y)
    assert got == pytest.approx(100 * theirs.jaccard_score(true, said, average="macro"))


def test_mean_iou_leaves_out_classes_that_do_not_occur():
    # classes 0 and 1 occur: 1/2 and 2/3
    z = np.eye(3)[[[0, 0, 1, 1]]].transpose(0, 2, 1)
    got = value(edgekd.mean_iou(edgekd.classes()), z, np.array([[0, 1, 1, 1]]))
    assert got == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_of_classes(masks, average):
    z, y, said, true = masks
    got = value(edgekd.f1(edgekd.classes(ignore_index=255), average=average), z, y)
    assert got == pytest.approx(100 * theirs.f1_score(true, said, average=average))


def test_pixel_accuracy_is_averaged_within_a_sample_first():
    z = np.array([[[0, 0, 0, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [0, 1, 1, 1]]])  # says 1 1 1 1 and 0 1 1 1
    y = np.array([[1, 1, 0, 0], [0, 9, 9, 9]])
    assert value(edgekd.pixel_accuracy(edgekd.classes(ignore_index=9)), z, y) == 75.0  # 2 of 4, 1 of 1


def test_a_sample_in_which_nothing_counts_is_left_out():
    z = np.array([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 1], [1, 0]]])  # says 1 1, 0 0 and 1 0
    y, metric = np.array([[1, 1], [9, 9], [1, 1]]), edgekd.pixel_accuracy(edgekd.classes(ignore_index=9))
    assert value(metric, z, y) == 75.0 and FORMULAS[metric.formula] is metric.value
    assert edgekd.pixel_accuracy(edgekd.classes()).formula == ""


@pytest.mark.parametrize(
    "metric, labels",
    [
        (edgekd.mean_iou(edgekd.classes(ignore_index=9)), np.full((2, 2), 9)),
        (edgekd.f1(edgekd.classes(ignore_index=9)), np.full((2, 2), 9)),
        (edgekd.f1(edgekd.classes(ignore_index=9), average="micro"), np.full((2, 2), 9)),
        (edgekd.pixel_accuracy(edgekd.classes(ignore_index=9)), np.full((2, 2), 9)),
        (edgekd.r2(), np.ones((2, 2, 2))),
    ],
)
def test_a_figure_that_is_not_defined_is_told_in_our_words(metric, labels):
    """Not by a warning of numpy's about the mean of an empty slice."""
    with pytest.raises(ValueError, match="no label has the answers"):
        metric.value(metric.records(np.zeros((2, 2, 2)), labels))


@pytest.fixture
def tags():
    y = G(3).integers(0, 2, (80, 3))
    return np.round(G(2).normal(size=(80, 3)) + y, 1), y  # rounded: scores that tie


def test_average_precision_and_auc(tags):
    z, y = tags
    kind = edgekd.yes_no()
    assert value(edgekd.average_precision(kind), z, y) == pytest.approx(100 * theirs.average_precision_score(y, z))
    assert value(edgekd.auc(kind), z, y) == pytest.approx(100 * theirs.roc_auc_score(y, z))


def test_labels_that_do_not_count_are_left_out(tags):
    z, y = tags
    y[:10, 0] = -1
    told = y[:, 0] >= 0
    want = [theirs.roc_auc_score(y[told, 0], z[told, 0]), *(theirs.roc_auc_score(y[:, i], z[:, i]) for i in (1, 2))]
    assert value(edgekd.auc(edgekd.yes_no(ignore_index=-1)), z, y) == pytest.approx(100 * np.mean(want))


def test_a_label_of_one_answer_has_no_curve():
    z, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1, 1], [0, 1]])
    assert value(edgekd.auc(edgekd.yes_no()), z, y) == 100.0  # of the first label alone
    with pytest.raises(ValueError, match="no label"):
        value(edgekd.auc(edgekd.yes_no()), z, np.ones((2, 2), int))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_and_accuracy_of_labels(tags, average):
    z, y = tags
    got = value(edgekd.f1(edgekd.yes_no(), average=average), z, y)
    assert got == pytest.approx(100 * theirs.f1_score(y, z > 0, average=average))
    assert value(edgekd.label_accuracy(edgekd.yes_no()), z, y) == pytest.approx(100 * ((z > 0) == y).mean())


def test_rmse_and_r2():
    z, y = G(4).normal(size=(50, 1)), G(5).normal(size=50) + 100
    assert value(edgekd.rmse(unit="m"), z, y) == pytest.approx(theirs.root_mean_squared_error(y, z[:, 0]))
    assert value(edgekd.r2(), z, y) == pytest.approx(theirs.r2_score(y, z[:, 0]), rel=1e-9)
    several = z[:, 0].reshape(10, 5) + 1e6, y.reshape(10, 5) + 1e6  # all values count alike, and their size does not
    assert value(edgekd.r2(), *several) == pytest.approx(theirs.r2_score(y, z[:, 0]), rel=1e-6)


def test_a_score_that_is_nan_is_never_right():
    z = np.full((1, 2, 2), np.nan)
    assert value(edgekd.pixel_accuracy(edgekd.classes()), z, np.zeros((1, 2), int)) == 0.0


@pytest.mark.parametrize(
    "metric, outputs, labels, told",
    [
        (edgekd.mean_iou(edgekd.classes()), np.zeros((2, 3, 4)), np.zeros((2, 5)), "4 positions, labels 5"),
        (edgekd.mean_iou(edgekd.numbers()), np.zeros((2, 3)), np.zeros((2, 3)), "not numbers"),
        (edgekd.rmse(), np.zeros((2, 3)), np.zeros(2), "one size"),
    ],
)
def test_outputs_that_do_not_fit_are_told(metric, outputs, labels, told):
    with pytest.raises(ValueError, match=told):
        metric.records(outputs, labels)


@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_curves_are_those_of_labels(name):
    with pytest.raises(ValueError, match="yes-or-no labels, not classes"):
        getattr(edgekd, name)(edgekd.classes())


def test_an_interval_of_a_curve_resamples_samples(tags):
    z, y = tags
    metric = edgekd.auc(edgekd.yes_no())
    assert FORMULAS[metric.formula] is metric.value
    middle, low, high = intervals.interval_of(metric, metric.records(z, y))
    assert low < middle < high


# ---------------------------------------------------------------- order and strings


def test_top_k_is_scikit_learns(masks):
    z, y, _, _ = masks
    flat, told = z.transpose(0, 2, 3, 1).reshape(-1, 4), (y != 255).reshape(-1)
    got = value(edgekd.top_k(2, edgekd.classes(ignore_index=255)), z, y)
    share = [
        theirs.top_k_accuracy_score(y[i][y[i] != 255], z[i].transpose(1, 2, 0)[y[i] != 255], k=2, labels=range(4))
        for i in range(6)
    ]
    assert got == pytest.approx(100 * np.mean(share))
    assert value(edgekd.top_k(2), flat[told], y[y != 255]) == pytest.approx(
        100 * theirs.top_k_accuracy_score(y[y != 255], flat[told], k=2, labels=range(4))
    )
    assert edgekd.top_k(3).name == "top3"


def test_top_1_of_ties_is_top1():
    z, y = G(0).integers(0, 2, (200, 4)).astype(float), G(1).integers(0, 4, 200)
    z[:5, 2] = np.nan
    assert (edgekd.top_k(1).records(z, y) == edgekd.top1().records(z, y)).all()
    assert value(edgekd.top_k(4), z[5:], y[5:]) == 100.0
    with pytest.raises(ValueError, match="4 classes"):
        edgekd.top_k(5).records(z, y)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlations_are_scipys(kind):
    from scipy import stats

    y = np.round(G(0).normal(size=(40, 3)), 1)
    z = np.exp(y + np.round(G(1).normal(size=(40, 3)), 1))  # rounded: ranks that tie
    want = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[kind](z.ravel(), y.ravel()).statistic
    assert value(edgekd.correlation(kind), z, y) == pytest.approx(want)
    with pytest.raises(ValueError, match="no label"):
        value(edgekd.correlation(kind), np.ones((4, 1)), np.arange(4))


def test_error_rates_by_hand():
    """kitten to sitting is 3 edits of 7; "a cat sat" to "the cat" 6 of 7 (without "a ", and c, a, t, s replaced), of
    words 2 of 2."""
    symbols = " abcdefghijklmnopqrstuvwxyz"
    spell = lambda text, length: [symbols.index(c) for c in text] + [-1] * (length - len(text))
    kind = edgekd.classes(axis=2, ignore_index=-1)

    def path(text):  # every symbol twice, with a blank between: repeats go, blanks go
        return [s for c in text for s in (symbols.index(c), symbols.index(c), 27)]

    said, true = ["kitten", "a cat sat"], ["sitting", "the cat"]
    steps = max(len(path(text)) for text in said)
    z = np.full((2, steps, 28), -1.0)
    for i, text in enumerate(said):
        for t, c in enumerate(path(text) + [27] * (steps - len(path(text)))):
            z[i, t, c] = 1.0
    y = np.array([spell(text, 9) for text in true])
    metric = edgekd.character_error_rate(kind, blank=27)
    assert np.asarray(metric.records(z, y)).tolist() == [[3, 7], [6, 7]]
    assert value(metric, z, y) == pytest.approx(100 * 9 / 14)
    assert value(metric, z.transpose(0, 2, 1), y) != value(metric, z, y)
    turned = edgekd.classes(axis=1, ignore_index=-1)
    assert value(edgekd.character_error_rate(turned, blank=27), z.transpose(0, 2, 1), y) == value(metric, z, y)
    words = edgekd.word_error_rate(kind, space=0, blank=27)
    assert np.asarray(words.records(z, y)).tolist() == [[1, 1], [2, 2]]
    assert FORMULAS[words.formula](np.asarray(words.records(z, y))) == 100.0


def test_edits_are_those_of_all_alignments():
    """Against a search over all alignments."""
    from functools import cache

    from edgekd.metrics.strings import edits

    def searched(a, b):
        @cache
        def of(i, j):
            if i == len(a) or j == len(b):
                return len(a) - i + len(b) - j
            return min(of(i + 1, j) + 1, of(i, j + 1) + 1, of(i + 1, j + 1) + (a[i] != b[j]))

        return of(0, 0)

    for seed in range(30):
        g = G(seed)
        a, b = (tuple(g.integers(0, 3, g.integers(0, 8)).tolist()) for _ in "ab")
        assert edits(a, b) == searched(a, b)
