"""The field of given latents, evaluated at arbitrary points.

Notation: B latents, N points per latent, H hidden units. FiLM is folded into the weights once, when the field is created
(siren/backends/folded.py). On a CPU the arithmetic runs in cache-sized blocks with hand-written gradients
(siren/backends/blocked.py). Elsewhere it is plain PyTorch. When no gradient is recorded, points are processed in chunks to bound
memory, so callers may pass millions of them. Phases are float32 regardless of autocast: gamma is about 30, and a phase
error of 0.1 rad is visible. When training on a GPU, products after the first layer may round to TF32 (train.py), and occupancy
queries without gradients use one fused kernel (siren/backends/fused.py, which lists the errors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from siren.backends import blocked, compiled, folded, fused
from siren.backends.folded import fold
from siren.backends.packed import PackedField
from siren.mapping import FilmParameters
from siren.siren import Siren

CHUNK = 1 << 19  # points; bounds the memory


class Field(Protocol):
    """Interface that samplers, renderers, extraction and metrics use. points: (B, N, 3) world; directions: (B, N, 3) unit."""

    batch_size: int

    def occupancy_logits(self, points: Tensor) -> Tensor:
        """Return occupancy logits (B, N): 0 is the surface, positive is solid. For a radiance field: the raw density."""

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, N) and colors (B, N, 3) in [0, 1]."""

    def normals(self, points: Tensor) -> Tensor:
        """Return unit normals (B, N, 3) that point out of the solid: -grad(logit) / |grad(logit)|."""


@runtime_checkable
class RayField(Protocol):
    """A field that is queried by whole rays where possible (generators/view_cache.py)."""

    def occupancy_logits_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        """Return logits (B, R, S) at increasing t (B, R, S) on rays with origins and unit directions (B, R, 3)."""

    def logits_and_colors_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, R, S) and colors (B, R, S, 3) in [0, 1]. Arguments as in :meth:`occupancy_logits_on_rays`."""


class SirenField:
    """The field of B latents. See :class:`Field` for the shapes of its queries."""

    def __init__(self, siren: Siren, film: FilmParameters) -> None:
        self.batch_size = film.frequencies.shape[0]
        self._grid = siren.embedding_grid
        self._point_scale = siren.point_scale
        layers = [layer.layer for layer in siren.network]
        heads = (siren.color_layer_sine.layer, siren.final_layer, siren.color_layer_linear[0])
        with torch.autocast(film.frequencies.device.type, enabled=False):
            self._folded = fold(layers, *heads, film, point_scale=siren.point_scale if self._grid is None else 1.0)
        if not siren.view_dependent:
            self._folded = self._folded._replace(direction_weight=torch.zeros_like(self._folded.direction_weight))
        self._packed: dict[torch.dtype, PackedField] = {}  # filled on the first query of the fused kernel

    # -- queries ---------------------------------------------------------------------------------------------------

    def occupancy_logits(self, points: Tensor) -> Tensor:
        if (dtype := fused.kernel_dtype(self._folded, points)) is not None:
            check_points(points, self.batch_size)
            if dtype not in self._packed:
                self._packed[dtype] = PackedField.of(self._folded, dtype)
            return fused.occupancy_logits(self._packed[dtype], points.float())
        (logits,) = in_chunks(self._logits, self.batch_size, points)
        return logits

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        logits, colors = in_chunks(self._query, self.batch_size, points, directions)
        return logits, colors

    def colors(self, points: Tensor, directions: Tensor) -> Tensor:
        """Return colors (B, N, 3) in [0, 1]."""
        return self.logits_and_colors(points, directions)[1]

    def logits_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, N) and d logit / d point (B, N, 3), by an explicit chain rule; both are differentiable."""
        logits, gradients = in_chunks(self._logits_and_gradients, self.batch_size, points)
        return logits, gradients

    def normals(self, points: Tensor) -> Tensor:
        return -F.normalize(self.logits_and_gradients(points)[1], dim=-1, eps=1e-12)

    # -- one chunk -------------------------------------------------------------------------------------------------

    def _encode(self, points: Tensor) -> Tensor:
        """Return the input of the first layer, (B, N, C)."""
        if self._grid is None:
            return points
        scaled = points * self._point_scale
        return torch.cat([trilinear_sample(self._grid[0], scaled), scaled], dim=-1)

    def _logits(self, points: Tensor) -> tuple[Tensor]:
        return (self._query(points, None)[0],)

    def _query(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self._encode(points)
        if _in_blocks(points, directions):
            return blocked.logits_and_colors(self._folded, x, directions)
        if compiled.is_on():
            return compiled.logits_and_colors(self._folded, x, directions)
        hidden = folded.features(self._folded, x)
        colors = None if directions is None else folded.colors(self._folded, hidden, directions)
        return folded.logits(self._folded, hidden), colors

    def _logits_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        arithmetic = blocked if _in_blocks(points) else compiled if compiled.is_on() else folded
        if self._grid is None:
            return arithmetic.logits_and_gradients(self._folded, points)
        is_recorded = torch.is_grad_enabled()
        points = points if points.requires_grad else points.detach().requires_grad_(True)
        with torch.enable_grad():
            x = self._encode(points)
        if is_recorded:  # twice differentiable with respect to x: plain PyTorch
            logits, gradient = folded.logits_and_gradients(self._folded, x)
        else:
            logits, gradient = arithmetic.logits_and_gradients(self._folded, x.detach())
        (gradient,) = torch.autograd.grad(x, points, gradient, create_graph=is_recorded)
        return logits, gradient


def _in_blocks(*inputs: Tensor | None) -> bool:
    """Return whether to use siren/backends/blocked.py: on a CPU, unless points or directions need a gradient.

    torch.compile traces the plain arithmetic of siren/backends/folded.py instead.
    """
    given = [tensor for tensor in inputs if tensor is not None]
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return given[0].device.type == "cpu" and not needs_gradient and not torch.compiler.is_compiling()


def in_chunks(query: Callable[..., tuple[Tensor, ...]], batch_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply ``query`` to chunks of the (B, N, 3) inputs, in float32, or to all of them at once if gradients are recorded.

    The first input is the points. Raises ValueError if their shape is not (batch_size, N, 3).
    """
    points = inputs[0]
    check_points(points, batch_size)
    with torch.autocast(points.device.type, enabled=False):
        inputs = tuple(tensor.float() for tensor in inputs)
        chunk = max(1, CHUNK // batch_size)
        if torch.is_grad_enabled() or points.shape[1] <= chunk:
            return query(*inputs)
        pieces = [query(*parts) for parts in zip(*(tensor.split(chunk, dim=1) for tensor in inputs), strict=True)]
        return tuple(torch.cat(column, dim=1).detach() for column in zip(*pieces, strict=True))


def check_points(points: Tensor, batch_size: int) -> None:
    """Raise ValueError if the shape of ``points`` is not (batch_size, N, 3)."""
    if points.dim() != 3 or points.shape[0] != batch_size or points.shape[2] != 3:
        raise ValueError(f"points must have shape (B={batch_size}, N, 3), not {tuple(points.shape)}")


def trilinear_sample(grid: Tensor, coordinates: Tensor) -> Tensor:
    """Interpolate trilinearly, with zeros outside and corners at -1 and 1. Twice differentiable, unlike grid_sample.

    grid: (C, D, D, D) indexed [z, y, x]; coordinates: (B, N, 3) as (x, y, z) in [-1, 1]. Returns (B, N, C).
    """
    channels, size = grid.shape[:2]
    table = grid.reshape(channels, -1).t()
    position = (coordinates + 1) * ((size - 1) / 2)
    base = position.detach().floor()
    fraction = position - base
    base = base.long()
    total = torch.zeros(1, dtype=grid.dtype, device=grid.device)
    for corner in range(8):
        offset = (corner & 1, corner >> 1 & 1, corner >> 2 & 1)
        index = torch.stack([base[..., axis] + offset[axis] for axis in range(3)], dim=-1)
        inside = ((index >= 0) & (index < size)).all(dim=-1)
        parts = [fraction[..., axis] if offset[axis] else 1 - fraction[..., axis] for axis in range(3)]
        weight = parts[0] * parts[1] * parts[2] * inside
        x, y, z = index.clamp(0, size - 1).unbind(dim=-1)
        total = total + weight.unsqueeze(-1) * table[(z * size + y) * size + x]
    return total
