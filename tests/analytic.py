"""Fields whose values are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


class SphereField:
    """logit = sharpness (radius - |p - center|); the color is (p + 1) / 2. Counts the queried points."""

    def __init__(self, radius: float, sharpness: float = 200.0, center=(0.0, 0.0, 0.0), batch_size: int = 1, dtype=None) -> None:
        self.radius, self.sharpness, self.batch_size = radius, sharpness, batch_size
        self.center = torch.tensor(center, dtype=dtype or torch.float32)
        self.num_logit_points = self.num_color_points = 0

    def occupancy_logits(self, points: Tensor) -> Tensor:
        self.num_logit_points += points.shape[0] * points.shape[1]
        return self.sharpness * (self.radius - (points - self.center).norm(dim=-1))

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self.num_color_points += points.shape[0] * points.shape[1]
        return self.occupancy_logits(points), (points + 1) / 2

    def normals(self, points: Tensor) -> Tensor:
        return torch.nn.functional.normalize(points - self.center, dim=-1)
