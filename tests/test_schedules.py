"""Settings that change while a student learns: over the training or with its agreement with the teacher; and what a
kill leaves of them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Stop, artifact, run_in, teacher_in, toy_task, weights

from edgekd import components, signatures
from edgekd.data.columns import load
from edgekd.losses.contrastive import Contrastive
from edgekd.records import Batch, Signals
from edgekd.stages.answer import Answer
from edgekd.stages.distill import Distill
from edgekd.training.agreement import Agreement
from edgekd.training.positions import Rows
from edgekd.training.read_terms import terms
from edgekd.training.terms import Term, bind, parts

CE = {"use": "cross_entropy", "weight": 1.0}
FOLLOWING = {
    "use": "kl",
    "weight": 1.0,
    "schedule": {"by": "agreement", "temperature": [[0.2, 8.0], [1.0, 1.0]], "weight": [[0, 1], [1, 0.5]]},
}
HERE = Path(__file__).parent


@pytest.fixture
def task():
    return toy_task()


def answers(folder, task, teacher, **settings):
    run = run_in(folder, task)
    Answer(**settings)(None, run, teacher=(teacher,))
    return artifact(run, "logits")


def test_a_curve_over_the_agreement_by_hand():
    (term,) = terms([FOLLOWING | {"temperature": 4.0}])
    assert term.at(0.9, {"": 0.6}) == (
        pytest.approx(0.7),
        {"temperature": pytest.approx(4.5), "standardize": False},
    )
    assert term.at(0.9) == term.at(0.0, {"": 0.0}) == (1.0, {"temperature": 8.0, "standardize": False})
    (named,) = terms([FOLLOWING | {"teacher": "b"}])
    assert named.at(0.0, {"a": 0.2, "b": 1.0, "": 0.6}) == (0.5, {"temperature": 1.0, "standardize": False})


def test_agreement_is_the_share_of_equal_answers(tmp_path, task):
    """Against a count of one's own; the samples are not augmented; the student is left as it was."""
    teacher, columns = teacher_in(tmp_path / "t", task), load(task, "validation")
    labels = answers(tmp_path / "v", task, teacher, split="validation", shows="label")
    found = Agreement({"a": labels}, columns)
    torch.manual_seed(3)
    student = task.models["student"]().train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    found.look(student, lambda model, inputs: model(inputs), size=7)
    assert student.training and all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    from edgekd.models import saved

    taught = saved.load(teacher, task)
    with torch.no_grad():
        x = torch.from_numpy(columns.inputs)
        share = float((student.eval()(x).argmax(1) == taught(x).argmax(1)).double().mean())
        student.load_state_dict(before)
    assert found.now() == {"a": share, "": share} and 0 < share < 1
    two = Agreement({"a": labels, "b": labels}, columns)
    two.shares.copy_(torch.tensor([0.25, 0.75]))
    assert two.now() == {"a": 0.25, "b": 0.75, "": 0.5}


def test_a_schedule_follows_the_agreement(tmp_path, task):
    """What the log tells: the agreement before every epoch, and settings that are the curve's at it."""
    teacher, events = teacher_in(tmp_path / "t", task, epochs=30), []
    given = (
        answers(tmp_path / "a", task, teacher, views=3),
        answers(tmp_path / "v", task, teacher, split="validation", shows="label"),
    )
    stage = Distill(epochs=6, batch=20, lr=0.05, losses=terms([CE, FOLLOWING]), teachers=("teacher",), views=3)
    stage(None, run_in(tmp_path / "s", task, log=lambda **e: events.append(e)), teacher=given)
    shares = [e["teacher"] for e in events if e["event"] == "agreement"]
    settings = [e for e in events if e["event"] == "settings"]
    assert len(shares) == len(settings) == 6 and shares[-1] > shares[0] + 0.1
    for share, now in zip(shares, settings, strict=True):
        assert now["kl.temperature"] == pytest.approx(np.interp(share, [0.2, 1.0], [8.0, 1.0])) and now[
            "kl.weight"
        ] == pytest.approx(1 - share / 2)


def test_what_follows_the_agreement_resumes_to_the_bit(tmp_path, task, monkeypatch):
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
    teacher = teacher_in(tmp_path / "t", task)
    given = (
        answers(tmp_path / "a", task, teacher, views=3),
        answers(tmp_path / "v", task, teacher, split="validation", shows="label"),
    )
    stage = Distill(epochs=3, batch=20, lr=0.05, losses=terms([CE, FOLLOWING]), teachers=("teacher",), views=3)
    whole = run_in(tmp_path / "whole", task)
    stage(None, whole, teacher=given)

    def stop(done, total, text):
        if done == 6:
            raise Stop

    with pytest.raises(Stop):
        stage(None, run_in(tmp_path / "cut", task, progress=stop), teacher=given)
    again = run_in(tmp_path / "cut", task)
    stage(None, again, teacher=given)
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_a_part_that_learns_changes_its_settings():
    g = torch.Generator().manual_seed(0)
    seen, guide = (Signals(None, {"a": torch.randn(6, 5, generator=g)}) for _ in range(2))
    batch = Batch(None, None, torch.arange(6), torch.ones(6))
    term = Term("contrastive", 1.0, {"temperature": 1.0}, (("a", "a"),), schedule={"temperature": [[0, 1.0], [1, 0.1]]})
    torch.manual_seed(0)
    (bound,) = bind([term], lambda: (seen, {"": guide}, batch))
    for share, temperature in ((0.0, 1.0), (0.5, 0.55), (1.0, 0.1)):
        torch.manual_seed(0)
        plain = Contrastive(seen, guide, batch, temperature=temperature)
        (_, weight, value), *_ = parts([bound], seen, {"": guide}, Rows(batch, batch), share)
        assert weight == 1.0 and torch.allclose(value, plain(seen, guide, batch).mean())


@pytest.mark.parametrize(
    "name", [n for n in components.names("losses") if getattr(components.find("losses", n), "changing", ())]
)
def test_what_a_part_says_can_change_are_settings_that_it_keeps(name):
    part = components.find("losses", name)
    for setting in part.changing:
        assert (
            setting in signatures.parameters(part)
            and f"self.{setting}" in Path(sys.modules[part.__module__].__file__).read_text()
        )


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import edgekd.training.loop
from toys import run_in, toy_task
from edgekd.stages.distill import Distill
from edgekd.training.terms import Term
edgekd.training.loop.CHECKPOINT_SECONDS = -1.0
losses = (Term("cross_entropy"), Term("kl"))
Distill(epochs=60, batch=20, lr=0.01, peers=2, losses=losses)(
    None, run_in(Path({folder!r}), toy_task()))
"""


def test_mutual_learning_survives_kills(tmp_path):
    """SIGKILL in the middle, three times: the student is that of the undisturbed run, to the bit."""

    def begin(folder):
        script = KILLED.format(here=str(HERE), folder=str(folder))
        return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(HERE.parent)})

    assert begin(tmp_path / "whole").wait(120) == 0
    rng, cut = random.Random(0), tmp_path / "cut"
    for _ in range(3):
        process, checkpoint = begin(cut), cut / "scratch" / "checkpoint.safetensors"
        seen = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        while process.poll() is None and not (checkpoint.is_file() and checkpoint.stat().st_mtime_ns > seen):
            time.sleep(0.005)
        time.sleep(rng.uniform(0.02, 0.2))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (cut / "out" / "weights.safetensors").is_file()
    assert begin(cut).wait(120) == 0
    files = [tmp_path / name / "out" / "weights.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
