"""The way out of a hollow shape: mirror the field in depth and train on.

Through a narrow lens, a shape mirrored in depth and seen from the mirrored pose gives nearly the same picture, so unposed
images cannot tell a face from its hollow mould, and training may settle on the mould. Mirroring the field along the mean
direction of view, and the pose read-outs of D about the mean pose, turns one into the other with everything else as it was.
"""

from __future__ import annotations

import torch

from cli import UserError
from curriculums import Curriculum
from discriminators.progressive import NUM_POSE, ProgressiveEncoderDiscriminator
from generators.cameras import CameraPoses, camera_positions
from generators.generator import ImplicitGenerator3d


def reflection(curriculum: Curriculum) -> torch.Tensor:
    """(3, 3), float64: reverses the mean direction of view and leaves what is across it; diag(1, 1, -1) for the usual means."""
    pose = CameraPoses(*(torch.tensor([mean], dtype=torch.float64) for mean in (curriculum.v_mean, curriculum.h_mean)))
    axis = camera_positions(pose)[0]
    axis = torch.where(axis.abs() < 1e-9, 0.0, axis)  # the cosine of pi/2, as far as pi has digits
    return torch.eye(3, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.square().sum()


@torch.no_grad()
def mirror_field(generator: ImplicitGenerator3d) -> None:
    """field(x, direction) becomes field(R x, R direction), R the :func:`reflection`, in place; exact for every latent.

    Raises UserError for a model with a feature grid that does not lie along the mean direction of view.
    """
    siren, matrix = generator.siren, reflection(generator.curriculum)
    along_z = torch.equal(matrix, torch.diag(matrix.new_tensor([1, 1, -1])))
    if siren.embedding_grid is not None and not along_z:
        raise UserError(f"{generator.curriculum.model} can be mirrored in depth only where h_mean and v_mean are pi/2")
    position, direction = siren.network[0].layer.weight[:, -3:], siren.color_layer_sine.layer.weight[:, :3]
    for weight in (position, direction):  # a point's coordinates are the last three inputs, a direction's the first three
        weight.copy_(weight.double() @ matrix.to(weight.device))
    if siren.embedding_grid is not None:
        siren.embedding_grid.copy_(siren.embedding_grid.flip(2))


@torch.no_grad()
def mirror_pose_readout(discriminator: ProgressiveEncoderDiscriminator, curriculum: Curriculum) -> None:
    """D reads 2 mean - pitch and 2 mean - yaw where it read pitch and yaw, in place: the pose on the other side of the front."""
    means = discriminator.final_layer.bias.new_tensor([curriculum.v_mean, curriculum.h_mean])
    discriminator.final_layer.weight[-NUM_POSE:].neg_()
    discriminator.final_layer.bias[-NUM_POSE:].neg_().add_(2 * means)
