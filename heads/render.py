"""Render images of heads with exact geometry by sphere tracing.

One ray per pixel gives depth, normal and mask. Four more rays around it, started just before the depths found, give its color.
All operations are elementwise per ray, so a head's image does not depend on the rest of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import CameraPoses, camera_to_world
from heads.parameters import HeadParameters
from heads.sdf import BALL_RADIUS, HEAD_UNIT, head_distance
from heads.shading import head_colors

_HIT = 3e-4  # head units: 3e-5 world
_START_BEFORE = 0.003  # world units
_SAFE_STEP = 0.9  # smooth unions overestimate the distance a little
_LEAST_STEP = 0.01  # head units
_MAX_STEPS = 64
_BLOCK_POINTS = 65_536  # per evaluation, so that its data fits in the CPU cache


class HeadImages(NamedTuple):
    """Images of B heads with their geometry.

    ``images`` (B, 3, H, W) in [-1, 1], background -1 (black); ``alpha`` (B, H, W) in [0, 1]: the pixel's opacity;
    ``depth`` (B, H, W): t along the unit ray, background 0; ``normals`` (B, 3, H, W): world axes, unit, outward,
    background 0; ``mask`` (B, H, W) bool, True where the ray through the pixel's center hits the head.
    """

    images: Tensor
    alpha: Tensor
    depth: Tensor
    normals: Tensor
    mask: Tensor


class _RayBundle(NamedTuple):
    """Rays of B cameras: ``origin`` (B, 3, 1), unit ``directions`` (B, 3, N)."""

    origin: Tensor
    directions: Tensor

    def points(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return coordinates in head units at distances ``t`` (B, N) in world units."""
        p = (self.origin + self.directions * t.unsqueeze(1)) / HEAD_UNIT
        return p[:, 0], p[:, 1], p[:, 2]

    def take(self, index: Tensor) -> _RayBundle:
        return _RayBundle(self.origin, self.directions.gather(2, index.unsqueeze(1).expand(-1, 3, -1)))


def _rays(poses: CameraPoses, size: int, fov_degrees: float, offset: tuple[float, float] = (0.0, 0.0)) -> _RayBundle:
    """Return rays through the pixel centers plus ``offset`` (in pixels), matching the rays of generators.cameras."""
    cam2world = camera_to_world(poses)
    grid = torch.linspace(-1, 1, size, device=cam2world.device)
    spacing = 2 / max(size - 1, 1)
    y, x = torch.meshgrid(-grid + offset[1] * spacing, grid + offset[0] * spacing, indexing="ij")
    x, y = x.reshape(1, -1), y.reshape(1, -1)
    z = -1 / math.tan(math.radians(fov_degrees) / 2)
    norm = (x * x + y * y + z * z).sqrt()
    camera = (x / norm, y / norm, z / norm)
    columns = [cam2world[:, row, column, None] for row in range(3) for column in range(3)]
    rows = [sum(columns[3 * row + k] * camera[k] for k in range(3)) for row in range(3)]
    return _RayBundle(cam2world[:, :3, 3:], torch.stack(rows, dim=1))


def _ball_span(rays: _RayBundle) -> tuple[Tensor, Tensor]:
    """Return entry and exit t (B, N) of the ball that contains every head; entry > exit if the ray misses it."""
    middle = -(rays.origin * rays.directions).sum(1)
    closest = (rays.origin * rays.origin).sum(1) - middle * middle
    half = ((BALL_RADIUS + 0.005) * HEAD_UNIT) ** 2 - closest
    span = half.clamp(min=0).sqrt()
    return torch.where(half > 0, middle - span, 2.0), torch.where(half > 0, middle + span, 1.0)


def _compact(active: Tensor) -> Tensor:
    """Return indices (B, K) of the True entries in each row of ``active`` (B, N), padded with an index of the same row.

    K is the largest count over rows. Rows with fewer entries repeat one, which takes time but does not change the result.
    """
    counts = active.sum(1)
    rows, columns = active.nonzero(as_tuple=True)
    index = active.to(torch.uint8).argmax(1, keepdim=True).repeat(1, max(int(counts.max()), 1))
    row_starts = counts.cumsum(0) - counts
    index[rows, torch.arange(len(rows), device=rows.device) - row_starts[rows]] = columns
    return index


def _in_blocks(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Tensor:
    """Apply ``function`` to consecutive blocks of columns and concatenate the results along the columns."""
    width = max(_BLOCK_POINTS // num_rows, 1)
    return torch.cat([function(slice(start, start + width)) for start in range(0, num_columns, width)], dim=1)


def _trace(params: HeadParameters, rays: _RayBundle, t_start: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Return t (B, N) of the first surface after ``t_start``, and hit (B, N), True if there is one before ``t_end``."""
    t, active = t_start.clone(), t_start <= t_end
    hit = torch.zeros_like(active)
    for _ in range(_MAX_STEPS):
        if not bool(active.any()):
            break
        index = _compact(active)
        x, y, z = rays.take(index).points(t.gather(1, index))
        d = _in_blocks(lambda block: head_distance(params, x[:, block], y[:, block], z[:, block]), *x.shape)  # noqa: B023
        at = t.gather(1, index)
        step = d * _SAFE_STEP
        # a minimum step keeps grazing rays moving; a ray that ends up inside steps back, as the distance is negative there
        step = torch.where(d > _HIT, step.clamp(min=_LEAST_STEP), step)
        t.scatter_(1, index, at + step * HEAD_UNIT)
        found = torch.zeros_like(hit).scatter_(1, index, d.abs() < _HIT)
        hit |= found & active
        active = active & ~found & (t < t_end)
    return t, hit


def _normals(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return unit outward normals (B, N, 3): the gradient of the distance by differences on a tetrahedron's corners."""
    h = 2e-3
    gradient = torch.zeros(*x.shape, 3, device=x.device)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        d = head_distance(params, x + h * corner[0], y + h * corner[1], z + h * corner[2])
        gradient += d.unsqueeze(-1) * torch.tensor(corner, dtype=d.dtype, device=d.device)
    return gradient / ((gradient * gradient).sum(-1, keepdim=True) + 1e-20).sqrt()


def _color_rays(params: HeadParameters, rays: _RayBundle, t_start: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Return colors (B, N, 3) in [0, 1], black where a ray misses the head, and hit (B, N), False there."""
    t, hit = _trace(params, rays, t_start, t_end)
    colors = torch.zeros(*t.shape, 3, device=t.device)
    index = _compact(hit)
    some = rays.take(index)
    x, y, z = some.points(t.gather(1, index))

    def shade(block: slice) -> Tensor:
        points = (x[:, block], y[:, block], z[:, block])
        return head_colors(params, *points, _normals(params, *points), -some.directions[:, :, block].transpose(1, 2))

    shaded = _in_blocks(shade, *x.shape)
    colors.scatter_(1, index.unsqueeze(-1).expand_as(shaded), shaded)
    return torch.where(hit.unsqueeze(-1), colors, 0), hit


@torch.no_grad()
def render_heads(params: HeadParameters, poses: CameraPoses, size: int, fov_degrees: float = 12.0) -> HeadImages:
    """Render B heads from B poses at ``size`` x ``size`` pixels.

    The light is part of each head's parameters. The background is black, as free space is in a generative occupancy field.
    """
    rays = _rays(poses, size, fov_degrees)
    entry, exit_ = _ball_span(rays)
    t, hit = _trace(params, rays, entry, exit_)
    index = _compact(hit)
    found = _normals(params, *rays.take(index).points(t.gather(1, index)))
    normals = torch.zeros(*t.shape, 3, device=t.device).scatter_(1, index.unsqueeze(-1).expand_as(found), found)
    num = len(params)
    mask = hit.view(num, size, size)

    # Rays between pixel centers start just before the nearest surface around them; without one, they are skipped.
    nearest = torch.where(hit, t, math.inf).view(num, 1, size, size)
    nearest = -torch.nn.functional.max_pool2d(-nearest, 3, stride=1, padding=1).flatten(1)
    offsets = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
    between = [_rays(poses, size, fov_degrees, offset) for offset in offsets]
    between = _RayBundle(rays.origin, torch.cat([bundle.directions for bundle in between], dim=2))
    entry, exit_ = _ball_span(between)
    colors, is_head = _color_rays(params, between, torch.maximum(entry, nearest.repeat(1, 4) - _START_BEFORE), exit_)
    colors = colors.view(num, 4, size * size, 3).mean(1)
    return HeadImages(
        images=colors.transpose(1, 2).reshape(num, 3, size, size) * 2 - 1,
        alpha=is_head.view(num, 4, size, size).float().mean(1),
        depth=torch.where(hit, t, 0).view(num, size, size),
        normals=torch.where(hit.unsqueeze(-1), normals, 0).transpose(1, 2).reshape(num, 3, size, size),
        mask=mask,
    )
