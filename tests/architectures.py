"""Small versions of common architectures, each written as its users write it: `ARCHITECTURES` {name: made}, and
`chain`, which distils, prunes, quantizes, exports and runs one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

import edgekd
from edgekd.data.columns import load
from edgekd.errors import EdgekdError
from edgekd.inputs import named
from edgekd.models import saved
from edgekd.pruning import macs_and_parameters
from edgekd.records import Artifact, Run
from edgekd.stages.distill import Distill
from edgekd.stages.export import Export
from edgekd.stages.prune import Prune
from edgekd.stages.quantize import Quantize
from edgekd.stages.train import Train

Seq = nn.Sequential
CLASSES = 4


def conv(a, b, stride=1, size=3, groups=1, act=nn.ReLU):
    parts = [nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]
    return Seq(*parts, *([act()] if act else []))


def head(width, classes=CLASSES):
    return Seq(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Sum(nn.Module):
    """f(x) + g(x)"""

    def __init__(self, f, g=None, act=nn.Identity):
        super().__init__()
        self.f, self.g, self.act = f, g or nn.Identity(), act()

    def forward(self, x):
        return self.act(self.f(x) + self.g(x))


# ---------------------------------------------------------------- images


def vgg():
    layers = [conv(3, 16), conv(16, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2), nn.Flatten()]
    return Seq(*layers, nn.Linear(32 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))


def resnet():
    def block(a, b, stride=1):
        side = None if a == b and stride == 1 else conv(a, b, stride, 1, act=None)
        return Sum(Seq(conv(a, b, stride), conv(b, b, act=None)), side, nn.ReLU)

    return Seq(conv(3, 16), block(16, 16), block(16, 32, 2), head(32))


class Squeeze(nn.Module):
    def __init__(self, width, gate):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1), gate()

    def forward(self, x):
        return x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def inverted(a, b, stride, act, gate=None):
    wide = 3 * a
    parts = [conv(a, wide, 1, 1, act=act), conv(wide, wide, stride, groups=wide, act=act)]
    inner = Seq(*parts, *([Squeeze(wide, gate)] if gate else []), conv(wide, b, 1, 1, act=None))
    return Sum(inner) if a == b and stride == 1 else inner


def mobilenet(act, gate=None):
    parts = [inverted(16, 16, 1, act), inverted(16, 24, 2, act, gate), inverted(24, 24, 1, act, gate)]
    return Seq(conv(3, 16, 2, act=act), *parts, head(24))


class Shuffled(nn.Module):
    """ShuffleNetV2: half of the channels pass, the other half is convolved, then the two are shuffled."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.inner = Seq(conv(half, half, 1, 1), conv(half, half, groups=half, act=None), conv(half, half, 1, 1))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.inner(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Down(nn.Module):
    """ShuffleNetV2's block with a stride: two branches, each half of the output."""

    def __init__(self, a, b):
        super().__init__()
        self.left = Seq(conv(a, a, 2, groups=a, act=None), conv(a, b // 2, 1, 1))
        self.right = Seq(conv(a, b // 2, 1, 1), conv(b // 2, b // 2, 2, groups=b // 2, act=None))
        self.right.append(conv(b // 2, b // 2, 1, 1))

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet():
    return Seq(conv(3, 16, 2), Down(16, 32), Shuffled(32), Shuffled(32), head(32))


class Dense(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        self.inner = Seq(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, 1, 1, bias=False))

    def forward(self, x):
        return torch.cat([x, self.inner(x)], 1)


def densenet():
    down = Seq(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.AvgPool2d(2))
    return Seq(conv(3, 16), Dense(16, 8), Dense(24, 8), down, Dense(16, 8), nn.BatchNorm2d(24), nn.ReLU(), head(24))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), nn.LayerNorm(width)
        self.inner = Seq(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + (self.scale * self.inner(self.norm(self.wide(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


def convnext():
    stem, down = Seq(nn.Conv2d(3, 16, 2, 2), LayerNorm2d(16)), Seq(LayerNorm2d(16), nn.Conv2d(16, 32, 2, 2))
    return Seq(stem, ConvNextBlock(16), down, ConvNextBlock(32), head(32))


class UNet(nn.Module):
    """With group norms, a transposed convolution, a resize and a pixel shuffle on the way up."""

    def __init__(self):
        super().__init__()
        layer = lambda a, b: Seq(nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(4, b), nn.SiLU())
        self.a, self.b, self.c, self.d = layer(3, 16), layer(16, 16), layer(16, 32), layer(32, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge = nn.ModuleList([layer(64, 32), layer(48, 16), layer(24, 16)])
        self.shuffle, self.last = Seq(nn.Conv2d(16, 32, 1), nn.PixelShuffle(2)), nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = F.interpolate(self.d(F.max_pool2d(c, 2)), scale_factor=2.0, mode="nearest")
        c = self.merge[0](torch.cat([d, c], 1))
        b = self.merge[1](torch.cat([self.up(c), b, b], 1))
        return self.last(self.merge[2](torch.cat([self.shuffle(b), a], 1)))


class C2f(nn.Module):
    """YOLOv8's block: the channels are split, one part goes through bottlenecks, all is put together."""

    def __init__(self, a, b):
        super().__init__()
        self.width = b // 2
        self.first, self.last = conv(a, b, 1, 1, act=nn.SiLU), conv(3 * self.width, b, 1, 1, act=nn.SiLU)
        self.inner = Sum(conv(self.width, self.width, act=nn.SiLU))

    def forward(self, x):
        a, b = self.first(x).split((self.width, self.width), 1)
        return self.last(torch.cat([a, b, self.inner(b)], 1))


class Yolo(nn.Module):
    """Two levels, each with a head of boxes and classes per cell."""

    def __init__(self):
        super().__init__()
        act = nn.SiLU
        self.low, self.high = Seq(conv(3, 16, 2, act=act), C2f(16, 32)), Seq(conv(32, 32, 2, act=act), C2f(32, 32))
        self.side, self.merge = conv(32, 16, 1, 1, act=act), C2f(48, 32)
        self.heads = nn.ModuleList([nn.Conv2d(32, 4 + CLASSES, 1), nn.Conv2d(32, 4 + CLASSES, 1)])

    def forward(self, x):
        low = self.low(x)
        high = self.high(low)
        low = self.merge(torch.cat([F.interpolate(self.side(high), scale_factor=2.0, mode="nearest"), low], 1))
        maps = [head(y).flatten(2) for head, y in zip(self.heads, (low, high), strict=True)]
        return torch.cat(maps, 2).transpose(1, 2)


# ---------------------------------------------------------------- transformers


class Attention(nn.Module):
    """One matrix for queries, keys and values, as in ViT."""

    def __init__(self, width, heads, bias=None):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, bias, bias)) if bias else None

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = scores if self.bias is None else scores + self.bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class Block(nn.Module):
    def __init__(self, width, heads, bias=None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, bias), Seq(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.places, self.blocks = nn.Parameter(torch.randn(1, 17, width) * 0.1), Seq(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Swin(nn.Module):
    """Windows of 2 x 2 patches, shifted in the second block, merged patches, a window of 2 x 2 again."""

    def __init__(self, width=16):
        super().__init__()
        self.patches, self.a, self.b = nn.Conv2d(3, width, 4, 4), Block(width, 4, 4), Block(width, 4, 4)
        self.merge, self.c = Seq(nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width)), Block(2 * width, 4, 4)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def windows(self, block, x):
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        x = block(x).view(n, h // 2, w // 2, 2, 2, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)

    def forward(self, x):
        x = self.windows(self.a, self.patches(x).permute(0, 2, 3, 1))
        x = torch.roll(self.windows(self.b, torch.roll(x, (-1, -1), (1, 2))), (1, 1), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.norm(self.windows(self.c, self.merge(x))).mean((1, 2)))


class BertLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm1, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 64), nn.Linear(64, width)

    def heads(self, x):
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = q @ k.transpose(-1, -2) / self.attention_head_size**0.5 + mask
        made = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous()
        made = made.view(*made.shape[:-2], self.all_head_size)
        x = self.norm1(x + self.dense(made))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(50, width), nn.Embedding(16, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList([BertLayer(width, 4) for _ in range(2)])
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, inputs):
        ids, mask = inputs["ids"], inputs["mask"]
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        mask = (1.0 - mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class LlamaLayer(nn.Module):
    """Rotary positions, fewer heads of keys and values than of queries, SwiGLU."""

    def __init__(self, width, heads, shared):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, shared, width // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(a, b, bias=False)
            for a, b in (
                (width, width),
                (width, width * shared // heads),
                (width, width * shared // heads),
                (width, width),
            )
        )
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(a, b, bias=False) for a, b in ((width, 64), (width, 64), (64, width))
        )
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)

    def rotated(self, x):
        t, half = x.shape[2], self.head_dim // 2
        angle = torch.arange(t)[:, None] / 100 ** (torch.arange(half) / half)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x, mask):
        n, t, _ = x.shape
        y = self.norm1(x)
        q = self.rotated(self.q_proj(y).view(n, t, self.num_heads, self.head_dim).transpose(1, 2))
        k = self.rotated(self.k_proj(y).view(n, t, self.num_key_value_heads, self.head_dim).transpose(1, 2))
        v = self.v_proj(y).view(n, t, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        k, v = (
            y[:, :, None]
            .expand(n, self.num_key_value_heads, self.num_heads // self.num_key_value_heads, t, self.head_dim)
            .reshape(n, self.num_heads, t, self.head_dim)
            for y in (k, v)
        )
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5 + mask
        x = x + self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))
        y = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed_tokens, self.norm, self.lm_head = (
            nn.Embedding(50, width),
            RMSNorm(width),
            nn.Linear(width, 50, bias=False),
        )
        self.layers = nn.ModuleList([LlamaLayer(width, 4, 2) for _ in range(2)])

    def forward(self, ids):
        x = self.embed_tokens(ids)
        mask = torch.full((ids.shape[1], ids.shape[1]), -1e4).triu(1)
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.norm(x))


# ---------------------------------------------------------------- sequences


class Crnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Seq(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((4, 1)))
        self.cell, self.next = nn.LSTM(64, 24, bidirectional=True, batch_first=True), nn.GRU(48, 24, batch_first=True)
        self.last = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.inner(x).flatten(1, 2).transpose(1, 2)
        return self.last(self.next(self.cell(x)[0])[0])


class Conformer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        feed = lambda: Seq(nn.LayerNorm(width), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))
        self.first, self.a, self.b = nn.Linear(12, width), feed(), feed()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, 4), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Conv1d(width, 64, 1), nn.Conv1d(32, width, 1)
        self.depth, self.batch = nn.Conv1d(32, 32, 7, 1, 3, groups=32), nn.BatchNorm1d(32)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.first(x)
        x = x + 0.5 * self.a(x)
        x = x + self.attention(self.norm1(x))
        y = F.glu(self.wide(self.norm2(x).transpose(1, 2)), 1)
        x = x + self.narrow(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return self.last(self.norm(x + 0.5 * self.b(x)))


# ---------------------------------------------------------------- the list


@dataclass(frozen=True)
class Architecture:
    """`make`: the model; `inputs` [B, ...] by a generator; `axis`: the axis of the classes of its output; `shown`: its
    name in tables."""

    shown: str
    make: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator, int], Any]
    axis: int = 1
    labels: tuple[int, ...] = ()
    classes: int = CLASSES


def image(g, n):
    return torch.randn(n, 3, 16, 16, generator=g)


def ids(g, n):
    return torch.randint(0, 50, (n, 8), generator=g)


def masked(g, n):
    return {"ids": ids(g, n), "mask": (torch.arange(8) < torch.randint(4, 9, (n, 1), generator=g)).long()}


ARCHITECTURES: Mapping[str, Architecture] = {
    "vgg": Architecture("VGG", vgg, image),
    "resnet": Architecture("ResNet", resnet, image),
    "mobilenet_v2": Architecture("MobileNetV2", lambda: mobilenet(nn.ReLU6), image),
    "mobilenet_v3": Architecture("MobileNetV3", lambda: mobilenet(nn.Hardswish, nn.Hardsigmoid), image),
    "shufflenet_v2": Architecture("ShuffleNetV2", shufflenet, image),
    "densenet": Architecture("DenseNet", densenet, image),
    "efficientnet": Architecture("EfficientNet", lambda: mobilenet(nn.SiLU, nn.Sigmoid), image),
    "convnext": Architecture("ConvNeXt", convnext, image),
    "unet": Architecture("U-Net", UNet, image, 1, (16, 16)),
    "yolo": Architecture("YOLO", Yolo, image, 2, (80,), 4 + CLASSES),
    "vit": Architecture("ViT", Vit, image),
    "swin": Architecture("Swin", Swin, image),
    "bert": Architecture("BERT", Bert, masked),
    "llama": Architecture("Llama", Llama, ids, 2, (8,), 50),
    "crnn": Architecture("CRNN", Crnn, lambda g, n: torch.randn(n, 1, 16, 16, generator=g), 2, (8,)),
    "conformer": Architecture("Conformer", Conformer, lambda g, n: torch.randn(n, 12, 12, generator=g), 2, (12,)),
}


# ---------------------------------------------------------------- the chain

INTEGER = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
INTEGER += ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QAttention")
FLOAT = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "Attention")


@dataclass(frozen=True)
class Result:
    """`failed` {step: why}. Of the pruned model: the share of its `parameters` that went, and of its MACs that is left;
    `refused`: what it does not prune, each with the reason. Of the int8 file in onnxruntime: how many layers are in
    `int8`, of how many; those in `floats`; its signal-to-noise ratio `db` against the pruned torch model."""

    failed: Mapping[str, str]
    parameters: float = 0.0
    macs: float = 1.0
    refused: tuple[str, ...] = ()
    int8: tuple[int, int] = (0, 0)
    floats: tuple[str, ...] = ()
    db: float = 0.0


def task_of(name: str) -> edgekd.Task:
    a, g = ARCHITECTURES[name], torch.Generator().manual_seed(0)
    parts = []
    for rows in (40, 8):
        parts += [a.inputs(g, rows), torch.randint(0, a.classes, (rows, *a.labels), generator=g)]
    make = lambda: torch.random.manual_seed(0) and a.make()
    told = {"outputs": {"scores": edgekd.classes(axis=a.axis)}} if a.labels else {"classes": a.classes}
    inputs = tuple(parts[0]) if isinstance(parts[0], Mapping) else ("input",)
    return edgekd.Task(name, "1", {"teacher": make, "student": make}, edgekd.arrays(*parts), (), inputs=inputs, **told)


def chain(name: str, folder: Path, share: float | str = "max 0.75") -> Result:
    """One architecture through all stages, as `edgekd compress` calls them. What can't be pruned goes on whole."""
    task, failed = task_of(name), {}
    settings = {"epochs": 1, "batch": 16, "lr": 1e-4}
    teacher = _made(Train(model="teacher", **settings), task, folder / "teacher")
    last = kept = _made(Distill(**settings), task, folder / "distilled", None, (teacher,))
    whole = kept
    prune = Prune(macs=share, multiple_of=4, **settings)
    for step, stage in {"pruned": prune, "int8": Quantize(mode="ptq"), "exported": Export()}.items():
        try:
            last = _made(stage, task, folder / step, last, (teacher,) if step == "pruned" else ())
        except EdgekdError as error:
            failed[step] = str(error)
            if step != "pruned":
                break
        if step == "pruned":
            kept = last
    return Result(failed, **_sizes(task, whole, kept), **({} if "exported" in failed else _file(task, kept, last)))


def _made(stage, task, folder, source=None, teacher=()):
    folder.mkdir(parents=True)
    run = Run(task, 0, 1, folder, folder / "scratch", lambda split: load(task, split))
    found = stage(source, run, teacher=teacher)
    digests = {p.name: p.name for p in folder.iterdir()}
    return Artifact(str(folder), found.form, digests, {}, "", {}, 0, found.facts, folder)


def _sizes(task, whole, kept):
    example = ARCHITECTURES[task.name].inputs(torch.Generator().manual_seed(0), 2)
    (macs, all_), (macs_left, left) = (macs_and_parameters(saved.load(a, task), example) for a in (whole, kept))
    return {
        "parameters": 1 - left / all_, "macs": macs_left / macs, "refused": tuple(kept.facts.get("refused", ())),
    }  # fmt: skip


def _file(task, kept, last):
    path, rows = next(last.folder.glob("*.onnx")), load(task, "test").inputs
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, named(rows, task.inputs[0]))
    inputs = {n: torch.from_numpy(x) for n, x in rows.items()} if isinstance(rows, Mapping) else torch.from_numpy(rows)
    with torch.no_grad():
        ours = saved.load(kept, task)(inputs).numpy()
    kinds = [n.op_type for n in _optimized(path).node]
    integer, floats = [k for k in kinds if k in INTEGER], [k for k in kinds if k in FLOAT]
    db = 10 * np.log10((ours**2).mean() / ((ours - theirs) ** 2).mean())
    return {"int8": (len(integer), len(integer) + len(floats)), "floats": tuple(sorted(floats)), "db": float(db)}


def _optimized(path):
    """The file's graph as onnxruntime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(Path(folder) / "model.onnx"), 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath).graph
