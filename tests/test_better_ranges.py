"""Weights and values made easier to hold before ranges are looked for, and roundings that are made up for
afterwards."""

import copy
import dataclasses
import hashlib
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import artifact, run_in, toy_task

from edgekd import quantization
from edgekd.errors import UsageError
from edgekd.models import saved
from edgekd.models.networks import ds_cnn, residual
from edgekd.quantization import grid as grids
from edgekd.quantization.torch_graph import exact, fake, modules
from edgekd.quantization.torch_graph.adaround import adaround, beta, learn, logit, rectified, regular
from edgekd.quantization.torch_graph.calibrate import calibrate
from edgekd.quantization.torch_graph.capture import capture
from edgekd.quantization.torch_graph.correction import correct, means
from edgekd.quantization.torch_graph.equalize import balance, equalize, groups, pairs, ranges_in, ranges_out, scaled_in
from edgekd.quantization.torch_graph.smooth import scales, smooth
from edgekd.quantization.watch import watch
from edgekd.records import Scheme
from edgekd.run import plan, resolve
from edgekd.stages.export import Export
from edgekd.stages.quantize import Quantize
from edgekd.stages.train import Train


def stirred(model, seed=0):
    """Random weights and batch statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            p.data = torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data = 1 + 0.3 * torch.randn(module.weight.shape, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settled(graph, data, bits=4, per_channel=True):
    module = calibrate(fake.insert(graph, Scheme(weight_bits=bits, per_channel=per_channel)), data)
    fake.settle(module.eval())
    return module


def snr(wanted, found):
    """dB"""
    return 10 * math.log10(wanted.square().sum().item() / (wanted - found).square().sum().item())


def difference(graph, x, wanted):
    return ((graph(x) - wanted).abs().max() / wanted.abs().max()).item()


def two(first, second):
    """Two linear layers with given weights, a ReLU between."""
    model = nn.Sequential(nn.Linear(first.shape[1], len(first)), nn.ReLU(), nn.Linear(second.shape[1], len(second)))
    model[0].weight.data, model[2].weight.data = first, second
    return model


class TestEqualize:
    def test_by_hand(self):
        """r1 = (8, 1), r2 = (2, 4): s = (sqrt(16) / 2, sqrt(4) / 4) = (2, 0.5); both layers end at (4, 2)."""
        model = two(torch.tensor([[8.0, -4.0], [0.5, -1.0]]), torch.tensor([[1.0, 4.0], [-2.0, 1.0]]))
        model[0].bias.data = torch.tensor([6.0, 3.0])
        graph = capture(model, torch.zeros(2, 2))
        assert equalize(graph) == [("linear", "linear_1")]
        found = dict(graph.named_parameters())
        assert torch.allclose(found["0__weight"], torch.tensor([[4.0, -2.0], [1.0, -2.0]]))
        assert torch.allclose(found["0__bias"], torch.tensor([3.0, 6.0]))
        assert torch.allclose(found["2__weight"], torch.tensor([[2.0, 2.0], [-4.0, 0.5]]))
        assert torch.equal(found["2__bias"], model[2].bias)

    @pytest.mark.parametrize(
        "model, shape, count",
        [
            (ds_cnn((8, 16, 12), classes=3), (4, 1, 20, 16), 5),
            (residual((8, 16), channels=1, classes=3), (4, 1, 8, 8), 2),
            (
                nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
                (4, 1, 8, 8),
                1,
            ),
            (
                nn.Sequential(nn.Conv2d(2, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1)),
                (4, 2, 8, 8),
                2,
            ),
            (
                nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6, bias=False), nn.Linear(6, 2)),
                (4, 3, 6),
                2,
            ),
            (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3)), (4, 3, 12), 1),
        ],
        ids=["depthwise", "residual", "flatten", "grouped", "rows", "1d"],
    )
    def test_the_model_computes_the_same_and_its_ranges_are_equal(self, model, shape, count):
        """Equal ranges on both sides of every pair are what the paper shows to be best (equations 8 to 11)."""
        x = noise(*shape)
        graph = capture(stirred(model), x)
        with torch.no_grad():
            wanted = graph(x)
        found = equalize(graph)
        assert len(found) == count and difference(graph, x, wanted) < 1e-5
        assert (ranges(graph)[0].log() - ranges(graph)[1].log()).abs().max() < 1e-3

    def test_channels_that_are_dead_on_either_side_keep_their_scale(self):
        """Also those that training left at next to nothing beside a bias that is not."""
        first, second = torch.ones(4, 2), torch.full((3, 4), 4.0)
        first[0], first[1], second[:, 2] = 0, 1e-9, 0
        graph = capture(two(first, second), torch.zeros(2, 2))
        before = copy.deepcopy(dict(graph.named_parameters()))
        equalize(graph)
        for name, tensor in graph.named_parameters():
            same = (slice(3),) if name != "2__weight" else (slice(None), slice(3))
            assert torch.equal(tensor[same], before[name][same]) and tensor.isfinite().all()
        assert torch.allclose(graph.get_parameter("2__weight")[:, 3], torch.tensor(2.0))
        assert balance(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0])).tolist() == [1.0, 2.0]

    def test_what_must_be_left_alone(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(4, 4, 1) for _ in range(5))
                self.up, self.same = nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 1)

            def forward(self, x):
                x = self.b(F.relu6(self.a(x)))  # clips
                y = self.c(x)
                x = self.d(F.relu(x)) + y  # read twice, and an addition
                x = self.e(self.up(torch.sigmoid(x)))  # not homogeneous, transposed
                return self.same(F.relu(self.same(x)))  # one weight in two places

        graph = capture(stirred(Odd()), noise(2, 4, 5, 5))
        before = copy.deepcopy(graph.state_dict())
        assert equalize(graph) == []
        assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())

    def test_unequal_channels_are_found_again(self):
        """Channels of a depthwise network scaled by 2^(2 n), n normal: calibration alone loses the output, and
        equalization gives it back."""
        x = noise(64, 1, 20, 16)
        graph = capture(stirred(ds_cnn((16, 16, 16), classes=4)), x)
        with torch.no_grad():
            wanted = graph(x)
        first = copy.deepcopy(graph)
        equalize(first)
        good = {how: snr(wanted, settled(first, [x], *how)(x)) for how in ((8, True), (8, False), (4, False))}
        plant(graph, 2.0)
        equal = copy.deepcopy(graph)
        equalize(equal)
        assert difference(graph, x, wanted) < 1e-4 and difference(equal, x, wanted) < 1e-4
        for how, before in good.items():
            planted, repaired = (snr(wanted, settled(g, [x], *how)(x)) for g in (graph, equal))
            assert planted < before - 10 and repaired > before - 2, (how, before, planted, repaired)

    def test_a_graph_with_ranges_is_refused(self):
        graph = capture(residual((4,), channels=1, classes=2).eval(), noise(2, 1, 6, 6))
        for part in (equalize, lambda g: smooth(g, [])):
            with pytest.raises(ValueError, match="before they are inserted"):
                part(fake.insert(graph))


def ranges(graph):
    """([n] ranges of all first layers' channels, [n] of all second layers') of a graph's pairs."""
    nodes = {n.name: n for n in graph.graph.nodes}
    weight = lambda name: getattr(graph, nodes[name].args[1].target)
    first = torch.cat([ranges_out(weight(p.first)) for p in pairs(graph)])
    return first, torch.cat([ranges_in(weight(p.second), groups(nodes[p.second]), p.width) for p in pairs(graph)])


def plant(graph, spread):
    """Unequal channels that change nothing of what the graph computes."""
    nodes = {n.name: n for n in graph.graph.nodes}
    with torch.no_grad():
        for number, pair in enumerate(pairs(graph)):
            weight, bias = (getattr(graph, a.target) for a in nodes[pair.first].args[1:3])
            scale = torch.exp2(spread * noise(len(weight), seed=number))
            weight.mul_(scale.reshape(-1, *[1] * (weight.ndim - 1)))
            bias.mul_(scale)
            after = getattr(graph, nodes[pair.second].args[1].target)
            after.copy_(scaled_in(after, 1 / scale, groups(nodes[pair.second]), pair.width))


def sites(module):
    """(weight, its part) of a fake-quantized graph."""
    return [
        (getattr(module, target).detach(), module.get_submodule(f"weight_{target}"))
        for target in module.meta["placement"].weights
    ]


class TestCorrection:
    def test_by_hand(self):
        """Weights (1, 0.4) at 2 bits are (1, 0): an input of mean 2 loses 0.8, which the bias then gives. Steps: 4 /
        255 * 1."""
        model = nn.Linear(2, 1)
        model.weight.data, model.bias.data = torch.tensor([[1.0, 0.4]]), torch.tensor([0.5])
        x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 2.0], [-0.0, 2.0]])
        graph = capture(model, x)
        module = settled(graph, [x], 2)
        shift = correct(module, graph, [x[:2], x[2:]])["linear"]
        assert shift == pytest.approx(0.8, abs=0.01)
        assert module.get_parameter("bias").item() == pytest.approx(1.3, abs=0.01)
        assert graph.get_parameter("bias").item() == 0.5

    def test_means_are_right_behind_corrected_layers(self):
        """In the arithmetic of the integer kernels, which knows nothing of the correction: every layer's mean is the
        float model's."""
        data = [noise(16, 1, 12, 12, seed=s) for s in range(4)]
        model = stirred(
            nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        )
        graph = capture(model, data[0])
        module, off = settled(graph, data), {}
        x = torch.cat(data)
        for when in ("before", "after"):
            if when == "after":
                assert list(correct(module, graph, data)) == ["conv2d", "conv2d_1", "conv2d_2"]
            off[when] = (exact.evaluate(module, x).mean((0, 2, 3)) - model(x).mean((0, 2, 3))).abs().max().item()
        step = module.get_submodule("value_conv2d_2").scale.item()
        assert off["after"] < 0.1 * step < 0.5 * off["before"]
        assert all(
            p.scale.equal(q.scale)
            for p, q in zip(
                fake.parts(settled(graph, data), modules.Weight), fake.parts(module, modules.Weight), strict=True
            )
        )

    def test_layers_without_a_bias_of_their_own_are_left(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.plain, self.twice = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)

            def forward(self, x):
                return self.twice(F.relu(self.twice(self.plain(x))))

        graph = capture(stirred(Net()), noise(8, 4))
        assert correct(settled(graph, [noise(8, 4)]), graph, [noise(8, 4)]) == {}

    def test_means_over_batches_of_any_size(self):
        graph = capture(stirred(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2))), noise(4, 2, 5))
        x = noise(7, 2, 5)
        found = means(graph, [x[:5], x[5:]], {"conv1d": 1, "linear": 1})
        weight, bias = graph.get_parameter("0__weight"), graph.get_parameter("0__bias")
        assert torch.allclose(found["conv1d"].float(), F.conv1d(x, weight, bias).mean((0, 2)), atol=1e-6)
        assert torch.allclose(found["linear"].float(), graph(x).mean(0), atol=1e-6)


class TestAdaround:
    def test_formulas_by_hand(self):
        # 0.75 * 1.2 - 0.1
        assert rectified(torch.tensor([0.0, 10.0, -10.0, math.log(3)])).tolist() == pytest.approx([0.5, 1, 0, 0.8])
        assert logit(torch.tensor([0.5, 0.8])).tolist() == pytest.approx([0, math.log(3)], abs=1e-6)
        share = torch.linspace(0, 1, 11)
        assert torch.allclose(rectified(logit(share)), share, atol=1e-6)
        assert regular(torch.tensor([0.0, 0.5, 0.75, 1.0]), 2.0).tolist() == [0, 1, 0.75, 0]
        assert [beta(s) for s in (0, 0.5, 1)] == pytest.approx([20, 11, 2])

    def test_nearly_as_good_as_trying_all(self):
        """12 weights of one output: of the 4,096 ways to round them up or down one of the very best, most times; the
        rest are local ends."""
        ranks, best, found = [], [], []
        for seed in range(6):
            weight, x = noise(1, 12, seed=seed), noise(200, 12, seed=10 + seed)
            for inputs in (x @ noise(12, 12, seed=20 + seed), (x + 1).relu()):
                scale = (weight.abs().max() / 3).reshape(1, 1)
                below = torch.floor(weight / scale)
                every = torch.clamp(below + torch.tensor(list(itertools.product((0.0, 1.0), repeat=12))), -3, 3)
                errors = (inputs @ (every * scale - weight).T).square().mean(0)
                points, change = learn(lambda x, w: x @ w.T, weight, scale, 3, inputs, inputs @ weight.T)
                assert ((points - below) * (points - below - 1) == 0).all() and points.abs().max() <= 3
                assert change.learned == pytest.approx(
                    (inputs @ (points * scale - weight).T).square().mean().item(), rel=1e-4
                )
                assert change.nearest == pytest.approx(
                    (inputs @ (torch.round(weight / scale) * scale - weight).T).square().mean().item(), rel=1e-4
                )
                ranks.append((errors < change.learned * (1 - 1e-4)).sum().item())
                best.append(errors.min().item() / change.nearest)
                found.append(change.learned / change.nearest)
        assert sorted(ranks)[len(ranks) // 2] <= 1 and sum(r < 10 for r in ranks) >= 10, ranks
        assert sum(best) / 12 < 0.75 and sum(found) <= 1.15 * sum(best), (found, best)

    def test_four_bits_lose_less_and_stay_on_their_grid(self):
        """On data that learning didn't see; rounding to the nearest gives the points chosen, and nothing else has
        changed."""
        data, new = [noise(32, 1, 8, 8, seed=s) for s in range(8)], noise(128, 1, 8, 8, seed=99)
        graph = capture(stirred(residual((8, 16), channels=1, classes=4)), new)
        before = copy.deepcopy(graph.state_dict())
        module = settled(graph, data)
        grid, plain = fake.grid_of(module), snr(graph(new), module(new))
        found = adaround(module, graph, data, steps=150)
        assert snr(graph(new), module(new)) > plain + 2
        assert set(found) == {n.name for n in graph.graph.nodes if n.name.startswith(("conv2d", "linear"))}
        assert all(c.learned <= c.nearest for c in found.values()) and any(c.flipped > 0.05 for c in found.values())
        assert all(torch.equal(t, before[n]) for n, t in graph.state_dict().items())
        assert fake.grid_of(module) == grid
        for (weight, part), target in zip(sites(module), module.meta["placement"].weights, strict=True):
            assert torch.equal(part(weight), weight)
            assert ((weight - before[target]).abs() < part.shaped(weight) * (1 + 1e-5)).all()

    def test_the_same_seed_gives_the_same_rounding(self):
        data = [noise(32, 6)]
        graph = capture(stirred(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))), data[0])
        modules = [settled(graph, data) for _ in range(2)]
        for module in modules:
            adaround(module, graph, data, steps=60, rows=8, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True))

    def test_nearest_rounding_stays_where_nothing_is_better(self):
        weight, x = torch.tensor([[1.0, 0.4]]), torch.eye(2)
        points, change = learn(lambda x, w: x @ w.T, weight, torch.ones(1, 1), 1, x, x @ weight.T, steps=50)
        assert (
            points.tolist() == [[1, 0]]
            and change.flipped == 0
            and change.learned == change.nearest == pytest.approx(0.08)
        )


class Block(nn.Module):
    """Attention whose three layers read one norm, and a feed-forward part behind another; `post`: norms after the
    addition."""

    def __init__(self, width=16, post=False):
        super().__init__()
        self.q, self.k, self.v, self.up, self.down = (
            *(nn.Linear(width, width) for _ in range(3)),
            nn.Linear(width, 32),
            nn.Linear(32, width),
        )
        self.norm1, self.norm2, self.post = nn.LayerNorm(width), nn.LayerNorm(width), post

    def forward(self, x):
        y = self.norm1(x)
        z = x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        z = self.norm2(z)
        return (z if self.post else x) + self.down(F.gelu(self.up(z)))


class TestSmooth:
    def test_by_hand(self):
        """sqrt(X / W) at 0.5; X at 1; 1 / W at 0."""
        x, w = torch.tensor([4.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 4.0, 2.0, 0.0])
        assert scales(x, w, 0.5).tolist() == [2, 0.5, 1, 1]
        assert scales(x, w, 1.0).tolist() == [4, 1, 1, 1] and scales(x, w, 0.0).tolist() == [1, 0.25, 1, 1]

    def test_values_and_weights_end_alike_and_the_model_computes_the_same(self):
        """At 0.5 the largest value of a feature and its largest weight, of all layers that read it, are the same."""
        x = noise(8, 5, 16)
        graph = capture(stirred(Block()), x)
        with torch.no_grad():
            wanted = graph(x)
        assert smooth(graph, [x[:3], x[3:]]) == {
            "layer_norm": ("linear", "linear_1", "linear_2"),
            "layer_norm_1": ("linear_3",),
        }
        assert difference(graph, x, wanted) < 1e-5
        (seen,) = watch(graph, [x], ["layer_norm", "layer_norm_1"])
        for norm, layers in (("layer_norm", "qkv"), ("layer_norm_1", ["up"])):
            weights = torch.cat([graph.get_parameter(f"{name}__weight") for name in layers])
            assert torch.allclose(seen[norm].abs().amax((0, 1)), weights.abs().amax(0), rtol=1e-4)

    def test_outlying_features_cost_less(self):
        x = noise(64, 5, 16)
        model = stirred(Block())
        for norm in (model.norm1, model.norm2):
            norm.weight.data[3], norm.bias.data[3] = 60.0, 20.0
        for layer in (model.q, model.k, model.v, model.up):
            layer.weight.data[:, 3] /= 60.0
        graph = capture(model, x)
        with torch.no_grad():
            wanted = graph(x)
        plain = snr(wanted, settled(graph, [x], 8)(x))
        smooth(graph, [x])
        assert snr(wanted, settled(graph, [x], 8)(x)) > plain + 6

    @pytest.mark.parametrize("between", [nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.Flatten(0, 1)])
    def test_what_only_moves_values_may_stand_between(self, between):
        x = noise(4, 5, 16)
        graph = capture(stirred(nn.Sequential(nn.LayerNorm(16), between, nn.Linear(16, 4))), x)
        with torch.no_grad():
            wanted = graph(x)
        assert smooth(graph, [x]) == {"layer_norm": ("linear",)}
        assert difference(graph, x, wanted) < 1e-5

    def test_a_norm_that_others_read_is_left(self):
        graph = capture(stirred(Block(post=True)), noise(4, 5, 16))
        assert smooth(graph, [noise(4, 5, 16)]) == {"layer_norm": ("linear", "linear_1", "linear_2")}
        graph = capture(
            stirred(nn.Sequential(nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 4))), noise(4, 16)
        )
        assert smooth(graph, [noise(4, 16)]) == {}


def test_watching_ends_with_the_last_node():
    graph = capture(stirred(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))), noise(4, 4))
    graph.get_parameter("2__weight").data = torch.zeros(1, 1)  # the last layer can't run any more
    (seen,) = watch(graph, [noise(4, 4)], ["relu"])
    assert torch.allclose(
        seen["relu"], F.linear(noise(4, 4), graph.get_parameter("0__weight"), graph.get_parameter("0__bias")).relu()
    )
    with pytest.raises(KeyError, match="no node nowhere"):
        list(watch(graph, [noise(4, 4)], ["nowhere"]))


class TestStage:
    @pytest.mark.parametrize("equalized", [False, True], ids=["plain", "equalized"])
    def test_what_it_makes_is_the_file(self, tmp_path, equalized):
        """Equalized, on the grid before any rounding, its mean that of the float model; and none of it where nothing
        of it is asked."""
        task = toy_task()
        run = run_in(tmp_path / "t", task)
        Train(epochs=6, batch=20, lr=0.02)(None, run)
        source, run = made_in(run), run_in(tmp_path / "q", task)
        how = {"before": ("equalize", "smooth"), "after": ("adaround", "bias_correction")} if equalized else {}
        facts = Quantize(mode="ptq", weight_bits=4, **how)(source, run).facts
        columns, quantized = run.data("train"), made_in(run, "quantized")
        graph, module, grid = quantization.load(quantized, task, quantization.example_of(columns))
        assert grid == grids.read(run.folder / "grid.json")
        assert Export()(quantized, run_in(tmp_path / "e", task)).facts["equality"]["equal"] == 1.0

        first, second = ranges(graph)
        on_grid = all(torch.equal(part(weight), weight) for weight, part in sites(module))
        x = torch.from_numpy(columns.inputs)
        off = (module(x).mean(0) - saved.load(source, task)(x).mean(0)).abs().max().item() / module.get_submodule(
            "value_linear_1"
        ).scale.item()
        assert ((first / second).log().abs().max() < 0.3) == on_grid == (off < 0.2) == equalized, (
            first,
            second,
            on_grid,
            off,
        )
        if equalized:
            assert facts["equalize"] == [["linear", "linear_1"]] and facts["smooth"] == []
            assert set(facts["adaround"]) == set(facts["bias_correction"]) == {"linear", "linear_1"}

    @pytest.mark.parametrize(
        "settings, text",
        [
            (
                {"before": ["equalise"]},
                "stage 2 (quantize): before.0: input should be 'equalize' or 'smooth', not 'equalise'",
            ),
            (
                {"mode": "ptq", "after": ["adaround", "bias"]},
                "stage 2 (quantize): after.1: input should be 'adaround' or 'bias_correction'",
            ),
            ({"after": ["adaround"]}, "stage 2 (quantize): after: works only without training"),
            (
                {"mode": "ptq", "after": ["bias_correction", "adaround"]},
                "stage 2 (quantize): after: `adaround` would change the rounding after biases are corrected",
            ),
        ],
    )
    def test_wrong_settings_are_told_before_anything_runs(self, settings, text):
        recipe_ = {
            "task": "digits",
            "threads": 1,
            "stage": [{"use": "distill", "epochs": 1}, {"use": "quantize", "epochs": 1, **settings}],
        }
        with pytest.raises(UsageError) as refused:
            plan.make(resolve.resolved(recipe_))
        assert any(text in str(p) for p in refused.value.problems), refused.value.problems


def made_in(run, form="torch"):
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.folder.iterdir()}
    return dataclasses.replace(artifact(run, form), files=files)
