"""Small networks for the built-in tasks. Widths are multiples of 8, which suits integer kernels and pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def residual(widths: Sequence[int], *, channels: int, classes: int, blocks: int = 1, stem_stride: int = 1) -> nn.Module:
    """A residual network (He et al. 2016, the CIFAR form) on images [B, channels, H, W] -> logits [B, classes].

    A 3x3 stem of `widths[0]`, then per width `blocks` residual blocks; every width but the first halves height and
    width; global average pool, one linear layer. Departs from the paper: the shortcut of a halving block is a 1x1
    convolution."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(after)
            self.act1, self.act2 = nn.ReLU(), nn.ReLU()
            same = stride == 1 and before == after
            self.shortcut = (
                None if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            )

        def forward(self, x):
            y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
            return self.act2(y + (x if self.shortcut is None else self.shortcut(x)))

    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    before = widths[0]
    for place, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if place and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def perceptron(widths: Sequence[int], *, features: int, classes: int) -> nn.Module:
    """Hidden layers of `widths` with batch normalisation and ReLU on vectors [B, features] -> logits [B, classes]."""
    from torch import nn

    layers: list[nn.Module] = []
    before = features
    for width in widths:
        layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def plain(widths: Sequence[int], *, channels: int, classes: int, stem: int, mirrored: bool = False) -> nn.Module:
    """A wide and shallow network that learns in few epochs, on images [B, channels, H, W] -> logits [B, classes].

    A 2x2 stem of `stem`; per width two 3x3 convolutions, the first halved by a maximum before its norm; global maximum,
    one linear layer. The shape is that of airbench94 (Jordan 2024, arXiv 2404.00498), without its fixed first layer and
    its scaled head. `mirrored`: in evaluation the logits are the mean over the image and its mirror image, left to
    right, at twice the work; training is the same."""
    import torch
    from torch import nn

    class Mirrored(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = super().forward(x)
            return seen if self.training else (seen + super().forward(x.flip(3))) / 2

    layers: list[nn.Module] = [nn.Conv2d(channels, stem, 2), nn.ReLU()]
    before = stem
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return Mirrored(*layers) if mirrored else nn.Sequential(*layers)


def ds_cnn(widths: Sequence[int], *, classes: int) -> nn.Module:
    """A network of depthwise-separable convolutions on spectrograms [B, 1, frames, bands] -> logits [B, classes].

    DS-CNN (Zhang, Suda, Lai, Chandra 2017, "Hello Edge: Keyword Spotting on Microcontrollers", section 3.6): a 10x4
    stem of `widths[0]` that halves frames and bands; for each other width a 3x3 depthwise and a 1x1 convolution, each
    with batch norm and ReLU; global average pool, one linear layer. The first block halves once more, as in the paper's
    two larger networks. Departs from the paper: the stem is padded alike on both sides, by 5
    frames and 1 band."""
    from torch import nn

    def normed(*convolution: int, **more: int) -> list[nn.Module]:
        return [nn.Conv2d(*convolution, bias=False, **more), nn.BatchNorm2d(convolution[1]), nn.ReLU()]

    stem = nn.Conv2d(1, widths[0], (10, 4), 2, (5, 1), bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for block, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers += normed(before, before, 3, 1 if block else 2, 1, groups=before) + normed(before, after, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
