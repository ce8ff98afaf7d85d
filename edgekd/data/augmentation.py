"""Augmentation as pure functions: the augmented inputs depend only on the inputs and on `u`, [B, draws] numbers in
[0, 1)."""

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

    Rotation: up to `turn` radians. Scale: height and width each by up to the share `scale`. Shift: up to the share
    `shift` of half the image. `flip`: mirrors left to right in half the cases (a sixth draw). Pixels from outside the
    image have the value `ground`, or repeat the edge."""
    import torch
    from torch.nn import functional as F

    drawn, limits = (2 * u[:, :5] - 1).unbind(1), (turn, scale, scale, shift, shift)
    angle, wide, high, right, down = (share * limit for share, limit in zip(drawn, limits, strict=True))
    cos, sin = torch.cos(angle), torch.sin(angle)
    mirror = torch.where(u[:, 5] < 0.5, -1.0, 1.0) if flip else 1.0
    # grid_sample's coordinates are relative to each axis: without this factor a rotation would distort
    slant = images.shape[2] / images.shape[3]
    rows = [cos * (1 + wide) * mirror, -sin * slant, right, sin / slant * mirror, cos * (1 + high), down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    if ground == "edge":
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return F.grid_sample(images - ground, grid, align_corners=False) + ground


def shifted(images: torch.Tensor, u: torch.Tensor, *, pixels: int, flip: bool = False) -> torch.Tensor:
    """Shifts images [B, C, H, W] by whole pixels, up to `pixels` along each axis, by u [B, 2 or 3]. `flip`: first
    mirrors left to right in half the cases (the third draw). Pixels from outside the image are reflected at its edge.
    One gather, no interpolation."""
    import torch

    height, width = images.shape[2:]
    down, right = (u[:, :2] * (2 * pixels + 1)).floor().long().clamp(max=2 * pixels).sub(pixels).unbind(1)
    rows = _mirrored(torch.arange(height, device=u.device) + down[:, None], height)
    columns = _mirrored(torch.arange(width, device=u.device) + right[:, None], width)
    if flip:
        columns = torch.where(u[:, 2:3] < 0.5, width - 1 - columns, columns)
    batch = torch.arange(len(images), device=u.device)[:, None, None]
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

    Shift: up to `shift` whole frames each way; frames from outside are silence (the value `ground`, the minimum).
    Loudness: up to `gain` is added to or subtracted from values that are not silence. Then up to `bands` adjacent bands
    and `frames` adjacent frames become 0, the mean (Park et al. 2019, "SpecAugment", section 2: one mask of each kind,
    no time warping)."""
    import torch

    length, width = images.shape[2:]
    later = (u[:, :1] * (2 * shift + 1)).floor().long().clamp(max=2 * shift) - shift
    source = torch.arange(length, device=u.device) - later
    inside = ((source >= 0) & (source < length))[:, None, :, None]
    moved = images.gather(2, source.clamp(0, length - 1)[:, None, :, None].expand_as(images))
    louder = ((2 * u[:, 1] - 1) * gain)[:, None, None, None]
    audible = inside & (moved > ground + 1e-4)  # silence stays silence
    made = torch.where(audible, moved + louder, ground).clamp(min=ground)
    hidden = (
        _stripe(u[:, 2], u[:, 3], bands, width)[:, None, None, :]
        | _stripe(u[:, 4], u[:, 5], frames, length)[:, None, :, None]
    )
    return made.masked_fill(hidden, 0.0)


def _stripe(wide: torch.Tensor, place: torch.Tensor, most: int, size: int) -> torch.Tensor:
    """[B, size], true in a run of 0 to `most` positions (by `wide`, in [0, 1)) that starts anywhere (by `place`)."""
    import torch

    width = (wide * (most + 1)).floor().clamp(max=most)
    start = (place * (size - width + 1)).floor()
    at = torch.arange(size, device=wide.device)
    return (at >= start[:, None]) & (at < (start + width)[:, None])
