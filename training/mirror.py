"""Mirroring of hollow shapes: reflect the field in depth and continue training.

With a narrow field of view, a shape mirrored in depth gives nearly the same image from the mirrored pose. So unposed images
cannot distinguish a face from its hollow mold, and training may converge to the mold. Reflecting the field along the mean
viewing direction, and D's pose head about the mean pose, turns one into the other and leaves everything else unchanged.

If the mold is a solid block, its mirror image is solid up to the camera, so the occupancy must be inverted too. If it is a
shell in front of empty space, it must not be. :func:`best_mirroring` compares both by rendering.

For v_mean = pi/2, where cameras look along the equator, the mirrored pose of (pitch, yaw) is (2 v_mean - pitch, 2 h_mean - yaw).
For another mean, the mirrored camera would also be rolled, which no pose can express, so mirroring is rejected.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch

from common.errors import UserError
from common.psnr import psnr_db
from discriminators.base import NUM_POSE, Discriminator
from generators.cameras import CameraPoses, mean_direction
from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.views import ViewSettings, render_views
from settings.curriculum import Curriculum

NUM_SEEDS = 8
MAX_SIZE = 32  # pixels; more do not improve the comparison


class Mirroring(NamedTuple):
    """``invert``: whether solid and free space are exchanged. ``psnr_db``: PSNR between the images before and after."""

    invert: bool
    psnr_db: float

    @property
    def description(self) -> str:
        return "mirrored in depth, inverted" if self.invert else "mirrored in depth"


def reflection(curriculum: Curriculum) -> torch.Tensor:
    """Return the reflection (3, 3), float64, along the mean viewing direction: diag(1, 1, -1) for the usual means.

    Raises UserError unless v_mean is pi/2.
    """
    if abs(curriculum.v_mean - math.pi / 2) > 1e-6:
        raise UserError(f"a run can be mirrored in depth only if v_mean is pi/2, not {curriculum.v_mean:.6g}")
    axis = mean_direction(curriculum.h_mean, curriculum.v_mean).double()
    return torch.eye(3, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.square().sum()


@torch.no_grad()
def best_mirroring(generator: ImplicitGenerator3d, image_size: int) -> Mirroring:
    """Return the mirroring, with or without inversion, that best preserves colors and silhouettes from the mirrored poses."""
    c = generator.curriculum
    device = generator.device
    z = latents_of_first_seeds(NUM_SEEDS, c).to(device)
    steps = torch.linspace(-0.5, 0.5, NUM_SEEDS, device=device)
    offsets = torch.stack([steps * c.v_stddev, -steps * c.h_stddev])
    settings = ViewSettings(min(image_size, MAX_SIZE), 1, last_back=c.last_back)

    def images(of: ImplicitGenerator3d, sign: int) -> torch.Tensor:
        poses = CameraPoses(c.v_mean + sign * offsets[0], c.h_mean + sign * offsets[1])
        views = render_views(of.field_of_latents(z), poses, c, settings)
        return torch.stack([torch.cat([view.image, view.hit_mask[None] * 2.0 - 1]) for view in views])

    before = images(generator, 1)
    candidates: list[tuple[float, Mirroring]] = []
    for invert in (False, True):
        other = copy.deepcopy(generator)
        mirror_field(other, invert)
        errors = (images(other, -1) - before).square().mean(dim=(0, 2, 3))
        mirroring = Mirroring(invert, psnr_db(float(errors[:3].mean()), peak=2))  # of the colors alone
        candidates.append((float(errors.mean()), mirroring))
    return min(candidates)[1]


@torch.no_grad()
def mirror_field(generator: ImplicitGenerator3d, invert: bool = False) -> None:
    """Replace field(x, direction) by field(R x, R direction), with R the :func:`reflection`, in place. Exact for every latent.

    ``invert``: reflect logits about logit(tau), so that solid and free space are exchanged.

    Raises UserError if the model has a feature grid that is not aligned with the mean viewing direction.
    """
    matrix, tau = reflection(generator.curriculum), generator.curriculum.tau
    double_level = 2 * math.log(tau / (1 - tau))
    generator.network.mirror(matrix, double_level if invert else None)


@torch.no_grad()
def mirror_moments(generator: ImplicitGenerator3d, optimizer: torch.optim.Optimizer, invert: bool = False) -> None:
    """Transform Adam's moments for the mirrored field, in place: gradients transform like the weights.

    Second moments are unchanged, which is exact if the :func:`reflection` only changes signs.
    """
    if not generator.curriculum.is_siren:  # mirroring changes the lookup, not the weights of the planes
        decoder = generator.triplane.decoder
        for moment in (m for p in (decoder.output_weight, decoder.output_bias) for m in _moments(optimizer, p, "exp_avg")):
            moment[0].mul_(-1 if invert else 1)
        return
    siren, matrix = generator.siren, reflection(generator.curriculum)
    first, colors = siren.network[0].layer.weight, siren.color_layer_sine.layer.weight
    for weight, part in ((first, slice(-3, None)), (colors, slice(0, 3))):
        for moment in _moments(optimizer, weight, "exp_avg"):
            moment[:, part] = (moment[:, part].double() @ matrix.to(moment.device)).to(moment.dtype)
    for moment in _moments(optimizer, siren.embedding_grid, "exp_avg", "exp_avg_sq"):
        moment.copy_(moment.flip(2))
    if invert:
        for parameter in (siren.final_layer.weight, siren.final_layer.bias):
            for moment in _moments(optimizer, parameter, "exp_avg"):
                moment.neg_()


@torch.no_grad()
def mirror_readout_moments(discriminator: Discriminator, optimizer: torch.optim.Optimizer) -> None:
    """Negate Adam's first moments of D's pose head, in place."""
    for parameter in (discriminator.final_layer.weight, discriminator.final_layer.bias):
        for moment in _moments(optimizer, parameter, "exp_avg"):
            moment[-NUM_POSE:].neg_()


def _moments(optimizer: torch.optim.Optimizer, parameter: torch.Tensor | None, *names: str) -> list[torch.Tensor]:
    """The parameter's moments of the given names. Empty before its first step."""
    state = optimizer.state.get(parameter, {}) if parameter is not None else {}
    return [state[name] for name in names if name in state]


@torch.no_grad()
def mirror_pose_readout(discriminator: Discriminator, curriculum: Curriculum) -> None:
    """Make D predict 2 v_mean - pitch and 2 h_mean - yaw instead of pitch and yaw, in place: the mirrored pose."""
    means = discriminator.final_layer.bias.new_tensor([curriculum.v_mean, curriculum.h_mean])
    discriminator.final_layer.weight[-NUM_POSE:].neg_()
    discriminator.final_layer.bias[-NUM_POSE:].neg_().add_(2 * means)
