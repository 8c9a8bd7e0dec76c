"""The field of given latents on tri-planes. See :class:`fields.interface.Field` for the shapes of its queries.

Colors do not depend on the view direction. Normals are finite differences over a tetrahedron: the gradient of bilinear planes
is discontinuous, while a difference over two texels is continuous.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from fields.interface import in_chunks
from triplane.lookup import implementation_for, query
from triplane.plain_lookup import Planes


class TriplaneField:
    """Field of the given planes. ``normal_step``: step of the finite differences along each axis, world units."""

    def __init__(self, planes: Planes, normal_step: Tensor) -> None:
        self.batch_size = len(planes.texels)
        self._planes, self._normal_step = planes, normal_step

    def occupancy_logits(self, points: Tensor) -> Tensor:
        (logits,) = in_chunks(self._logits, self.batch_size, points)
        return logits

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        logits, colors = in_chunks(self._logits_and_colors, self.batch_size, points)
        return logits, colors

    def normals(self, points: Tensor) -> Tensor:
        return -F.normalize(self._gradient(points), dim=-1, eps=1e-12)

    def implementation(self, points: Tensor) -> ModuleType:
        """Return the module that answers queries at these points (triplane/lookup.py)."""
        return implementation_for(self._planes, points)

    def _gradient(self, points: Tensor) -> Tensor:
        """Return d logit / d point (B, N, 3), by finite differences."""
        corners = tetrahedron(points)
        around = points.unsqueeze(2) + self._normal_step * corners
        logits = self.occupancy_logits(around.flatten(1, 2)).unflatten(1, (-1, len(corners)))
        return logits @ corners / (len(corners) * self._normal_step)

    def _logits(self, points: Tensor) -> tuple[Tensor]:
        return (query(self._planes, points, with_colors=False)[0],)

    def _logits_and_colors(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return query(self._planes, points, with_colors=True)


def tetrahedron(like: Tensor) -> Tensor:
    """Return four alternate corners (4, 3) of the cube [-1, 1]^3. They are computed, as a copy would synchronize with a GPU."""
    index = torch.arange(4, device=like.device)
    y, z = 2 * (index // 2) - 1, 2 * (index % 2) - 1
    return torch.stack([y * z, y, z], dim=1).to(like.dtype)
