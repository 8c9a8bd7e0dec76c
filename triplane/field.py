"""The field of given latents on tri-planes. See :class:`siren.field.Field` for the shapes of its queries.

Colors do not depend on the view direction. Normals are finite differences over a tetrahedron: the gradient of bilinear planes
is discontinuous, while a difference over two texels is continuous.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from triplane.decoder import DecoderWeights
from triplane.lookup import Frame, query

CHUNK = 1 << 19  # points; bounds the memory when no gradient is recorded


class TriplaneField:
    """Field on planes (B, size, size, 3, C). ``normal_step``: step of the finite differences along each axis, world units."""

    def __init__(self, planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, normal_step: Tensor) -> None:
        self.batch_size = len(planes)
        self._planes, self._decoder, self._frame = planes, decoder, frame
        self._is_product, self._normal_step = is_product, normal_step

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return self._in_chunks(points, with_colors=False)[0]

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_chunks(points, with_colors=True)

    def normals(self, points: Tensor) -> Tensor:
        return -F.normalize(self._differences(points), dim=-1, eps=1e-12)

    def _differences(self, points: Tensor) -> Tensor:
        corners = tetrahedron(points)
        around = points.unsqueeze(2) + self._normal_step * corners
        logits = self.occupancy_logits(around.flatten(1, 2)).unflatten(1, (-1, len(corners)))
        return logits @ corners / (len(corners) * self._normal_step)

    def _in_chunks(self, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
        """Query the points (B, N, 3) in chunks, or all at once if gradients are recorded."""
        if points.dim() != 3 or points.shape[0] != self.batch_size or points.shape[2] != 3:
            raise ValueError(f"points must have shape (B={self.batch_size}, N, 3), not {tuple(points.shape)}")
        with torch.autocast(points.device.type, enabled=False):
            chunk = max(1, CHUNK // self.batch_size)
            if torch.is_grad_enabled() or points.shape[1] <= chunk:
                return self._query(points, with_colors)
            pieces = [self._query(part, with_colors) for part in points.split(chunk, dim=1)]
        logits, colors = zip(*pieces, strict=True)
        return torch.cat(logits, dim=1), torch.cat(colors, dim=1) if with_colors else None

    def _query(self, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
        return query(self._planes, self._decoder, self._frame, self._is_product, points.float(), with_colors)


def tetrahedron(like: Tensor) -> Tensor:
    """Return four alternate corners (4, 3) of the cube [-1, 1]^3. They are computed, as a copy would synchronize with a GPU."""
    index = torch.arange(4, device=like.device)
    y, z = 2 * (index // 2) - 1, 2 * (index % 2) - 1
    return torch.stack([y * z, y, z], dim=1).to(like.dtype)
