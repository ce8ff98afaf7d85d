"""The device of a training: how it is chosen, what is refused, and what a checkpoint holds."""

import tomllib

import pytest
import tiny
import torch
from torch import nn

from edgekd import results
from edgekd.cli import run as command
from edgekd.outputs import classes, yes_no
from edgekd.records import Batch, Signals, Task
from edgekd.run import device as run_device
from edgekd.teachers.live import live
from edgekd.training.checkpoints import restore, save
from edgekd.training.optimizer import make_optimizer
from edgekd.training.positions import rows_of
from edgekd.training.settings import Training


def trained(module, settings, scaler=None):
    optimizer = make_optimizer(module, settings)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return optimizer


def test_a_teacher_in_half_precision_is_laid_out_once():
    """Other weights in every step took as long as the step itself, on a GPU."""
    model, seen = nn.Conv2d(3, 4, 3), []
    batch = Batch(torch.zeros(2, 3, 8, 8), None, torch.arange(2), torch.ones(2))
    model.register_forward_hook(lambda *_: seen.append((model.weight.data_ptr(), model.weight.stride())))
    teach = live(model, Task("t", "1", {}, lambda split: (), ()), "bfloat16")
    kept = [teach(batch).output for _ in range(3)]
    assert len(set(seen)) == 1 and seen[0][1][1] == 1  # channels last
    assert model.weight.data_ptr() == seen[0][0]
    assert all(k.dtype == torch.bfloat16 and torch.equal(k, kept[0]) for k in kept)


@pytest.mark.parametrize("settings", [Training(), Training(optimizer="sgd")])
def test_moments_come_back_in_the_memory_format_of_their_weights(tmp_path, settings):
    """A fused optimizer refuses moments of another layout: a resumed training would stop."""
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = trained(module, settings)
    want = {id(p): {n: v.clone() for n, v in s.items() if torch.is_tensor(v)} for p, s in optimizer.state.items()}
    save(tmp_path, module, optimizer, 1, 0, {"rows": 1.0})
    restore(tmp_path, module, optimizer)
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                assert value.stride() == parameter.stride() and torch.equal(value, want[id(parameter)][name])


def test_the_scale_of_gradients_is_resumed(tmp_path):
    module = nn.Conv2d(3, 4, 3)
    optimizer = trained(module, Training())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    scaler.scale(module(torch.ones(1, 3, 8, 8)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    save(tmp_path, module, optimizer, 1, 0, {"rows": 1.0}, scaler)
    again = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    restore(tmp_path, module, optimizer, again)
    assert again.state_dict() == scaler.state_dict() and again.get_scale() == 8.0


@pytest.mark.parametrize("output, shape", [(classes(axis=1), (2, 3, 4)), (yes_no(), (2, 3))])
def test_rows_are_where_the_outputs_are(output, shape):
    """On a device without values every tensor that is made must be there too."""
    on = torch.device("meta")
    labels = torch.zeros((2, 4) if len(shape) == 3 else shape, dtype=torch.long, device=on)
    batch = Batch(None, labels, torch.arange(2, device=on), torch.ones(2, device=on))
    rows = rows_of(output, batch, Signals(torch.zeros(shape, device=on)))
    found = rows.flat
    assert {t.device.type for t in (found.labels, found.index, found.weight, found.part)} == {"meta"}
    assert rows.of(Signals(torch.zeros(shape, device=on))).output.device.type == "meta"


class TestChoice:
    @pytest.mark.parametrize(
        "said, variable, wanted",
        [
            (None, "", ("cpu",)),
            ("auto", "", ("cpu",)),
            (None, "cuda:1", ("cuda:1",)),
            ("cuda", "cpu", ("cuda",)),
            ("auto", "cuda", ("cuda",)),
            (["cuda", "cpu"], "", ("cuda", "cpu")),
        ],
    )
    def test_recipe_then_variable_then_cpu(self, said, variable, wanted, monkeypatch):
        monkeypatch.setenv("EDGEKD_DEVICE", variable)
        monkeypatch.setattr(run_device, "missing", lambda name: "not here")
        problems = []
        assert run_device.chosen(said, problems) == wanted and not problems

    def test_auto_is_the_gpu_that_is_there(self, monkeypatch):
        monkeypatch.delenv("EDGEKD_DEVICE", raising=False)
        monkeypatch.setattr(run_device, "missing", lambda name: "" if name == "cuda" else "not here")
        assert run_device.chosen("auto", []) == ("cuda",) and run_device.chosen(None, []) == ("cpu",)

    def test_a_variable_that_is_no_device(self, monkeypatch):
        monkeypatch.setenv("EDGEKD_DEVICE", "gpu")
        problems = []
        run_device.chosen(None, problems)
        assert [p.place for p in problems] == ["EDGEKD_DEVICE"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEKD_DEVICE", raising=False)
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


RECIPE = """
task = "tiny:task"
targets = ["host"]
threads = 1

[model.teacher]
train = { epochs = 1 }

[[stage]]
use = "distill"
epochs = 1
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_told_before_anything_long(recipe, capsys):
    assert command(["compress", "r.toml", "--device", "cuda:1", "--out", "run", "--quiet"]) == 4
    text = capsys.readouterr().err
    assert "device cuda:1" in text and "--device cpu" in text and not (recipe / "run" / "result.json").exists()
    assert command(["compress", "r.toml", "--device", "gpu", "--out", "run", "--quiet"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_that_a_gpu_began_goes_on_here_only_when_asked(recipe, capsys):
    """What the run's recipe lists is what it goes on with; --device cpu makes the rest here, and says so."""
    assert command(["compress", "r.toml", "--out", "run", "--quiet"]) in (0, 1, 3)
    kept = recipe / "run" / "recipe.toml"
    assert tomllib.loads(kept.read_text()).get("device", "cpu") == "cpu"
    first = results.read(recipe / "run")
    assert all(step.get("device", "cpu") == "cpu" for step in first.steps)
    (recipe / "r.toml").write_text('device = "cuda"\n' + RECIPE)
    assert command(["compress", "r.toml", "--out", "other", "--quiet"]) == 4
    assert command(["compress", "r.toml", "--device", "cpu", "--out", "other", "--quiet"]) in (0, 1, 3)
    again = results.read(recipe / "other")
    assert [c.sha256 for c in again.candidates] == [c.sha256 for c in first.candidates]
