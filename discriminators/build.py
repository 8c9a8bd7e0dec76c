"""Construction of the discriminator that a curriculum names."""

from __future__ import annotations

from discriminators.base import Discriminator
from discriminators.progressive import ProgressiveEncoderDiscriminator
from discriminators.residual import ResidualDiscriminator
from settings.curriculum import Curriculum


def build_discriminator(curriculum: Curriculum) -> Discriminator:
    """Return a new discriminator, with initial weights drawn from the global random number generator."""
    if curriculum.discriminator == "ResidualDiscriminator":
        return ResidualDiscriminator(curriculum)
    return ProgressiveEncoderDiscriminator(curriculum)
