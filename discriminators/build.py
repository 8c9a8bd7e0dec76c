"""The discriminator that a curriculum names."""

from __future__ import annotations

from discriminators.base import Discriminator
from discriminators.progressive import ProgressiveEncoderDiscriminator
from discriminators.residual import ResidualDiscriminator
from settings.curriculum import Curriculum


def build_discriminator(curriculum: Curriculum) -> Discriminator:
    """A fresh one, its initial weights drawn from the global random numbers."""
    if curriculum.discriminator == "ResidualDiscriminator":
        return ResidualDiscriminator(curriculum)
    return ProgressiveEncoderDiscriminator(curriculum)
