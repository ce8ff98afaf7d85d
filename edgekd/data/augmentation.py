"""Augmentation as a pure function of `u`: the inputs and [B, draws] numbers in [0, 1) give the augmented inputs, and
nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def affine(
    images: torch.Tensor,
    u: torch.Tensor,
    *,
    turn: float = 0.0,
    scale: float = 0.0,
    shift: float = 0.0,
    flip: bool = False,
    ground: float | Literal["edge"] = 0.0,
) -> torch.Tensor:
    """Turns, scales and shifts images [B, C, H, W] by u [B, 5 or more], bilinear, in one `grid_sample`; u = 0.5 changes
    nothing.

    turn up to `turn` radians, height and width each by up to the share `scale`, shift by up to the share `shift` of
    half the image, mirrored left to right in half the cases if `flip` (a sixth draw). What comes in from outside has
    the value `ground`, or is the edge repeated."""
    import torch
    from torch.nn import functional as F

    limits = images.new_tensor([turn, scale, scale, shift, shift])
    angle, wide, high, right, down = ((2 * u[:, :5] - 1) * limits).unbind(1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    mirror = torch.where(u[:, 5] < 0.5, -1.0, 1.0) if flip else 1.0
    # grid_sample measures each axis in halves of its own length: a turn is none without this
    slant = images.shape[2] / images.shape[3]
    rows = [cos * (1 + wide) * mirror, -sin * slant, right, sin / slant * mirror, cos * (1 + high), down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    if ground == "edge":
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return F.grid_sample(images - ground, grid, align_corners=False) + ground


def shifted(images: torch.Tensor, u: torch.Tensor, *, pixels: int, flip: bool = False) -> torch.Tensor:
    """Shifts images [B, C, H, W] by whole pixels, up to `pixels` along each axis, by u [B, 2 or 3]; before that,
    mirrored left to right in half the cases if `flip` (the third draw). What comes in from outside is the image
    mirrored at its edge. One gather, no interpolation."""
    import torch

    height, width = images.shape[2:]
    down, right = (u[:, :2] * (2 * pixels + 1)).floor().long().clamp(max=2 * pixels).sub(pixels).unbind(1)
    rows = _mirrored(torch.arange(height) + down[:, None], height)
    columns = _mirrored(torch.arange(width) + right[:, None], width)
    if flip:
        columns = torch.where(u[:, 2:3] < 0.5, width - 1 - columns, columns)
    batch = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside [0, size) reflected at the first and the last."""
    position = position.abs()
    return (size - 1 - (size - 1 - position).abs()).abs()


def spectral(
    images: torch.Tensor,
    u: torch.Tensor,
    *,
    shift: int = 0,
    gain: float = 0.0,
    bands: int = 0,
    frames: int = 0,
    ground: float = 0.0,
) -> torch.Tensor:
    """Shifts log spectrograms [B, C, frames, bands] in time, makes them louder or softer, and hides a stripe of each
    axis, by u [B, 6 or more].

    shift: up to `shift` whole frames each way, what comes in is silence (the value `ground`, which nothing falls
    below); loudness: up to `gain` added or taken off what is not silence; then up to `bands` bands and `frames` frames
    beside each other become 0, the mean (Park et al. 2019, "SpecAugment", section 2: one mask of each kind, no warping
    of time)."""
    import torch

    length, width = images.shape[2:]
    later = (u[:, :1] * (2 * shift + 1)).floor().long().clamp(max=2 * shift) - shift
    source = torch.arange(length) - later
    inside = ((source >= 0) & (source < length))[:, None, :, None]
    moved = images.gather(2, source.clamp(0, length - 1)[:, None, :, None].expand_as(images))
    louder = ((2 * u[:, 1] - 1) * gain)[:, None, None, None]
    heard = inside & (moved > ground + 1e-4)  # silence amplified is silence
    made = torch.where(heard, moved + louder, ground).clamp(min=ground)
    hidden = (
        _stripe(u[:, 2], u[:, 3], bands, width)[:, None, None, :]
        | _stripe(u[:, 4], u[:, 5], frames, length)[:, None, :, None]
    )
    return made.masked_fill(hidden, 0.0)


def _stripe(wide: torch.Tensor, place: torch.Tensor, most: int, size: int) -> torch.Tensor:
    """[B, size] true in a run of 0 to `most` (by `wide`, in [0, 1)) positions that lies anywhere (by `place`)."""
    import torch

    width = (wide * (most + 1)).floor().clamp(max=most)
    start = (place * (size - width + 1)).floor()
    at = torch.arange(size)
    return (at >= start[:, None]) & (at < (start + width)[:, None])
