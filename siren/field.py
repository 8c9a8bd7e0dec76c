"""The field of given latents: what it answers at arbitrary points.

Notation: B latents, N points per latent, H hidden units. FiLM is folded into the weights once, when the field is bound:

    sin(gamma * (W x + b) + beta) = sin((gamma W) x + (gamma b + beta)),

so a layer is one matrix product and one sine. Without gradients, points are walked in blocks that stay in the cache
(CPU) or in bounded memory (GPU), so callers may pass millions of them. Phases are float32 whatever the autocast state:
gamma is about 30, and a phase error of 0.1 rad is visible. Training on a GPU lets their products round to TF32 (train.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from siren.mapping import FilmParameters
from siren.sine import sine, sine_

if TYPE_CHECKING:
    from siren.siren import Siren

CPU_BLOCK = 2048
GPU_BLOCK = 1 << 19


class Field(Protocol):
    """What samplers, renderers, extraction and metrics see. points: (B, N, 3) world; directions: (B, N, 3) unit."""

    batch_size: int

    def occupancy_logits(self, points: Tensor) -> Tensor:
        """(B, N); 0 is the surface, positive is solid. For a radiance field: the raw density."""

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) and (B, N, 3) in [0, 1]."""

    def normals(self, points: Tensor) -> Tensor:
        """(B, N, 3), unit, pointing out of the solid: -grad(logit) / |grad(logit)|."""


@runtime_checkable
class RayField(Protocol):
    """A field that answers better when it sees whole rays (generators/view_cache.py)."""

    def logits_and_colors_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """origins and unit directions (B, R, 3), rising t (B, R, S) -> (B, R, S) and (B, R, S, 3) in [0, 1]."""


class _Layer(NamedTuple):
    """A folded layer: ``phase = x @ weight + bias``. weight: (B, num_in, num_out); bias: (B, 1, num_out)."""

    weight: Tensor
    bias: Tensor


class SirenField:
    """The field of B latents. See :class:`Field` for the queries' shapes."""

    def __init__(self, siren: Siren, film: FilmParameters) -> None:
        self.batch_size = film.frequencies.shape[0]
        self._siren = siren
        with torch.autocast(film.frequencies.device.type, enabled=False):
            shape = (self.batch_size, siren.num_layers + 1, siren.hidden_dim)
            gamma = film.frequencies.float().reshape(shape) * 15 + 30
            beta = film.phase_shifts.float().reshape(shape)
            layers = [*siren.network, siren.color_layer_sine]
            folded = [self._fold(layer.layer, gamma[:, i], beta[:, i]) for i, layer in enumerate(layers)]
            if siren.embedding_grid is None:  # the box scaling is linear, so it folds too
                folded[0] = folded[0]._replace(weight=folded[0].weight * siren.point_scale)
            self._layers = folded[:-1]
            color = folded[-1]
            self._color_direction_weight = color.weight[:, :3]
            self._color = _Layer(color.weight[:, 3:], color.bias)

    @staticmethod
    def _fold(linear: torch.nn.Linear, gamma: Tensor, beta: Tensor) -> _Layer:
        weight = linear.weight.t().unsqueeze(0) * gamma.unsqueeze(1)
        return _Layer(weight, torch.addcmul(beta, gamma, linear.bias).unsqueeze(1))

    # -- queries ---------------------------------------------------------------------------------------------------

    def occupancy_logits(self, points: Tensor) -> Tensor:
        (logits,) = self._in_blocks(lambda p: (self._logits(self._features(p)),), points)
        return logits

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        def query(p: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
            features = self._features(p)
            return self._logits(features), self._colors(features, d)

        logits, colors = self._in_blocks(query, points, directions)
        return logits, colors

    def colors(self, points: Tensor, directions: Tensor) -> Tensor:
        """(B, N, 3) in [0, 1]."""
        return self.logits_and_colors(points, directions)[1]

    def logits_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) and d logit / d point, (B, N, 3); differentiable, by the chain rule written out.

        One forward and one transposed pass: the arithmetic of two occupancy queries, and no second graph to build.
        """
        logits, gradients = self._in_blocks(self._logits_and_gradients, points)
        return logits, gradients

    def normals(self, points: Tensor) -> Tensor:
        return -F.normalize(self.logits_and_gradients(points)[1], dim=-1, eps=1e-12)

    # -- one block -------------------------------------------------------------------------------------------------

    def _encode(self, points: Tensor) -> Tensor:
        grid = self._siren.embedding_grid
        if grid is None:
            return points
        scaled = points * self._siren.point_scale
        return torch.cat([trilinear_sample(grid[0], scaled), scaled], dim=-1)

    def _phases(self, points: Tensor) -> list[Tensor]:
        x = self._encode(points)
        phases = []
        for layer in self._layers:
            phases.append(torch.baddbmm(layer.bias, x, layer.weight))
            x = sine(phases[-1])
        return phases

    def _features(self, points: Tensor) -> Tensor:
        x = self._encode(points)
        for layer in self._layers:
            x = _sin(torch.baddbmm(layer.bias, x, layer.weight))
        return x

    def _logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self._siren.final_layer.weight, self._siren.final_layer.bias).squeeze(-1)

    def _colors(self, features: Tensor, directions: Tensor) -> Tensor:
        phase = torch.baddbmm(self._color.bias, features, self._color.weight)
        phase = torch.baddbmm(phase, directions, self._color_direction_weight)
        linear = self._siren.color_layer_linear[0]
        return torch.sigmoid(F.linear(_sin(phase), linear.weight, linear.bias))

    def _logits_and_gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if self._siren.embedding_grid is not None and not points.requires_grad:
            points = points.detach().requires_grad_(True)
        with torch.set_grad_enabled(torch.is_grad_enabled() or self._siren.embedding_grid is not None):
            phases = self._phases(points)
            logits = self._logits(sine(phases[-1]))
            gradient = self._siren.final_layer.weight.expand(self.batch_size, points.shape[1], -1)
            for phase, layer in zip(reversed(phases), reversed(self._layers), strict=True):
                gradient = torch.bmm(gradient * sine(phase + math.pi / 2), layer.weight.transpose(1, 2))
            if self._siren.embedding_grid is not None:
                encoded = self._encode(points)
                (gradient,) = torch.autograd.grad(encoded, points, gradient, create_graph=True)
        return logits, gradient

    def _in_blocks(self, query: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """``query`` on blocks of the (B, N, ...) inputs where no gradient is recorded, else on the whole."""
        points = inputs[0]
        _check_points(points, self.batch_size)
        with torch.autocast(points.device.type, enabled=False):
            inputs = tuple(tensor.float() for tensor in inputs)
            block = max(1, (CPU_BLOCK if points.device.type == "cpu" else GPU_BLOCK) // self.batch_size)
            if torch.is_grad_enabled() or points.shape[1] <= block:
                return query(*inputs)
            pieces = [query(*parts) for parts in zip(*(tensor.split(block, dim=1) for tensor in inputs), strict=True)]
            return tuple(torch.cat(column, dim=1).detach() for column in zip(*pieces, strict=True))


def _sin(phase: Tensor) -> Tensor:
    return sine(phase) if torch.is_grad_enabled() else sine_(phase)


def _check_points(points: Tensor, batch_size: int) -> None:
    if points.dim() != 3 or points.shape[0] != batch_size or points.shape[2] != 3:
        raise ValueError(f"points must be (B={batch_size}, N, 3), not {tuple(points.shape)}")


def trilinear_sample(grid: Tensor, coordinates: Tensor) -> Tensor:
    """Trilinear interpolation, zero outside, corners at -1 and 1; twice differentiable, which grid_sample is not.

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
        offset = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=grid.device)
        index = base + offset
        inside = ((index >= 0) & (index < size)).all(dim=-1)
        weight = torch.where(offset.bool(), fraction, 1 - fraction).prod(dim=-1) * inside
        x, y, z = index.clamp(0, size - 1).unbind(dim=-1)
        total = total + weight.unsqueeze(-1) * table[(z * size + y) * size + x]
    return total
