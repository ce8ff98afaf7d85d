"""What a step of quantization-aware training reads from its device: a read waits until a GPU is done."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgekd.quantization.torch_graph import fake, rounding
from edgekd.quantization.torch_graph.calibrate import calibrate
from edgekd.quantization.torch_graph.capture import capture
from edgekd.quantization.torch_graph.modules import Value, Weight


class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def on_device(x, scale):
    return scale.detach().reshape(())


def trained(learned, steps=3, frozen=False, reads=None):
    """A small network after some steps, and what it read in the last."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    x = torch.randn(8, 2, 8, 8)
    module = fake.insert(capture(net.eval(), x), learned=learned)
    calibrate(module, [x])
    fake.set_mode(module, "train").train()
    if frozen:
        fake.freeze(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(steps):
        with Reads() as found:
            module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, found.count


@pytest.mark.parametrize("learned, frozen", [(False, True), (True, False)])
def test_a_step_reads_nothing(learned, frozen, monkeypatch):
    monkeypatch.setattr(rounding, "number", on_device)
    _, count = trained(learned, frozen=frozen)
    assert count == 0


def test_ranges_that_follow_are_read_together():
    """(least, greatest) of each value, in one list."""
    module, count = trained(False)
    assert count <= 2 * len(list(fake.parts(module, Value)))


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_not_read_gives_the_same_weights(learned, monkeypatch):
    want, _ = trained(learned)
    monkeypatch.setattr(rounding, "number", on_device)
    got, _ = trained(learned)
    for (name, a), b in zip(want.state_dict().items(), got.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=0), name


def test_a_number_that_something_else_wrote_is_read_again():
    value = Value("v", 8)
    value.set_range(-1.0, 1.0)
    assert value.number("scale") == value.scale.item()
    value.scale.fill_(0.25)
    assert value.number("scale") == 0.25
    value.load_state_dict({**value.state_dict(), "scale": torch.tensor([0.5])})
    assert value.number("scale") == 0.5
    value.to(torch.float64).scale.mul_(2)
    assert value.number("scale") == 1.0


@pytest.mark.parametrize(
    "weights, wanted", [([[2.0], [0.0]], [2.0, 2.0]), ([[0.0], [0.0]], [127.0, 127.0]), ([[1.0], [3.0]], [1.0, 3.0])]
)
def test_a_dead_channel_takes_the_widest_scale(weights, wanted):
    weight = torch.tensor(weights)
    assert (Weight("w", 0, 8, False, weight).scale * 127).tolist() == pytest.approx(wanted)
