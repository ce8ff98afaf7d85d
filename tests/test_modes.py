"""Whom a student learns from: inner layers, peers, its own past, several teachers, grey and black boxes; each resumes
to the bit."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import Stop, artifact, net, run_in, teacher_in, toy_task, weights

from edgekd import Task, arrays, components
from edgekd.components import Use
from edgekd.data import Arrays
from edgekd.data.columns import load
from edgekd.data.epochs import epochs
from edgekd.ensembles.confidence import confidence
from edgekd.ensembles.learned import Learned
from edgekd.ensembles.mean import mean
from edgekd.ensembles.mean_logits import mean_logits
from edgekd.ensembles.routed import routed
from edgekd.errors import UsageError
from edgekd.metrics import top1
from edgekd.models import saved
from edgekd.models.taps import pairs, watch
from edgekd.records import Batch, Sample, Signals
from edgekd.stages import train as train_stage
from edgekd.stages.answer import Answer
from edgekd.stages.distill import Distill
from edgekd.stages.train import Train
from edgekd.teachers.cached import cached, spread
from edgekd.teachers.ema import Ema
from edgekd.training.balance import Balance
from edgekd.training.loop import fit
from edgekd.training.loss_checks import check_terms
from edgekd.training.read_terms import terms
from edgekd.training.terms import Term, curve_at, gradient_norms, terms_for


@pytest.fixture
def task():
    return toy_task()


def batch_of(labels):
    labels = torch.tensor(labels)
    return Batch(None, labels, torch.arange(len(labels)), torch.ones(len(labels)))


# a term that learns: the student's tapped value, by a linear map, near the teacher's
class Near(nn.Module):
    def __init__(self, student: Signals, teacher: Signals, batch: Batch, *, bias: bool = True):
        super().__init__()
        (ours,), (theirs,) = student.taps.values(), teacher.taps.values()
        self.map = nn.Linear(ours.shape[1], theirs.shape[1], bias=bias)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> torch.Tensor:
        (ours,), (theirs,) = student.taps.values(), teacher.taps.values()
        return (self.map(ours.float()) - theirs.float()).square().mean(1)


NEAR = {"use": "test_modes:Near", "weight": 0.5, "on": ["2 -> 2"]}
CE, KL = {"use": "cross_entropy", "weight": 1.0}, {"use": "kl", "weight": 1.0}
MODES = {
    "taps": {"losses": terms([CE, NEAR])},
    "peers": {"losses": terms([CE, KL]), "peers": 2},
    "ema": {"losses": terms([CE, {**KL, "teacher": "ema", "schedule": {"weight": [[0, 0], [0.5, 1]]}}]), "ema": 0.9},
    "learned ensemble": {"losses": terms([CE, KL]), "combine": Use("ensembles", "learned"), "teachers": ("one", "two")},
    "balanced": {"losses": terms([CE, KL]), "balance": True},
    "together": {"losses": terms([CE, KL]), "learns_with": ("teacher",)},
    "together, each by its own": {
        "losses": terms(
            [
                CE,
                {**KL, "teacher": "teacher"},
                {**KL, "weight": 0.1, "teacher": "student"},
                {**KL, "weight": 0.2, "teacher": "ema"},
                {**NEAR, "teacher": "teacher"},
            ]
        ),
        "learns_with": ("teacher",),
        "ema": 0.9,
        "balance": True,
    },
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop_at", [5, 7])
def test_every_mode_resumes_to_the_bit(tmp_path, task, monkeypatch, mode, stop_at):
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
    given = MODES[mode]
    teachers = [
        teacher_in(tmp_path / f"teacher{i}", task, seed=i)
        for i in range(len(given.get("teachers", ())) or (mode in ("taps", "balanced")))
    ]
    stage = Distill(epochs=3, batch=20, lr=0.01, **given)
    whole = run_in(tmp_path / "whole", task)
    stage(None, whole, teacher=tuple(teachers))

    def stop(done, total, text):
        if done == stop_at:
            raise Stop

    with pytest.raises(Stop):
        stage(None, run_in(tmp_path / "cut", task, progress=stop), teacher=tuple(teachers))
    again = run_in(tmp_path / "cut", task)
    stage(None, again, teacher=tuple(teachers))
    kept = weights(whole)
    assert all(torch.equal(t, weights(again)[n]) for n, t in kept.items())
    # nothing of projectors, peers or averages is left
    assert set(kept) == set(saved.create(task, "student", 0).state_dict())


def test_modes_are_not_all_the_same_training(tmp_path, task):
    teacher = teacher_in(tmp_path / "t", task)
    found = {}
    for mode, given in {**MODES, "plain": {"losses": terms([CE, KL])}}.items():
        teachers = {
            "taps": (teacher,),
            "plain": (teacher,),
            "balanced": (teacher,),
            "learned ensemble": (teacher, teacher),
        }.get(mode, ())
        run = run_in(tmp_path / mode, task)
        Distill(epochs=2, batch=20, lr=0.01, **given)(None, run, teacher=teachers)
        found[mode] = weights(run)["0.weight"]
    names = list(found)
    for i, one in enumerate(names):
        for other in names[:i]:
            same = {one, other} == {"plain", "learned ensemble"}  # two times the same teacher is that teacher
            assert torch.allclose(found[one], found[other], atol=1e-5) == same, (one, other)


# ---------------------------------------------------------------- taps


def test_pairs_and_watch():
    assert pairs(["a.b -> c@input", " d "]) == (("a.b", "c@input"), ("d", "d"))

    class Inner(nn.Module):
        def forward(self, x):
            return [x + 1, x]

    model = nn.Sequential(nn.Linear(2, 3), Inner(), nn.Identity())
    twice = nn.Sequential(model[0])
    model[2].forward = lambda pair: twice[0](pair[0][:, :2])  # the first layer is called again
    look = watch(model, ["0", "0@input", "1", "1@input"])
    x = torch.ones(4, 2)
    model(x)
    seen = look()
    assert (
        torch.equal(seen["0@input"], x)
        and torch.equal(seen["0"], model[0](x))
        and torch.equal(seen["1"], seen["0"] + 1)
    )
    with pytest.raises(UsageError, match="not called"):
        look()
        look()
    with pytest.raises(UsageError, match="did you mean `0`"):
        watch(model, ["00"])
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_projectors_learn_and_get_gradients(tmp_path, task):
    teacher, run = teacher_in(tmp_path / "t", task), run_in(tmp_path / "s", task)
    events = []
    run = run_in(tmp_path / "s", task, log=lambda **e: events.append(e))
    Distill(epochs=30, batch=20, lr=0.05, losses=terms([NEAR]))(None, run, teacher=(teacher,))
    means = [e["test_modes:Near"] for e in events if e["event"] == "epoch"]
    assert means[-1] < 0.7 * means[0]
    assert all(e["test_modes:Near"] > 0 for e in events if e["event"] == "gradients")


# ---------------------------------------------------------------- peers


def test_peers_gradients_never_cross(tmp_path, task, monkeypatch):
    """The loss of one peer has no gradient in the other: with the other's own terms at weight 0, it stays where it was,
    but for batch norm."""
    one, two = (saved.create(task, "student", seed) for seed in (0, 1))
    before = {n: p.clone() for n, p in two.named_parameters()}
    run = run_in(tmp_path, task)
    batch = next(
        iter([Batch(torch.randn(8, 6), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), torch.arange(8), torch.ones(8))])
    )
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", 1e9)
    seen = []

    # only the first peer's rows count: the second has the first's output as its teacher
    def loss(student, teacher, batch):
        mine = len(seen) % 2 == 0
        seen.append(teacher.output.requires_grad)
        return (student.output - teacher.output).square().sum(1) * (1.0 if mine else 0.0)

    monkeypatch.setitem(components.__dict__, "find", lambda folder, use: loss)
    settings = Distill(epochs=1, batch=8, weight_decay=0.0, optimizer="sgd", lr=0.1)
    fit(
        [one, two],
        lambda epoch, start: iter([batch]),
        [Term("own", 1.0)],
        settings=settings,
        steps_per_epoch=1,
        run=run,
    )
    assert seen and not any(seen)
    assert all(torch.equal(p, before[n]) for n, p in two.named_parameters())
    assert not torch.equal(one[0].weight, saved.create(task, "student", 0)[0].weight)


def test_peers_begin_apart_and_the_first_is_the_lone_students_start(tmp_path, task, monkeypatch):
    begun, learn = [], train_stage.learn

    def watched(modules, *rest, **more):
        begun.extend(one[0].weight.detach().clone() for one in modules)
        return learn(modules, *rest, **more)

    monkeypatch.setattr(train_stage, "learn", watched)
    Distill(epochs=1, batch=20, lr=1e-9, losses=terms([CE, KL]), peers=3)(None, run_in(tmp_path, task))
    assert torch.equal(begun[0], saved.create(task, "student", 0)[0].weight)
    assert len(begun) == 3 and not any(torch.equal(a, b) for a, b in itertools.combinations(begun, 2))
    assert torch.allclose(weights(run_in(tmp_path, task))["0.weight"], begun[0], atol=1e-6)  # the first is kept


# ---------------------------------------------------------------- other models that learn too


def test_models_that_learn_together_are_those_of_a_plain_loop(tmp_path, task):
    """By hand in torch: both are asked on the same batch, then each takes a step against labels and the other's output,
    which is a constant for it (Zhang et al. 2018, algorithm 1 with one snapshot)."""
    batches = [Batch(torch.randn(8, 6), torch.randint(0, 3, (8,)), torch.arange(8), torch.ones(8)) for _ in range(3)]
    make = lambda: [saved.create(task, name, 0) for name in ("student", "teacher")]
    how = {"lr": 0.1, "optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
    plain = {"use": "kl", "temperature": 1.0}
    losses = [CE, {**plain, "weight": 2.0, "teacher": "teacher"}, {**plain, "weight": 0.5, "teacher": "student"}]
    ours, theirs, shares = make(), make(), (2.0, 0.5)
    settings, names = Distill(epochs=1, losses=terms(losses), **how), ("student", "teacher")
    for model in (*ours, *theirs):
        model[3].p = 0.0
    source = lambda epoch, start: iter(batches)
    fit(ours, source, settings.losses, settings=settings, steps_per_epoch=3, run=run_in(tmp_path, task), names=names)
    for batch in batches:
        seen = [model.train()(batch.inputs) for model in theirs]
        for i, model in enumerate(theirs):
            logs = nn.functional.log_softmax(seen[i], 1)
            other = seen[1 - i].detach().softmax(1)
            divergence = nn.functional.kl_div(logs, other, reduction="batchmean")
            loss = nn.functional.cross_entropy(seen[i], batch.labels) + shares[i] * divergence
            weights = list(model.parameters())
            with torch.no_grad():
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight -= 0.1 * gradient
    for model, other in zip(ours, theirs, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor.float(), other.state_dict()[name].float(), atol=1e-5), name


def test_who_has_which_terms():
    given = terms([CE, KL, {**KL, "teacher": "a"}, {**KL, "teacher": "b"}, {**KL, "teacher": "ema"}, NEAR])
    shared = lambda number, *names: [given.index(t) for t in terms_for(given, names, number)]
    assert shared(0, "a", "b") == [0, 1, 3, 4, 5] and shared(1, "a", "b") == [0, 1, 2]
    assert shared(2, "a", "b", "c") == [0, 1, 2, 3]
    assert list(terms_for(given, (), 1)) == list(given)  # peers share all terms


def test_a_partner_begins_with_its_table_or_with_its_initial_weights(tmp_path, task, monkeypatch):
    begun, learn = [], train_stage.learn

    def watched(modules, *rest, **more):
        begun.append(modules[1][0].weight.detach().clone())
        return learn(modules, *rest, **more)

    made, other = teacher_in(tmp_path / "t", task), teacher_in(tmp_path / "o", task, seed=3)
    monkeypatch.setattr(train_stage, "learn", watched)
    stage = Distill(epochs=1, batch=20, learns_with=("teacher",), losses=terms([CE, KL, {**KL, "teacher": "teacher"}]))
    stage(None, run_in(tmp_path / "fresh", task))
    given = dataclasses.replace(stage, teachers=("fixed", "teacher"))
    given(None, run_in(tmp_path / "given", task), teacher=(other, made))
    assert torch.equal(begun[0], saved.create(task, "teacher", 0)[0].weight)
    assert torch.equal(begun[1], saved.load(made, task)[0].weight)


def test_a_recipe_of_models_that_learn_together_is_run_and_written_as_it_was_read(tmp_path, monkeypatch):
    import onnx

    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.dump import dump
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    stage = {"use": "distill", **SHORT, "losses": [CE, KL], "learns_with": ["teacher"]}
    inputs = {}
    for name, models in (("fresh", {}), ("trained", {"teacher": {"train": SHORT}})):
        resolved = resolve.resolved({**RECIPE, "model": models, "control": True, "stage": [stage]})
        planned = plan.make(resolved)
        (step,) = [s for s in planned.steps.values() if s.stage == "distill"]
        inputs[name] = [planned.steps[key].label for key in step.teacher]
        assert "answers" not in " ".join(s.label for s in planned.steps.values())
        (tmp_path / "recipe.toml").write_text(dump(resolved, tmp_path))
        assert list(plan.make(resolve.resolved(tmp_path / "recipe.toml")).steps) == list(planned.steps)
    assert inputs == {"fresh": [], "trained": ["teacher"]}
    assert planned.losses["stage 1 (distill): teacher"] == ["cross_entropy: weight 1", "kl: weight 1"]
    made, _ = run_steps(planned, resolved, Store(), reporter(True), lambda **event: None)
    (point,) = [p for p in planned.points if p.id == "distill"]
    assert {"kl", "teacher: kl"} < made[point.step].facts["losses"].keys()
    widths = [i.dims[0] for i in onnx.load(made[point.export].folder / "model.onnx").graph.initializer]
    assert 8 in widths and 16 not in widths  # the student's


# ---------------------------------------------------------------- the student's own past


def test_ema_by_hand():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    ema = Ema(student, 0.75, lambda module, batch: Signals(module(batch)))
    nn.init.constant_(student.weight, 5.0)
    ema.update(student)
    assert ema(torch.ones(1, 1)).output.item() == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert not ema(torch.ones(1, 1)).output.requires_grad and "average.weight" in ema.state_dict()


def one_weight(value=0.0):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def fitted(folder, monkeypatch, loss, student, batches, epochs=1, **how):
    """`fit` with one term, its own loss, in plain steps of 1 against the gradient; teachers by keyword `teachers`."""
    find = components.find
    monkeypatch.setattr(components, "find", lambda folder, use: loss if use == "own" else find(folder, use))
    teachers, term = how.pop("teachers", None), how.pop("term", Term("own", 1.0))
    settings = Distill(
        epochs=epochs, lr=1.0, optimizer="sgd", momentum=0.0, schedule="constant", warmup=0.0, weight_decay=0.0, **how
    )
    source = lambda epoch, start: iter(batches[start:])
    fit(
        student,
        source,
        [term],
        settings=settings,
        steps_per_epoch=len(batches),
        run=run_in(folder, toy_task()),
        teachers=teachers,
    )


def test_the_own_past_moves_with_every_step_of_a_training(tmp_path, monkeypatch):
    """By hand: a weight that grows by 1 with each step, over two epochs of two; its average at decay 1/2 is heard
    before each."""
    heard, batch = [], Batch(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), torch.arange(1), torch.ones(1))

    def loss(student, teacher, batch):
        heard.append(teacher.output.item())
        return -student.output.sum(1)

    student = one_weight()
    fitted(
        tmp_path, monkeypatch, loss, student, [batch, batch], epochs=2, ema=0.5, term=Term("own", 1.0, teacher="ema")
    )
    assert student.weight.item() == 4.0 and heard == [0.0, 0.5, 1.25, 2.125]


def test_the_own_past_has_the_students_batch_statistics():
    student = nn.BatchNorm1d(2)
    ema = Ema(student, 0.75, lambda module, batch: Signals(module(batch)))
    student(torch.randn(8, 2) + 3)
    ema.update(student)
    assert torch.equal(ema.average.running_mean, student.running_mean) and ema.average.running_mean.abs().min() > 0.1


def test_the_own_past_is_tapped_at_the_teachers_path(tmp_path, task):
    """With a path for each side the average is looked at where the recipe says, beside a term that taps another teacher
    elsewhere."""
    teacher, seen = teacher_in(tmp_path / "t", task), []

    class Watch(nn.Module):
        def __init__(self, student, teacher, batch):
            super().__init__()
            seen.append((tuple(student.taps), tuple(teacher.taps)))

        def forward(self, student, teacher, batch):
            return (student.output - teacher.output).square().mean(1)

    components_find, components.find = (
        components.find,
        lambda folder, use: Watch if use == "watch" else components_find(folder, use),
    )
    try:
        losses = (Term("watch", 1.0, {}, (("0", "2"),), "ema"), *terms([{**NEAR, "on": ["4 -> 1"]}]))
        Distill(epochs=1, batch=20, losses=losses)(None, run_in(tmp_path / "s", task), teacher=(teacher,))
    finally:
        components.find = components_find
    assert seen == [(("0",), ("2",))]


# ---------------------------------------------------------------- ensembles


def of(rows):
    return Signals(torch.tensor([rows], dtype=torch.float32).log())


def test_ensembles_by_hand():
    signals, batch = {"a": of([0.8, 0.2]), "b": of([0.4, 0.6])}, batch_of([0])
    assert mean(signals, batch).output.softmax(-1)[0].tolist() == pytest.approx([0.6, 0.4])
    # its logits are log probabilities: a loss may compare them
    assert mean(signals, batch).output.exp()[0].tolist() == pytest.approx([0.6, 0.4])
    softened = lambda s: (s.output / 2).softmax(-1)
    expected = (softened(signals["a"]) + softened(signals["b"])) / 2
    assert torch.allclose((mean(signals, batch, temperature=2.0).output / 2).softmax(-1), expected)
    geometric = math.sqrt(0.8 * 0.4) / (math.sqrt(0.8 * 0.4) + math.sqrt(0.2 * 0.6))
    assert mean_logits(signals, batch).output.softmax(-1)[0, 0].item() == pytest.approx(geometric)
    # H = -ln 0.8, -ln 0.4; softmax(H) = [1/0.8, 1/0.4] / sum = [1/3, 2/3], so w = [2/3, 1/3]
    assert confidence(signals, batch).output.softmax(-1)[0, 0].item() == pytest.approx(2 / 3 * 0.8 + 1 / 3 * 0.4)
    assert torch.equal(confidence({"a": signals["a"]}, batch).output, signals["a"].output)


def test_mean_of_probabilities_survives_an_over_confident_teacher():
    right, loud = of([0.9, 0.05, 0.05]), Signals(torch.tensor([[0.0, 200.0, 0.0]]))
    signals, batch = {"a": right, "b": right, "c": loud}, batch_of([0])
    assert mean(signals, batch).output.argmax() == 0 and mean_logits(signals, batch).output.argmax() == 1


def test_routed_asks_the_teacher_of_the_class():
    signals = {"a": Signals(torch.zeros(3, 3)), "b": Signals(torch.ones(3, 3))}
    found = routed(signals, batch_of([0, 2, 1]), classes={"a": (0, 1), "b": (2,)}).output
    assert found[:, 0].tolist() == [0.0, 1.0, 0.0]
    wrong = {
        "no teacher for the classes 1": {"a": (0,), "b": (2,)},
        "another": {"a": (0, 1), "b": (1, 2)},
        "named c": {"c": (0,)},
    }
    for word, classes in wrong.items():
        with pytest.raises(ValueError, match=word):
            routed(signals, batch_of([0, 1, 2]), classes=classes)


def test_routed_asks_the_teacher_of_the_tag():
    signals = {"day": Signals(torch.zeros(3, 3)), "night": Signals(torch.ones(3, 3))}
    batch = dataclasses.replace(batch_of([0, 2, 1]), tags=[("dark", "wet"), (), ("bright",)])
    assert routed(signals, batch, tags={"day": ("bright",), "night": ("dark",)} | {"day": ()}).output[
        :, 0
    ].tolist() == [1.0, 0.0, 0.0]
    wrong = {
        "sample 1, tagged with nothing, has no teacher": {"day": ("bright",), "night": ("dark",)},
        "tagged dark, wet, has the teachers day and night": {"day": ("wet",), "night": ("dark",)},
        "more than one teacher has no tags: day, night": {"day": (), "night": ()},
    }
    for words, tags in wrong.items():
        with pytest.raises(ValueError, match=words):
            routed(signals, batch, tags=tags)
    with pytest.raises(ValueError, match="no tags"):
        routed(signals, batch_of([0, 2, 1]), tags={"day": ()})


def test_tags_reach_the_batch_and_the_key(task):
    """From samples and from arrays, through augmentation; other tags are other data."""
    rows = [Sample(np.zeros(6, np.float32), 0, i, ("odd",) if i % 2 else ()) for i in range(4)]
    plain = dataclasses.replace(task, data=lambda split: [dataclasses.replace(r, tags=()) for r in rows])
    columns = load(dataclasses.replace(task, data=lambda split: rows), "train")
    source = epochs(columns, task, batch=4, seed=0, augment_seed=0, views=1)
    (batch,) = source(0, 0)
    assert [len(t) for t in batch.tags] == [int(i) % 2 for i in batch.index]
    assert load(plain, "train").tags is None and load(plain, "train").digest != columns.digest
    held = Arrays(np.zeros((2, 6), np.float32), np.zeros(2, np.int64), ["a", "b"], [("x",), ()])
    assert load(dataclasses.replace(task, data=lambda split: held), "train").tags == [("x",), ()] and held[0].tags == (
        "x",
    )


def test_learned_weights_find_the_better_teacher():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (64,))
    good, bad = 3.0 * nn.functional.one_hot(labels, 3).float(), torch.randn(64, 3)
    part, batch = Learned(("good", "bad"), 3), batch_of(labels.tolist())
    optimizer = torch.optim.SGD(part.parameters(), lr=1.0)
    for _ in range(50):
        heard = part({"good": Signals(good), "bad": Signals(bad)}, batch)
        optimizer.zero_grad()
        part.own.backward()
        optimizer.step()
    assert part.theta.softmax(0)[0] > 0.9 and not heard.output.requires_grad


def test_learned_weights_learn_within_a_training(tmp_path, monkeypatch):
    """By hand: teachers that give the label 0.8 and 0.4, weights 1/2 each at first. The gradient is w - w p / sum(w p)
    = -1/6 and 1/6, so after a step of 1 the weights are sigmoid(1/3) and the rest; the student's loss, which would have
    it otherwise, has no say."""
    heard, batch = [], Batch(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), torch.arange(1), torch.ones(1))

    def loss(student, teacher, batch):
        heard.append(teacher.output.exp()[0, 0].item())
        return (student.output.sum(1) - teacher.output[:, 1]).square()

    teachers = {"good": lambda batch: of([0.8, 0.2]), "poor": lambda batch: of([0.4, 0.6])}
    fitted(
        tmp_path,
        monkeypatch,
        loss,
        one_weight(),
        [batch, batch],
        combine=Use("ensembles", "learned"),
        teachers=teachers,
    )
    weight = 1 / (1 + math.exp(-1 / 3))
    assert heard == pytest.approx([0.6, 0.8 * weight + 0.4 * (1 - weight)], abs=1e-6)


@pytest.mark.parametrize("name", components.names("ensembles"))
def test_ensembles_keep_their_contract(name):
    """Finite at extremes, no gradient to the teachers' liking, a lone teacher stays itself up to a shift of its
    logits."""
    part = components.find("ensembles", name)
    if isinstance(part, type):
        part = part(("a",), 3)
    hyper = {"classes": {"a": (0, 1, 2)}} if name == "routed" else {}
    batch = batch_of([0, 1, 2, 0])
    for scale in (0.0, 1.0, 1e4):
        logits = scale * torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
        found = part({"a": Signals(logits)}, batch, **hyper).output
        assert found.shape == (4, 3) and found.isfinite().all() and not found.requires_grad
        assert torch.allclose(found.softmax(-1), logits.softmax(-1), atol=1e-5)


# ---------------------------------------------------------------- schedules and balance


def test_curves_by_hand():
    curve = [[0.2, 1.0], [0.6, 3.0], [0.6, 5.0]]
    assert [curve_at(curve, s) for s in (0.0, 0.2, 0.4, 0.6, 0.9)] == [1.0, 1.0, 2.0, 3.0, 5.0]
    term = Term("kl", 1.0, {"temperature": 4.0}, schedule={"weight": [[0, 0], [1, 1]], "temperature": [[0, 8], [1, 2]]})
    assert term.at(0.5) == (0.5, {"temperature": 5.0})


def test_balance_makes_weights_shares_of_the_gradient():
    w = torch.ones(2, requires_grad=True)
    found = [("a", 1.0, 100.0 * w.sum()), ("b", 1.0, 0.01 * w.sum()), ("c", 2.0, w.sum())]
    balanced = Balance(3).weigh(found, [w], 0)
    norms = gradient_norms(balanced, [w])
    assert norms["a"] == pytest.approx(norms["b"], rel=1e-4) and norms["c"] == pytest.approx(2 * norms["a"], rel=1e-4)
    still = Balance(2)
    nothing = [("a", 1.0, w.sum()), ("b", 3.0, torch.zeros(()))]
    assert [weight for _, weight, _ in still.weigh(nothing, [w], 0)] == [1.0, 3.0]


def test_gradient_norms_are_logged_with_every_term(tmp_path, task):
    events = []
    run = run_in(tmp_path, task, log=lambda **e: events.append(e))
    Train(epochs=2, batch=20, losses=terms([CE]))(None, run)
    found = [e for e in events if e["event"] == "gradients"]
    assert len(found) == 2 and all(e["cross_entropy"] > 0 for e in found)


# ---------------------------------------------------------------- grey and black boxes


def test_a_grey_box_keeps_the_mass_it_does_not_show():
    values, classes = torch.log(torch.tensor([[0.5, 0.3]])), torch.tensor([[2, 0]])
    assert spread(values, classes, 4).exp()[0].tolist() == pytest.approx([0.3, 0.1, 0.5, 0.1], rel=1e-5)


def test_boxes_show_no_more_than_they_say(tmp_path, task):
    teacher = teacher_in(tmp_path / "t", task)
    answers = {}
    for shows in ("logits", "top", "label"):
        run = run_in(tmp_path / shows, task)
        made = Answer(views=3, shows=shows, top=2)(None, run, teacher=(teacher,))
        answers[shows] = cached(artifact(run, "logits", made.facts), 80, 3)
        assert {p.name for p in run.folder.iterdir()} == {
            "logits": {"logits.npy"}, "top": {"values.npy", "classes.npy"}, "label": {"labels.npy"}
        }[shows]  # fmt: skip
    batch = batch_of([0] * 10)
    batch.view = 1
    full = answers["logits"](batch).output
    # of three classes two tell all
    assert torch.allclose(answers["top"](batch).output.softmax(-1), full.softmax(-1), atol=1e-5)
    black = answers["label"](batch)
    assert black.output is None and torch.equal(black.label, full.argmax(-1).int())


def test_a_black_box_can_not_be_asked_for_its_distribution(task):
    student, teacher = saved.create(task, "student", 0), saved.create(task, "teacher", 0)
    guides, data = {"": teacher}, load(task, "train")
    ((number, message, hint),) = check_terms(terms([CE, KL]), student, guides, task, data, {"": "label"})
    assert number == 1 and "black box" in message and "hard" in hint
    ((number, message, _),) = check_terms(terms([CE, NEAR]), student, guides, task, data, {"": "top"})
    assert number == 1 and "taps layers of" in message
    ((_, message, hint),) = check_terms(terms([{**NEAR, "on": ["2 -> 22"]}]), student, guides, task, data)
    assert "no such module" in message and "2" in hint
    assert list(check_terms(terms([CE, KL, NEAR]), student, guides, task, data)) == []


def test_terms_read_the_keys_of_all_terms():
    (term,) = terms(
        [
            {
                "use": "kl",
                "weight": 2,
                "on": ["a -> b"],
                "teacher": "x",
                "schedule": {"weight": [[0, 1]]},
                "temperature": 3.0,
            }
        ]
    )
    assert term == Term("kl", 2.0, {"temperature": 3.0, "standardize": False}, (("a", "b"),), "x", {"weight": [[0, 1]]})


# ---------------------------------------------------------------- in a recipe


def world():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(220, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(1)
    splits = arrays(x[:140], y[:140], x[140:], y[140:], validation=0.3)
    return Task("world", "1", {"teacher": lambda: net(16), "student": lambda: net(8)}, splits, (top1(),), classes=3)


WORLD = world()
SHORT = {"epochs": 2, "batch": 32}
RECIPE = {
    "task": "test_modes:WORLD",
    "threads": 1,
    "control": False,
    "model": {
        "teacher": {"train": SHORT},
        "other": {"train": {"model": "teacher", **SHORT}, "seed": 5},
        "assistant": {"distill": {"model": "student", "teacher": "teacher", **SHORT}},
        "oracle": {"train": {"model": "teacher", **SHORT}, "shows": "label"},
    },
    "stage": [
        {
            "use": "distill",
            **SHORT,
            "teacher": ["teacher", "other", "assistant"],
            "combine": {"use": "confidence"},
            "losses": [
                CE,
                KL,
                {**KL, "teacher": "assistant", "schedule": {"by": "agreement", "temperature": [[0, 8], [1, 2]]}},
            ],
        },
        {"use": "distill", "name": "inside", **SHORT, "losses": [CE, NEAR, {"use": "heads", "on": ["1", "2"]}]},
        {"use": "distill", "name": "outside", **SHORT, "teacher": "oracle", "losses": [{"use": "hard"}]},
        {"use": "distill", "name": "together", **SHORT, "losses": [CE, KL], "peers": 2},
    ],
}


def test_a_recipe_of_all_modes_runs_repeats_and_leaves_nothing_in_the_file(tmp_path, monkeypatch):
    import onnx

    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.dump import dump
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    resolved = resolve.resolved(RECIPE)
    planned = plan.make(resolved)
    wanted = [(s.label, s.stage) for s in planned.steps.values()]
    assert ("assistant", "distill") in wanted and ("answers of oracle", "answer") in wanted
    inside = next(s for s in planned.steps.values() if s.label == "inside")
    assert planned.steps[inside.teacher[0]].stage == "train"  # a teacher that is looked into is live
    judged = [s for s in planned.steps.values() if getattr(s.part, "split", "") == "validation"]
    assert {s.label for s in judged} == {f"answers of {n} (validation)" for n in ("teacher", "other", "assistant")}
    assert any("heads" in line and "learns" in line for line in planned.losses["stage 2 (inside)"])
    assert any(
        "weight 1, temperature 8 to 2 over the agreement" in line for line in planned.losses["stage 1 (distill)"]
    )
    again = tmp_path / "recipe.toml"
    again.write_text(dump(resolved, tmp_path))
    assert list(plan.make(resolve.resolved(again)).steps) == list(planned.steps)
    made, _ = run_steps(planned, resolved, Store(), reporter(True), lambda **event: None)
    sizes = {p.id: made[p.export].files and (made[p.export].folder / "model.onnx") for p in planned.points}
    plain = {i.name: tuple(i.dims) for i in onnx.load(sizes["distill"]).graph.initializer}
    for name in ("inside", "outside", "together"):
        assert {i.name: tuple(i.dims) for i in onnx.load(sizes[name]).graph.initializer} == plain


def test_a_recipe_that_routes_its_teachers_runs_and_each_class_hears_its_own(tmp_path, monkeypatch):
    """Where all classes are one teacher's, the student is that teacher's alone; where one is the other's, it is not."""
    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    ways = {"alone": {}}
    for name, ours, theirs in (("whole", [0, 1, 2], []), ("shared", [0, 1], [2])):
        ways[name] = {
            "teacher": ["teacher", "other"],
            "combine": {"use": "routed", "classes": {"teacher": ours, "other": theirs}},
        }
    found = {}
    for name, how in ways.items():
        stage = {"use": "distill", **SHORT, "lr": 0.02, "losses": [KL], **how}
        resolved = resolve.resolved(
            {**RECIPE, "model": {n: RECIPE["model"][n] for n in ("teacher", "other")}, "stage": [stage]}
        )
        planned = plan.make(resolved)
        planned.steps = {key: step for key, step in planned.steps.items() if step.stage != "export"}
        made, _ = run_steps(planned, resolved, Store(), reporter(True), lambda **event: None)
        (point,) = [p for p in planned.points if p.id == "distill"]
        found[name] = saved.read_tensors(made[point.step].folder / "weights.safetensors")["4.weight"]
    near = lambda name: torch.allclose(found[name], found["alone"], atol=1e-6)
    assert near("whole") and not near("shared")


@pytest.mark.parametrize(
    "stage, words",
    [
        ({"losses": [{"use": "kl", "teacher": "peers"}]}, ("no peers", "`peers`")),
        ({"learns_with": ["teacher", "teacher"]}, ("names a model twice",)),
        ({"learns_with": ["student"]}, ("the stage's own model", "`peers = 2`")),
        ({"learns_with": ["teacher"], "peers": 2}, ("give one of the two",)),
        ({"learns_with": ["nobody"]}, ("learns_with: the task has no model `nobody`", "models: teacher, student")),
        ({"learns_with": ["oracle"]}, ("shows its label only",)),
        ({"learns_with": ["teacher"], "teacher": "teacher"}, ("no answers of it can be kept in a cache",)),
        ({"learns_with": ["teacher"], "cache": True}, ("cache: the stage has no fixed teacher",)),
        ({"learns_with": ["teacher"], "losses": [CE]}, ("no loss learns from a model of `learns_with`",)),
        ({"learns_with": ["teacher"], "losses": [{**KL, "teacher": "teacher"}]}, ("`teacher` has no loss",)),
        ({"learns_with": ["teacher"], "combine": {"use": "mean"}}, ("combine: ", "fixed teacher")),
        (
            {"learns_with": ["teacher"], "losses": [CE, {**KL, "schedule": {"by": "agreement", "weight": [[0, 1]]}}]},
            ("follows the agreement with a teacher", 'by = "training"'),
        ),
        (
            {"learns_with": ["teacher"], "losses": [CE, KL, {**NEAR, "teacher": "student"}]},
            ("only the student learns from layers",),
        ),
        ({"learns_with": ["teacher", "other"], "losses": [CE, KL, NEAR]}, ("name one: teacher, other",)),
        ({"learns_with": ["teacher"], "losses": [CE, KL, {**NEAR, "on": ["22 -> 2"]}]}, ("no such module",)),
        ({"losses": [{"use": "kl", "teacher": "other"}], "teacher": "teacher"}, ("is not a teacher of the stage",)),
        ({"combine": {"use": "meen"}, "teacher": ["teacher", "other"]}, ("did you mean `mean`",)),
        ({"combine": {"use": "mean"}}, ("only one teacher",)),
        ({"teacher": ["teacher", "teacher"]}, ("names a teacher twice",)),
        ({"losses": [{"use": "kl", "schedule": {"temperature": [[0, -1]]}}]}, ("greater than 0",)),
        ({"losses": [{"use": "kl", "schedule": {"temprature": [[0, 1]]}}]}, ("not a setting that can change",)),
        ({"losses": [{"use": "kl", "schedule": {"weight": [[0.5, 1], [0.2, 1]]}}]}, ("in order",)),
        ({"losses": [{"use": "kl", "on": "layer"}]}, ("list of paths",)),
        ({"losses": [{"use": "hint", "on": ["22"]}]}, ("no such module",)),
        ({"losses": [{"use": "hint", "on": ["0"]}], "teacher": "oracle"}, ("shows its label only",)),
        ({"losses": [{"use": "kl"}], "teacher": "oracle"}, ("black box",)),
        (
            {"losses": [{"use": "hint", "on": ["0"]}], "teacher": ["teacher", "other"]},
            ("taps layers of a teacher", "name one"),
        ),
        ({"combine": {"use": "routed"}, "teacher": ["teacher", "other"]}, ("give either",)),
        (
            {"combine": {"use": "routed", "tags": {"teacher": ["a"]}}, "teacher": ["teacher", "other"]},
            ("combine", "have no tags"),
        ),
        (
            {"combine": {"use": "routed", "classes": {"teacher": [0, 1]}}, "teacher": ["teacher", "other"]},
            ("no teacher for the classes 2",),
        ),
        ({"losses": [{**CE, "schedule": {"by": "agreement", "weight": [[0, 1]]}}]}, ("names no teacher",)),
        (
            {"losses": [{"use": "kl", "schedule": {"by": "agrement", "weight": [[0, 1]]}}]},
            ("one of training, agreement",),
        ),
        (
            {"losses": [{"use": "contrastive", "on": ["2"], "schedule": {"dim": [[0, 8]]}}]},
            ("one of weight, temperature",),
        ),
    ],
)
def test_what_a_recipe_can_not_mean(stage, words):
    from edgekd.run import plan, resolve

    with pytest.raises(UsageError) as caught:
        plan.make(resolve.resolved({**RECIPE, "stage": [{"use": "distill", **SHORT, **stage}]}))
    assert all(word in str(caught.value) for word in words), caught.value


def test_models_do_not_learn_from_themselves():
    from edgekd.run import resolve

    circle = {
        "a": {"distill": {"model": "student", "teacher": "b"}},
        "b": {"distill": {"model": "student", "teacher": "a"}},
    }
    with pytest.raises(UsageError, match="learns from itself"):
        resolve.resolved({**RECIPE, "model": {**RECIPE["model"], **circle}})
