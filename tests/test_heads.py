"""A task with several outputs: models, labels, losses, teachers, metrics and figures of each by its name."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import edgekd
from edgekd import outputs, probes
from edgekd.data import check
from edgekd.data.columns import load, take
from edgekd.data.reading import Notes
from edgekd.decisions import quantities
from edgekd.measure.cpu_agreement import figures
from edgekd.measure.emulation import Answers
from edgekd.records import Batch, Signals
from edgekd.run import check_losses, default_losses, resolve
from edgekd.run.variants import RecipeView
from edgekd.stages.answer import Answer
from edgekd.teachers.cached import cached
from edgekd.training.agreement import Agreement
from edgekd.training.loss_checks import check_terms
from edgekd.training.positions import rows_of
from edgekd.training.read_terms import terms
from edgekd.training.settings import Training
from edgekd.training.supervision import Combined, Supervision
from edgekd.training.terms import bind, parts, total

HEADS = {"kind": edgekd.classes(3), "bright": edgekd.numbers("lx"), "tags": edgekd.yes_no(2)}


class Net(nn.Module):
    """Gives its outputs in another order than the task declares them in."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Linear(4, width)
        self.kind, self.bright, self.tags = nn.Linear(width, 3), nn.Linear(width, 1), nn.Linear(width, 2)

    def forward(self, x):
        h = F.relu(self.body(x))
        return {"tags": self.tags(h), "kind": self.kind(h), "bright": self.bright(h)}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "kind": rng.integers(0, 3, count),
        "bright": rng.normal(size=count).astype(np.float32),
        "tags": rng.integers(0, 2, (count, 2)),
    }


def task_of(**changes):
    x = {split: drawn(40, 4, seed=i).numpy() for i, split in enumerate(("train", "test"))}
    given = {
        "name": "heads",
        "version": "1",
        "outputs": HEADS,
        "models": {"teacher": lambda: Net(8), "student": lambda: Net(4)},
        "data": edgekd.arrays(x["train"], labelled(40), x["test"], labelled(40, 1), validation=0.25),
        "metrics": (edgekd.top1(output="kind"), edgekd.mean_error(output="bright", unit="lx")),
    }
    return edgekd.Task(**given | changes)


def answered(count=6, seed=0):
    return {"kind": drawn(count, 3, seed=seed), "bright": drawn(count, 1, seed=seed + 1), "tags": drawn(count, 2)}


def batch_of(count=6):
    tensors = {name: torch.from_numpy(v) for name, v in labelled(count).items()}
    return Batch(None, tensors, torch.arange(count), torch.ones(count))


def loss_of(tables, batch, student, teacher=None):
    """The loss of a recipe's terms, as the training loop computes it."""
    rows = rows_of(HEADS, batch, Signals(student))
    signals = {} if teacher is None else {"": rows.of(Signals(teacher))}
    bound = bind(terms(tables), lambda: (rows.of(Signals(student)), signals, rows))
    return total(parts(bound, rows.of(Signals(student)), signals, rows))


class TestLosses:
    def test_terms_on_two_heads_are_the_sum_of_separate_ones(self):
        batch, student, teacher = batch_of(), answered(), answered(seed=5)
        found = loss_of(
            [
                {"use": "cross_entropy", "output": "kind", "weight": 0.25},
                {"use": "mse", "output": "bright", "weight": 2.0},
                {"use": "cross_entropy", "output": "tags", "weight": 0.5},
                {"use": "logit_mse", "output": "bright"},
            ],
            batch,
            student,
            teacher,
        )
        y = batch.labels
        want = 0.25 * F.cross_entropy(student["kind"], y["kind"])
        want = want + 2.0 * F.mse_loss(student["bright"][:, 0], y["bright"])
        want = want + 0.5 * F.binary_cross_entropy_with_logits(student["tags"], y["tags"].float())
        want = want + F.mse_loss(student["bright"], teacher["bright"])
        assert torch.allclose(found, want, atol=1e-6)

    def test_gradients_reach_the_heads_of_their_terms_only(self):
        student = {name: z.requires_grad_() for name, z in answered().items()}
        loss_of([{"use": "mae", "output": "bright"}], batch_of(), student).backward()
        assert student["bright"].grad.abs().sum() > 0 and student["kind"].grad is None is student["tags"].grad

    def test_a_loss_that_learns_is_built_from_its_own_head(self):
        rows = rows_of(HEADS, batch_of(), Signals(answered(), {"body": drawn(6, 4)}))
        seen = rows.of(Signals(answered(), {"body": drawn(6, 4)}))
        (bound,) = bind(terms([{"use": "heads", "on": ["body"], "output": "kind"}]), lambda: (seen, {}, rows))
        assert [tuple(p.shape) for p in bound.call.parameters()] == [(3, 4), (3,)]
        assert parts([bound], seen, {}, rows)[0][0] == "heads on kind"

    def test_a_loss_may_have_a_number_of_this_name(self):
        (term,) = terms([{"use": "heads", "on": ["body"], "output": 0.5}])
        assert term.output == "" and term.hyper["output"] == 0.5

    def test_the_table_of_a_term_gives_it_again(self):
        (term,) = terms([{"use": "mse", "output": "bright"}])
        assert terms([term.table()]) == (term,) and "output" not in terms(["mse"])[0].table()

    def problems(self, tables, task=None):
        task, told = task or task_of(), []
        models = {name: make() for name, make in task.models.items()}
        teachers = {"": models["teacher"]}
        return list(
            check_terms(terms(tables), models["student"], teachers, task, load(task, "train"), None, told)
        ), told

    def test_one_that_names_no_output_is_told_the_names(self):
        (found,), _ = self.problems(["cross_entropy"])
        assert found[0] == 0 and "kind, bright, tags" in found[1] and 'output = "kind"' in found[2]
        (found,), _ = self.problems([{"use": "mse", "output": "light"}])
        assert "light" in found[1] and "kind, bright, tags" in found[2]

    def test_one_that_does_not_fit_is_told_what_does(self):
        (found,), _ = self.problems([{"use": "kl", "output": "bright"}])
        assert "declared as numbers" in found[1] and "logit_mse" in found[2]

    def test_an_output_without_a_loss_is_told(self):
        found, told = self.problems([{"use": "mse", "output": "bright"}, {"use": "kl", "output": "tags"}])
        assert not found and told[-1] == "no loss is on the output kind" and "mse on bright" in told[0]

    def test_inner_layers_need_no_output(self):
        found, _ = self.problems([{"use": "hint", "on": ["body"]}])
        assert not found

    def test_one_output_may_be_named(self):
        task = dataclasses.replace(tiny.task, outputs={"shape": edgekd.classes(3)})
        assert self.problems([{"use": "cross_entropy", "output": "shape"}], task)[0] == []
        assert "other" in self.problems([{"use": "cross_entropy", "output": "other"}], task)[0][0][1]

    def test_default_losses_fit_each_output(self):
        line = SimpleNamespace(said=(), stage=Training(losses=terms(["cross_entropy"])))
        kinds = {name: o.kind for name, o in HEADS.items()}
        found = default_losses._stage(line.stage, kinds).losses
        assert [(t.use, t.output) for t in found] == [
            ("cross_entropy", "kind"),
            ("mse", "bright"),
            ("cross_entropy", "tags"),
        ]

    def test_the_control_keeps_the_weight_of_each_output(self):
        """An output that a stage trains by its teacher alone is trained on labels in the control."""
        tables = [
            {"use": "cross_entropy", "output": "kind", "weight": 0.1},
            {"use": "kl", "output": "kind", "weight": 0.9},
            {"use": "logit_mse", "output": "bright", "weight": 0.2},
            {"use": "cross_entropy", "output": "tags", "weight": 3.0},
        ]
        line = SimpleNamespace(stage=Training(losses=terms(tables)))
        teacher = SimpleNamespace(way="train", stage=Training(losses=default_losses.on_labels(task_of())))
        recipe = SimpleNamespace(stages=(line,), models={"teacher": teacher})
        found = RecipeView(SimpleNamespace(recipe=recipe, task=task_of())).control(line)
        assert [(t.use, t.output) for t in found] == [
            ("cross_entropy", "kind"),
            ("mse", "bright"),
            ("cross_entropy", "tags"),
        ]
        assert np.allclose([t.weight for t in found], [1.0, 0.2, 3.0])


class TestTeachers:
    def test_an_ensemble_is_one_of_each_output(self):
        one, two = answered(), answered(seed=7)
        rows = rows_of(HEADS, batch_of(), Signals(one))
        made = Combined(None, ("a", "b"), HEADS)({"a": rows.of(Signals(one)), "b": rows.of(Signals(two))}, rows)
        want = (one["kind"].softmax(-1) + two["kind"].softmax(-1)) / 2
        assert torch.allclose(made.heads["kind"].output.softmax(-1), want, atol=1e-6)
        assert torch.allclose(made.heads["bright"].output, (one["bright"] + two["bright"]) / 2)

    def test_one_that_takes_classes_is_refused_for_numbers(self):
        from edgekd.components import Use
        from edgekd.training.supervision import check_ensemble

        columns, shows = load(task_of(), "train"), {"a": "logits", "b": "logits"}
        ((text, _),) = check_ensemble(Use("ensembles", "confidence"), shows, answered(2), columns, HEADS)
        assert "numbers" in text and "mean_logits" in text
        for fits in (None, Use("ensembles", "mean_logits")):
            assert check_ensemble(fits, shows, answered(2), columns, HEADS) == []

    def test_peers_are_detached_for_each_output(self):
        students = [Net(4), Net(4)]
        settings = Training(losses=())
        found = Supervision(students, (), settings, {}, lambda m, x: m(x), lambda: None, (), HEADS)
        seen = [Signals(m(drawn(6, 4))) for m in students]
        rows = rows_of(HEADS, batch_of(), seen[0])
        (other,) = found.of(0, [rows.of(s) for s in seen], {})["peers"]
        assert torch.equal(other.heads["tags"].output, rows.of(seen[1]).heads["tags"].output)
        assert not any(s.output.requires_grad for s in other.heads.values())

    @pytest.mark.parametrize("shows", ["logits", "label"])
    def test_what_was_kept_is_read_again(self, shows, tmp_path):
        declared = HEADS if shows == "logits" else {n: o for n, o in HEADS.items() if o.scored}
        given = {name: z for name, z in answered().items() if name in declared}
        for file, array in Answer(shows=shows).files(given, declared).items():
            np.save(tmp_path / file, array[None])
        kept = SimpleNamespace(folder=tmp_path, facts={"outputs": {n: list(z.shape[1:]) for n, z in given.items()}})
        seen = cached(kept, 6, 1, declared)(batch_of())
        if shows == "logits":
            assert all(torch.equal(seen.output[name], z) for name, z in given.items())
        else:
            assert torch.equal(seen.label["kind"].long(), given["kind"].argmax(1))
            assert torch.equal(seen.label["tags"].long(), (given["tags"] > 0).long())

    def test_a_schedule_follows_the_agreement_on_its_output(self, tmp_path):
        task, columns = task_of(), load(task_of(), "validation")
        torch.manual_seed(0)
        student, teacher = Net(4), Net(8)
        with torch.no_grad():
            theirs, ours = (task.call(m, torch.from_numpy(columns.inputs)) for m in (teacher, student))
        for file, array in Answer(shows="label").files(theirs, HEADS).items():
            np.save(tmp_path / file, array[None])
        found = Agreement({"t": SimpleNamespace(folder=tmp_path)}, columns, HEADS)
        found.look(student, task.call, size=7, output=HEADS)
        kind = float((ours["kind"].argmax(1) == theirs["kind"].argmax(1)).double().mean())
        tags = float(((ours["tags"] > 0) == (theirs["tags"] > 0)).double().mean())
        assert found.now() == {"t on kind": kind, "on kind": kind, "t on tags": tags, "on tags": tags}
        curve = {"use": "kl", "schedule": {"by": "agreement", "weight": [[0, 0], [1, 1]]}}
        assert [t.at(0.0, found.now())[0] for t in terms([curve | {"output": n} for n in ("kind", "tags")])] == [
            kind,
            tags,
        ]

    def test_what_numbers_do_not_have_is_refused(self):
        view = SimpleNamespace(task=task_of())
        curve = {"use": "mse", "output": "bright", "schedule": {"by": "agreement", "weight": [[0, 1]]}}
        objective = SimpleNamespace(losses=terms([curve]))
        found = list(check_losses._without_answers(objective, view, {"box": "label"}, "here"))
        assert [p.place for p in found] == ["here: teacher", "here: losses: schedule"]
        assert all("bright" in p.message and "numbers" in p.message for p in found)


class TestAnswers:
    def test_a_tuple_is_in_the_declared_order(self):
        given = answered()
        for answer in (given, tuple(given[n] for n in HEADS), [given[n] for n in HEADS], dict(reversed(given.items()))):
            found = outputs.by_name(tuple(HEADS), answer)
            assert list(found) == list(HEADS) and all(found[n] is given[n] for n in HEADS)

    @pytest.mark.parametrize(
        "answer", [torch.zeros(2), (1, 2), {"kind": 1, "bright": 2}, {"a": 1, **dict.fromkeys(HEADS, 1)}]
    )
    def test_anything_else_is_told_the_names(self, answer):
        with pytest.raises(ValueError, match="kind, bright, tags"):
            outputs.by_name(tuple(HEADS), answer)

    def test_a_task_of_one_output_is_as_it_was(self):
        assert tiny.task.heads == {} and tiny.task.traced is None and tiny.task.declared is tiny.task.output
        z = drawn(2, 3)
        assert tiny.task.call(lambda x: x, z) is z


class TestData:
    def test_labels_are_taken_by_name(self):
        columns = load(task_of(), "train")
        batch = take(columns, np.array([3, 1]))
        assert {n: list(v.shape) for n, v in batch.labels.items()} == {"kind": [2], "bright": [2], "tags": [2, 2]}
        assert torch.equal(batch.labels["bright"], torch.from_numpy(columns.labels["bright"][[3, 1]]))

    def test_samples_and_loaders_give_the_same_labels(self):
        y, x = labelled(12), drawn(12, 4)
        items = [(x[i], {name: v[i] for name, v in y.items()}) for i in range(12)]
        data = edgekd.from_loader(items, items, validation=items)
        columns = load(task_of(data=data), "train")
        assert all(np.array_equal(columns.labels[name], v) for name, v in y.items())
        given = edgekd.arrays(x, y, x, y, x_validation=x, y_validation=y)("train")
        assert given[2].label["kind"] == y["kind"][2]

    def test_a_sample_without_one_of_its_labels_is_told(self):
        rows = [edgekd.Sample(np.zeros(4), {"kind": 0}), edgekd.Sample(np.zeros(4), {"bright": 0.0})]
        with pytest.raises(edgekd.errors.UsageError, match="sample 1 has bright, others kind"):
            load(task_of(data=lambda split: rows), "train")

    def test_samples_that_stay_where_they_are_have_labels_by_name(self):
        """Of large data the labels are noted as the samples are read."""
        y = labelled(5)
        notes = Notes(5, "here")
        for i in range(5):
            notes.noted(i, edgekd.Sample(np.zeros(4), {name: v[i] for name, v in y.items()}))
        assert all(np.array_equal(notes.rest()[0][name], v) for name, v in y.items())
        with pytest.raises(edgekd.errors.UsageError, match="is of kind, labels before it of kind, bright, tags"):
            notes = Notes(2, "here")
            notes.noted(0, edgekd.Sample(np.zeros(4), {name: v[0] for name, v in y.items()}))
            notes.noted(1, edgekd.Sample(np.zeros(4), {"kind": 0}))

    def test_labels_decide_the_digest(self):
        other = labelled(40) | {"tags": 1 - labelled(40)["tags"]}
        x = drawn(40, 4).numpy()
        one, two = (load(task_of(data=edgekd.arrays(x, y, x, y)), "train").digest for y in (labelled(40), other))
        assert one != two

    def test_a_good_task_has_no_problems(self):
        assert check(task_of()) == []

    @pytest.mark.parametrize(
        "changes, told",
        [
            ({"classes": 3}, "several outputs"),
            ({"outputs": {"a b": edgekd.raw(), "c": edgekd.raw(), "d": edgekd.raw()}}, "'a b'"),
            ({"metrics": (edgekd.top1(),)}, "say which one the metric takes with `output`"),
            ({"metrics": (edgekd.rmse(output="bright"), edgekd.rmse(output="bright"))}, "two metrics are named 'rmse'"),
            ({"models": {"teacher": lambda: nn.Linear(4, 3), "student": lambda: Net(4)}}, "gives one Tensor"),
            ({"outputs": HEADS | {"kind": edgekd.classes(4)}}, "4 labels"),
            ({"outputs": HEADS | {"kind": edgekd.classes(2)}}, "outside 0 to 1"),
        ],
    )
    def test_what_does_not_fit_is_told(self, changes, told):
        found = check(task_of(**changes))
        text = "\n".join(f"{p.place}: {p.message} {p.hint}" for p in found)
        assert found and (told in text or told == "4 labels" and "the task says 4" in text), text

    def test_labels_of_another_form_are_told(self):
        x, y = drawn(12, 4), labelled(12)
        for labels, told in ((y["kind"], "one array"), (y | {"other": y["kind"]}, "no output has this name")):
            assert any(told in p.message for p in check(task_of(data=edgekd.arrays(x, labels, x, labels))))
        named = dataclasses.replace(tiny.task, data=edgekd.arrays(tiny.x, {"a": tiny.y}, tiny.x, {"a": tiny.y}))
        assert any("declares no several outputs" in p.message for p in check(named))

    def test_undeclared_outputs_are_told_how_to_declare_them(self):
        found = check(task_of(outputs=("kind", "bright", "tags")))
        assert any("outputs={name: edgekd.classes" in p.hint for p in found)


class TestFigures:
    def subject(self, **changes):
        ours, theirs = ({n: z.numpy() for n, z in answered(40, seed).items()} for seed in (0, 3))
        given = {"outputs": ours, "labels": labelled(40), "teacher": theirs, "output": HEADS, "split": "test"}
        metrics = (edgekd.top1(output="kind"), edgekd.rmse(output="bright", unit="lx"))
        return probes.Subject(**given | {"metrics": metrics} | changes)

    def test_metrics_and_fidelity_are_of_each_output(self):
        subject = self.subject()
        found = {m.name: m for m in probes.measure(subject)}
        ours, theirs, y = subject.outputs, subject.teacher, subject.labels
        assert np.isclose(found["top1"].value, 100 * (ours["kind"].argmax(1) == y["kind"]).mean())
        assert np.isclose(found["rmse"].value, np.sqrt(((ours["bright"][:, 0] - y["bright"]) ** 2).mean()))
        same = 100 * (ours["kind"].argmax(1) == theirs["kind"].argmax(1)).mean()
        assert np.isclose(found["agreement-kind"].value, same)
        apart = np.abs(ours["bright"] - theirs["bright"]).mean()
        assert (
            np.isclose(found["error_to_teacher-bright"].value, apart) and found["error_to_teacher-bright"].unit == "lx"
        )
        assert {"kl_to_teacher-kind", "agreement-tags", "ece-kind"} <= set(found) and "agreement-bright" not in found

    def test_they_are_known_to_budgets(self):
        known = quantities.of_outputs(HEADS)
        assert known["agreement-kind"] == "%" and known["error_to_teacher-bright"] == "lx"
        assert "agreement-bright" not in known and "error_to_teacher-kind" not in known
        assert quantities.lower("kl_to_teacher-kind") and not quantities.lower("agreement-kind")
        assert probes.quantity("agreement-kind").title.endswith("of kind") and probes.quantity("my-metric") is None

    def test_answers_of_another_cpu_are_compared_for_each_output(self):
        here = {name: z.numpy() for name, z in answered(40).items()}
        there = here | {"kind": here["kind"].copy(), "bright": here["bright"] + np.float32(0.5)}
        there["kind"][:10] = -here["kind"][:10]
        found = [Answers("pi", "cortex", np.arange(40), here, there)]
        metrics = (edgekd.mean_error(output="bright", unit="lx"),)
        made = {m.name: m for m in figures(found, labelled(40), metrics, here, (), HEADS)["pi"]}
        same = 100 * (here["kind"].argmax(1) == there["kind"].argmax(1)).mean()
        assert np.isclose(made["host_agreement-kind"].value, same) and made["host_agreement-tags"].value == 100
        assert made["equal_outputs-bright"].value == 0 and np.isclose(made["error_to_teacher-bright"].value, 0.5)
        errors = [np.abs(z["bright"][:, 0] - labelled(40)["bright"]).mean() for z in (here, there)]
        assert np.isclose(made["target_spread"].value, abs(errors[0] - errors[1]), atol=1e-6)

    def test_a_budget_on_all_outputs_at_once_is_told(self):
        gate = {"any": {"agreement": "min 90 %", "agreement-kind": "min 90 %"}}
        (problem,) = resolve._unmeasured(gate, {"top1": "%"} | quantities.of_outputs(HEADS), "gate", True)
        assert problem.place == "gate.any.agreement" and "agreement-kind" in problem.hint

    @pytest.mark.parametrize(
        "metric, oracle",
        [
            (
                edgekd.rmse(output="bright", name="a"),
                lambda z, y: np.sqrt(((z["bright"][:, 0] - y["bright"]) ** 2).mean()),
            ),
            (edgekd.mean_error(output="bright", name="a"), lambda z, y: np.abs(z["bright"][:, 0] - y["bright"]).mean()),
            (
                edgekd.label_accuracy(HEADS["tags"], output="tags", name="a"),
                lambda z, y: 100 * ((z["tags"] > 0) == y["tags"]).mean(),
            ),
        ],
    )
    def test_a_metric_takes_its_output_and_labels(self, metric, oracle):
        z, y = {n: t.numpy() for n, t in answered(40).items()}, labelled(40)
        assert metric.name == "a" and np.isclose(metric.value(metric.records(z, y)), oracle(z, y))

    @pytest.mark.parametrize(
        "make, head",
        [
            (lambda **of: edgekd.top_k(2, HEADS["kind"], **of), "kind"),
            (lambda **of: edgekd.correlation(**of), "bright"),
            (lambda **of: edgekd.character_error_rate(HEADS["kind"], blank=0, **of), "kind"),
            (lambda **of: edgekd.word_error_rate(HEADS["kind"], space=0, **of), "kind"),
        ],
    )
    def test_one_of_order_or_strings_is_that_of_its_output_alone(self, make, head):
        z, y = {n: t.numpy() for n, t in answered(40).items()}, labelled(40)
        several = make(output=head, name="a")
        assert several.name == "a" and np.array_equal(several.records(z, y), make().records(z[head], y[head]))
