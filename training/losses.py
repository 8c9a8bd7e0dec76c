"""The losses: unweighted scalars, each a mean over images.

A mean over images does not depend on how a batch is split or distributed, so ``batch_split`` and several processes give the
gradient of the whole batch. A selection over the whole batch (top-k) enters as per-image weights of mean 1.
Source: docs/method.md, "Losses"; GOF, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from generators.cameras import CameraPoses

OPACITY_PRIOR_OFFSET = 2.20727  # -(log 0.1 + log 1.1): the prior is 0 at alpha 0 and 1


def generator_gan_loss(scores: Tensor, image_weights: Tensor) -> Tensor:
    """Non-saturating loss of G: mean of w softplus(-D(fake)). scores, image_weights: (B,)."""
    return (image_weights * F.softplus(-scores)).mean()


def discriminator_gan_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Non-saturating loss of D: mean softplus(D(fake)) + mean softplus(-D(real)). Scores: (B,) each."""
    return F.softplus(fake_scores).mean() + F.softplus(-real_scores).mean()


def relativistic_pairing_loss(winner_scores: Tensor, loser_scores: Tensor, image_weights: Tensor | None = None) -> Tensor:
    """Relativistic pairing loss: mean of w softplus(loser - winner) over pairs of scores, (B,) each.

    The winners are real images in D's loss and generated images in G's. Source: Jolicoeur-Martineau, "The relativistic
    discriminator", ICLR 2019; Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, which adds R1 and R2.
    """
    values = F.softplus(loser_scores - winner_scores)
    return (values if image_weights is None else image_weights * values).mean()


class GanLoss(NamedTuple):
    """The GAN losses of D and G, as functions of scores, (B,) each.

    ``of_D``: of real and generated scores. ``of_G``: of generated scores, real scores, and image weights. ``is_relative``:
    the loss depends only on differences between real and generated scores; otherwise the real scores of ``of_G`` are None.
    """

    of_D: Callable[[Tensor, Tensor], Tensor]
    of_G: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    is_relative: bool


# Keys are the values of a curriculum's ``gan_loss``.
GAN_LOSSES = {
    "non_saturating": GanLoss(discriminator_gan_loss, lambda fake, _, weights: generator_gan_loss(fake, weights), False),
    "relativistic": GanLoss(relativistic_pairing_loss, relativistic_pairing_loss, True),
}


def zero_centered_penalty_loss(scores: Tensor, images: Tensor) -> Tensor:
    """R1 (real images) or R2 (generated images): mean |grad_x D(x)|^2. ``images`` must require grad. Weight: lambda / 2."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def pose_loss(predicted: Tensor, poses: CameraPoses) -> Tensor:
    """MSE between the poses (B, 2) that D predicts, as (pitch, yaw), and those of the generated images."""
    return F.mse_loss(predicted, torch.stack([poses.pitch, poses.yaw], dim=1))


def latent_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """MSE between the latents that D predicts and those of the generated images, (B, latent_dim) each."""
    return F.mse_loss(predicted, z)


def opacity_prior_loss(alphas: Tensor) -> Tensor:
    """Prior that pushes occupancies in [0, 1] to 0 or 1: mean of log(0.1 + a) + log(1.1 - a) + 2.20727.

    Applied to the occupancy, as in the paper. The published code applies it to the red channel.
    """
    return (torch.log(0.1 + alphas) + torch.log(1.1 - alphas)).mean() + OPACITY_PRIOR_OFFSET


def normal_smoothness_loss(normals: Tensor, neighbor_normals: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of unit normals at surface points and their neighbors, over an image's hits, then over images.

    normals, neighbor_normals: (B, R, 3); mask: (B, R), True where the ray hits. An image without hits contributes 0. The
    published code compares the x and y components of one normal instead of two normals.
    """
    squared = (normals - neighbor_normals).square().mean(dim=-1) * mask
    return (squared.sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


@torch.no_grad()
def topk_image_weights(scores: Tensor, fraction: float) -> Tensor:
    """Return weights (B,) that select the top ceil(fraction * N) of the N scores of all processes: 0, or N / num_kept."""
    scores = scores.detach()
    if fraction >= 1:
        return torch.ones_like(scores)
    gathered, rank = scores, 0
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        parts = [torch.empty_like(scores) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, scores.contiguous())
        gathered = torch.cat(parts)
    num_kept = math.ceil(fraction * len(gathered))
    weights = torch.zeros_like(gathered).scatter_(0, gathered.topk(num_kept).indices, len(gathered) / num_kept)
    return weights[rank * len(scores) : (rank + 1) * len(scores)]
