"""Batches in which no position counts, and ensembles of outputs of every kind."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import edgekd
from edgekd.components import Use
from edgekd.data.columns import Columns
from edgekd.errors import UsageError
from edgekd.records import Batch, Run, Signals
from edgekd.run import recipe as recipes
from edgekd.run.default_losses import fitted
from edgekd.training.loop import fit
from edgekd.training.positions import rows_of
from edgekd.training.read_terms import terms
from edgekd.training.settings import Training
from edgekd.training.supervision import check_ensemble
from edgekd.training.terms import bind, parts

PIXELS = edgekd.classes(3, ignore_index=255)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(labels):
    labels = torch.as_tensor(labels)
    return Batch(None, labels, torch.arange(len(labels)), torch.ones(len(labels)))


ALL = ["cross_entropy", "focal", "kl", "dkd", "dist", "mlkd", "jsd", "reverse_kl", "logit_mse"]


@pytest.mark.parametrize("use", ALL)
def test_a_batch_in_which_nothing_counts_teaches_nothing(use):
    """The mean over no row is not NaN, which would end the training as diverged."""
    student, teacher = drawn(2, 3, 4, 4).requires_grad_(), drawn(2, 3, 4, 4, seed=1)
    rows = rows_of(PIXELS, batch_of(torch.full((2, 4, 4), 255)), Signals(student))
    bound = bind(terms([{"use": use, "weight": 0.5}]), lambda: None)
    ((name, weight, mean),) = parts(bound, rows.of(Signals(student)), {"": rows.of(Signals(teacher))}, rows)
    assert (name, weight, mean.item()) == (use, 0.5, 0.0)
    mean.backward()
    assert not student.grad.any()


@pytest.mark.parametrize(
    "combine", [None, Use("ensembles", "learned"), Use("ensembles", "routed", {"classes": {"a": (0, 1), "b": (2,)}})]
)
def test_a_training_goes_past_a_batch_in_which_nothing_counts(combine, tmp_path):
    x, labels = drawn(12, 1, 4, 4), torch.randint(0, 3, (12, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[4:8] = 255
    task = dataclasses.replace(tiny.task, outputs={"mask": PIXELS}, augment=None)
    run = Run(task, 0, 1, tmp_path, tmp_path, lambda split: None)

    def source(epoch, start):
        for at in range(4 * start, 12, 4):
            index = torch.arange(at, at + 4)
            yield Batch(x[at : at + 4], labels[at : at + 4], index, torch.ones(4))

    torch.manual_seed(0)
    student, one, two = (nn.Conv2d(1, 3, 3, padding=1) for _ in range(3))
    teachers = {
        name: lambda batch, net=net: Signals(net(batch.inputs).detach()) for name, net in (("a", one), ("b", two))
    }
    losses = terms([{"use": "cross_entropy", "weight": 0.5}, {"use": "kl", "weight": 0.5}])
    settings = Training(epochs=2, losses=losses, combine=combine, teachers=("a", "b"))
    facts = fit(student, source, losses, settings=settings, steps_per_epoch=3, run=run, teachers=teachers)
    assert all(np.isfinite(value) and value > 0 for value in facts["losses"].values())
    assert all(p.isfinite().all() for p in student.parameters())


def test_heads_of_an_output_with_positions_are_refused():
    student = Signals(drawn(32, 3), {"tap": drawn(2, 8, 4, 4)})
    with pytest.raises(UsageError, match="2 samples has 32 positions"):
        bind(
            terms([{"use": "heads", "on": ["tap"]}]), lambda: (student, {}, batch_of(torch.zeros(32, dtype=torch.long)))
        )


class TestEnsembles:
    labels = np.random.default_rng(0).integers(0, 3, (8, 4, 4))

    def found(self, name, output, shape, labels=None, shows=None, **settings):
        count = len(labels)
        columns = Columns("train", np.zeros((count, 2), np.float32), labels, list(range(count)), np.ones(count), "")
        combine = None if name is None else Use("ensembles", name, settings)
        return check_ensemble(combine, shows or {"a": "logits", "b": "logits"}, torch.zeros(1, *shape), columns, output)

    @pytest.mark.parametrize("name", [None, "mean", "mean_logits", "confidence", "learned"])
    @pytest.mark.parametrize(
        "output, shape", [(PIXELS, (3, 4, 4)), (edgekd.classes(axis=-1, ignore_index=255), (4, 4, 3))]
    )
    def test_positions_that_do_not_count_are_no_problem(self, name, output, shape):
        labels = self.labels.copy()
        labels[:, 0] = 255
        assert self.found(name, output, shape, labels) == []

    @pytest.mark.parametrize("name", [None, "mean", "confidence", "learned"])
    @pytest.mark.parametrize("output", [edgekd.numbers(), edgekd.embeddings(), edgekd.raw()])
    def test_probabilities_of_no_scores_are_refused(self, name, output):
        """A softmax of one number is 1: the student would learn a constant."""
        ((text, _),) = self.found(name, output, (1,), np.zeros((8, 1)))
        assert f"declared as {output.kind}" in text and "mean_logits" in text

    @pytest.mark.parametrize("name", [None, "mean_logits", "confidence", "learned"])
    def test_a_teacher_that_shows_labels_has_nothing_to_combine(self, name):
        ((text, _),) = self.found(name, PIXELS, (3, 4, 4), self.labels, {"a": "logits", "b": "label"})
        assert "the teacher b shows labels only" in text


@pytest.mark.parametrize(
    "kind, wanted", [(edgekd.numbers(), "mean_logits"), (edgekd.raw(), "mean_logits"), (PIXELS, None)]
)
def test_several_teachers_without_an_ensemble(kind, wanted, tmp_path):
    """The mean of probabilities fits scores only; where a recipe gives an ensemble it stays."""
    text = 'task = "t"\n[model.one]\ntrain = {}\n[model.two]\ntrain = {}\n'
    stage = '[[stage]]\nuse = "distill"\nteacher = ["one", "two"]\n'
    (tmp_path / "r.toml").write_text(
        text + stage + stage + 'combine = "routed"\n' + stage.replace('["one", "two"]', '"one"')
    )
    recipe, _ = recipes.parsed(tmp_path / "r.toml")
    found = fitted(recipe, dataclasses.replace(tiny.task, outputs={"o": kind}))
    names = [line.stage.combine and line.stage.combine.name for line in found.stages]
    assert names == [wanted, "routed", None]


@pytest.mark.parametrize(
    "kind, labels, wanted",
    [
        (PIXELS, np.zeros((4, 4, 4), int), [("cross_entropy", 0.5, {}), ("kl", 0.5, {"temperature": 1.0})]),
        (edgekd.yes_no(), np.zeros((4, 3), int), [("cross_entropy", 0.5, {}), ("kl", 0.5, {"temperature": 1.0})]),
        (edgekd.classes(3), np.zeros(4, int), [("cross_entropy", 0.1, {}), ("kl", 0.9, {"temperature": 4.0})]),
        (edgekd.classes(3), None, [("cross_entropy", 0.1, {}), ("kl", 0.9, {"temperature": 4.0})]),
        (edgekd.classes(3, blank=0), np.zeros((4, 2), int), [("ctc", 0.5, {}), ("kl", 0.5, {"temperature": 1.0})]),
    ],
)
def test_losses_that_a_recipe_leaves_out(kind, labels, wanted, tmp_path):
    """At positions the temperature is 1; the probabilities of several teachers are averaged as ever."""
    text = 'task = "t"\n[model.one]\ntrain = {}\n[model.two]\ntrain = {}\n'
    (tmp_path / "r.toml").write_text(text + '[[stage]]\nuse = "distill"\nteacher = ["one", "two"]\n')
    recipe, _ = recipes.parsed(tmp_path / "r.toml")
    for outputs, given, named in (({"o": kind}, labels, ""), ({"o": kind, "p": kind}, {"o": labels, "p": None}, "o")):
        found = fitted(recipe, dataclasses.replace(tiny.task, outputs=outputs), lambda given=given: given)
        (line,), told = found.stages, []
        for term in (t for t in line.stage.losses if t.output == named):
            told.append((term.use, term.weight, {k: v for k, v in term.hyper.items() if k == "temperature"}))
        assert told == wanted and line.stage.combine is None
        assert all(t.use != "kl" for t in found.models["one"].stage.losses)
