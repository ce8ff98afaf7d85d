"""What a task says of its output: labels that fit, positions as rows for losses, and the losses of each kind."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

import edgekd
from edgekd import outputs
from edgekd.data import check
from edgekd.ensembles.mean import mean
from edgekd.errors import UsageError
from edgekd.losses.bounded import bounded
from edgekd.losses.cosine import cosine
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.focal import focal
from edgekd.losses.huber import huber
from edgekd.losses.kl import kl
from edgekd.losses.mae import mae
from edgekd.losses.mse import mse
from edgekd.models.scores import as_given, classes_last, predicted
from edgekd.records import Batch, Signals
from edgekd.run import check_losses, keys
from edgekd.stages.answer import Answer
from edgekd.stages.export import Export
from edgekd.stages.quantize import Quantize
from edgekd.stages.train import Train
from edgekd.teachers.cached import cached
from edgekd.training.positions import rows_of
from edgekd.training.read_terms import terms
from edgekd.training.terms import bind, parts


def batch_of(labels, weight=None):
    count = len(labels)
    return Batch(None, torch.as_tensor(labels), torch.arange(count), torch.ones(count) if weight is None else weight)


def loss_of(output, term, batch, student, teacher=None):
    """The value of a recipe's term, as the training loop computes it."""
    seen, signals = Signals(student), {} if teacher is None else {"": Signals(teacher)}
    rows = rows_of(output, batch, seen)
    (bound,) = bind(terms([term]), lambda: None)
    return parts([bound], rows.of(seen), {name: rows.of(s) for name, s in signals.items()}, rows)[0][2]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPositions:
    def test_pixels_are_rows_and_ignored_ones_do_not_count(self):
        z, labels = drawn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6), generator=torch.Generator().manual_seed(1))
        labels[:, 0] = 255
        kind = edgekd.classes(4, ignore_index=255)
        ours = loss_of(kind, {"use": "cross_entropy"}, batch_of(labels), z)
        assert torch.allclose(ours, F.cross_entropy(z, labels, ignore_index=255))

    def test_classes_may_be_on_any_axis(self):
        z, labels = drawn(3, 7, 4), torch.zeros(3, 7, dtype=torch.long)
        last = loss_of(edgekd.classes(axis=-1), {"use": "cross_entropy"}, batch_of(labels), z)
        first = loss_of(edgekd.classes(axis=1), {"use": "cross_entropy"}, batch_of(labels), z.movedim(-1, 1))
        assert torch.equal(last, first)

    def test_divergence_is_averaged_over_what_counts(self):
        """One sample has three positions that count, the other one: the mean is over four, not over two means."""
        student, teacher = drawn(2, 3, 3), drawn(2, 3, 3, seed=1)
        labels = torch.tensor([[0, 1, 2], [0, -1, -1]])
        got = loss_of(
            edgekd.classes(ignore_index=-1), {"use": "kl", "temperature": 2.0}, batch_of(labels), student, teacher
        )
        q, p = (F.log_softmax(z / 2, 1) for z in (student, teacher))
        each = 4 * (p.exp() * (p - q)).sum(1)
        assert torch.allclose(got, each[labels >= 0].mean())

    def test_weights_are_those_of_the_sample(self):
        z, labels, weight = drawn(2, 3, 2), torch.zeros(2, 2, dtype=torch.long), torch.tensor([1.0, 3.0])
        got = loss_of(edgekd.classes(), {"use": "cross_entropy"}, batch_of(labels, weight), z)
        each = F.cross_entropy(z, labels, reduction="none").mean(1)
        assert torch.allclose(got, (each * weight).sum() / 4)

    def test_plain_logits_are_as_they_were(self):
        z, labels = drawn(5, 3), torch.tensor([0, 1, 2, 0, 1])
        declared = rows_of(edgekd.classes(3), batch_of(labels), Signals(z))
        assert torch.equal(declared.of(Signals(z)).output, z) and torch.equal(declared.flat.labels, labels)
        assert rows_of(None, batch_of(labels), Signals(z)).of(Signals(z)).output is z

    def test_each_row_knows_its_position_and_sample(self):
        labels = torch.tensor([[0, -1, 1], [1, 1, -1]])
        rows = rows_of(edgekd.classes(ignore_index=-1), batch_of(labels), Signals(drawn(2, 2, 3)))
        assert rows.flat.index.tolist() == [0, 0, 1, 1] and rows.flat.part.tolist() == [0, 2, 0, 1]

    def test_tags_follow_their_sample(self):
        batch = dataclasses.replace(batch_of(torch.tensor([[0, -1], [1, 1]])), tags=[("a",), ("b",)])
        rows = rows_of(edgekd.classes(ignore_index=-1), batch, Signals(drawn(2, 2, 2)))
        assert rows.flat.tags == [("a",), ("b",), ("b",)]

    def test_an_ensemble_combines_positions(self):
        """The mean of probabilities is per pixel."""
        one, two, labels = drawn(2, 3, 4), drawn(2, 3, 4, seed=1), torch.zeros(2, 4, dtype=torch.long)
        rows = rows_of(edgekd.classes(), batch_of(labels), Signals(one))
        got = mean({"a": rows.of(Signals(one)), "b": rows.of(Signals(two))}, rows.flat).output.softmax(-1)
        want = ((one.softmax(1) + two.softmax(1)) / 2).movedim(1, -1).reshape(-1, 3)
        assert torch.allclose(got, want, atol=1e-6)

    def test_predicted_classes(self):
        z = drawn(2, 3, 4)
        assert torch.equal(predicted(edgekd.classes(axis=1), z), z.argmax(1))
        assert torch.equal(predicted(edgekd.yes_no(), z), (z > 0).long()) and torch.equal(
            predicted(None, z), z.argmax(-1)
        )


class TestPartsOfAnAnswer:
    """A grey box shows its largest classes, a black box its label, for every position."""

    @pytest.mark.parametrize(
        "output, shape",
        [(edgekd.classes(axis=1), (4, 3, 5)), (edgekd.classes(axis=-1), (4, 5, 3)), (edgekd.yes_no(), (4, 3))],
    )
    def test_all_that_is_shown_gives_the_output_again(self, output, shape, tmp_path):
        """As many classes as there are tell the whole distribution, in the form of the output."""
        given = drawn(*shape)
        count = 2 if output.kind == "yes_no" else 3
        for name, array in Answer(shows="top", top=count).shown(given, output).items():
            np.save(tmp_path / f"{name}.npy", array[None])
        kept = SimpleNamespace(folder=tmp_path, facts={"outputs": list(shape[1:])})
        seen = cached(kept, 4, 1, output)(batch_of(torch.zeros(4, dtype=torch.long))).output
        assert seen.shape == given.shape
        want, got = (classes_last(output, z).softmax(-1) for z in (given, seen))
        assert torch.allclose(got, want, atol=1e-5)

    def test_labels_are_of_positions(self):
        z = drawn(4, 3, 5)
        assert np.array_equal(Answer(shows="label").shown(z, edgekd.classes())["labels"], z.argmax(1))

    @pytest.mark.parametrize("output", [None, edgekd.classes(axis=2), edgekd.yes_no()])
    def test_scores_come_back_as_they_were(self, output):
        z = drawn(2, 3, 4)
        assert torch.equal(as_given(output, classes_last(output, z)), z)


class TestYesNo:
    def test_cross_entropy_is_binary(self):
        z, labels = drawn(6, 3), torch.randint(0, 2, (6, 3), generator=torch.Generator().manual_seed(2))
        got = loss_of(edgekd.yes_no(3), {"use": "cross_entropy"}, batch_of(labels), z)
        assert torch.allclose(got, F.binary_cross_entropy_with_logits(z, labels.float()))

    def test_positive_weight(self):
        z, labels = drawn(6, 3), torch.randint(0, 2, (6, 3), generator=torch.Generator().manual_seed(2))
        got = loss_of(edgekd.yes_no(), {"use": "cross_entropy", "weights": [1.0, 4.0]}, batch_of(labels), z)
        want = F.binary_cross_entropy_with_logits(z, labels.float(), pos_weight=torch.tensor(4.0))
        assert torch.allclose(got, want)

    @pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2)])
    def test_kl_is_binary(self, shape):
        student, teacher = drawn(*shape), drawn(*shape, seed=1)
        labels = torch.zeros(shape, dtype=torch.long)
        got = loss_of(edgekd.yes_no(), {"use": "kl", "temperature": 1.0}, batch_of(labels), student, teacher)
        p, q = teacher.sigmoid(), student.sigmoid()
        want = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        assert torch.allclose(got, want, atol=1e-6)

    def test_unknown_labels_do_not_count(self):
        z, labels = drawn(4, 2), torch.tensor([[0, -1], [1, 1], [-1, -1], [0, 1]])
        got = loss_of(edgekd.yes_no(ignore_index=-1), {"use": "cross_entropy"}, batch_of(labels), z)
        told = labels >= 0
        assert torch.allclose(got, F.binary_cross_entropy_with_logits(z[told], labels[told].float()))


class TestLosses:
    def test_focal_by_hand(self):
        # p = 3/4 for the label: -(1/4)^2 ln(3/4)
        z = torch.tensor([[0.0, np.log(3.0)]])
        assert focal(Signals(z), None, batch_of([1])).item() == pytest.approx(np.log(4 / 3) / 16)
        weighed = focal(Signals(z), None, batch_of([1]), weights=(1.0, 0.5))
        assert weighed.item() == pytest.approx(np.log(4 / 3) / 32)

    def test_focal_without_focus_is_cross_entropy(self):
        z, batch = drawn(5, 4), batch_of([0, 1, 2, 3, 0])
        assert torch.allclose(focal(Signals(z), None, batch, gamma=0.0), cross_entropy(Signals(z), None, batch))

    def test_weights_of_classes(self):
        z, labels = drawn(5, 3), torch.tensor([0, 1, 2, 1, 0])
        got = cross_entropy(Signals(z), None, batch_of(labels), weights=(0.5, 1.0, 2.0))
        assert torch.allclose(got, F.cross_entropy(z, labels, weight=torch.tensor([0.5, 1.0, 2.0]), reduction="none"))

    @pytest.mark.parametrize("weights, told", [((1.0, 2.0), "2 weights for 3 classes"), ((1.0, -1.0, 1.0), "positive")])
    def test_weights_that_fit_nothing(self, weights, told):
        with pytest.raises(UsageError, match=told):
            cross_entropy(Signals(drawn(2, 3)), None, batch_of([0, 1]), weights=weights)

    def test_errors_are_torchs(self):
        z, labels = drawn(5, 3), drawn(5, 3, seed=1)
        for ours, theirs in ((mse, F.mse_loss), (mae, F.l1_loss), (huber, F.huber_loss)):
            want = theirs(z, labels, reduction="none").mean(1)
            assert torch.allclose(ours(Signals(z), None, batch_of(labels)), want)

    def test_a_single_number_and_labels_of_one_axis(self):
        """[B, 1] and [B] are one number each: broadcast, they would be a table of B x B differences."""
        z, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
        assert mse(Signals(z), None, batch_of(labels)).tolist() == [0.0, 4.0]
        with pytest.raises(UsageError, match="3 values per sample, the output 1"):
            mse(Signals(z), None, batch_of(torch.zeros(2, 3)))

    def test_bounded_learns_only_where_the_teacher_is_better(self):
        student = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
        teacher, labels = torch.tensor([[0.0], [3.0], [1.5]]), torch.zeros(3, 1)
        value = bounded(Signals(student), Signals(teacher), batch_of(labels))
        assert value.tolist() == [1.0, 0.0, 0.0]
        assert bounded(Signals(student), Signals(teacher), batch_of(labels), margin=2.0).tolist() == [1.0, 0.0, 1.0]
        value.sum().backward()
        assert student.grad.ravel().tolist() == [2.0, 0.0, 0.0]

    def test_cosine_by_hand(self):
        ours, theirs = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[5.0, 0.0], [-2.0, -2.0]])
        assert cosine(Signals(ours), Signals(theirs), batch_of([0, 0])).tolist() == pytest.approx([0.0, 2.0])

    @pytest.mark.parametrize("kind", ["numbers", "embeddings", "raw"])
    @pytest.mark.parametrize("use", [kl, cross_entropy, focal])
    def test_losses_on_classes_refuse_other_kinds(self, use, kind):
        given = Signals(drawn(3, 4), kind=kind)
        with pytest.raises(UsageError, match=f"declared as {kind}"):
            use(given, given, batch_of([0, 1, 2]))

    @pytest.mark.parametrize("kind", ["classes", "yes_no"])
    @pytest.mark.parametrize("use", [mse, mae, huber, bounded, cosine])
    def test_losses_on_numbers_refuse_classes(self, use, kind):
        given = Signals(drawn(3, 4), kind=kind)
        with pytest.raises(UsageError, match=f"declared as {kind}"):
            use(given, given, batch_of(drawn(3, 4)))


class TestLabels:
    @pytest.mark.parametrize(
        "output, labels, told",
        [
            (edgekd.classes(3), [[0, 1], [2, 3]], "1 of 4 labels are outside 0 to 2, the first is 3"),
            (edgekd.classes(), [[0, 1], [2, -1]], "1 of 4 labels are below 0, the first is -1"),
            (edgekd.classes(), [[0.5, 1.0]], "not class indices"),
            (edgekd.yes_no(), [[0, 2]], "1 of 2 labels are not 0 or 1, the first is 2"),
            (edgekd.yes_no(ignore_index=-1), [[-1, -1]], "no label counts"),
            (edgekd.numbers(), [[1.0], [np.nan]], "1 of 2 labels are NaN or infinite, the first at 1"),
            (edgekd.numbers(), None, "no label"),
        ],
    )
    def test_problems(self, output, labels, told):
        found = outputs.label_problems(output, None if labels is None else np.array(labels))
        assert len(found) == 1 and told in found[0][0]

    @pytest.mark.parametrize(
        "output, labels",
        [
            (edgekd.classes(3, ignore_index=255), [[0, 255], [2, 1]]),
            (edgekd.yes_no(ignore_index=-1), [[0, -1], [1, 1]]),
            (edgekd.yes_no(), [[0.0, 1.0]]),
            (edgekd.numbers("years"), [[1.5], [-3.0]]),
            (edgekd.embeddings(), None),
            (edgekd.raw(), None),
        ],
    )
    def test_labels_that_fit(self, output, labels):
        assert outputs.label_problems(output, None if labels is None else np.array(labels)) == []

    @pytest.mark.parametrize(
        "output, answer, labels, told",
        [
            (edgekd.classes(3), (8, 4, 5, 5), (8, 5, 5), "4 classes along axis 1, the task says 3"),
            (edgekd.classes(), (8, 4, 5, 5), (8, 5, 4), "labels are class indices [8, 5, 5], not [8, 5, 4]"),
            (edgekd.classes(axis=2), (8, 4), (8,), "no classes along axis 2"),
            (edgekd.yes_no(), (8, 4), (8, 3), "gives [8, 4] for labels [8, 3]"),
            (edgekd.yes_no(3), (8, 4), None, "4 logits, the task says 3 labels"),
            (edgekd.numbers(), (8, 2), (8,), "gives [8, 2] for labels [8]"),
        ],
    )
    def test_outputs_that_do_not_fit(self, output, answer, labels, told):
        found = outputs.fit_problems(output, answer, labels)
        assert len(found) == 1 and told in found[0][0]

    def test_declarations_that_make_no_sense(self):
        for wrong in (lambda: edgekd.classes(1), lambda: edgekd.classes(axis=0), lambda: edgekd.yes_no(0)):
            with pytest.raises(ValueError):
                wrong()


def test_declarations_that_a_task_can_not_have():
    word = dataclasses.replace(tiny.task, outputs={"a": "classes"})
    (problem,) = check(word)
    assert word.output is None and problem.place.endswith("outputs['a']") and "is a str" in problem.message


def test_the_hint_keeps_the_label_that_is_ignored():
    ((_, hint),) = outputs.label_problems(edgekd.classes(3, ignore_index=255), np.array([[0, 7]]))
    assert "label them 255" in hint


def test_what_an_output_is_decides_the_key_of_a_training():
    """Another ignored label is another loss: finished work of the first must not be taken for it."""

    def key(output):
        task = tiny.task if output is None else dataclasses.replace(tiny.task, outputs={"output": output})
        resolved = SimpleNamespace(task=task, data=lambda split: SimpleNamespace(digest="d"), threads=1, processes=1)
        return keys.key_of(resolved, "train", Train(), 0, {})

    found = [key(o) for o in (None, edgekd.classes(3), edgekd.classes(3, ignore_index=0), edgekd.yes_no())]
    assert len(set(found)) == 4
    assert key(edgekd.classes()) == key(edgekd.classes(3))  # a number that is checked, as is a unit that is shown


def test_which_inputs_have_lengths_decides_the_key():
    """Their steps are open in graphs and files, also where the samples at hand are of one length."""

    def key(lengths, use):
        task = dataclasses.replace(tiny.task, lengths=lengths)
        resolved = SimpleNamespace(task=task, data=lambda split: SimpleNamespace(digest="d"), threads=1, processes=1)
        return keys.key_of(resolved, use, {"export": Export, "quantize": Quantize}[use](), 0, {})

    for use in ("export", "quantize"):
        found = [key(lengths, use) for lengths in ({}, {"x": "n"}, {"x": "n", "y": "n"})]
        assert len(set(found)) == 3


@pytest.mark.parametrize("kind", [edgekd.numbers(), edgekd.embeddings()])
def test_a_teacher_that_shows_labels_has_none_to_show(kind):
    view = SimpleNamespace(task=dataclasses.replace(tiny.task, outputs={"output": kind}))
    objective = SimpleNamespace(
        losses=terms([{"use": "logit_mse", "schedule": {"by": "agreement", "weight": [[0, 1]]}}])
    )
    found = list(check_losses._without_answers(objective, view, {"": "label", "box": "label"}, "here"))
    assert [p.place for p in found] == ["here: teacher", "here: losses: schedule"]
    view.task = dataclasses.replace(tiny.task, outputs={"output": edgekd.classes()})
    assert list(check_losses._without_answers(objective, view, {"box": "label"}, "here")) == []
