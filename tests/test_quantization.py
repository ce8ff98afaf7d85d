"""The exported int8 file computes what the fake-quantized model does, for model families, planted oddities and random
graphs."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edgekd.errors import RunFailed, UsageError
from edgekd.formats import onnx as format
from edgekd.models.networks import perceptron, residual
from edgekd.quantization import calibrated, fake_quantized, parameters
from edgekd.quantization import grid as grids
from edgekd.quantization.parameters import Limits
from edgekd.quantization.torch_graph import check, exact, fake, integers, modules, ties
from edgekd.quantization.torch_graph.capture import capture, graph_digest
from edgekd.quantization.torch_graph.sites import place
from edgekd.records import Scheme
from edgekd.runtimes.onnxruntime import load


def stirred(model, seed=0):
    """Random weights, and batch statistics that folding must get right."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            p.data = (
                torch.randn(p.shape, generator=generator) * (0.5 if p.ndim > 1 else 0.1) / max(1, p[0].numel()) ** 0.5
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data = 1 + 0.2 * torch.randn(module.weight.shape, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


class Depthwise(nn.Module):
    """Depthwise and grouped convolutions, hard-swish, a concatenation, functional addition, a transposed
    convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.wide = nn.Sequential(nn.Conv2d(16, 16, 1, groups=4), nn.BatchNorm2d(16))
        self.up, self.head = nn.ConvTranspose2d(32, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.max_pool2d(torch.cat([F.relu(self.wide(self.deep(x)) + x), x], 1), 2)
        return self.head(F.relu(self.up(y)).mean((2, 3)))


class Encoder(nn.Module):
    """Attention written out, layer norm, GELU, positions as a parameter."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads, self.q, self.k, self.v, self.o = heads, *(nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2, self.up, self.down = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.Linear(width, 32),
            nn.Linear(32, width),
        )
        self.position, self.head = nn.Parameter(torch.zeros(1, 6, width)), nn.Linear(width, 4)

    def forward(self, x):
        x = x + self.position
        b, t, w = x.shape
        q, k, v = (f(self.norm1(x)).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = torch.softmax(q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5, -1)
        x = x + self.o((a @ v).transpose(1, 2).reshape(b, t, w))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class Twice(nn.Module):
    """A module called twice, a weight shared by two layers, a branch that is read three times, and an output that was
    only moved."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.a, self.b = (
            nn.Conv2d(4, 4, 3, 1, 1),
            nn.BatchNorm2d(4),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )
        self.b.weight = self.a.weight

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        y = F.relu(self.norm(self.conv(y))) + y
        z = F.avg_pool2d(y, 2).flatten(2).mean(1).flatten(1)
        return torch.reshape(self.b(F.relu(self.a(z))) * z, (-1, 16))


FAMILIES = {
    "residual": (lambda: residual((8, 16), channels=3, classes=7), (3, 12, 12)),
    "depthwise": (Depthwise, (3, 16, 16)),
    "encoder": (Encoder, (6, 16)),
    "perceptron": (lambda: perceptron((24, 16), features=10, classes=3), (10,)),
    "twice": (Twice, (4, 8, 8)),
}


def data(shape, rows, seed=1):
    return torch.randn((rows, *shape), generator=torch.Generator().manual_seed(seed))


def exported(model, x, folder, **how):
    """(fake-quantized outputs, file outputs, grid, file, {site: name}) of a model calibrated on x."""
    module = calibrated(model, [x], **how)
    grid, graph = fake.settle(module), capture(model, x[:2])
    graph.load_state_dict({n: t for n, t in module.state_dict().items() if n in graph.state_dict()})
    path = folder / "model.onnx"
    names = format.export(graph, grid, x[:2], path)
    ours = exact.Settled(fake.apply(graph, grid))(x).numpy()
    return ours, load(str(path), 1)({"input": x.numpy()})["output"], grid, path, names


@pytest.fixture(params=FAMILIES)
def family(request):
    make, shape = FAMILIES[request.param]
    return request.param, stirred(make()), data(shape, 400)


class TestFamilies:
    def test_capture_is_the_model(self, family):
        _, model, x = family
        graph = capture(model, x[:2])
        assert torch.allclose(graph(x), model(x), atol=1e-5)
        assert not any("batch_norm" in str(n.target) for n in graph.graph.nodes)
        assert graph_digest(graph) == graph_digest(capture(stirred(model, seed=9), x[:2]))

    def test_float_file_is_the_model(self, family, tmp_path):
        _, model, x = family
        format.export(capture(model, x[:2]), None, x[:2], tmp_path / "m.onnx")
        for rows in (1, 3, 400):  # the batch is dynamic
            assert np.allclose(
                load(str(tmp_path / "m.onnx"), 1)({"input": x[:rows].numpy()})["output"],
                model(x[:rows]).detach().numpy(),
                atol=1e-5,
            )

    def test_int8_file_is_the_fake_quantized_model(self, family, tmp_path):
        import onnx

        name, model, x = family
        ours, theirs, grid, path, names = exported(model, x, tmp_path)
        step = grid.sites[list(names)[-1]].scale[0]
        equality = check.compare(ours, theirs, step)
        assert equality.reasons == () and equality.equal >= 0.999, equality
        assert [k.partition("(")[0] for k in format.float_kernels(path)] == (
            ["ConvTranspose"] if name == "depthwise" else []
        )  # onnxruntime has no such
        assert abs(ours - model(x).detach().numpy()).mean() < 0.1 * model(x).std()  # and it is no other model
        # weights stand once, as int8
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        large = [t for t in tensors.values() if t.ndim > 1 and t.size > 24 and t.dtype == np.float32]
        # positions are added in float
        assert [t.shape for t in large] == ([(1, 6, 16)] if isinstance(model, Encoder) else [])
        unique = {id(p): p for p in capture(model, x[:2]).parameters() if p.ndim > 1 and p.shape != (1, 6, 16)}
        assert sorted(t.size for t in tensors.values() if t.dtype == np.int8 and t.ndim > 1) == sorted(
            p.numel() for p in unique.values()
        )

    def test_training_steps_have_gradients_everywhere(self, family):
        _, model, x = family
        for learned in (False, True):
            module = fake_quantized(model, x, learned=learned).train()
            module(x[:32]).square().sum().backward()
            dead = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert dead == []


def test_grid_round_trip(tmp_path):
    model, x = stirred(residual((8, 16), channels=3, classes=7)), data((3, 8, 8), 64)
    module = calibrated(model, [x])
    grid = fake.settle(module)
    grids.write(grid, tmp_path / "grid.json")
    assert grids.read(tmp_path / "grid.json") == grid
    with torch.no_grad():
        assert torch.equal(fake.apply(capture(model, x[:2]), grid)(x), module(x))
    with pytest.raises(RunFailed, match="another graph"):
        fake.apply(capture(stirred(residual((8,), channels=3, classes=7)), x[:2]), grid)


def test_grid_by_hand():
    assert parameters.scale_and_zero_point(-1.0, 1.55, 255) == (pytest.approx(0.01, rel=1e-6), 100)
    assert parameters.scale_and_zero_point(0.5, 2.55, 255) == (pytest.approx(0.01, rel=1e-6), 0)  # zero is always held
    assert parameters.scale_and_zero_point(-2.0, -1.0, 255)[1] == 255
    assert parameters.scale_and_zero_point(0.0, 0.0, 255) == (1.0, 0)


def test_what_a_grid_absorbs_by_hand():
    six = Limits(0.0, 6.0)
    assert parameters.clips_itself(six, 6 / 255, 0, 255) and parameters.clips_itself(six, 0.01, 0, 255)
    # 7.65 and -0.05 stay on the grid
    assert not parameters.clips_itself(six, 0.03, 0, 255) and not parameters.clips_itself(six, 0.01, 5, 255)
    assert parameters.scale_and_zero_point(-1.0, 1.0, 255, Limits(-1.0, 1.0)) == (pytest.approx(2 / 255, rel=2e-6), 128)
    assert parameters.clips_itself(
        Limits(-1.0, 1.0), *parameters.scale_and_zero_point(-1.0, 1.0, 255, Limits(-1.0, 1.0)), 255
    )
    assert parameters.scale_and_zero_point(0.1, 0.7, 255, Limits(share=True)) == (1 / 256, 0)


def test_exact_arithmetic_by_hand():
    value = modules.Value("v", 8)
    value.set_range(-1.0, 1.55)
    value.mode = "exact"
    x = torch.tensor([-2.0, -1.0, 0.0, 0.004, 0.006, 1.55, 9.0])
    assert torch.allclose(value(x), torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.01, 1.55, 1.55]), atol=1e-6)
    half = modules.Value("h", 8)
    half.set_range(0.0, 255.0)
    half.mode = "exact"
    assert half(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0.0, 2.0, 2.0]  # half to even


def test_fused_training_arithmetic_is_the_exact_one():
    """Where no tie is near, the fused operators of training round as evaluation does."""
    model, x = stirred(residual((8, 16), channels=3, classes=7)), data((3, 8, 8), 64)
    module = fake_quantized(model, x)
    fake.freeze(module)
    with torch.no_grad():
        trained = module.train()(x)
        exact = fake.set_mode(module.eval(), "exact")(x)
    step = fake.grid_of(module).sites[list(place(capture(model, x[:2])).values)[-1]].scale[0]
    assert (torch.round((trained - exact).abs() / step) <= 1).all() and (
        (trained - exact).abs() < step / 4
    ).float().mean() > 0.97


def test_weights_of_pairs_leave_a_step_for_each_to_be_rounded_up():
    """By hand: 0.76 and 0.5 add up to 126 steps of 0.01, so that rounded up by a whole step each they are 128 at
    most."""
    weight = torch.tensor([[0.76, 0.5, -0.3, 0.1], [0.1, -0.2, 0.06, 2.46]])
    assert modules.Weight("w", 0, 8, False, weight, (0, 1)).scale.tolist() == pytest.approx([0.01, 0.02])
    assert modules.Weight("w", -1, 8, False, weight, (0, 1)).scale.tolist() == pytest.approx([0.02])
    # 7 bits can't reach it
    assert modules.Weight("w", 0, 7, False, weight, (0, 1)).scale.tolist() == pytest.approx([0.76 / 63, 2.46 / 63])


def test_a_relu_that_waits_cuts_at_the_grids_zero():
    """By hand: sums and additions of whole numbers -3 to 3 onto a grid with zero point 10, cut at zero where there
    is a ReLU."""
    value, q = modules.Value("v", 8), torch.tensor([[-3.0, -1.0, 0.0, 2.0, 3.0]]).double()
    value.zero_point.fill_(10)
    one, none = integers.Quantized(q, np.float32(1), 0), integers.Quantized(torch.zeros_like(q), np.float32(1), 0)
    for relu, wanted in ((False, [-3, -1, 0, 2, 3]), (True, [0, 0, 0, 2, 3])):
        for waiting in (integers.Sum(q, np.ones(1, np.float32), 1, relu), integers.Two(one, none, relu=relu)):
            assert integers.requantize(value, waiting).q.tolist() == [wanted] == waiting.real().tolist()


def test_biases_round_at_the_product_of_scales_and_pass_the_gradient():
    value, weight = modules.Value("v", 8), modules.Weight("w", 0, 8, False, torch.tensor([[1.27], [2.54]]))
    value.set_range(0.0, 2.55)
    bias = modules.Bias(value, weight)
    b = torch.tensor([0.00014, 0.00014], requires_grad=True)
    for mode in ("train", "exact"):
        bias.mode = mode
        assert torch.allclose(bias(b), torch.tensor([0.0001, 0.0002]), atol=1e-8)  # steps 0.01 * 0.01 and 0.01 * 0.02
    bias.mode = "train"
    bias(b).sum().backward()
    assert b.grad.tolist() == [1.0, 1.0]


def test_learned_ranges_have_the_gradients_of_torch():
    """Against torch's learnable operators (LSQ)."""
    x, g = data((5, 7), 8) * 2, data((5, 7), 8, seed=2)
    value = modules.Value("v", 8, True)
    value.set_range(-3.0, 4.0)
    value.mode = "train"
    ours, theirs, scale = x.clone().requires_grad_(), x.clone().requires_grad_(), value.scale.clone().requires_grad_()
    value(ours).backward(g)
    torch._fake_quantize_learnable_per_tensor_affine(
        theirs, scale, value.zero_point.float(), 0, 255, (35 * 255) ** -0.5
    ).backward(g)
    assert torch.equal(ours.grad, theirs.grad) and torch.allclose(value.gain.grad, scale.grad * value.scale)
    assert (ours.grad == 0).any()  # some values are outside
    weight = modules.Weight("w", 0, 8, True, 0.7 * x)
    weight.mode = "train"
    ours, theirs, scale = x.clone().requires_grad_(), x.clone().requires_grad_(), weight.scale.clone().requires_grad_()
    weight(ours).backward(g)
    torch._fake_quantize_learnable_per_channel_affine(
        theirs, scale, torch.zeros(8), 0, -127, 127, (35 * 127) ** -0.5
    ).backward(g)
    assert torch.equal(ours.grad, theirs.grad) and torch.allclose(
        weight.gain.grad, scale.grad * weight.scale, atol=1e-6
    )


# of the full range: pairs within 16 bits may stay below
@pytest.mark.parametrize("bits, most", [(8, 127), (7, 63), (4, 7)])
def test_weight_bits_bound_the_file(tmp_path, bits, most):
    import onnx

    model, x = stirred(residual((8,), channels=3, classes=7)), data((3, 8, 8), 64)
    ours, theirs, grid, path, names = exported(model, x, tmp_path, scheme=Scheme(weight_bits=bits, pairs16=False))
    assert check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0]).reasons == ()
    tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    assert max(abs(t.astype(int)).max() for t in tensors if t.dtype == np.int8 and t.ndim > 1) == most


class TestOddities:
    def check(self, model, x, folder):
        ours, theirs, grid, path, names = exported(model, x, folder)
        equality = check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0])
        assert equality.reasons == () and equality.equal > 0.999, equality
        assert all(np.isfinite(s.scale).all() and min(s.scale) > 0 for s in grid.sites.values())
        floats = model(x).detach().numpy()  # a file that clips as its own model does is no other's
        assert np.square(theirs - floats).mean() <= 0.1**2 * np.square(floats).mean()
        return ours

    def test_dead_channels_with_a_bias(self, tmp_path):
        model = stirred(residual((8, 16), channels=3, classes=7))
        conv = model[3].conv1
        conv.weight.data[2:5] = 0
        self.check(model, data((3, 8, 8), 200), tmp_path)

    def test_a_layer_of_zeros(self, tmp_path):
        model = stirred(residual((8, 16), channels=3, classes=7))
        model[-1].weight.data.zero_()
        model[-1].bias.data.zero_()
        assert not self.check(model, data((3, 8, 8), 50), tmp_path).any()

    def test_an_outlier_channel_and_huge_values(self, tmp_path):
        model = stirred(residual((8, 16), channels=3, classes=7))
        model[3].conv1.weight.data[1] *= 1e4
        self.check(model, data((3, 8, 8), 200) * 1e3, tmp_path)

    def test_a_tiny_channel_with_a_large_bias(self, tmp_path):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        stirred(model)
        model[0].weight.data[3] *= 1e-9
        model[0].bias.data[3] = 2.0
        self.check(model, data((3, 8, 8), 100), tmp_path)

    @pytest.mark.parametrize("per_channel", [True, False])
    def test_a_bias_that_would_not_fit_takes_a_wider_scale_by_hand(self, per_channel):
        """Inputs in steps of 1 and weights of 127e-9: a bias of 2**30 steps of 1e-9 just fits, twice it takes steps of
        2e-9."""
        model = nn.Linear(1, 3)
        model.weight.data = torch.full((3, 1), 127e-9)
        model.bias.data = torch.tensor([1.0, 2.0**30, 2.0**31]) * 1e-9
        module = calibrated(
            model, [torch.tensor([[0.0], [255.0]])], scheme=Scheme(per_channel=per_channel, pairs16=False)
        )
        scale = fake.settle(module).sites["weight"].scale
        assert scale == pytest.approx([1e-9, 1e-9, 2e-9] if per_channel else [2e-9], rel=1e-6)

    def test_constant_input(self, tmp_path):
        self.check(stirred(residual((8,), channels=3, classes=7)), torch.zeros(8, 3, 8, 8), tmp_path)

    def test_one_sample(self, tmp_path):
        model = stirred(residual((8,), channels=3, classes=7))
        module = calibrated(model, [data((3, 8, 8), 2)[:2]])
        assert fake.settle(module).sites

    def test_softmax_at_the_end(self, tmp_path):
        """onnxruntime's integer softmax wraps around on any grid but that of 1/256."""
        model = nn.Sequential(stirred(nn.Linear(8, 5)), nn.Softmax(-1))
        assert self.check(model, data((8,), 200), tmp_path).max() < 1

    def test_clips_of_all_kinds_keep_integer_kernels(self, tmp_path):
        class Clips(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(5))

            def forward(self, x):
                clips = [
                    F.hardtanh,
                    F.relu6,
                    lambda x: x.clamp(-2, 1),
                    lambda x: torch.clamp(x, max=0.5),
                    lambda x: torch.clamp(x, min=0),
                ]
                for layer, clip in zip(self.layers, clips, strict=True):
                    x = clip(layer(x) * 1.0 if clip is F.relu6 else layer(x))
                return x

        model = stirred(Clips())
        for layer in model.layers:
            layer.weight.data *= 8
        self.check(model, data((3, 5, 5), 100), tmp_path)
        assert format.float_kernels(tmp_path / "model.onnx") == []

    def test_a_clip_that_no_grid_makes_is_computed(self, tmp_path):
        class Floor(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

            def forward(self, x):
                return self.b(self.a(x).clamp(0.2, 0.4))

        self.check(stirred(Floor()), data((3, 5, 5), 100), tmp_path)

    def test_a_value_read_as_it_is_and_cut_at_zero_lies_on_one_grid(self, tmp_path):
        """onnxruntime makes one of two grids with nothing between them, and then rounds once where the model rounds
        twice."""

        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

            def forward(self, x):
                y = self.a(x).flatten(2).reshape(-1, 8, 4, 4)
                return self.b(F.relu(y[:, :, 1:])) + y[:, :, 1:] * 1.0

        model, x = stirred(Both()), data((3, 6, 6), 200)
        graph = capture(model, x[:2])
        assert not any("mul" in str(n.target) for n in graph.graph.nodes) and torch.allclose(
            graph(x), model(x), atol=1e-6
        )
        assert [n.partition("_")[0] for n in place(graph).values] == ["x", "conv2d", "conv2d", "add"]
        self.check(model, x, tmp_path)
        assert format.float_kernels(tmp_path / "model.onnx") == []

    def test_split_values_stay_integers(self, tmp_path):
        class Shuffled(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 3, 1, 1)

            def forward(self, x):
                left, right = F.relu(self.a(x)).chunk(2, 1)
                x = torch.cat([left, self.b(right)], 1)
                return x.view(-1, 2, 4, 6, 6).transpose(1, 2).reshape(-1, 8, 6, 6).mean((2, 3))

        self.check(stirred(Shuffled()), data((8, 6, 6), 100), tmp_path)
        assert format.float_kernels(tmp_path / "model.onnx") == []

    def test_what_a_recurrent_layer_gives_has_a_site(self, tmp_path):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

            def forward(self, x):
                return self.head(self.gru(x)[0][:, -1])

        self.check(stirred(Recurrent()), data((5, 6), 100), tmp_path)
        assert [k.split("(")[0] for k in format.float_kernels(tmp_path / "model.onnx")] == ["GRU"]

    @pytest.mark.parametrize("masked", [False, True])
    def test_fused_attention_is_written_out(self, tmp_path, masked):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

            def forward(self, x):
                q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
                return self.head(
                    F.scaled_dot_product_attention(q, k, v, is_causal=masked).transpose(1, 2).reshape(-1, 5, 8).mean(1)
                )

        model, x = stirred(Attention()), data((5, 8), 100)
        assert torch.allclose(capture(model, x[:2])(x), model(x), atol=1e-6)
        self.check(model, x, tmp_path)
        assert format.float_kernels(tmp_path / "model.onnx") == []

    def test_tiny_values_keep_fine_steps(self):
        """torch's own observer makes no step finer than 6.1e-5."""
        model, x = stirred(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))), data((4,), 64) * 1e-5
        for layer in (model[0], model[2]):
            layer.bias.data.zero_()
        module = fake_quantized(model, x).train()
        for _ in range(3):
            outputs = module(x)
        assert outputs.unique().numel() > 40
        assert max(s.scale[0] for s in fake.settle(module.eval()).sites.values() if s.axis is None) < 1e-6

    def test_nan_in_calibration_names_the_site(self):
        x = data((3, 8, 8), 8)
        x[3, 0, 0, 0] = float("nan")
        with pytest.raises(RunFailed, match="not finite at `input"):
            calibrated(stirred(residual((8,), channels=3, classes=7)), [x])

    def test_control_flow_on_values_is_refused(self):
        class Branch(nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x

        with pytest.raises(UsageError, match="can't be captured"):
            capture(Branch(), data((3,), 4))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    model, x = stirred(residual((8, 16), channels=3, classes=7)), data((3, 12, 12), 200)
    module = calibrated(model, [x])
    grid, graph = fake.settle(module), capture(model, x[:2])
    graph.load_state_dict({n: t for n, t in module.state_dict().items() if n in graph.state_dict()})
    names = format.export(graph, grid, x[:2], folder / "model.onnx")
    return fake.apply(graph, grid), grid, folder / "model.onnx", names, x


class TestPlantedDefects:
    """The layer whose numbers were changed in the file is the one that is named."""

    @pytest.mark.parametrize("number", [0, 2, 4])
    @pytest.mark.parametrize("operand, word", [(1, "weight"), (2, "bias")])
    def test_the_layer_is_named(self, sound, tmp_path, number, operand, word):
        import onnx

        module, grid, path, names, x = sound
        model = onnx.load(path)
        makers = {o: n for n in model.graph.node for o in n.output}
        conv = [n for n in model.graph.node if n.op_type == "Conv"][number]
        store = makers[conv.input[operand]].input[0]
        for tensor in model.graph.initializer:
            if tensor.name == store:
                array = onnx.numpy_helper.to_array(tensor).copy()
                array[1] = array[1] // 2 + 40 if operand == 1 else array[1] + 40000
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, store))
        onnx.save(model, tmp_path / "broken.onnx")
        ours = exact.Settled(module)(x).numpy()
        theirs = load(str(tmp_path / "broken.onnx"), 1)({"input": x.numpy()})["output"]
        equality = check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0])
        assert equality.reasons
        told = check.first_difference(module, grid, tmp_path / "broken.onnx", names, x[:32], {"input": x[:32].numpy()})
        values = [s for s in grid.sites if s in names]
        convs = [n.output[0] for n in model.graph.node if n.op_type == "Conv"]
        after = {v: k for k, v in names.items()}
        reached, value = None, convs[number]
        while reached is None:  # the site that the layer's value arrives at
            node = next(n for n in model.graph.node if value in n.input)
            value = node.output[0]
            reached = after.get(value)
        assert told.startswith(f"first at `{reached}`") and reached in values, told
        assert word in told or operand == 1

    def test_the_rule(self):
        model = np.zeros((100, 3), np.float32)
        assert check.compare(model, model, 0.1).reasons == ()
        far = model.copy()
        far[0, 0] = 0.2
        assert "2.0 steps" in check.compare(model, far, 0.1).reasons[0]
        many = model + 0.1 * (np.arange(300).reshape(100, 3) % 10 == 0)
        assert "90.00 % of the outputs" in check.compare(model, many, 0.1).reasons[0]
        ours, theirs = np.array([[0.0, 0.3]]), np.array([[0.3, 0.2]])
        assert any("more than one step apart" in r for r in check.compare(ours, theirs, 0.1).reasons)
        rare = np.zeros((1000, 3))
        rare[7, 1] = 0.2
        assert "2.0 steps" in check.compare(np.zeros((1000, 3)), rare, 0.1).reasons[0]
        assert check.compare(np.zeros((1000, 3)), rare, 0.1, floats=True).reasons == ()  # one value in three thousand
        assert check.compare(np.zeros((1000, 3)), 2 * rare, 0.1, floats=True).reasons  # 4 steps
        # one in three hundred
        assert "2.0 steps" in check.compare(np.zeros((100, 3)), rare[:100], 0.1, floats=True).reasons[0]
        assert check.compare(model, np.full_like(model, np.nan), 0.1).reasons


class TestTies:
    """A value that is a function of one grid takes 256 numbers: none of them may lie where two libraries round
    apart."""

    class Activated(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function, self.first, self.conv = function, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3)
            self.slopes = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1))

        def forward(self, x):
            return self.conv(self.function(self.first(x), self.slopes))

    def test_by_hand(self):
        values = torch.tensor([0.75, 2.0, 9.0])  # 9 steps are cut off at 7
        assert (
            ties.margin(values, 1.0, 0, 7) == 0.25
            and ties.margin(values, 0.5, 0, 7) == 0.0
            and ties.margin(values[2:], 1.0, 0, 7) == 0.5
        )
        assert ties.margin(-values, 1.0, 2, 7) == 0.25

    @pytest.mark.parametrize("function, made", [
        (lambda x, s: F.silu(x), "silu"), (lambda x, s: F.gelu(x), "gelu"), (lambda x, s: F.hardswish(x), "hardswish"),
        (lambda x, s: torch.sigmoid(x), "sigmoid"), (lambda x, s: F.elu(x * s), "elu"),
    ])  # fmt: skip
    def test_a_scale_that_ends_beside_a_tie_is_widened(self, function, made):
        module = calibrated(stirred(self.Activated(function)), [data((3, 6, 6), 50)])
        value, found = module.get_submodule(f"value_{made}"), ties.table(module, made)
        assert len(found) == 256
        tie = (found.max() / 100.5).item()  # the greatest lies between steps 100 and 101
        value.scale.fill_(tie)
        assert ties.margin(found, tie, value.zero_point.item(), 255) < 1e-4
        fake.settle(module)
        scale = value.scale.item()
        assert (
            tie < scale < 1.004 * tie
            and ties.margin(ties.table(module, made), scale, value.zero_point.item(), 255) >= ties.MARGIN
        )

    def test_other_values_keep_their_scale(self):
        """Sums over channels, and what is computed from two values."""
        for function in (lambda x, s: F.layer_norm(x, (6,)), lambda x, s: torch.sigmoid(x) - x.flip(1)):
            module = calibrated(stirred(self.Activated(function)), [data((3, 6, 6), 50)])
            before = {v.name: v.scale.item() for v in fake.parts(module, modules.Value)}
            assert [v.name for v in fake.parts(module, modules.Value) if ties.table(module, v.name) is not None] == []
            fake.settle(module)
            assert {v.name: v.scale.item() for v in fake.parts(module, modules.Value)} == before


@st.composite
def graphs(draw):
    """Small random networks: convolutions, pools, additions, concatenations, activations."""
    steps = draw(
        st.lists(
            st.sampled_from(["conv", "deep", "relu", "add", "cat", "pool", "max", "swish", "mul"]),
            min_size=2,
            max_size=6,
        )
    )
    return tuple(steps), draw(st.integers(0, 1000))


class Random(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.steps, self.layers, width = steps, nn.ModuleList(), 4
        for step in steps:
            self.layers.append(
                {"conv": nn.Conv2d(width, 8, 3, 1, 1), "deep": nn.Conv2d(width, width, 3, 1, 1, groups=width)}.get(
                    step, nn.Identity()
                )
            )
            width = {"conv": 8, "cat": 2 * width}.get(step, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        before = x
        for step, layer in zip(self.steps, self.layers, strict=True):
            y = layer(x)
            if step == "add":
                y = y + (before if before.shape == y.shape else y)
            before, x = x, OTHERS.get(step, lambda t: t)(y)
        return self.head(x.mean((2, 3)))


OTHERS = {
    "relu": F.relu,
    "swish": F.silu,
    "pool": lambda t: F.avg_pool2d(t, 2, 1),
    "max": lambda t: F.max_pool2d(t, 3, 1, 1),
    "cat": lambda t: torch.cat([t, t.relu()], 1),
    "mul": lambda t: t * torch.sigmoid(t),
}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(graphs())
# one of the 256 values that swish is given ends beside a tie
@example((("cat", "max", "mul", "swish", "relu", "conv"), 239))
def test_random_graphs_agree(tmp_path_factory, drawn):
    steps, seed = drawn
    model, x = stirred(Random(steps), seed), data((4, 10, 10), 200, seed)
    ours, theirs, grid, path, names = exported(model, x, tmp_path_factory.mktemp("random"))
    equality = check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0])
    assert equality.reasons == (), (steps, seed, equality)
    assert format.float_kernels(path) == []


def test_sums_of_two_grids_are_the_kernels_to_the_last_bit():
    """Random scales and zero points, all 65,536 pairs of values each, against onnxruntime's own QLinearAdd."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from edgekd.quantization.torch_graph.integers import Quantized, sum_of_two

    rng = np.random.default_rng(0)
    qa, qb = (grid.ravel().astype(np.uint8) for grid in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    for _ in range(40):
        scales, zeros = rng.uniform(0.01, 0.3, 3).astype(np.float32), rng.integers(0, 256, 3)
        names = [f"{kind}{i}" for i in range(3) for kind in "sz"]
        values = [
            v for s, z in zip(scales, zeros, strict=True) for v in (np.array(s, np.float32), np.array(z, np.uint8))
        ]
        tensor = lambda name: helper.make_tensor_value_info(name, TensorProto.UINT8, ["n"])
        node = helper.make_node(
            "QLinearAdd", ["a", *names[:2], "b", *names[2:4], *names[4:]], ["y"], domain="com.microsoft"
        )
        constants = [numpy_helper.from_array(v, n) for n, v in zip(names, values, strict=True)]
        graph = helper.make_graph([node], "sum", [tensor("a"), tensor("b")], [tensor("y")], constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        raw = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        theirs = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"]).run(None, {"a": qa, "b": qb})[0]
        a, b = (
            Quantized(torch.from_numpy(q.astype(np.float64) - z), s, int(z))
            for q, s, z in zip((qa, qb), scales[:2], zeros[:2], strict=True)
        )
        ours = torch.clamp(sum_of_two(a, b, scales[2], int(zeros[2])) + 0.0, 0, 255)
        assert np.array_equal(ours.numpy().astype(np.uint8), theirs)


class Words(nn.Module):
    """A table that is looked up, and one that a layer shares."""

    def __init__(self):
        super().__init__()
        self.table, self.shared, self.hidden = nn.Embedding(50, 12), nn.Embedding(20, 12), nn.Linear(12, 12)

    def forward(self, ids):
        x = self.hidden(self.table(ids) + self.shared(ids % 20))
        return F.linear(x.mean(1), self.shared.weight)


def test_a_table_is_stored_and_looked_up_in_integers(tmp_path):
    """By hand: a column of the table has one scale, its largest value over 127. One that a layer reads too has that
    layer's scales."""
    torch.manual_seed(0)
    model, ids = Words(), torch.randint(0, 50, (64, 5))
    ours, theirs, grid, path, names = exported(model, ids, tmp_path)
    assert check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0]).reasons == ()
    site = grid.sites["table.weight"]
    assert site.axis == 1 and site.scale == pytest.approx((model.table.weight.abs().amax(0) / 127).tolist())
    assert grid.sites["shared.weight"].axis == 0
    graph = onnx.load(path).graph
    stored = {i.name: i for i in graph.initializer}
    gathers = [
        n for n in graph.node if n.op_type == "Gather" and n.input[0] in stored and len(stored[n.input[0]].dims) == 2
    ]
    assert [(list(stored[n.input[0]].dims), stored[n.input[0]].data_type) for n in gathers] == [
        ([50, 12], onnx.TensorProto.INT8)
    ]
    assert not [
        i for i in graph.initializer if list(i.dims) in ([50, 12], [20, 12]) and i.data_type == onnx.TensorProto.FLOAT
    ]


class LastState(nn.Module):
    """A recurrent classifier of the last state."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        state = self.recurrent(x)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_last_state_is_no_row_of_a_table(tmp_path, kind):
    ours, theirs, grid, path, names = exported(stirred(LastState(kind)), data((5, 4), 200), tmp_path)
    equality = check.compare(ours, theirs, grid.sites[list(names)[-1]].scale[0])
    assert equality.reasons == () and equality.equal >= 0.999, equality
    assert set(names) == {name for name, site in grid.sites.items() if site.axis is None} and [
        k.split("(")[0] for k in format.float_kernels(path)
    ] == [kind.__name__]
