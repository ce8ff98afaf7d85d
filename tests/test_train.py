"""The one training loop: resumes to the bit, refuses what diverges, and a cached teacher is the live one."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from toys import Stop, artifact, net, run_in, toy_task, weights

from edgekd import Task, arrays
from edgekd.errors import RunFailed
from edgekd.models import saved
from edgekd.records import Batch, Signals
from edgekd.stages.answer import Answer
from edgekd.stages.distill import Distill
from edgekd.stages.train import Train
from edgekd.training.checkpoints import restore, save
from edgekd.training.learn import learn
from edgekd.training.optimizer import make_optimizer, pace
from edgekd.training.positions import Rows
from edgekd.training.settings import Training
from edgekd.training.terms import Bound, Term, parts, total


@pytest.fixture
def task():
    return toy_task()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_resumed_is_bit_equal_to_undisturbed(tmp_path, task, monkeypatch, optimizer, stop_at):
    """A checkpoint after every step, a stop in the middle of an epoch or at its end: weights, dropout and batch
    statistics go on exactly."""
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
    stage = Train(epochs=4, batch=32, lr=0.01, optimizer=optimizer, clip=1.0)
    whole = run_in(tmp_path / "whole", task)
    stage(None, whole)

    def stop(done, total, text):
        if done == stop_at:
            raise Stop

    with pytest.raises(Stop):
        stage(None, run_in(tmp_path / "cut", task, progress=stop))
    events = []
    again = run_in(tmp_path / "cut", task, log=lambda **event: events.append(event))
    made = stage(None, again)
    assert same(weights(whole), weights(again))
    assert stop_at == 1 or any(e["event"] == "resumed" for e in events)
    assert made.facts["steps"] == 12


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 160)
    x = rng.normal(size=(160, 3, 8, 8)).astype(np.float32)
    x[np.arange(160), y] += 1.0
    splits = arrays(x[:120], y[:120], x[120:], y[120:], validation=0.2)
    conv = lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return Task("pictures", "1", {"teacher": conv, "student": conv}, splits, (), classes=3)


def test_bfloat16_learns_resumes_to_the_bit_and_keeps_float32_weights(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
    stage = Train(epochs=12, batch=32, lr=0.05, optimizer="sgd", precision="bfloat16")
    whole = run_in(tmp_path / "whole", pictures)
    assert stage(None, whole).facts["losses"]["cross_entropy"] < 0.9 < np.log(3)
    kept = weights(whole)
    assert {t.dtype for n, t in kept.items() if "num_batches" not in n} == {torch.float32}
    exact = run_in(tmp_path / "exact", pictures)
    dataclasses.replace(stage, precision="float32")(None, exact)
    differences = [(kept[n] - t).abs().max().item() for n, t in weights(exact).items() if n.endswith("weight")]
    assert 1e-5 < max(differences) < 0.1  # it is another arithmetic, and the same training

    def stop(done, total, text):
        if done == 7:
            raise Stop

    with pytest.raises(Stop):
        stage(None, run_in(tmp_path / "cut", pictures, progress=stop))
    again = run_in(tmp_path / "cut", pictures)
    stage(None, again)
    assert same(kept, weights(again))


def test_bfloat16_lays_weights_out_channels_last_only_meanwhile(tmp_path, pictures):
    seen, module = [], saved.create(pictures, "student", 0)
    watch = lambda model, inputs: (
        seen.append(model[0].weight.is_contiguous(memory_format=torch.channels_last)) or model(inputs)
    )
    learn(module, run_in(tmp_path, pictures), Training(epochs=1, precision="bfloat16"), forward=watch)
    assert all(seen) and module[0].weight.is_contiguous()


def test_another_seed_is_another_model_and_the_start_is_shared(task):
    first, second = saved.create(task, "student", 0), saved.create(task, "student", 1)
    assert not torch.equal(first[0].weight, second[0].weight)
    torch.rand(3)  # whatever was drawn before
    assert torch.equal(first[0].weight, saved.create(task, "student", 0)[0].weight)


def test_training_leaves_the_callers_random_state_alone(tmp_path, task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Train(epochs=1, batch=32)(None, run_in(tmp_path, task))
    assert torch.equal(before, torch.get_rng_state())


def test_cached_teacher_equals_live(tmp_path, task):
    teacher_run = run_in(tmp_path / "teacher", task)
    Train(model="teacher", epochs=2)(None, teacher_run)
    teacher = artifact(teacher_run, "torch")
    results = {}
    for batch in (20, 32):  # 80 samples: the answers' batches are of the students' size, and of another
        answers_run = run_in(tmp_path / f"answers{batch}", task)
        made = Answer(views=3, augment_seed=7, batch=20)(None, answers_run, teacher=(teacher,))
        assert made.facts == {"views": 3, "rows": 80, "outputs": [3], "shows": "logits"}
        for name, given in (("cached", artifact(answers_run, "logits")), ("live", teacher)):
            run = run_in(tmp_path / f"{name}{batch}", task)
            made = Distill(epochs=6, batch=batch, augment_seed=7)(None, run, teacher=(given,))
            results[name, batch] = weights(run), made.facts["losses"]
    for batch in (20, 32):
        assert results["cached", batch][1]["kl"] == pytest.approx(results["live", batch][1]["kl"], rel=1e-4)
    for name, tensor in results["cached", 20][0].items():
        assert torch.allclose(tensor, results["live", 20][0][name], atol=1e-4), name


def test_cached_logits_are_the_live_ones_bit_for_bit_in_the_same_batches(tmp_path, task):
    from edgekd.data.columns import take
    from edgekd.data.epochs import see
    from edgekd.teachers.cached import cached
    from edgekd.teachers.live import live

    run = run_in(tmp_path / "t", task)
    Train(model="teacher", epochs=1)(None, run)
    teacher = artifact(run, "torch")
    answers_run = run_in(tmp_path / "a", task)
    Answer(views=2, augment_seed=3, batch=16)(None, answers_run, teacher=(teacher,))
    columns, teach = run.data("train"), live(saved.load(teacher, task), task)
    read = cached(artifact(answers_run, "logits"), len(columns), 2)
    for view in range(2):
        for start in range(0, 80, 16):
            batch = see(take(columns, np.arange(start, start + 16), view), task, 3)
            assert torch.equal(teach(batch).output, read(batch).output)
        odd = see(take(columns, np.array([3, 50, 7]), view), task, 3)
        assert torch.allclose(teach(odd).output, read(odd).output, atol=1e-5)


def test_cached_logits_of_other_data_are_refused(tmp_path, task):
    run = run_in(tmp_path, task)
    np.save(run.folder / "logits.npy", np.zeros((2, 79, 3), np.float32))
    with pytest.raises(RunFailed, match=r"\[2, 79, 3\].*\[3, 80, \.\.\.\]"):
        Distill(epochs=3)(None, run, teacher=(artifact(run, "logits"),))


def test_divergence_is_named(tmp_path, task):
    with pytest.raises(RunFailed, match=r"diverged.*epoch 1, step 1.*cross_entropy = nan"):
        broken = dataclasses.replace(task, augment=lambda x, u: x * float("nan"))
        Train(epochs=1)(None, run_in(tmp_path, broken))


def test_a_truncated_checkpoint_is_no_checkpoint(tmp_path, task):
    module, settings = net(4), Training()
    optimizer = make_optimizer(module, settings)
    save(tmp_path, module, optimizer, 3, 2, {"rows": 1.0})
    assert restore(tmp_path, module, optimizer)[:2] == (3, 2)
    whole = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    assert restore(tmp_path, module, optimizer) == (0, 0, {})


def test_combine_weighs_terms_and_samples():
    """By hand: rows 1, 3 with sample weights 1, 3 have the mean 2.5; half of it and twice the scalar 4 make 9.25."""
    rows = lambda student, teacher, batch: torch.tensor([1.0, 3.0])
    scalar = lambda student, teacher, batch: torch.tensor(4.0)
    batch = Batch(None, None, torch.arange(2), torch.tensor([1.0, 3.0]))
    found = parts(
        [Bound("rows", Term("rows", 0.5), rows), Bound("scalar", Term("scalar", 2.0), scalar)],
        Signals(None),
        {},
        Rows(batch, batch),
    )
    assert total(found).item() == pytest.approx(9.25) and {name: mean.item() for name, _, mean in found} == {
        "rows": 2.5,
        "scalar": 4.0,
    }


def test_pace_by_hand():
    settings = Training(warmup=0.2, schedule="cosine")
    paces = [pace(s, 10, settings) for s in range(10)]
    assert paces[:3] == [0.5, 1.0, 1.0] and paces[6] == pytest.approx(0.5) and paces[9] > 0
    assert pace(5, 10, Training(warmup=0.0, schedule="linear")) == 0.5
    assert pace(9, 10, Training(warmup=0.0, schedule="constant")) == 1.0


def test_norms_and_biases_do_not_decay():
    groups = make_optimizer(net(4), Training(weight_decay=0.3)).param_groups
    assert {(p.ndim > 1, g["weight_decay"]) for g in groups for p in g["params"]} == {(True, 0.3), (False, 0.0)}


def test_needs_teacher_is_read_from_the_signature():
    assert Term("kl", 1.0).needs_teacher() and not Term("cross_entropy", 1.0).needs_teacher()


def short(s, t, b):
    return s.output - t.output


def labels_only(s, _, b):
    return s.output - b.labels


def either(s, t=None, b=None):
    return s.output


def test_one_s_own_loss_gets_its_teacher_whatever_the_argument_is_called():
    assert [Term(f"{__name__}:{f.__name__}", 1.0).needs_teacher() for f in (short, labels_only, either)] == [
        True,
        False,
        False,
    ]


def test_teacher_is_frozen_and_in_evaluation_mode(tmp_path, task):
    run = run_in(tmp_path / "t", task)
    Train(model="teacher", epochs=1)(None, run)
    before = weights(run)
    module = saved.load(artifact(run, "torch"), task).train()
    from edgekd.teachers.live import live

    teach = live(module, task)
    batch = Batch(torch.randn(8, 6), None, torch.arange(8), torch.ones(8))
    assert torch.equal(teach(batch).output, teach(batch).output)  # dropout stands still
    student = net(4)
    learned = learn(
        student,
        run_in(tmp_path / "s", task),
        Training(epochs=1, losses=(Term("kl"),)),
        teacher=(artifact(run, "torch"),),
    )
    assert learned["losses"]["kl"] > 0 and same(before, weights(run))
