"""The interface of a field, and what its implementations share: queries in chunks, which bound the memory.

B latents, N points per latent, R rays, S samples per ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

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
