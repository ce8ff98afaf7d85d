"""Parts of common architectures, in their plainest form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Seq = nn.Sequential


def conv(a: int, b: int, stride: int = 1, size: int = 3, groups: int = 1, act: Any = nn.ReLU, norm: bool = True) -> Seq:
    parts = [nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=not norm)]
    return Seq(*parts, *([nn.BatchNorm2d(b)] if norm else []), *([act()] if act else []))


def separable(a: int, b: int, stride: int = 1) -> Seq:
    return Seq(conv(a, a, stride, groups=a), conv(a, b, 1, 1))


def head(width: int, classes: int = 10) -> Seq:
    return Seq(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def lively(module: nn.Module) -> nn.Module:
    """Without norms: weights with which the signal neither dies out nor drowns in biases (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
    return module


class Sum(nn.Module):
    """f(x) + g(x)"""

    def __init__(self, f: nn.Module, g: nn.Module | None = None, act: Any = nn.Identity):
        super().__init__()
        self.f, self.g, self.act = f, g or nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.f(x) + self.g(x))


def Residual(a: int, b: int, stride: int = 1) -> Sum:
    side = None if a == b and stride == 1 else conv(a, b, stride, 1, act=None)
    return Sum(Seq(conv(a, b, stride), conv(b, b, act=None)), side, nn.ReLU)


def Bottleneck(a: int, b: int, stride: int = 1, groups: int = 1) -> Sum:
    side = None if a == b and stride == 1 else conv(a, b, stride, 1, act=None)
    inner = Seq(conv(a, b // 2, 1, 1), conv(b // 2, b // 2, stride, groups=groups), conv(b // 2, b, 1, 1, act=None))
    return Sum(inner, side, nn.ReLU)


class Squeeze(nn.Module):
    def __init__(self, width: int, gate: Any):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def Inverted(a: int, b: int, stride: int, act: Any, squeeze: Any = None) -> nn.Module:
    wide = 4 * a
    parts = [conv(a, wide, 1, 1, act=act), conv(wide, wide, stride, groups=wide, act=act)]
    parts += [Squeeze(wide, squeeze)] if squeeze else []
    inner = Seq(*parts, conv(wide, b, 1, 1, act=None))
    return Sum(inner) if a == b and stride == 1 else inner


class Shuffled(nn.Module):
    """Half of the channels pass, the other half is convolved, then they are shuffled by the shape of x."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.inner = Seq(conv(half, half, 1, 1), conv(half, half, groups=half, act=None), conv(half, half, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.inner(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Branches(nn.Module):
    """Results side by side."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in self.branches], 1)


def Fire(a: int, squeeze: int, expand: int) -> Seq:
    wide = Branches(conv(squeeze, expand, 1, 1, norm=False), conv(squeeze, expand, norm=False))
    return Seq(conv(a, squeeze, 1, 1, norm=False), wide)


def Dense(a: int, growth: int, count: int) -> Seq:
    def layer(width: int) -> Branches:
        return Branches(
            nn.Identity(), Seq(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, 1, 1, bias=False))
        )

    return Seq(*(layer(a + growth * i) for i in range(count)))


def Inception(a: int) -> Branches:
    pooled = Seq(nn.MaxPool2d(3, 1, 1), conv(a, 16, 1, 1))
    return Branches(
        conv(a, 32, 1, 1), Seq(conv(a, 16, 1, 1), conv(16, 32)), Seq(conv(a, 8, 1, 1), conv(8, 16, 1, 5)), pooled
    )


class ConvNext(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(width, width, 7, 1, 3, groups=width), nn.LayerNorm(width)
        self.inner = Seq(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(self.wide(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Ghost(nn.Module):
    def __init__(self, a: int, b: int):
        super().__init__()
        self.main, self.cheap = conv(a, b // 2, 1, 1), conv(b // 2, b // 2, groups=b // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return torch.cat([x, self.cheap(x)], 1)


class UNet(nn.Module):
    def __init__(self, transposed: bool):
        super().__init__()
        self.first, self.second, self.third = conv(3, 16), Seq(nn.MaxPool2d(2), conv(16, 32)), conv(32, 64, 2)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)]
            if transposed
            else [Seq(self.larger(), conv(64, 32)), Seq(self.larger(), conv(32, 16))]
        )
        self.merge = nn.ModuleList([conv(64, 32), conv(32, 16)])
        self.last = nn.Conv2d(16, 4, 1)

    @staticmethod
    def larger() -> nn.Upsample:
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a)
        x = self.merge[0](torch.cat([self.up[0](self.third(b)), b], 1))
        return self.last(self.merge[1](torch.cat([self.up[1](x), a], 1)))


def Style() -> Seq:
    def layer(a: int, b: int, size: int, stride: int = 1) -> Seq:
        pad = nn.ReflectionPad2d(size // 2)
        return Seq(pad, nn.Conv2d(a, b, size, stride), nn.InstanceNorm2d(b, affine=True), nn.ReLU())

    larger = nn.Upsample(scale_factor=2, mode="nearest")
    return Seq(
        layer(3, 16, 5), layer(16, 32, 3, 2), Sum(layer(32, 32, 3)), larger, layer(32, 16, 3), nn.Conv2d(16, 3, 1)
    )


class Detector(nn.Module):
    """A pyramid with a head whose boxes are decoded in the file, in the manner of YOLO."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU
        self.low, self.high = Seq(conv(3, 16, 2, act=act), conv(16, 32, 2, act=act)), conv(32, 64, 2, act=act)
        self.side, self.heads = conv(64, 32, 1, 1, act=act), nn.ModuleList([nn.Conv2d(64, 24, 1), nn.Conv2d(64, 24, 1)])

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.high(low)
        merged = torch.cat([F.interpolate(self.side(high), scale_factor=2.0, mode="nearest"), low], 1)
        return torch.cat([self.decoded(h(y), s) for h, y, s in zip(self.heads, (merged, high), (4, 8), strict=True)], 1)

    @staticmethod
    def decoded(x: Tensor, stride: int) -> Tensor:
        n, _, h, w = x.shape
        x = x.view(n, 3, 8, h, w).permute(0, 1, 3, 4, 2)
        y, z = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack([z, y], -1).to(x.dtype)
        boxes = torch.cat([(x[..., :2].sigmoid() * 2 - 0.5 + grid) * stride, (x[..., 2:4].sigmoid() * 2) ** 2 * 16], -1)
        return torch.cat([boxes, x[..., 4:].sigmoid()], -1).reshape(n, -1, 8)


class Ssd(nn.Module):
    """Two outputs: classes and boxes of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = Seq(conv(3, 16, 2), separable(16, 32, 2)), separable(32, 64, 2)
        self.classes = nn.ModuleList([nn.Conv2d(32, 15, 3, 1, 1), nn.Conv2d(64, 15, 3, 1, 1)])
        self.boxes = nn.ModuleList([nn.Conv2d(32, 12, 3, 1, 1), nn.Conv2d(64, 12, 3, 1, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(x)
        maps = (low, self.high(low))

        def flat(heads: nn.ModuleList, width: int) -> Tensor:
            parts = [h(y).permute(0, 2, 3, 1).flatten(1) for h, y in zip(heads, maps, strict=True)]
            return torch.cat(parts, 1).view(x.shape[0], -1, width)

        return flat(self.classes, 5).softmax(-1), flat(self.boxes, 4)


# ---------------------------------------------------------------- transformers


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False, fused: bool = False):
        super().__init__()
        self.heads, self.causal, self.fused = heads, causal, fused
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        n, t, c = x.shape
        other = x if other is None else other
        q = self.q(x).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (y.view(n, other.shape[1], self.heads, -1).transpose(1, 2) for y in self.kv(other).chunk(2, -1))
        if self.fused:
            made = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if self.causal:
                scores = scores + torch.full((t, t), -1e4).triu(1)
            scores = scores if mask is None else scores + (1 - mask.float())[:, None, None] * -1e4
            made = scores.softmax(-1) @ v
        return self.out(made.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 4, first: bool = True, act: Any = nn.GELU, **more: Any):
        super().__init__()
        self.first, self.attention = first, Attention(width, heads, **more)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inner = Seq(nn.Linear(width, 2 * width), act(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        a, b = self.norms
        if self.first:
            x = x + self.attention(a(x), mask=mask)
            return x + self.inner(b(x))
        x = a(x + self.attention(x, mask=mask))
        return b(x + self.inner(x))


class Vit(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.blocks, self.last = Seq(Block(width), Block(width)), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.last(self.blocks(x)[:, 0])


class Windowed(nn.Module):
    """Attention within windows of 4 x 4 patches, shifted in the second block."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.patches, self.a, self.b = nn.Conv2d(3, width, 4, 4), Block(width), Block(width)
        self.last = nn.Linear(width, 10)

    def windows(self, block: nn.Module, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = block(x).view(n, h // 4, w // 4, 4, 4, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.windows(self.a, self.patches(x).permute(0, 2, 3, 1))
        x = self.windows(self.b, torch.roll(x, (-2, -2), (1, 2)))
        return self.last(x.mean((1, 2)))


class Mixer(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.patches, self.norms = nn.Conv2d(3, width, 4, 4), nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.across = Seq(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        self.within = Seq(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.within(self.norms[1](x))
        return self.last(x.mean(1))


class Bert(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(500, width), nn.Embedding(64, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, first=False) for _ in range(2)])
        self.pool, self.last = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        for block in self.blocks:
            x = block(x, mask)
        return self.last(torch.tanh(self.pool(x[:, 0])))


class Gpt(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.words, self.places = nn.Embedding(500, width), nn.Embedding(32, width)
        self.blocks = Seq(Block(width, causal=True, fused=True), Block(width, causal=True, fused=True))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.words(ids) + self.places.weight[: ids.shape[1]]))
        return x @ self.words.weight.t()


class Translator(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.words, self.encoder, self.decoder = nn.Embedding(500, width), Block(width), Block(width, causal=True)
        self.cross, self.norm, self.last = Attention(width, 4), nn.LayerNorm(width), nn.Linear(width, 500)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.decoder(self.words(target))
        return self.last(x + self.cross(self.norm(x), self.encoder(self.words(source))))


class Conformer(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.first = nn.Linear(40, width)
        self.feeds = nn.ModuleList(
            [Seq(nn.LayerNorm(width), nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, width)) for _ in range(2)]
        )
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, 4)
        self.wide, self.narrow = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depth, self.batch = nn.Conv1d(width, width, 7, 1, 3, groups=width), nn.BatchNorm1d(width)
        self.last = Seq(nn.LayerNorm(width), nn.Linear(width, 30), nn.LogSoftmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + 0.5 * self.feeds[0](x)
        x = x + self.attention(self.norm(x))
        y = F.glu(self.wide(x.transpose(1, 2)), 1)
        x = x + self.narrow(F.silu(self.batch(self.depth(y)))).transpose(1, 2)
        return self.last(x + 0.5 * self.feeds[1](x))


# ---------------------------------------------------------------- sequences, sounds, tables


class Recurrent(nn.Module):
    def __init__(self, cell: Any, width: int = 48):
        super().__init__()
        self.first, self.cell = nn.Linear(40, width), cell(width, width, 2, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(F.relu(self.first(x)))[0][:, -1])


class Crnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        down = [conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((2, 1)), conv(32, 64), nn.MaxPool2d((8, 1))]
        self.inner, self.cell, self.last = Seq(*down), nn.LSTM(64, 48, bidirectional=True), nn.Linear(96, 37)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).squeeze(2).permute(2, 0, 1)
        return self.last(self.cell(x)[0]).transpose(0, 1)


class Tcn(nn.Module):
    def __init__(self, width: int = 48):
        super().__init__()
        self.first = nn.Conv1d(40, width, 1)
        self.layers = nn.ModuleList([nn.Conv1d(width, width, 3, dilation=2**i) for i in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(4)])
        self.last = nn.Conv1d(width, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(1, 2))
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = x + F.relu(norm(layer(F.pad(x, (2 * 2**i, 0)))))
        return self.last(x)[..., -1]


class Wavenet(nn.Module):
    def __init__(self, width: int = 24):
        super().__init__()
        self.first = nn.Conv1d(1, width, 9, 4, 4)
        self.gates = nn.ModuleList([nn.Conv1d(width, 2 * width, 3, 1, 2**i, 2**i) for i in range(4)])
        self.outs = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(4)])
        self.last = Seq(nn.ReLU(), nn.Conv1d(width, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.first(x), []
        for gate, out in zip(self.gates, self.outs, strict=True):
            a, b = gate(x).chunk(2, 1)
            kept.append(out(torch.tanh(a) * torch.sigmoid(b)))
            x = x + kept[-1]
        return self.last(sum(kept[1:], kept[0])).mean(-1)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Seq(conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2), head(64, 32))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (F.normalize(self.inner(x), dim=1) for x in (a, b))
        return torch.stack([(a * b).sum(1), (a - b).abs().sum(1)], 1)


class Recommender(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.users, self.items = nn.Embedding(500, width), nn.EmbeddingBag(800, width, mode="sum")
        self.facts = Seq(nn.Linear(12, width), nn.ReLU())
        self.last = Seq(nn.Linear(3 * width + 1, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, user: Tensor, items: Tensor, facts: Tensor) -> Tensor:
        parts = [self.users(user)[:, 0], self.items(items), self.facts(facts)]
        return self.last(torch.cat([*parts, (parts[0] * parts[1]).sum(1, keepdim=True)], 1))


class Points(nn.Module):
    """Per-point layers and the largest of all points, after a learned rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Seq(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, 9))
        self.inner = Seq(nn.Conv1d(3, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 128, 1), nn.ReLU())
        self.last = Seq(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(x).view(-1, 3, 3) + torch.eye(3)
        return self.last(self.inner(turn @ x).max(-1).values)
