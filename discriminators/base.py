"""The interface that all discriminators share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

LEAKY_SLOPE = 0.2
NUM_POSE = 2


class DiscriminatorOutput(NamedTuple):
    """Outputs: ``score`` (B,), ``latent`` (B, latent_dim), ``pose`` (B, 2) as (pitch, yaw) in radians.

    ``latent`` is None for a discriminator without a latent output.
    """

    score: Tensor
    latent: Tensor | None
    pose: Tensor


class Discriminator(nn.Module):
    """Network that scores images and predicts poses. The last ``NUM_POSE`` outputs of ``final_layer`` are (pitch, yaw)."""

    final_layer: nn.Conv2d | nn.Linear

    def forward(self, images: Tensor, fade_alpha: float = 1.0) -> DiscriminatorOutput:
        """Score images (B, 3, H, H) in [-1, 1]. ``fade_alpha`` in [0, 1]: blend weight of the layers of a new size."""
        raise NotImplementedError
