"""The losses: unweighted scalars, each a mean over images.

A mean over images is the same however a batch is split or spread over processes, so ``batch_split`` and DDP give the
gradient of the whole batch. Where a batch-wide choice is made (top-k), it enters as per-image weights of mean 1.
Source: METHOD section 5; GOF, section 3.3.
"""

from __future__ import annotations

import math

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


def gan_loss_of_D(kind: str, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """``kind``: what a curriculum's ``gan_loss`` says, "non_saturating" or "relativistic". (B,) each."""
    if kind == "relativistic":
        return relativistic_loss(real_scores, fake_scores)
    return discriminator_gan_loss(real_scores, fake_scores)


def gan_loss_of_G(kind: str, fake_scores: Tensor, real_scores: Tensor | None, image_weights: Tensor) -> Tensor:
    """``real_scores`` (B,): of the images that D compares them with; only where the loss is relativistic."""
    if kind == "relativistic":
        return relativistic_loss(fake_scores, real_scores, image_weights)
    return generator_gan_loss(fake_scores, image_weights)


def relativistic_loss(better: Tensor, worse: Tensor, image_weights: Tensor | None = None) -> Tensor:
    """mean of w softplus(worse - better) over pairs of scores, (B,) each: D's with real images as the better ones, G's with
    its own. Source: Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019; Huang et al., "The GAN is dead; long
    live the GAN!", NeurIPS 2024, where R1 and R2 come with it.
    """
    values = F.softplus(worse - better)
    return (values if image_weights is None else image_weights * values).mean()


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
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


def normal_smoothness_loss(normals: Tensor, neighbour_normals: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of unit normals at surface points and their neighbours: mean over an image's hits, then images.

    normals, neighbour_normals: (B, R, 3); mask: (B, R), True where the ray hits. An image without hits counts 0. The
    published code compares x with y components of one normal instead of the two normals.
    """
    squared = (normals - neighbour_normals).square().mean(dim=-1) * mask
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
