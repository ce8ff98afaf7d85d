"""Helpers of terms on intermediate layers: pairs of taps, equal sizes, vectors of length 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.records import Signals

if TYPE_CHECKING:
    import torch
    from torch import nn

EPS = 1e-12  # a vector shorter than this has no direction


def pairs(student: Signals, teacher: Signals) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Student and teacher taps in their order, in float32; the teacher's are detached: a term on features trains the
    student alone.

    Raises ValueError where there are none, or not equally many, or not of the same rows."""
    ours, theirs = list(student.taps.values()), list(teacher.taps.values())
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"needs pairs of taps, not {len(ours)} of the student, {len(theirs)} of the teacher")
    for s, t in zip(ours, theirs, strict=True):
        if s.ndim < 2 or t.ndim < 2 or len(s) != len(t):
            raise unpaired("features need the same rows", s, t)
    return [(s.float(), t.detach().float()) for s, t in zip(ours, theirs, strict=True)]


def unpaired(why: str, student: torch.Tensor, teacher: torch.Tensor) -> ValueError:
    """The error that names both shapes."""
    return ValueError(f"{why}: student {list(student.shape)}, teacher {list(teacher.shape)}")


def same_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two maps [B, C, H, W], averaged down to the smaller height and width. Raises ValueError for other shapes."""
    from torch.nn import functional as F

    if student.ndim != 4 or teacher.ndim != 4:
        raise unpaired("both must be maps [B, C, H, W]", student, teacher)
    size = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    student, teacher = (x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
    return student, teacher


def same_channels(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`same_size` for a term that compares channel by channel. Raises ValueError where their numbers differ."""
    small, large = same_size(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise unpaired("both must have the same channels", student, teacher)
    return small, large


def unit(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """x / |x| along `dim`. A vector of zeros is unchanged and gets no gradient: dividing it by a small constant would
    give a very large one."""
    import torch

    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return torch.where(length > EPS, x / length.clamp_min(EPS), 0.0)


def pooled(x: torch.Tensor) -> torch.Tensor:
    """One vector per row: the mean of a map over its positions, of tokens over the tokens. [B, C, H, W], [B, T, D] or
    [B, D] -> [B, D]."""
    if x.ndim == 4:
        return x.mean((2, 3))
    if x.ndim in (2, 3):
        return x.mean(1) if x.ndim == 3 else x
    raise ValueError(f"a tap must be [B, C, H, W], [B, T, D] or [B, D], not {list(x.shape)}")


def projector(student: torch.Tensor, teacher: torch.Tensor) -> nn.Module:
    """A module that projects a student's tap to the teacher's width: the identity if they are equal, else a 1x1
    convolution with BatchNorm for maps, or a Linear for vectors and tokens. Raises ValueError for shapes that can't be
    projected."""
    from torch import nn

    if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
        raise unpaired("both must be maps, or vectors, or tokens", student, teacher)
    if student.ndim == 3 and student.shape[1] != teacher.shape[1]:
        raise unpaired("both must have the same number of tokens", student, teacher)
    axis = 1 if student.ndim == 4 else -1
    narrow, wide = student.shape[axis], teacher.shape[axis]
    if narrow == wide:
        return nn.Identity()
    if student.ndim == 4:
        return nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))
    return nn.Linear(narrow, wide)
