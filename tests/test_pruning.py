"""Pruning: what can go is proved, what can't is refused with its reason, MACs are exact, and a pruned model comes back
to the bit."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekd import Task, arrays, components, pruning
from edgekd.components import Use
from edgekd.data.columns import load
from edgekd.errors import UsageError
from edgekd.models import networks, saved, sequences
from edgekd.pruning import points
from edgekd.pruning.attention import narrow
from edgekd.pruning.check import Trials
from edgekd.pruning.coupling import removals
from edgekd.records import Artifact, Run
from edgekd.stages.prune import Prune
from edgekd.stages.train import Train
from edgekd.training.terms import Term

LABELS = {"losses": (Term("cross_entropy"),)}


class Net(nn.Module):
    """Layers by name, and a function of (layers, input)."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def unit(a, b, kernel=3, groups=1, act=True):
    layers = [nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


def pool(x):
    return x.mean((2, 3))


def depthwise():
    layers = [unit(3, 16), unit(16, 16, groups=16), unit(16, 32, 1), unit(32, 32, groups=32), unit(32, 48, 1)]
    return Net(lambda m, x: m.head(pool(m.body(x))), body=nn.Sequential(*layers), head=nn.Linear(48, 5))


def dense():
    def run(m, x):
        x = m.stem(x)
        for norm, conv in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    widths = [16, 32, 48]
    norms, convs = [nn.BatchNorm2d(w) for w in widths], [nn.Conv2d(w, 16, 3, padding=1) for w in widths]
    return Net(
        run,
        stem=nn.Conv2d(3, 16, 3, padding=1),
        norms=nn.ModuleList(norms),
        convs=nn.ModuleList(convs),
        head=nn.Linear(64, 5),
    )


def mlp():
    return nn.Sequential(
        nn.Linear(12, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.PReLU(32), nn.Linear(32, 4)
    )


def vgg():
    body = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32 * 4, 64), nn.ReLU(), nn.Linear(64, 5))


def inverted():
    """MobileNetV2: expansion, depthwise, linear projection, added."""

    def block(a, b, wide):
        return nn.Sequential(unit(a, wide, 1), unit(wide, wide, groups=wide), unit(wide, b, 1, act=False))

    def run(m, x):
        x = m.stem(x)
        x = x + m.one(x)
        x = x + m.two(x)
        return m.head(pool(m.three(x)))

    return Net(
        run,
        stem=unit(3, 16),
        one=block(16, 16, 48),
        two=block(16, 16, 48),
        three=block(16, 24, 64),
        head=nn.Linear(24, 5),
    )


def grouped():
    layers = [
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, groups=4),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 32, 1),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def encoder():
    """A transformer block written by hand: heads by view, a bare parameter for positions, MLP of 64."""

    def run(m, x):
        x = m.embed(x) + m.positions
        b, t, d = x.shape
        q, k, v = m.qkv(m.norm1(x)).view(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        x = x + m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        x = x + m.down(F.gelu(m.up(m.norm2(x))))
        return m.head(x.mean(1))

    layers = {
        "embed": nn.Linear(6, 32),
        "qkv": nn.Linear(32, 96),
        "out": nn.Linear(32, 32),
        "up": nn.Linear(32, 64),
        "down": nn.Linear(64, 32),
    }
    return Net(
        run,
        **layers,
        norm1=nn.LayerNorm(32),
        norm2=nn.LayerNorm(32),
        positions=nn.Parameter(torch.randn(1, 7, 32)),
        head=nn.Linear(32, 5),
    )


def torch_encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(
        lambda m, x: m.head(m.body(m.embed(x)).mean(1)), embed=nn.Embedding(20, 32), body=body, head=nn.Linear(32, 5)
    )


def hard_view():
    def run(m, x):
        return m.head(F.relu(m.b(F.relu(m.a(x)))).view(-1, 32 * 64))

    return Net(run, a=nn.Conv2d(3, 16, 3, padding=1), b=nn.Conv2d(16, 32, 3, padding=1), head=nn.Linear(32 * 64, 5))


def shuffled():
    def run(m, x):
        x = F.relu(m.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return m.head(pool(F.relu(m.c(F.relu(m.b(x))))))

    return Net(
        run, a=nn.Conv2d(3, 32, 1), b=nn.Conv2d(32, 32, 3, padding=1), c=nn.Conv2d(32, 16, 1), head=nn.Linear(16, 5)
    )


def mean_over_channels():
    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(pool(F.relu(m.b(x - x.mean(1, keepdim=True)))))

    return Net(run, a=nn.Conv2d(3, 32, 1), b=nn.Conv2d(32, 16, 1), head=nn.Linear(16, 5))


def used_twice():
    def run(m, x):
        return m.head(pool(F.relu(m.b(F.relu(m.twice(F.relu(m.twice(F.relu(m.a(x))))))))))

    return Net(
        run, a=nn.Conv2d(3, 16, 3), twice=nn.Conv2d(16, 16, 3, padding=1), b=nn.Conv2d(16, 32, 1), head=nn.Linear(32, 5)
    )


def normalised():
    """Group norm, instance norm, a bare scale per channel, a transposed convolution."""

    def run(m, x):
        return m.head(pool(m.c(m.up(F.relu(m.instance(m.b(m.group(m.a(x)))) * m.scale)))))

    layers = {
        "a": nn.Conv2d(3, 16, 3),
        "group": nn.GroupNorm(4, 16),
        "b": nn.Conv2d(16, 32, 3),
        "instance": nn.InstanceNorm2d(32, affine=True),
    }
    return Net(
        run,
        **layers,
        scale=nn.Parameter(torch.rand(32, 1, 1)),
        up=nn.ConvTranspose2d(32, 16, 2, 2),
        c=nn.Conv2d(16, 16, 1),
        head=nn.Linear(16, 5),
    )


def squeezed():
    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(pool(m.b(x * torch.sigmoid(m.excite(F.relu(m.squeeze(pool(x)))))[:, :, None, None])))

    return Net(
        run,
        a=nn.Conv2d(3, 32, 3),
        squeeze=nn.Linear(32, 16),
        excite=nn.Linear(16, 32),
        b=nn.Conv2d(32, 16, 1),
        head=nn.Linear(16, 5),
    )


def u_net():
    def run(m, x):
        a = F.relu(m.a(x))
        b = F.relu(m.b(F.max_pool2d(a, 2)))
        return m.out(F.relu(m.c(torch.cat([m.up(b), a], 1))))

    convs = {
        "a": nn.Conv2d(3, 16, 3, padding=1),
        "b": nn.Conv2d(16, 32, 3, padding=1),
        "up": nn.ConvTranspose2d(32, 16, 2, 2),
    }
    return Net(run, **convs, c=nn.Conv2d(32, 16, 3, padding=1), out=nn.Conv2d(16, 2, 1))


def bare_kernel():
    def run(m, x):
        return m.head(pool(F.relu(m.b(F.relu(F.conv2d(F.relu(m.a(x)), m.kernel))))))

    return Net(
        run,
        a=nn.Conv2d(3, 16, 3),
        kernel=nn.Parameter(torch.randn(24, 16, 3, 3)),
        b=nn.Conv2d(24, 32, 1),
        head=nn.Linear(32, 5),
    )


def outside_product():
    """A fixed mixing of columns, channel by channel: what it costs is no layer's."""

    def run(m, x):
        return m.head(pool(F.relu(m.b(F.relu(m.a(x)) @ m.mix))))

    model = Net(run, a=nn.Conv2d(3, 32, 1), b=nn.Conv2d(32, 16, 1), head=nn.Linear(16, 5))
    model.register_buffer("mix", torch.randn(8, 8))
    return model


def tied():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(
        nn.Linear(6, 32),
        nn.ReLU(),
        shared,
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 64),
        nn.ReLU(),
        nn.Linear(64, 5),
    )
    model[4].weight = shared.weight
    return model


def gated():
    def run(m, x):
        a, b = m.both(x).chunk(2, 1)
        return m.head(pool(F.relu(m.mix(a * torch.sigmoid(b)))))

    return Net(run, both=nn.Conv2d(3, 64, 3), mix=nn.Conv2d(32, 16, 1), head=nn.Linear(16, 5))


def recurrent():
    def run(m, x):
        return m.head(F.relu(m.after(m.lstm(F.relu(m.before(x)))[0][:, -1])))

    return Net(
        run,
        before=nn.Linear(6, 16),
        lstm=nn.LSTM(16, 32, batch_first=True),
        after=nn.Linear(32, 64),
        head=nn.Linear(64, 3),
    )


def gru():
    def run(m, x):
        ends = torch.arange(len(x)) % 3 + 1
        return m.head(F.relu(m.after(sequences.last(m.gru(F.relu(m.before(x)))[0], ends))))

    return Net(
        run,
        before=nn.Linear(6, 16),
        gru=nn.GRU(16, 32, batch_first=True),
        after=nn.Linear(32, 64),
        head=nn.Linear(64, 3),
    )


def filled():
    def run(m, x):
        ends = torch.arange(len(x)) % 3 + 1
        return m.head(F.relu(m.after(sequences.mean(sequences.run(m.gru, F.relu(m.before(x)), ends), ends))))

    return Net(
        run,
        before=nn.Linear(6, 16),
        gru=nn.GRU(16, 32, batch_first=True),
        after=nn.Linear(32, 64),
        head=nn.Linear(64, 3),
    )


class SingleNorm(nn.Module):
    """Computed in single precision, whatever the values are in."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        single = x.float()
        return (single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


def single_norm():
    return nn.Sequential(nn.Linear(12, 64), SingleNorm(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def signal():
    layers = [
        nn.Conv1d(4, 16, 5),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers, nn.Linear(32, 3))


def residual():
    return networks.residual((16, 24, 32), channels=3, classes=10)


def reparametrized():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def hard_slice():
    """A cut at a fixed channel, and one at a number that the module keeps."""

    def run(m, x):
        x = F.relu(m.a(x))
        a, b = F.relu(m.b(torch.cat([x[:, :8], x[:, 8:] * 2], 1))).split(m.half, 1)
        return m.head(pool(m.c(torch.cat([a, b * 2], 1))))

    model = Net(run, a=nn.Conv2d(3, 24, 3), b=nn.Conv2d(24, 32, 1), c=nn.Conv2d(32, 16, 1), head=nn.Linear(16, 5))
    model.half = 16
    return model


def pixels():
    """Pixels are shuffled both ways, under a gate of means and maxima over channels."""

    def run(m, x):
        x = F.pixel_shuffle(F.relu(m.a(x)), 2)
        y = F.relu(m.b(F.pixel_unshuffle(x, 2)))
        gate = m.gate(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))
        return m.head(pool(m.c(y * gate.sigmoid())))

    convs = {"a": nn.Conv2d(3, 32, 3), "b": nn.Conv2d(32, 16, 1), "gate": nn.Conv2d(2, 1, 3, padding=1)}
    return Net(run, **convs, c=nn.Conv2d(16, 16, 1), head=nn.Linear(16, 5))


def stacked():
    """Layers of an LSTM in both directions have one number of units."""

    def run(m, x):
        return m.head(m.lstm(x)[0][:, -1])

    return Net(run, lstm=nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), head=nn.Linear(16, 3))


IMAGE, SEQUENCE, VECTOR = torch.zeros(2, 3, 8, 8), torch.zeros(2, 7, 6), torch.zeros(2, 12)
ZOO = {  # name: (model, example, {group: width}, {layer refused: part of the reason})
    "residual": (
        residual,
        IMAGE,
        {"0": 16, "3.conv1": 16, "4.conv1": 24, "4.conv2": 24, "5.conv1": 32, "5.conv2": 32},
        {},
    ),
    "depthwise": (depthwise, IMAGE, {"body.0.0": 16, "body.2.0": 32, "body.4.0": 48}, {}),
    "dense": (dense, IMAGE, {"stem": 16, "convs.0": 16, "convs.1": 16, "convs.2": 16}, {}),
    "mlp": (mlp, VECTOR, {"0": 64, "3": 32}, {}),
    "vgg": (vgg, IMAGE, {"0": 16, "3": 32, "7": 64}, {}),
    "inverted": (inverted, IMAGE, {"stem.0": 16, "one.0.0": 48, "two.0.0": 48, "three.0.0": 64, "three.2.0": 24}, {}),
    "grouped": (grouped, IMAGE, {"0": 32, "2": 64, "5": 32}, {}),
    "squeezed": (squeezed, IMAGE, {"a": 32, "squeeze": 16, "b": 16}, {}),
    "u_net": (u_net, IMAGE, {"a": 16, "b": 32, "up": 16, "c": 16}, {}),
    "signal": (signal, torch.zeros(2, 4, 30), {"0": 16, "3": 32}, {}),
    "used_twice": (used_twice, IMAGE, {"a": 16, "b": 32}, {}),
    "encoder": (
        encoder,
        SEQUENCE,
        {"up": 64},
        {"embed": "does not run without", "qkv": "does not run without"},
    ),
    "torch_encoder": (
        torch_encoder,
        torch.zeros(2, 7, dtype=torch.long),
        {
            "embed": 32,
            **{f"body.layers.{i}.linear1": 64 for i in (0, 1)},
            **{f"body.layers.{i}.self_attn.in_proj_weight": 96 for i in (0, 1)},
        },
        {},
    ),
    "outside_product": (outside_product, IMAGE, {"a": 32, "b": 16}, {}),
    "hard_view": (hard_view, IMAGE, {"a": 16}, {"b": "does not run without some of its channels"}),
    "shuffled": (shuffled, IMAGE, {"a": 32, "b": 32, "c": 16}, {}),
    "mean_over_channels": (mean_over_channels, IMAGE, {"a": 32, "b": 16}, {}),
    "normalised": (normalised, IMAGE, {"a": 16, "b": 32, "up": 16, "c": 16}, {}),
    "bare_kernel": (bare_kernel, IMAGE, {"a": 16, "b": 32, "kernel": 24}, {}),
    "tied": (
        tied,
        torch.zeros(2, 6),
        {"6": 64},
        {"0": "shares a weight"},
    ),
    "gated": (gated, IMAGE, {"both": 64, "mix": 16}, {}),
    "gru": (gru, SEQUENCE, {"before": 16, "gru": 32, "after": 64}, {}),
    "filled": (filled, SEQUENCE, {"before": 16, "gru": 32, "after": 64}, {}),
    "single_norm": (single_norm, VECTOR, {"0": 64, "2": 32}, {}),
    "recurrent": (recurrent, SEQUENCE, {"before": 16, "lstm": 32, "after": 64}, {}),
    "hard_slice": (hard_slice, IMAGE, {"b": 32, "c": 16}, {"a": "parts of different sizes"}),
    "pixels": (pixels, IMAGE, {"a": 32, "c": 16}, {"b": "takes a `amax` over them"}),
    "stacked": (stacked, SEQUENCE, {"lstm": 8}, {}),
    "reparametrized": (reparametrized, VECTOR, {"3": 32}, {"0": "parametrization"}),
}


@pytest.fixture(params=list(ZOO))
def case(request):
    torch.manual_seed(0)
    make, example, groups, refused = ZOO[request.param]
    return make, make().eval(), example, groups, refused


def drawn(example):
    return torch.randn(example.shape) if example.is_floating_point() else example


def magnitude():
    return components.find("criteria", "magnitude")


# ---------------------------------------------------------------- groups


def test_groups_and_refusals(case):
    _, model, example, wanted, reasons = case
    found, refused = pruning.groups(model, example)
    assert {g.name: g.width for g in found} == wanted
    told = {r.layer: r.reason for r in refused if not r.is_output}
    assert told.keys() == reasons.keys()
    for layer, reason in reasons.items():
        assert any(part in told[layer] for part in reason.split("|")), told[layer]
    assert sum(r.is_output for r in refused) == 1


def test_macs_follow_from_the_widths_exactly(case):
    """Any numbers of channels removed at random from all groups at once: what is counted on the model that is left is
    what was predicted."""
    _, model, example, _, _ = case
    found, _ = pruning.groups(model, example)
    trials, rng = Trials(model, example, found, lambda m, x: m(x)), np.random.default_rng(0)
    for _ in range(4):
        gone = [sorted(rng.permutation(g.units)[: rng.integers(0, g.units)].tolist()) for g in found]
        left = pruning.apply(copy.deepcopy(model), removals(found, gone))
        macs, parameters = pruning.macs_and_parameters(left, example)
        assert macs == trials.cost(np.array([len(g) for g in gone]))
        assert parameters == sum(p.numel() for p in left.parameters())
        assert left(drawn(example)).shape == model(drawn(example)).shape


def test_a_pruned_model_comes_back_from_json_and_tensors_to_the_bit(case):
    make, model, example, wanted, _ = case
    if not wanted:
        pytest.skip("nothing to prune")
    found, refused = pruning.groups(model, example)
    before = pruning.macs_and_parameters(model, example)[0]
    plan = pruning.PruningPlan(0.5, before, before, tuple(found), tuple(g.units // 2 for g in found), tuple(refused))
    history = pruning.prune(model, plan, magnitude())
    again = pruning.apply(make(), json.loads(json.dumps(history))).eval()
    again.load_state_dict(model.state_dict())
    x = drawn(example)
    assert torch.equal(again(x), model(x))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in make().parameters())


def test_removed_channels_are_the_ones_torch_pruning_removes():
    """The history, applied layer by layer, does what torch-pruning does on its own graph."""
    import torch_pruning as tp

    model = residual().eval()
    found, _ = pruning.groups(model, IMAGE)
    group = next(g for g in found if g.name == "4.conv2")
    ours = pruning.apply(copy.deepcopy(model), removals([group], [[0, 5, 23]]))
    theirs = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(theirs, IMAGE)
    graph.get_pruning_group(theirs[4].conv2, tp.prune_conv_out_channels, [0, 5, 23]).prune()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.state_dict()["4.conv2.weight"].shape[0] == 21


def test_what_is_removed_is_what_nobody_looks_at():
    """By hand, on VGG: the pruned model gives what the whole one does once the next layers' weights on those channels
    are 0."""
    model = vgg().eval()
    found, _ = pruning.groups(model, IMAGE)
    pruned = pruning.apply(copy.deepcopy(model), removals(found, [[1, 2], [0, 31], []]))
    with torch.no_grad():
        model[3].weight[:, [1, 2]] = 0
        model[7].weight[:, [0, 1, 2, 3, 124, 125, 126, 127]] = 0  # 2 x 2 positions per channel behind the flatten
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(pruned(x), model(x))
    assert pruned[7].in_features == 120


def test_protected_layers_keep_their_channels():
    found, refused = pruning.groups(residual(), IMAGE, protect=("4",))
    assert {g.name for g in found} == {"3.conv1", "5.conv1", "5.conv2"}
    assert "is protected" in next(r.reason for r in refused if r.layer == "4.conv1")


def test_a_group_of_one_channel_each_has_none_to_spare():
    """Sixteen groups of one channel in and two out each: to remove a channel would be to remove a group."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=16), nn.Flatten(), nn.Linear(32 * 16, 5)
    )
    found, refused = pruning.groups(model, IMAGE)
    assert {g.name for g in found} & {"0"} == set()
    assert "only 1 of its 16 channels per group" in next(r.reason for r in refused if r.layer == "0")


def test_looking_changes_nothing():
    model = residual().train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    pruning.plan(model, IMAGE, 0.5)
    pruning.macs_and_parameters(model, IMAGE)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert (
        all(m.training for m in model.modules()) and not model[0].weight.requires_grad and model[1].weight.requires_grad
    )
    assert not any(m._forward_hooks for m in model.modules())


def test_calls_do_not_see_each_other():
    """torch-pruning keeps one object per kind of layer for all calls."""
    first = pruning.groups(residual(), IMAGE)
    for make, example, *_ in (ZOO["encoder"], ZOO["normalised"], ZOO["grouped"]):
        pruning.groups(make(), example)
    assert pruning.groups(residual(), IMAGE) == first


def test_forward_of_the_task_and_named_inputs():
    model = Net(
        lambda m, pair: m.head(F.relu(m.a(pair[0]) + m.b(pair[1]))),
        a=nn.Linear(3, 32),
        b=nn.Linear(4, 32),
        head=nn.Linear(32, 2),
    )
    example = {"left": torch.zeros(2, 3), "right": torch.zeros(2, 4)}
    forward = lambda model, inputs: model((inputs["left"], inputs["right"]))
    plan = pruning.plan(model, example, 0.5, forward=forward)
    assert plan.widths == {"a": (32, 16)} and plan.before == 32 * (3 + 4 + 2)


def test_a_model_that_does_not_run_is_told():
    with pytest.raises(UsageError, match="can't be traced for pruning"):
        pruning.groups(mlp(), torch.zeros(2, 11))


@pytest.mark.parametrize("first, single", [(True, False), (False, False), (True, True)])
def test_attention_that_may_be_narrowed_computes_what_torch_s_does(first, single):
    torch.manual_seed(0)
    ours, x = nn.MultiheadAttention(32, 4, batch_first=first).eval(), torch.randn(3, 3, 32)
    x, padding = (x[0], torch.tensor([False, False, True])) if single else (x, torch.rand(3, 3) > 0.6)
    padding[..., 0] = False
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    wanted = [ours(x, x, x), ours(x, x, x, key_padding_mask=padding, attn_mask=mask, average_attn_weights=False)]
    narrow(ours)
    found = [ours(x, x, x), ours(x, x, x, key_padding_mask=padding, attn_mask=mask, average_attn_weights=False)]
    torch.testing.assert_close(found, wanted)


def test_heads_of_torch_s_attention_go_and_leave_the_others_as_they_were():
    model, x = nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(2, 5, 32)
    run = lambda m, x: m(x, x, x)[0]
    (group,), _ = pruning.groups(model, x, forward=run)
    pruned = pruning.apply(copy.deepcopy(model), removals([group], [[1, 2]]))
    with torch.no_grad():
        model.out_proj.weight[:, 8:24] = 0
    torch.testing.assert_close(run(pruned, x), run(model, x))
    assert pruned.num_heads == 2 and pruned.in_proj_weight.shape == (48, 32)


# ---------------------------------------------------------------- MACs


def test_macs_by_hand():
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16),
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.Flatten(),
        nn.Linear(512, 10),
    ]
    by_hand = 64 * 9 * 3 * 16 + 16 * 9 * 16 + 16 * 4 * 16 * 8 + 512 * 10
    assert pruning.macs_and_parameters(nn.Sequential(*layers), torch.zeros(3, 3, 8, 8)) == (
        by_hand,
        448 + 160 + 520 + 5130,
    )


def test_macs_of_attention_are_counted():
    """7 positions: embed 6 x 32, qkv 32 x 96, out 32 x 32, MLP 2 x 32 x 64; scores and values 2 x 7 x 7 x 32; head
    once."""
    by_hand = 7 * (6 * 32 + 32 * 96 + 32 * 32 + 2 * 32 * 64) + 2 * 7 * 7 * 32 + 32 * 5
    assert pruning.macs_and_parameters(encoder(), SEQUENCE)[0] == by_hand


# ---------------------------------------------------------------- points


def test_widths_are_multiples_or_whole():
    assert points.steps(20, 1, 8) == (8, 16, 20)
    assert points.steps(24, 1, 8) == (8, 16, 24)
    assert points.steps(6, 1, 8) == (6,)
    assert points.steps(24, 6, 8) == (24,)
    assert points.steps(48, 6, 4) == (12, 24, 36, 48)


@pytest.mark.parametrize("share, multiple", [(0.8, 8), (0.5, 8), (0.35, 8), (0.5, 4), (0.8, 16)])
def test_no_point_is_nearer_than_the_one_taken(share, multiple):
    """Against every combination of widths, counted by a formula of its own for this network."""
    plan = pruning.plan(residual(), IMAGE, share, multiple)
    options = [[*range(multiple, full, multiple), full] for full in (16, 16, 24, 24, 32, 32)]

    def macs(a, b, c, d, e, f):  # stem, then three blocks on 8 x 8, 4 x 4 and 2 x 2
        small, tiny = c * a * 9 + c * d * 9 + a * d, e * d * 9 + e * f * 9 + d * f
        return 64 * (27 * a + 18 * a * b) + 16 * small + 4 * tiny + 10 * f

    whole = macs(16, 16, 24, 24, 32, 32)
    assert plan.before == whole
    nearest = min(abs(macs(*w) / whole - share) / share for w in itertools.product(*options))
    assert plan.error <= max(nearest, points.EQUAL) + 1e-9
    after = [width for _, width in plan.widths.values()]
    assert plan.after == macs(*after) and plan.reached == plan.after / whole
    assert all(width in choice for width, choice in zip(after, options, strict=True))


def test_the_most_even_of_equally_near_points():
    """Two equal layers in a row: a quarter less of both, not half of one."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    plan = pruning.plan(model, torch.zeros(2, 8), 24 * (8 + 24 + 8) / (32 * (8 + 32 + 8)))
    assert plan.widths == {"0": (32, 24), "2": (32, 24)}


def test_evenness_counts_more_than_the_last_hair(monkeypatch):
    plan = pruning.plan(residual(), IMAGE, 0.35)
    monkeypatch.setattr(points, "EQUAL", 0.0)
    nearest = pruning.plan(residual(), IMAGE, 0.35)
    spread = lambda plan: np.var([after / before for before, after in plan.widths.values()])
    assert nearest.error < plan.error <= 0.01 and spread(plan) < spread(nearest)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.8])
def test_the_search_finds_what_looking_at_all_finds(monkeypatch, share):
    whole = pruning.plan(residual(), IMAGE, share, 4)
    monkeypatch.setattr(points, "EVERY", 0)
    searched = pruning.plan(residual(), IMAGE, share, 4)
    spread = lambda plan: np.var([after / before for before, after in plan.widths.values()])
    assert searched.error <= max(whole.error, points.EQUAL)
    assert spread(searched) <= 1.3 * spread(whole) + 1e-3


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_deep_model_is_planned_evenly(share):
    model = networks.residual((16, 32, 64), channels=3, classes=10, blocks=9)  # ResNet-56
    plan = pruning.plan(model, torch.zeros(2, 3, 32, 32), share, 4)
    kept = [after / before for before, after in plan.widths.values()]
    assert len(kept) == 30 and plan.error <= points.EQUAL
    assert max(kept) - min(kept) <= 0.51 and abs(np.mean(kept) - share**0.5) < 0.1


def test_too_far_is_refused_with_points_that_can_be_reached():
    with pytest.raises(UsageError) as caught:
        pruning.plan(dense(), IMAGE, 0.65)
    (problem,) = caught.value.problems
    assert problem.place == "macs" and "multiples of 8" in problem.message
    shares = [float(s) for s in problem.hint.removeprefix("can be reached: ").partition(";")[0].split(", ")]
    assert min(shares) < 0.65 < max(shares)
    for share in shares:
        assert pruning.plan(dense(), IMAGE, share).error < 0.001
    nearest = float(problem.message.rsplit(" ", 1)[1])
    assert min(shares, key=lambda s: abs(s - 0.65)) == pytest.approx(nearest, abs=1e-3)


def test_at_most_takes_the_nearest_below():
    options = [pruning.plan(dense(), IMAGE, share / 100, at_most=True) for share in range(30, 101, 5)]
    for share, made in zip(range(30, 101, 5), options, strict=True):
        assert made.reached <= share / 100
    with pytest.raises(UsageError) as caught:
        pruning.plan(dense(), IMAGE, 0.65)
    hint = caught.value.problems[0].hint
    below = max(
        float(s) for s in hint.removeprefix("can be reached: ").partition(";")[0].split(", ") if float(s) < 0.65
    )
    assert f'`macs = "max 0.65"` takes {below:g}' in hint
    assert pruning.plan(dense(), IMAGE, 0.65, at_most=True).reached == pytest.approx(below, abs=1e-3)
    with pytest.raises(UsageError, match="at most 0.001 of the MACs can't be reached") as caught:
        pruning.plan(dense(), IMAGE, 0.001, 1, at_most=True)
    assert "smaller `multiple_of`" not in str(caught.value) and "takes" not in str(caught.value)


def test_what_cannot_be_pruned_is_named_when_it_stands_in_the_way():
    with pytest.raises(UsageError) as caught:
        pruning.plan(encoder(), SEQUENCE, 0.2)
    assert [p.place for p in caught.value.problems] == ["macs", "layer `embed`", "layer `qkv`"]
    with pytest.raises(UsageError, match="no layer of the model can be pruned") as caught:
        pruning.plan(nn.Sequential(reparametrized()[0], nn.Linear(64, 4)), VECTOR, 0.5)
    assert [p.place for p in caught.value.problems] == ["macs", "layer `0`", "layer `1`"] and "parametrization" in str(
        caught.value
    )


def test_the_plan_is_the_architecture_s():
    """Neither the weights nor the values of the example count; 1 keeps the model."""
    model = residual()
    first = pruning.plan(model, IMAGE, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    assert pruning.plan(model, torch.randn(IMAGE.shape), 0.5) == first
    whole = pruning.plan(residual(), IMAGE, 1.0)
    assert whole.reached == 1.0 and whole.widths == {} and pruning.prune(residual(), whole, magnitude()) == []


# ---------------------------------------------------------------- history


def test_a_history_that_does_not_fit_is_refused_whole():
    history = [
        pruning.history.removal("0", "out", 64, [1]),
        pruning.history.removal("9", "in", 64, [1]),
        pruning.history.removal("3", "in", 60, [1]),
    ]
    model = mlp()
    with pytest.raises(UsageError) as caught:
        pruning.apply(model, history)
    assert [p.place for p in caught.value.problems] == ["layer `9`", "layer `3`"]
    assert model[0].out_features == 64


def test_what_was_frozen_stays_frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    found, _ = pruning.groups(model, VECTOR)
    pruning.apply(model, removals(found, [[0, 1], []]))
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad and model[0].weight.shape == (62, 12)


# ---------------------------------------------------------------- criteria


@pytest.mark.parametrize("name", components.names("criteria"))
@pytest.mark.parametrize("model", ["residual", "grouped", "vgg", "normalised", "torch_encoder"])
def test_every_criterion_scores_every_channel(name, model):
    make, example, *_ = ZOO[model]
    built = make()
    for group in pruning.groups(built, example)[0]:
        scores = components.find("criteria", name)(pruning.weights.weights(built, group))
        assert scores.shape == (group.units,) and scores.isfinite().all()


def test_magnitude_by_hand_and_least_goes_first():
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight[:, 0] = torch.tensor([1.0, 2.0, 3.0])
        model[1].weight[0] = torch.tensor([5.0, -1.0, 0.5])
    (group,), _ = pruning.groups(model, torch.zeros(2, 1))
    assert magnitude()(pruning.weights.weights(model, group)).tolist() == [13.0, 2.5, 4.625]
    plan = pruning.plan(model, torch.zeros(2, 1), 2 / 3, 1)
    assert pruning.prune(model, plan, magnitude())[0]["removed"] == [1]
    assert model[0].weight[:, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("model", ["residual", "vgg", "dense", "u_net"])
def test_magnitude_is_torch_pruning_s(model):
    import torch_pruning as tp

    make, example, *_ = ZOO[model]
    built = make().eval()
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(torch.randn_like(p))
    graph = tp.DependencyGraph().build_dependency(built, example)
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)
    for group in pruning.groups(built, example)[0]:
        root = built.get_submodule(group.name)
        their = importance(
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, list(range(group.width)))
        )
        ours = magnitude()(pruning.weights.weights(built, group))
        torch.testing.assert_close(ours, their)


@pytest.mark.parametrize("model", ["residual", "dense"])
def test_norm_scale_is_torch_pruning_s(model):
    import torch_pruning as tp

    make, example, *_ = ZOO[model]
    built = make().eval()
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(torch.randn_like(p))
    graph, compared = tp.DependencyGraph().build_dependency(built, example), 0
    importance = tp.importance.BNScaleImportance(normalizer=None)
    for group in pruning.groups(built, example)[0]:
        channels = pruning.weights.weights(built, group)
        if not any(s.kind == "norm" for s in channels.slices):
            continue
        root = built.get_submodule(group.name)
        how = graph.get_pruner_of_module(root).prune_out_channels
        theirs = importance(graph.get_pruning_group(root, how, list(range(group.width))))
        torch.testing.assert_close(components.find("criteria", "norm_scale")(channels), theirs)
        compared += 1
    assert compared


@pytest.mark.parametrize("model", ["residual", "vgg", "dense", "u_net"])
def test_geometric_median_is_scipy_s_distances(model):
    from scipy.spatial.distance import cdist

    make, example, *_ = ZOO[model]
    built = make().eval()
    for group in pruning.groups(built, example)[0]:
        channels = pruning.weights.weights(built, group)
        out = lambda m: m.weight.transpose(0, 1) if isinstance(m, nn.ConvTranspose2d) else m.weight
        filters = [
            out(module).detach().numpy().reshape(group.width, -1)
            for name, module in built.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
            and (name, "out") in {(s.layer, s.side) for s in channels.slices}
        ]
        wanted = np.mean([cdist(f, f).sum(1) for f in filters], 0)
        ours = components.find("criteria", "geometric_median")(channels)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "scores", [lambda group: torch.zeros(3), lambda group: torch.full((group.channels,), float("nan"))]
)
def test_a_wrong_criterion_is_told(scores):
    with pytest.raises(UsageError, match="must return 16 finite scores"):
        pruning.prune(residual(), pruning.plan(residual(), IMAGE, 0.35), scores)


# ---------------------------------------------------------------- the stage


def small():
    return nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(1)
    return Task(
        "toy",
        "1",
        {"teacher": small, "student": small},
        arrays(x[:100], y[:100], x[100:], y[100:], validation=0.2),
        (),
        classes=3,
    )


def run_in(folder, task, **more):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Run(task, 0, 1, folder / "out", folder / "scratch", lambda split: load(task, split), **more)


@pytest.fixture
def trained(tmp_path, task):
    run = run_in(tmp_path / "student", task)
    Train(epochs=2)(None, run)
    return Artifact("key", "torch", {}, {}, "", {}, 0, {}, run.folder)


def made(stage, run, source, teacher=()):
    facts = stage(source, run, teacher=teacher).facts
    return Artifact("key", "torch", {}, {}, "", {}, 0, facts, run.folder)


def test_stage_prunes_recovers_and_reloads(tmp_path, task, trained):
    events = []
    run = run_in(tmp_path / "pruned", task, log=lambda **event: events.append(event))
    pruned = made(Prune(macs=0.5, multiple_of=4, epochs=3), run, trained, (trained,))  # the teacher runs live
    module = saved.load(pruned, task)
    macs, parameters = pruning.macs_and_parameters(module, torch.zeros(2, 6))
    assert (pruned.facts["macs"], pruned.facts["parameters"]) == (macs, parameters)
    assert (
        pruned.facts["reached"] == pytest.approx(macs / 1312, abs=1e-6) and abs(pruned.facts["reached"] - 0.5) <= 0.01
    )
    assert [module[0].out_features, module[3].out_features] == [after for _, after in pruned.facts["widths"].values()]
    assert set(pruned.facts["losses"]) == {"cross_entropy", "kl"} and events[0]["event"] == "pruned"
    json.dumps(dict(pruned.facts))


def test_stage_resumes_to_the_bit(tmp_path, task, trained, monkeypatch):
    monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
    stage = Prune(macs=0.5, multiple_of=4, epochs=3, criterion=Use("criteria", "random"), batch=32, **LABELS)
    whole = made(stage, run_in(tmp_path / "whole", task), trained)

    def stop(done, total, text):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(trained, run_in(tmp_path / "cut", task, progress=stop))
    torch.rand(7)
    again = made(stage, run_in(tmp_path / "cut", task), trained)
    for file in ("weights.safetensors", "model.json"):
        assert (whole.folder / file).read_bytes() == (again.folder / file).read_bytes()


def test_stage_prunes_nothing_at_1_but_trains_on_and_prunes_again(tmp_path, task, trained):
    same = made(Prune(macs=1.0, epochs=1, **LABELS), run_in(tmp_path / "same", task), trained)
    x = torch.randn(4, 6)
    assert same.facts["reached"] == 1.0 and same.facts["epochs"] == 1 and saved.record_of(same)["pruning"] == []
    assert not torch.equal(saved.load(same, task)(x), saved.load(trained, task)(x))
    once = made(Prune(macs=0.7, multiple_of=2, epochs=1, **LABELS), run_in(tmp_path / "once", task), trained)
    twice = made(Prune(macs=0.7, multiple_of=2, epochs=1, **LABELS), run_in(tmp_path / "twice", task), once)
    assert twice.facts["macs"] / once.facts["macs"] == pytest.approx(0.7, rel=0.02)
    assert saved.load(twice, task)(x).shape == (4, 3)


def test_stage_check_tells_before_training():
    assert Prune(macs=0.5, multiple_of=4).check(small(), torch.zeros(2, 6)) == []
    (problem,) = Prune(macs=0.05, multiple_of=16).check(small(), torch.zeros(2, 6))
    assert problem.place == "macs" and "can be reached" in problem.hint


def test_stage_check_calls_the_model_as_the_task_does_and_names_every_mistake():
    stage = Prune(macs=0.5, multiple_of=4)
    forward = lambda model, inputs: model(inputs["x"])
    assert stage.check(small(), {"x": torch.zeros(2, 6)}, forward) == []
    assert [p.place for p in stage.check(small(), {"x": torch.zeros(2, 6)})] == ["model"]
    wrong = Prune(macs=0.5, multiple_of=4, keep=("3x",)).check(small(), torch.zeros(2, 6))
    assert [p.place for p in wrong] == ["keep"] and "`3`" in wrong[0].hint
    kept = Prune(macs=0.7, multiple_of=1, keep=("0",))
    assert kept.check(small(), torch.zeros(2, 6)) == []


def test_stage_keeps_what_it_is_told_to(tmp_path, task, trained):
    kept = made(
        Prune(macs=0.7, multiple_of=1, epochs=1, keep=("0",), **LABELS), run_in(tmp_path / "kept", task), trained
    )
    assert list(kept.facts["widths"]) == ["3"] and saved.load(kept, task)[0].out_features == 32
