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
    """Network that scores images and predicts poses.

    The outputs of ``final_layer`` are the score, the latent (``latent_dim`` values, possibly none), and (pitch, yaw).
    """

    final_layer: nn.Conv2d | nn.Linear
    latent_dim: int

    def forward(self, images: Tensor, fade_alpha: float | Tensor = 1.0) -> DiscriminatorOutput:
        """Score images (B, 3, H, H) in [-1, 1]. ``fade_alpha`` in [0, 1]: blend weight of the layers of a new size."""
        raise NotImplementedError

    def split_outputs(self, outputs: Tensor) -> DiscriminatorOutput:
        """Split the outputs (B, 1 + latent_dim + NUM_POSE) of the final layer, in float32."""
        score, latent, pose = outputs.float().split([1, self.latent_dim, NUM_POSE], dim=1)
        return DiscriminatorOutput(score.squeeze(1), latent if self.latent_dim else None, pose)


def init_kaiming(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw the weights for inputs that a leaky ReLU produced (Kaiming, fan-in)."""
    nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
