"""Floating-point operations of a training iteration; training_step.py explains what is counted."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import flops_per_point
from discriminators.progressive import ProgressiveEncoderDiscriminator
from settings.curriculum import Curriculum
from training.losses import GAN_LOSSES
from training.steps import StepSettings


def flops_of_images(curriculum: Curriculum, size: int) -> int:
    """Return the FLOP per image of the batch: one generation for D (unless images are shared), one for G, and G's backward."""
    num_searched = curriculum.num_steps_coarse + curriculum.n_secant_steps
    num_composited = curriculum.num_steps_surface + curriculum.num_steps_fine
    searched = num_searched * flops_per_point(curriculum, with_color=False)
    composited = num_composited * flops_per_point(curriculum, with_color=True)
    num_generated = 1 if curriculum.share_images else 2
    return size**2 * (num_generated * (searched + composited) + 2 * composited)


def flops_per_hit(curriculum: Curriculum) -> int:
    """Return the FLOP of the normal term per hit: two points, each a logit with its gradient, forward and backward."""
    wanted = curriculum.with_normal_loss and curriculum.normal_lambda
    return 2 * 3 * 2 * flops_per_point(curriculum, with_color=False) if wanted else 0


def flops_of_D(network: ProgressiveEncoderDiscriminator, curriculum: Curriculum, size: int, step: int) -> float:
    """Return D's FLOP per image in D's step and G's step, by running the losses at ``step`` (including R1 and R2 if due)."""
    batch = 2
    settings = StepSettings.at(curriculum, step)
    fade_alpha = settings.fade_alpha
    images = torch.zeros(batch, 3, size, size, device=next(network.parameters()).device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        real = network(images * 1, fade_alpha)  # the counter cannot differentiate with respect to a module's direct input
        fake = network(images * 1 if settings.lambda_r2 else images.detach(), fade_alpha)
        loss = real.score.sum() + fake.score.sum() + fake.pose.sum()
        for weight, scores in ((settings.lambda_r1, real.score), (settings.lambda_r2, fake.score)):
            if weight:
                loss = loss + torch.autograd.grad(scores.sum(), images, create_graph=True)[0].square().sum()
        loss.backward()
        network.requires_grad_(False)
        judged = network(images * 1, fade_alpha)
        (judged.score.sum() + judged.pose.sum()).backward()
        if GAN_LOSSES[curriculum.gan_loss].is_relative:
            network(images.detach(), fade_alpha)
    network.requires_grad_(True).zero_grad(set_to_none=True)
    return counter.get_total_flops() / batch
