"""What every discriminator offers, whatever its layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

LEAKY_SLOPE = 0.2
NUM_POSE = 2


class DiscriminatorOutput(NamedTuple):
    """``score`` (B,), ``latent`` (B, latent_dim), ``pose`` (B, 2) as (pitch, yaw) in radians.

    ``latent`` is None for a discriminator without that read-out.
    """

    score: Tensor
    latent: Tensor | None
    pose: Tensor


class Discriminator(nn.Module):
    """Scores images and reads their poses. The last ``NUM_POSE`` outputs of ``final_layer`` are (pitch, yaw)."""

    final_layer: nn.Conv2d | nn.Linear

    def used_parameters(self, size: int, fade_alpha: float) -> list[nn.Parameter]:
        """Those that images of ``size`` px meet; the rest belongs to other sizes and gets no gradient."""
        raise NotImplementedError

    def forward(self, images: Tensor, fade_alpha: float = 1.0) -> DiscriminatorOutput:
        """images: (B, 3, H, H) in [-1, 1]. ``fade_alpha`` in [0, 1]: how far the layers of a new size have faded in."""
        raise NotImplementedError
