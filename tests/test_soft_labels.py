"""Soft labels: probabilities of the classes [n, C], of an output that is declared as classes()."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

import edgekd
from edgekd import outputs
from edgekd.data import checks, columns
from edgekd.ensembles.confidence import confidence
from edgekd.ensembles.learned import Learned
from edgekd.ensembles.routed import routed
from edgekd.errors import UsageError
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.dkd import dkd
from edgekd.losses.focal import focal
from edgekd.probes import Subject, ece, quality
from edgekd.records import Batch, Signals
from edgekd.run import default_losses
from edgekd.training.loss_checks import check_terms
from edgekd.training.positions import rows_of
from edgekd.training.read_terms import terms

KINDS = edgekd.classes(3)


def drawn(count=8, classes=3, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), count).astype("float32")


def batch_of(labels):
    return Batch(None, torch.as_tensor(labels), torch.arange(len(labels)), torch.ones(len(labels)))


def logits(count=8, classes=3, seed=1):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def task(labels=None, output=KINDS, **more):
    y = drawn(360) if labels is None else labels
    data = edgekd.arrays(tiny.x[:240], y[:240], tiny.x[240:], y[240:], validation=0.25)
    return dataclasses.replace(tiny.task, classes=None, outputs={"kind": output}, data=data, **more)


class TestLosses:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_cross_entropy_is_torchs(self, smoothing):
        z, labels = Signals(logits(), kind="classes"), torch.from_numpy(drawn()).double()
        wanted = F.cross_entropy(z.output, labels.float(), reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(cross_entropy(z, None, batch_of(labels), smoothing=smoothing), wanted)

    def test_weights_are_torchs(self):
        z, labels, weights = Signals(logits(), kind="classes"), torch.from_numpy(drawn()), (1.0, 2.0, 5.0)
        wanted = F.cross_entropy(z.output, labels, torch.tensor(weights), reduction="none")
        torch.testing.assert_close(cross_entropy(z, None, batch_of(labels), weights=weights), wanted)

    def test_one_hot_labels_are_class_numbers(self):
        z, numbers = Signals(logits(), kind="classes"), torch.arange(8) % 3
        own = {"smoothing": 0.1, "weights": (1.0, 2.0, 5.0)}
        soft = cross_entropy(z, None, batch_of(F.one_hot(numbers).float()), **own)
        torch.testing.assert_close(soft, cross_entropy(z, None, batch_of(numbers), **own))

    def test_rows_keep_them(self):
        rows = rows_of(KINDS, batch_of(drawn()), Signals(logits()))
        assert rows.flat.labels.shape == (8, 3) and rows.of(Signals(logits())).kind == "classes"

    @pytest.mark.parametrize("loss", [focal, dkd])
    def test_others_take_class_numbers(self, loss):
        z = Signals(logits(), kind="classes")
        with pytest.raises(UsageError, match=r"soft.*one class number") as caught:
            loss(z, z, batch_of(drawn()))
        assert "cross_entropy" in caught.value.problems[0].hint

    def test_an_output_that_is_not_declared_has_class_numbers(self):
        with pytest.raises(UsageError, match="soft"):
            cross_entropy(Signals(logits()), None, batch_of(drawn()))

    def test_terms_are_checked_before_a_training(self):
        given, models = task(), {"": tiny.Net(8)}
        train = columns.load(given, "train")
        wrong = lambda use: list(check_terms(terms([{"use": use}]), tiny.Net(4), models, given, train))
        assert not wrong("cross_entropy") and not wrong("kl")
        assert "one class number" in wrong("focal")[0][1]


class TestEnsembles:
    teachers = {"one": Signals(logits(seed=2), kind="classes"), "two": Signals(logits(seed=3), kind="classes")}

    def test_weights_by_the_loss(self):
        numbers = torch.arange(8) % 3
        soft, hard = (confidence(self.teachers, batch_of(y)) for y in (F.one_hot(numbers).float(), numbers))
        torch.testing.assert_close(soft.output, hard.output)

    def test_learned_weights(self):
        labels, mixture = torch.from_numpy(drawn()), Learned(["one", "two"], 3)
        mixed = mixture(self.teachers, batch_of(labels))
        torch.testing.assert_close(mixture.own, F.cross_entropy(mixed.output, labels))

    def test_routes_are_of_the_most_probable_class(self):
        labels, routes = torch.from_numpy(drawn()), {"one": [0, 1], "two": [2]}
        soft = routed(self.teachers, batch_of(labels), classes=routes)
        assert torch.equal(soft.output, routed(self.teachers, batch_of(labels.argmax(1)), classes=routes).output)


class TestLabels:
    @pytest.mark.parametrize("labels", [drawn(), np.eye(3)[[0, 2, 1]], drawn().astype("float16")])
    def test_probabilities_fit(self, labels):
        assert outputs.label_problems(KINDS, labels) == []
        assert outputs.fit_problems(KINDS, labels.shape, labels.shape, soft=True) == []

    @pytest.mark.parametrize(
        "output, labels, told",
        [
            (KINDS, drawn() * 2, "8 of 8 are not probabilities that sum to 1: label 0 sums to 2"),
            (KINDS, np.array([[0.5, 0.5, 0.0], [1.5, -0.5, 0.0]]), "1 of 2 are not .* label 1 .* least value is -0.5"),
            (KINDS, np.array([[0.5, np.nan, 0.5]]), "1 of 1 are not"),
            (KINDS, drawn(classes=4), r"shape \[8, 4\], and the task says 3 classes"),
            (edgekd.classes(3, ignore_index=-1), drawn(), "none of them is the label -1"),
            (edgekd.classes(), np.array([[0.0, 2.0], [1.0, 2.0]]), "not class indices"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_problems(self, output, labels, told):
        ((text, hint),) = outputs.label_problems(output, labels)
        assert re.search(told, text) and hint

    @pytest.mark.parametrize("answer, labels", [((8, 3, 5), (8, 3)), ((8, 4), (8, 3))])
    def test_outputs_that_do_not_fit(self, answer, labels):
        ((_, hint),) = outputs.fit_problems(edgekd.classes(), answer, labels, soft=True)
        assert "soft labels are [n, C]" in hint

    def test_a_task_is_checked(self):
        metrics = (edgekd.top1(), edgekd.top_k(2), edgekd.f1(KINDS))
        assert checks.check(task(metrics=metrics)) == []
        found = checks.check(task(drawn(360) * 0.5))
        assert len(found) == 3 and all("sum to 1" in p.message for p in found)
        assert any("not [" in p.message for p in checks.check(task(np.eye(3, dtype=int)[tiny.y])))


class TestFigures:
    @pytest.mark.parametrize("metric", [edgekd.top1(), edgekd.top_k(2), edgekd.f1(KINDS), edgekd.mean_iou(KINDS)])
    def test_the_most_probable_class_counts(self, metric):
        z, labels = logits().numpy(), drawn()
        assert np.array_equal(metric.records(z, labels), metric.records(z, labels.argmax(1)))

    def test_probes(self):
        z, taught, labels = logits(64).numpy(), logits(64, seed=5).numpy(), drawn(64)
        of = lambda y: Subject(outputs=z, labels=y, teacher=taught, output=KINDS, metrics=[edgekd.top1()])
        for probe in (quality, ece):
            soft, hard = (list(probe.measure(of(y))) for y in (labels, labels.argmax(1)))
            assert soft == hard and soft

    def test_losses_that_a_recipe_leaves_out_are_those_of_one_class_per_sample(self):
        recipe = SimpleNamespace()
        assert default_losses.fitted(recipe, task(), lambda: drawn()) is recipe
