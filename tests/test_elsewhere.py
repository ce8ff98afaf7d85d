"""A target that this machine is none of is judged by what it answers, not by what this machine does: in the run, at the
gate, in the bundle."""

import numpy as np
import pytest
import tiny

import edgekd
from edgekd import results, targets
from edgekd.measure import emulation
from edgekd.run import cross_cpu


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A run for a Cortex-A72 that answers every sample it sees, 100 of 120, wrongly."""
    tiny.settle(tmp_path, monkeypatch)
    line = 'top1 = { is = "drop max 10 pt vs teacher", accept = ["measured", "emulated"] }'
    text = tiny.SHORT.replace('["host"]', '["host", "cortex-a72"]').replace(
        'top1       = "drop max 60 pt vs teacher"', line
    )
    (tmp_path / "r.toml").write_text(text)
    seen = {}

    def answered(o, run, target, launch, digest, store):
        order = np.random.default_rng(0).permutation(len(o.outputs["test"]))[:100]
        seen[target.name] = np.eye(3, dtype=np.float32)[(tiny.y[240:][order] + 1) % 3]
        return seen[target.name]

    monkeypatch.setattr(
        cross_cpu, "launches", lambda wanted: ({t.name: (t, {}) for t in wanted if t.name == "cortex-a72"}, [])
    )
    monkeypatch.setattr(cross_cpu, "_kept", answered)
    monkeypatch.setattr(emulation.Emulation, "instructions", lambda *_: {})
    return edgekd.compress("r.toml", out="run"), tmp_path / "run", seen


def test_the_gate_judges_what_the_target_answers(ran):
    outcome, folder, seen = ran
    found = outcome.result.targets
    assert targets.matches(targets.load("cortex-a72"), {"architecture": "x86-64", "features": []})
    (there,) = [c for c in found["cortex-a72"].checks if c.name == "top1"]
    (here,) = [c for c in found["host"].checks if c.name == "top1"]
    teacher = results.load_predictions(folder / "predictions" / "teacher.npz")
    assert (there.verdict, there.origin, here.origin) == ("fail", "emulated", "measured")
    chosen = found["cortex-a72"].chosen
    kept = results.load_predictions(folder / "predictions" / results.executed(chosen, "cortex-a72"))
    assert np.array_equal(kept.outputs, seen["cortex-a72"]) and len(kept.ids) == 100
    # all wrong: the drop is what the teacher has right of the samples that it saw
    at = [teacher.ids.tolist().index(i) for i in kept.ids]
    assert there.value == pytest.approx(100 * teacher.records["top1"][at].mean()) and there.value > here.value
    assert (kept.outputs.argmax(1) != tiny.y[240:][at]).all(), "the samples are those that it saw"
    again = {c.target: c for c in edgekd.gate(folder).checks if c.name == "top1"}
    assert again["cortex-a72"].value == pytest.approx(there.value) and again["host"].value == pytest.approx(here.value)
    alone = edgekd.gate(folder / "bundles" / "cortex-a72")
    assert next(c for c in alone.checks if c.name == "top1").value == pytest.approx(there.value)
