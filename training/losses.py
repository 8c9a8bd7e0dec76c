"""The losses: unweighted scalars, each a mean over images.

A mean over images is the same however a batch is split or spread over processes, so ``batch_split`` and several processes
give the gradient of the whole batch. Where a batch-wide choice is made (top-k), it enters as per-image weights of mean 1.
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
    """Non-saturating: mean of w softplus(-D(fake)). scores, image_weights: (B,)."""
    return (image_weights * F.softplus(-scores)).mean()


def discriminator_gan_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean softplus(D(fake)) + mean softplus(-D(real)). (B,) each."""
    return F.softplus(fake_scores).mean() + F.softplus(-real_scores).mean()


def relativistic_pairing_loss(winner_scores: Tensor, loser_scores: Tensor, image_weights: Tensor | None = None) -> Tensor:
    """mean of w softplus(loser - winner) over pairs of scores, (B,) each. The winners: real images in D's loss, generated
    ones in G's. The pairing form, not the average one. Source: Jolicoeur-Martineau, "The relativistic discriminator", ICLR
    2019; Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, where R1 and R2 come with it.
    """
    values = F.softplus(loser_scores - winner_scores)
    return (values if image_weights is None else image_weights * values).mean()


class GanLoss(NamedTuple):
    """``of_D``: from scores of real and of generated images; ``of_G``: from those of generated and, where the loss
    ``is_relative``, of real images, and image weights. (B,) each; None for the real ones in the other case.

    Where it ``is_relative``, it sees the differences of scores alone: they have no zero of their own.
    """

    of_D: Callable[[Tensor, Tensor], Tensor]
    of_G: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    is_relative: bool


# By the name that a curriculum's ``gan_loss`` says.
GAN_LOSSES = {
    "non_saturating": GanLoss(discriminator_gan_loss, lambda fake, _, weights: generator_gan_loss(fake, weights), False),
    "relativistic": GanLoss(relativistic_pairing_loss, relativistic_pairing_loss, True),
}


def zero_centered_penalty_loss(scores: Tensor, images: Tensor) -> Tensor:
    """mean |grad_x D(x)|^2 over images, which must require grad. R1 on real ones, R2 on generated ones. Weight: lambda / 2."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def pose_loss(predicted: Tensor, poses: CameraPoses) -> Tensor:
    """MSE between D's reading (B, 2) as (pitch, yaw) and the poses of generated images."""
    return F.mse_loss(predicted, torch.stack([poses.pitch, poses.yaw], dim=1))


def latent_loss(predicted: Tensor, z: Tensor) -> Tensor:
    """MSE between D's reading and the latent of generated images. (B, latent_dim) each."""
    return F.mse_loss(predicted, z)


def opacity_prior_loss(alphas: Tensor) -> Tensor:
    """Pushes occupancies in [0, 1] to 0 or 1: mean of log(0.1 + a) + log(1.1 - a) + 2.20727.

    On the occupancy, as the paper has it; the published code takes it on the red channel.
    """
    return (torch.log(0.1 + alphas) + torch.log(1.1 - alphas)).mean() + OPACITY_PRIOR_OFFSET


def normal_smoothness_loss(normals: Tensor, neighbor_normals: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of unit normals at surface points and their neighbors: mean over an image's hits, then images.

    normals, neighbor_normals: (B, R, 3); mask: (B, R), True where the ray hits. An image without hits counts 0. The
    published code compares x with y components of one normal instead of the two normals.
    """
    squared = (normals - neighbor_normals).square().mean(dim=-1) * mask
    return (squared.sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


@torch.no_grad()
def topk_image_weights(scores: Tensor, fraction: float) -> Tensor:
    """Weights (B,) that keep the best ceil(fraction * N) of the scores of all processes: 0, or N / kept."""
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
