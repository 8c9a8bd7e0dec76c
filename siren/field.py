"""The field of given latents, evaluated at arbitrary points.

Notation: B latents, N points per latent, H hidden units. FiLM is folded into the weights once, when the field is created
(siren/backends/folded.py). On a CPU the arithmetic runs in cache-sized blocks with hand-written gradients
(siren/backends/blocked.py). Elsewhere it is plain PyTorch. When no gradient is recorded, points are processed in chunks to bound
memory, so callers may pass millions of them. Phases are float32 regardless of autocast: gamma is about 30, and a phase
error of 0.1 rad is visible. When training on a GPU, products after the first layer may round to TF32 (train.py), and occupancy
queries without gradients use one fused kernel (siren/backends/fused.py, which lists the errors).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fields.interface import check_points, in_chunks
from siren.backends import blocked, compiled, folded, fused
from siren.backends.folded import FoldedSiren
from siren.backends.packed import PackedField


class SirenField:
    """The field of B latents. See :class:`fields.interface.Field` for the shapes of its queries.

    ``grid``: feature grid (1, C, D, D, D), indexed [z, y, x], sampled at points times ``point_scale``; None for models without
    one. ``is_compiled``: whether queries that record gradients go through torch.compile (siren/backends/compiled.py).
    """

    def __init__(self, folded: FoldedSiren, grid: Tensor | None, point_scale: float, is_compiled: bool) -> None:
        self.batch_size = len(folded.color_bias)
        self._folded = folded
        self._grid = grid
        self._point_scale = point_scale
        self._is_compiled = is_compiled
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
        if self._goes_through_compile():
            return compiled.logits_and_colors(self._folded, x, directions)
        hidden = folded.features(self._folded, x)
        colors = None if directions is None else folded.colors(self._folded, hidden, directions)
        return folded.logits(self._folded, hidden), colors

    def _logits_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        arithmetic = blocked if _in_blocks(points) else compiled if self._goes_through_compile() else folded
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

    def _goes_through_compile(self) -> bool:
        return self._is_compiled and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _in_blocks(*inputs: Tensor | None) -> bool:
    """Return whether to use siren/backends/blocked.py: on a CPU, unless points or directions need a gradient.

    torch.compile traces the plain arithmetic of siren/backends/folded.py instead.
    """
    given = [tensor for tensor in inputs if tensor is not None]
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return given[0].device.type == "cpu" and not needs_gradient and not torch.compiler.is_compiling()


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
