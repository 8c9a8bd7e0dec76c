"""The way out of a hollow shape: mirror the field in depth and train on.

Through a narrow lens, a shape mirrored in depth and seen from the mirrored pose gives nearly the same picture, so unposed
images cannot tell a face from its hollow mould, and training may settle on the mould. Mirroring z in the field, and the
pose read-outs of D about the mean pose, turns one into the other with everything else as it was.
"""

from __future__ import annotations

import math

import torch

from discriminators.progressive import NUM_POSE, ProgressiveEncoderDiscriminator
from generators.generator import ImplicitGenerator3d


@torch.no_grad()
def mirror_field(generator: ImplicitGenerator3d) -> None:
    """field(x, y, z, direction) becomes field(x, y, -z, direction with -z), in place; exact for every latent."""
    siren = generator.siren
    siren.network[0].layer.weight[:, -1].neg_()  # the point's coordinates are the last three inputs
    siren.color_layer_sine.layer.weight[:, 2].neg_()  # the direction's are the first three
    if siren.embedding_grid is not None:
        siren.embedding_grid.copy_(siren.embedding_grid.flip(2))


@torch.no_grad()
def mirror_pose_readout(discriminator: ProgressiveEncoderDiscriminator) -> None:
    """D reads pi - pitch and pi - yaw where it read pitch and yaw, in place: the mirrored pose about the front."""
    discriminator.final_layer.weight[-NUM_POSE:].neg_()
    discriminator.final_layer.bias[-NUM_POSE:].neg_().add_(math.pi)
