"""An outward start: fit the field to a colored ball before adversarial training, and let go of the ball slowly.

From scratch, training sometimes finds the inward-facing (hollow) shape, which explains unposed images equally well; the
published runs start from a checkpoint picked by hand because of it. A solid ball bulges outward for every latent.

Each latent's ball has colors of its own. A fit to the ball alone would teach the networks to ignore the latent, and
adversarial training would long show the same image for all (measured: docs/hollow.md).

A narrow network is fitted as it is. In a deep and wide one (8 layers of 256) the latent moves the phases of every layer so
much that no ball is learned: the logits end as one constant, the field is empty. There the latent's influence, the
last layer of the mapping network, starts smaller; adversarial training makes it grow.

The first few hundred adversarial steps would dissolve the ball: a wrong color is mended fastest by making it transparent,
and what takes shape from that fog may face either way. So G's loss holds the field to the ball while the colors are learned
(:func:`ball_hold_loss`), less and less, and the shape grows out of the ball.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.generator import ImplicitGenerator3d, draw_latents
from settings.curriculum import Curriculum


class Attempt(NamedTuple):
    latent_influence: float  # factor on the mapping network's last weights
    learning_rate: float


ATTEMPTS = (Attempt(1.0, 1e-3), Attempt(0.5, 3e-4), Attempt(0.25, 3e-4))
NUM_STEPS = 1000
NUM_LATENTS = 32
NUM_POINTS = 128
COLOR_WEIGHT = 50.0  # colors are in [0, 1], logits in [-MAX_LOGIT, MAX_LOGIT]
NUM_HOLD_POINTS = 256  # per image of a step
LOGIT_PER_UNIT = 150.0
MAX_LOGIT = 6.0
GOOD_LOSS = 0.5  # the mean square error of logits in [-MAX_LOGIT, MAX_LOGIT]; a constant has about 10
HOPELESS_LOSS = 5.0  # half way


def fit_to_ball(generator: ImplicitGenerator3d, radius: float, seed: int) -> float:
    """Fit occupancy to a ball of ``radius`` (world units) at the origin, for all latents, and colors to the latent's own.

    Makes the attempts one after the other until one is good, and keeps the best. Returns its loss on fresh points (mean
    square error of logits).
    """
    fresh = copy.deepcopy(generator.state_dict())
    best_loss, best_state = float("inf"), fresh
    for attempt in ATTEMPTS:
        generator.load_state_dict(fresh)
        loss = _try(generator, radius, seed, attempt)
        if loss < best_loss:
            best_loss, best_state = loss, copy.deepcopy(generator.state_dict())
        if loss < GOOD_LOSS:
            break
    generator.load_state_dict(best_state)
    generator.zero_grad(set_to_none=True)
    return best_loss


def _try(generator: ImplicitGenerator3d, radius: float, seed: int, attempt: Attempt) -> float:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        generator.siren.mapping_network.network[-1].weight.mul_(attempt.latent_influence)
    optimizer = torch.optim.Adam(generator.parameters(), lr=attempt.learning_rate, betas=(0.9, 0.99))
    color_of = torch.randn(generator.curriculum.latent_dim, 12, generator=random) / generator.curriculum.latent_dim**0.5
    recent = 2 * MAX_LOGIT**2
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = attempt.learning_rate * (1 - step / NUM_STEPS)
        loss, color_loss = _losses(generator, radius, color_of, random)
        optimizer.zero_grad(set_to_none=True)
        (loss + COLOR_WEIGHT * color_loss).backward()
        optimizer.step()
        if step >= NUM_STEPS // 2 - 10:
            recent = min(recent, float(loss.detach()))
        if step == NUM_STEPS // 2 and recent > HOPELESS_LOSS:
            break
    with torch.no_grad():
        return float(torch.stack([_losses(generator, radius, color_of, random)[0] for _ in range(8)]).mean())


def _losses(generator: ImplicitGenerator3d, radius: float, color_of: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean square errors of logits and of colors, on fresh latents, points and directions of view.

    ``color_of`` (latent_dim, 12): what of a latent is its color before the sigmoid, per channel: at the center, along the axes.
    """
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    z = draw_latents(NUM_LATENTS, curriculum.latent_dim, curriculum.z_dist, random)
    points = draw_points(NUM_LATENTS, NUM_POINTS, curriculum, random).to(device)
    directions = F.normalize(torch.randn(points.shape, generator=random), dim=-1).to(device)
    logits, colors = generator.field(generator.film(z.to(device))).logits_and_colors(points, directions)
    at_center, along_axes = (z @ color_of).to(device).view(NUM_LATENTS, 1, 3, 4).split([1, 3], dim=-1)
    own = (at_center.squeeze(-1) + (along_axes * (points / radius).unsqueeze(2)).sum(dim=-1)).sigmoid()
    return (logits - _ball_logits(points, radius, curriculum.tau)).square().mean(), (colors - own).square().mean()


def draw_points(batch: int, num: int, curriculum: Curriculum, random: torch.Generator) -> Tensor:
    """(batch, num, 3), uniform in the cube that reaches as far as the rays do, on the device of ``random``."""
    uniform = torch.rand(batch, num, 3, generator=random, device=random.device)
    return (uniform * 2 - 1) * (curriculum.ray_end - 1)


def ball_hold_loss(logits: Tensor, points: Tensor, radius: float, tau: float) -> Tensor:
    """How far logits (B, N) at points (B, N, 3) fall short of a ball's: the mean square of what is missing, over images.

    Inside they should be at least the ball's, outside at most; beyond that they are free. Near its surface that asks for little.
    """
    target = _ball_logits(points, radius, tau)
    outward = (points.norm(dim=-1) - radius).sign()  # 1 outside
    return F.relu((logits - target) * outward).square().mean()


def _ball_logits(points: Tensor, radius: float, tau: float) -> Tensor:
    """logit(tau) at ``radius``: what rays enter is the ball."""
    depth = radius - points.norm(dim=-1)
    return (depth * LOGIT_PER_UNIT).clamp(-MAX_LOGIT, MAX_LOGIT) + math.log(tau / (1 - tau))
