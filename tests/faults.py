"""Faults planted into int8 files, for the tests of `look`: healthy networks, what spoils them, and the table of all
cases."""

import copy
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgekd.formats import onnx as format
from edgekd.models.networks import ds_cnn, residual
from edgekd.quantization import parameters
from edgekd.quantization.diagnosis.layers import look
from edgekd.quantization.qdq.pairing import pair
from edgekd.quantization.torch_graph import fake
from edgekd.quantization.torch_graph.calibrate import calibrate
from edgekd.quantization.torch_graph.capture import capture
from edgekd.records import Scheme

SHAPES = {"residual": (3, 12, 12), "ds_cnn": (1, 20, 12), "encoder": (1, 12, 16)}


class Encoder(nn.Module):
    """Two blocks of attention with one head and a GELU layer over the rows of an image."""

    def __init__(self, width=16, classes=6):
        super().__init__()
        self.first, self.place = nn.Linear(16, width), nn.Parameter(0.5 * torch.randn(12, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.ups = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(2))
        self.last = nn.Linear(width, classes)

    def __getitem__(self, at):
        return self.last

    def forward(self, x):
        x = self.first(x.flatten(1, 2)) + self.place
        for i in range(2):
            y = self.norms[2 * i](x)
            q, k, v, out = self.mixes[4 * i : 4 * i + 4]
            seen = torch.softmax(q(y) @ k(y).transpose(1, 2) / 4, -1) @ v(y)
            x = x + out(seen)
            x = x + self.downs[i](nn.functional.gelu(self.ups[i](self.norms[2 * i + 1](x))))
        return self.last(x.mean(1))


NETS = {
    "encoder": Encoder,
    "residual": lambda: residual((8, 16), channels=3, classes=6, blocks=2),
    "ds_cnn": lambda: ds_cnn((8, 16, 16, 24), classes=6),
}


def inputs(name, n=192, seed=1):
    """Smooth images with a little noise, of differing contrast."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, SHAPES[name][0], 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, SHAPES[name][1:], mode="bilinear")
    noise = 0.2 * torch.randn(n, *SHAPES[name], generator=generator)
    return (smooth + noise) * (0.3 + 1.2 * torch.rand(n, 1, 1, 1, generator=generator))


def network(name, seed=0):
    """Random weights, norms that know their data, a last layer that tells the samples apart."""
    torch.manual_seed(seed)
    model = NETS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.2)
            module.momentum = None
    with torch.no_grad():
        model.train()(inputs(name, 256, seed + 100))
        model.eval()
        model[-1].weight.mul_(4)
        model[-1].bias.sub_(model(inputs(name, 256, seed + 100)).mean(0))
    return model


@dataclass
class Kit:
    """A network's two files, open for spoiling; `x` the samples that it is diagnosed with, `calibration` those it was
    calibrated with."""

    name: str
    model: nn.Module
    x: torch.Tensor
    calibration: torch.Tensor
    ranges: str = "minmax"
    hyper: dict = field(default_factory=dict)
    seed: int = 0
    touched: str = ""  # what is other than the healthy network's: `weights` or `calibration`
    file_edit: object = None
    culprit: object = None
    saturates: bool = False  # whether it shows on AVX2 without VNNI only

    def files(self):
        """(float file, int8 file)"""
        if not self.touched:
            made = _healthy(self.name, self.seed)
        elif self.touched == "calibration":  # the float file stays
            made = [
                _healthy(self.name, self.seed)[0],
                *exported(self.model, self.x, self.calibration, self.ranges, self.hyper, floats=False),
            ]
        else:
            made = exported(self.model, self.x, self.calibration, scheme=Scheme(pairs16=self.saturates))
        return tuple(onnx.load_from_string(f) for f in made)

    def build(self, folder):
        files = plain, int8 = self.files()
        if self.file_edit:
            self.file_edit(int8, pair(plain, int8))
        paths = folder / "float.onnx", folder / "int8.onnx"
        for file, path in zip(files, paths, strict=True):
            onnx.save(file, path)
        return paths


def exported(model, x, calibration, ranges="minmax", hyper=None, floats=True, scheme=Scheme()):  # noqa: B008  (frozen)
    graph = capture(model, x[:2])
    module = calibrate(fake.insert(graph, scheme), [calibration], ranges, **(hyper or {}))
    grid = fake.settle(module)
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "model.onnx", []
        for given in (None, grid)[not floats :]:
            format.export(graph, given, x[:2], path)
            made.append(path.read_bytes())
    return made


@cache
def _healthy(name, seed):
    return exported(_network(name, seed), inputs(name, seed=seed + 7), inputs(name, 256, seed=seed + 100))


@cache
def _network(name, seed):
    return network(name, seed)


def kit(name, seed):
    return Kit(
        name,
        copy.deepcopy(_network(name, seed)),
        inputs(name, seed=seed + 7),
        inputs(name, 256, seed=seed + 100),
        seed=seed,
    )


def weighted(p):
    return [layer for layer in p.layers if layer.weights is not None]


def layer_at(p, at):
    """`at`: a number among the layers with weights, or a kind with the number among its own (`Add:0`), or `input`."""
    if isinstance(at, int):
        return weighted(p)[at]
    kind, _, number = at.partition(":")
    return [layer for layer in p.layers if layer.kind == kind][int(number or 0)]


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def norm_after(model, at):
    """The batch norm of the convolution with that number."""
    modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    after = [b for a, b in zip(modules, modules[1:], strict=False) if a is convolutions(model)[at]]
    assert isinstance(after[0], nn.BatchNorm2d)
    return after[0]


def put(file, name, array):
    for tensor in file.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))
            return
    raise KeyError(name)


def _quantizer(file, layer):
    return next(n for n in file.graph.node if n.op_type == "QuantizeLinear" and n.output[0] == layer.parameters.q)


def set_parameters(file, layer, scale, zero):
    node = _quantizer(file, layer)
    put(file, node.input[1], np.float32(scale))
    put(file, node.input[2], np.array(zero, layer.parameters.zero_point.dtype))


def set_range(file, layer, low, high):
    scale, zero = parameters.scale_and_zero_point(float(low), float(high), 255)
    set_parameters(file, layer, scale, zero)


def saturating(k, at, share=1.0):
    """One layer whose neighbouring weights are alike and large takes all 8 bits, where all others keep their sums of
    pairs within 16 bits."""
    weight = convolutions(k.model)[at].weight
    with torch.no_grad():
        size, channels = weight.flatten(1).norm(dim=1), int(share * len(weight))
        rows = weight.movedim(1, -1).flatten(1)[:channels]  # in the order of the kernel's sum
        alike = rows[:, : rows.shape[1] // 2 * 2 : 2].sign().repeat_interleave(2, 1) * rows.abs().mean()
        rows = torch.cat([alike, rows[:, alike.shape[1] :]], 1).unflatten(1, (*weight.shape[2:], weight.shape[1]))
        weight[:channels] = rows.movedim(-1, 1)
        weight.mul_((size / weight.flatten(1).norm(dim=1)).reshape(-1, *[1] * (weight.ndim - 1)))
    k.touched, k.saturates = "weights", True

    def edit(file, p):
        layer, q, scale = _weight_names(file, p, at)
        made = np.abs(layer.weights.plain).reshape(len(layer.weights.plain), -1).max(1) / np.float32(127)
        put(
            file,
            q,
            np.rint(layer.weights.plain / made.reshape(-1, *[1] * (layer.weights.plain.ndim - 1))).astype(np.int8),
        )
        put(file, scale, made)
        node = next(n for n in file.graph.node if n.output[0] == layer.name[layer.name.index("(") + 1 : -1])
        bias = next(n for n in file.graph.node if n.output[0] == node.input[2])
        stored = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
        wanted = stored[bias.input[1]] * (made / layer.weights.scale)
        put(file, bias.input[0], np.rint(stored[bias.input[0]] * (stored[bias.input[1]] / wanted)).astype(np.int32))
        put(file, bias.input[1], wanted.astype(np.float32))

    k.file_edit = edit


def loud_place(k, at, by):
    """One row of every sample has a far greater position embedding, which the norms behind take out again."""
    with torch.no_grad():
        k.model.place[at] *= by
    k.touched, k.culprit = "weights", stream


def stream(k, p, healthy):
    """The sums that carry a loud row: each of them has it, so the first that is named is right if it is one of them."""
    return tuple(layer.name for layer in p.layers if layer.kind == "Add")


# ---------------------------------------------------------------- what spoils: (kit, place, **settings) -> None


def scaled(k, at, by):
    """The scale of a value, wrong by a factor; its zero point stays."""

    def edit(file, p):
        layer = layer_at(p, at)
        set_parameters(file, layer, layer.parameters.scale[0] * by, layer.parameters.zero_point[0])

    k.file_edit = edit


def shifted(k, at, by):
    def edit(file, p):
        layer = layer_at(p, at)
        set_parameters(
            file, layer, layer.parameters.scale[0], int(np.clip(int(layer.parameters.zero_point[0]) + by, 0, 255))
        )

    k.file_edit = edit


def _values(k, p, at, x):
    from edgekd.quantization.diagnosis.noise import float_values

    return float_values(p, {"input": x.numpy()})[layer_at(p, at).after]


def clipped(k, at, share):
    """Only the middle `share` per cent of the values are covered."""

    def edit(file, p):
        values = _values(k, p, at, k.calibration)
        cut = (100 - share) / 2
        set_range(file, layer_at(p, at), np.percentile(values, cut), np.percentile(values, 100 - cut))

    k.file_edit = edit


def few_samples(k, at, rank):
    """The whole network calibrated with one sample, that of the given rank in contrast; the culprit is what a second
    look tells (`oracle`)."""
    k.calibration = k.calibration[k.calibration.std((1, 2, 3)).argsort()[rank]][None]
    k.touched, k.culprit = "calibration", oracle


def narrow(k, at, share):
    """The whole network calibrated on a percentile that cuts too much."""
    k.ranges, k.hyper, k.touched, k.culprit = "percentile", {"share": share}, "calibration", oracle


def oracle(k, p, healthy):
    """The layer whose grid, taken from the healthy file, makes the spoiled one's output better than any other's
    does."""
    from edgekd.quantization.diagnosis.noise import outputs

    feed, sound = {"input": k.x.numpy()}, {a.name: b for a, b in zip(p.layers, healthy.layers, strict=True)}
    plain = outputs(p.plain.model, feed)[0]
    left = {}
    for layer in p.layers:
        file = copy.deepcopy(p.quantized.model)
        set_parameters(file, layer, sound[layer.name].parameters.scale[0], sound[layer.name].parameters.zero_point[0])
        left[layer.name] = float(np.square(outputs(file, feed)[0] - plain).mean())
    return min(left, key=left.get)


def _weight_names(file, p, at):
    """(initializers of the integers, the scale) of a layer with weights."""
    layer = layer_at(p, at)
    for node in file.graph.node:
        if node.op_type == "DequantizeLinear":
            stored = next((numpy_helper.to_array(i) for i in file.graph.initializer if i.name == node.input[0]), None)
            if (
                stored is not None
                and stored.shape == layer.weights.stored.shape
                and np.array_equal(stored, layer.weights.stored)
            ):
                return layer, node.input[0], node.input[1]
    raise KeyError(at)


def channel_scale(k, at, by, channel=1):
    """A stored scale of one output channel, wrong by a factor, its integers as they were."""

    def edit(file, p):
        layer, _, scale = _weight_names(file, p, at)
        made = layer.weights.scale.copy()
        made[channel] *= by
        put(file, scale, made)

    k.file_edit = edit


def channel_grid(k, at, by, channel=1):
    """One output channel rounded to a grid whose scale is wrong by a factor."""

    def edit(file, p):
        layer, q, scale = _weight_names(file, p, at)
        assert layer.weights.axis == 0
        made, stored = layer.weights.scale.copy(), layer.weights.stored.copy()
        made[channel] *= by
        stored[channel] = np.clip(np.rint(layer.weights.plain[channel] / made[channel]), -127, 127)
        put(file, scale, made)
        put(file, q, stored)

    k.file_edit = edit


def bits(k, at, count):
    """One layer's weights in fewer bits."""

    def edit(file, p):
        layer, q, scale = _weight_names(file, p, at)
        high = 2 ** (count - 1) - 1
        made = layer.weights.scale * 127 / high
        shape = (-1, *[1] * (layer.weights.plain.ndim - 1))
        put(file, q, np.clip(np.rint(layer.weights.plain / made.reshape(shape)), -high, high).astype(np.int8))
        put(file, scale, made.astype(np.float32))

    k.file_edit = edit


def per_tensor(k, at, spread):
    """One scale for a layer whose channels' ranges differ: every other channel is `spread` times smaller, and read so
    much stronger."""
    norm = norm_after(k.model, at)
    after = convolutions(k.model)[at + 1]
    with torch.no_grad():
        norm.weight[::2] /= spread
        norm.bias[::2] /= spread
        after.weight[:, ::2] *= spread
    k.touched = "weights"

    def edit(file, p):
        layer, q, scale = _weight_names(file, p, at)
        one = np.abs(layer.weights.plain).max() / 127
        put(file, q, np.clip(np.rint(layer.weights.plain / one), -127, 127).astype(np.int8))
        put(file, scale, np.full_like(layer.weights.scale, one))

    k.file_edit = edit


def _quieter(k, at, by, channel):
    """The layer behind reads one channel with weights that are smaller by a factor."""
    after = convolutions(k.model)[at + 1].weight
    with torch.no_grad():
        (after[channel] if after.shape[1] == 1 else after[:, channel]).div_(by)
    k.touched = "weights"


def loud_channel(k, at, by, channel=2):
    """One output channel of the float weights far above the rest; what reads it makes up for most of it, so that it
    drowns no other."""
    with torch.no_grad():
        convolutions(k.model)[at].weight[channel] *= by
    _quieter(k, at, by / 4, channel)


def tiny_variance(k, at, variance, channel=2):
    """One channel's running variance is far below what its data have, its mean is off too; what reads it makes up for
    most of it."""
    norm = norm_after(k.model, at)
    with torch.no_grad():
        by = float((norm.running_var[channel] / variance).sqrt())
        norm.running_mean[channel] = -norm.running_mean.abs().max()
        norm.running_var[channel] = variance
    _quieter(k, at, by / 4, channel)


def outlier_pixel(k, at, by):
    """One pixel of one sample, met in calibration, far above the rest; only the input's range has seen it."""
    k.x[3, 0, 2, 2] = by * k.x.abs().max()

    def edit(file, p):
        layer = layer_at(p, at)
        set_range(file, layer, float(k.calibration.min()), float(k.x.max()))

    k.file_edit = edit


def outlier_everywhere(k, at, by):
    """The same pixel in calibration: every grid has seen it."""
    k.x[3, 0, 2, 2] = by * k.x.abs().max()
    k.calibration[5] = k.x[3]
    k.touched = "calibration"


@dataclass(frozen=True)
class Case:
    network: str
    fault: object
    at: object
    settings: dict
    causes: tuple  # that are right
    seed: int = 0

    def __str__(self):
        return (
            f"{self.network} {self.fault.__name__} {', '.join(f'{k}={v}' for k, v in self.settings.items())} at "
            f"{self.at}"
        )


def _c(network, fault, at, *causes, seed=0, **settings):
    return Case(network, fault, at, settings, causes, seed)


CLIP, CAL, OUT, CHAN, DEEP, DEAD, NORM, BITS, SHAPE, SAT = (
    "clipped range", "calibration too small", "outlier", "outlier channel", "per-tensor weights on depthwise",
    "wrong scale", "folded batch norm", "few bits", "activation shape", "saturation",
)  # fmt: skip

# the bars of `causes` were chosen while looking at these
TUNED = (
    _c("residual", scaled, 0, DEAD, by=8),
    _c("residual", scaled, "Add:1", CLIP, by=1 / 8),
    _c("residual", shifted, "input", CLIP, by=64),
    _c("residual", clipped, 3, CLIP, share=90),
    _c("residual", few_samples, "any", CAL, rank=40),
    _c("residual", channel_scale, 1, DEAD, by=4),
    _c("residual", channel_grid, 4, CLIP, by=1 / 6),
    _c("residual", bits, 0, BITS, count=4),
    _c("residual", loud_channel, 1, CHAN, by=100),
    _c("residual", tiny_variance, 1, NORM, variance=1e-4),
    _c("residual", narrow, "any", CLIP, share=95),
    _c("residual", outlier_pixel, "input", OUT, by=20),
    _c("ds_cnn", scaled, 1, DEAD, by=8),
    _c("ds_cnn", scaled, 4, CLIP, by=1 / 8),
    _c("ds_cnn", clipped, 0, CLIP, share=90),
    _c("ds_cnn", few_samples, "any", CAL, rank=5),
    _c("ds_cnn", channel_grid, 2, DEAD, by=40),
    _c("ds_cnn", per_tensor, 1, DEEP, spread=30),
    _c("ds_cnn", tiny_variance, 2, NORM, variance=1e-4),
    _c("ds_cnn", bits, 4, BITS, count=4),
    _c("ds_cnn", loud_channel, 0, CHAN, by=100),
    _c("residual", saturating, 0, SAT),
    _c("ds_cnn", saturating, -1, SAT),
    _c("encoder", loud_place, 3, SHAPE, by=100),
)

# none of these was looked at before the bars stood: other layers, other sizes, other weights, and three kinds of fault
# that are new
HELD_OUT = (
    _c("residual", scaled, "Add:2", DEAD, seed=5, by=12),
    _c("residual", scaled, 5, CLIP, seed=5, by=1 / 5),
    _c("residual", scaled, 9, CLIP, seed=5, by=1 / 6),
    _c("residual", shifted, 4, CLIP, seed=6, by=100),
    _c("residual", clipped, "Add:0", CLIP, seed=6, share=94),
    _c("residual", clipped, "GlobalAveragePool:0", CLIP, seed=6, share=88),
    _c("residual", few_samples, "any", CAL, seed=5, rank=15),
    _c("residual", channel_scale, 6, DEAD, seed=5, by=1 / 3),
    _c("residual", channel_grid, 0, DEAD, seed=6, by=50),
    _c("residual", bits, 3, BITS, seed=6, count=3),
    _c("residual", loud_channel, 3, CHAN, seed=5, by=60),
    _c("residual", tiny_variance, 5, NORM, seed=6, variance=2e-4),
    _c("residual", outlier_everywhere, "input", OUT, seed=5, by=25),
    _c("ds_cnn", scaled, "input", DEAD, seed=5, by=10),
    _c("ds_cnn", scaled, 6, CLIP, seed=5, by=1 / 10),
    _c("ds_cnn", scaled, 7, DEAD, seed=6, by=16),
    _c("ds_cnn", shifted, 5, CLIP, seed=5, by=80),
    _c("ds_cnn", clipped, 2, CLIP, seed=5, share=92),
    _c("ds_cnn", few_samples, "any", CAL, seed=6, rank=80),
    _c("ds_cnn", narrow, "any", CLIP, seed=6, share=97),
    _c("ds_cnn", channel_scale, 3, DEAD, seed=6, by=5),
    _c("ds_cnn", channel_grid, 0, CLIP, seed=6, by=1 / 8),
    _c("ds_cnn", per_tensor, 3, DEEP, seed=5, spread=20),
    _c("ds_cnn", per_tensor, 5, DEEP, seed=6, spread=40),
    _c("ds_cnn", bits, 1, BITS, seed=5, count=3),
    _c("ds_cnn", loud_channel, 4, CHAN, seed=6, by=50),
    _c("ds_cnn", tiny_variance, 0, NORM, seed=5, variance=1e-4),
)


# written after the rules for saturation and loud places stood, run once: a third network, and the two new kinds on
# other layers and weights
FRESH = (
    _c("residual", saturating, -1, SAT, seed=5),
    _c("ds_cnn", saturating, 0, SAT, seed=6, share=0.5),
    _c("encoder", loud_place, 7, SHAPE, seed=5, by=60),
    _c("encoder", loud_place, 0, SHAPE, seed=6, by=200),
    _c("encoder", scaled, 6, DEAD, seed=5, by=12),
    _c("encoder", clipped, "Gelu:1", CLIP, seed=6, share=80),
    _c("encoder", bits, 9, BITS, seed=5, count=3),
    _c("encoder", few_samples, "any", CAL, seed=6, rank=20),
)


@dataclass(frozen=True)
class Row:
    case: Case
    culprit: str
    named: str
    cause: str
    found: tuple

    @property
    def layer_right(self):
        return self.named in (self.culprit if isinstance(self.culprit, tuple) else (self.culprit,))

    @property
    def cause_right(self):
        return self.layer_right and self.cause in self.case.causes


def run(case: Case, folder: Path) -> Row:
    k = kit(case.network, case.seed)
    case.fault(k, case.at, **case.settings)
    plain, int8 = k.build(folder)
    feed = {"input": k.x.numpy()}
    with torch.no_grad():
        labels = k.model(k.x).argmax(1).numpy()
    found = look(plain, int8, feed, labels, saturates=k.saturates).findings
    p = pair(onnx.load(plain), onnx.load(int8))
    healthy = pair(*(onnx.load_from_string(f) for f in _healthy(case.network, case.seed))) if k.culprit else None
    culprit = k.culprit(k, p, healthy) if k.culprit else layer_at(p, case.at).name
    return Row(case, culprit, found[0].layer if found else "", found[0].cause if found else "", found)


def table(rows):
    """A line per case, and the shares that are right."""
    name = lambda r: r.culprit if isinstance(r.culprit, str) else "any Add"
    lines = [
        f"{'ok' if r.cause_right else 'cause' if r.layer_right else 'LAYER':6}{r.case!s:62} {name(r):24}"
        f"{r.named if not r.layer_right else '':24}{r.cause:32}{f'{r.found[0].lost.snr:5.1f} dB' if r.found else ''}"
        for r in rows
    ]
    layers, causes = (sum(getattr(r, what) for r in rows) for what in ("layer_right", "cause_right"))
    return "\n".join(
        [
            *lines,
            f"of {len(rows)}: layer {layers} ({100 * layers / len(rows):.0f} %), cause {causes} "
            f"({100 * causes / len(rows):.0f} %)",
        ]
    )
