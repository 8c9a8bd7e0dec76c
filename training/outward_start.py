"""Outward start: fit the field to a colored ball before adversarial training, then gradually release it.

From scratch, training sometimes converges to the inward-facing (hollow) shape, which explains unposed images equally well.
The published runs start from a hand-picked checkpoint for this reason. A solid ball bulges outward for every latent.

The ball has different colors for each latent. A fit to the shape alone would teach the networks to ignore the latent, and
adversarial training would show the same image for all latents for a long time (measured: docs/hollow.md).

A narrow network is fitted without changes. In a deep and wide one (8 layers of 256), the latent shifts the phases of every
layer so much that the fit fails: the logits become constant and the field is empty. For such a network, the last layer of
the mapping network is scaled down, which reduces the influence of the latent. Adversarial training makes it grow again.

The first few hundred adversarial steps would dissolve the ball, because the fastest way to correct a color is to make it
transparent. The shape that forms from that fog may face either way. So a loss of G (:func:`ball_hold_loss`), with decreasing
weight, holds the field to the ball while colors are learned, and the shape grows out of the ball.
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


class Ball(NamedTuple):
    """The initial shape: a ball at the origin, or the ellipsoid to which ``stretch`` (along x, y and z) turns it.

    radius: in world units. tau: occupancy at the surface.
    """

    radius: float
    stretch: tuple[float, float, float]
    tau: float

    @classmethod
    def of(cls, curriculum: Curriculum) -> Ball:
        return cls(curriculum.init_ball_radius, curriculum.init_ball_stretch, curriculum.tau)

    def depths(self, points: Tensor) -> Tensor:
        """Return radius - |x / stretch| at points x (..., 3): positive inside, 0 on the surface."""
        x, y, z = (coordinate / factor for coordinate, factor in zip(points.unbind(dim=-1), self.stretch, strict=True))
        return self.radius - (x.square() + y.square() + z.square()).sqrt()

    def logits(self, points: Tensor) -> Tensor:
        """Return logits at points (..., 3): logit(tau) on the surface, so that rays enter where the ball begins."""
        return (self.depths(points) * LOGIT_PER_UNIT).clamp(-MAX_LOGIT, MAX_LOGIT) + math.log(self.tau / (1 - self.tau))


class Attempt(NamedTuple):
    """Settings of one attempt to fit the ball."""

    latent_influence: float  # factor on the weights of the mapping network's last layer
    learning_rate: float


ATTEMPTS = (Attempt(1.0, 1e-3), Attempt(0.5, 3e-4), Attempt(0.25, 3e-4))
NUM_STEPS = 1000
NUM_LATENTS = 32
NUM_POINTS = 128
COLOR_WEIGHT = 50.0  # colors are in [0, 1], logits in [-MAX_LOGIT, MAX_LOGIT]
NUM_HOLD_POINTS = 256  # per image of a step
LOGIT_PER_UNIT = 150.0
MAX_LOGIT = 6.0
GOOD_LOSS = 0.5  # mean squared error of logits in [-MAX_LOGIT, MAX_LOGIT]; a constant field has about 10
HOPELESS_LOSS = 5.0  # at half of the steps


def fit_to_ball(generator: ImplicitGenerator3d, ball: Ball, seed: int) -> float:
    """Fit occupancy to the ball for all latents, with random colors per latent.

    Make attempts until one is good, and keep the best. Returns its loss on fresh points (mean squared error of logits).
    """
    fresh = copy.deepcopy(generator.state_dict())
    best_loss, best_state = float("inf"), fresh
    for attempt in ATTEMPTS:
        generator.load_state_dict(fresh)
        loss = _fit(generator, ball, seed, attempt)
        if loss < best_loss:
            best_loss, best_state = loss, copy.deepcopy(generator.state_dict())
        if loss < GOOD_LOSS:
            break
    generator.load_state_dict(best_state)
    generator.zero_grad(set_to_none=True)
    return best_loss


def _fit(generator: ImplicitGenerator3d, ball: Ball, seed: int, attempt: Attempt) -> float:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        generator.siren.mapping_network.network[-1].weight.mul_(attempt.latent_influence)
    optimizer = torch.optim.Adam(generator.parameters(), lr=attempt.learning_rate, betas=(0.9, 0.99))
    color_map = torch.randn(generator.curriculum.latent_dim, 12, generator=random) / generator.curriculum.latent_dim**0.5
    recent = 2 * MAX_LOGIT**2
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = attempt.learning_rate * (1 - step / NUM_STEPS)
        loss, color_loss = _losses(generator, ball, color_map, random)
        optimizer.zero_grad(set_to_none=True)
        (loss + COLOR_WEIGHT * color_loss).backward()
        optimizer.step()
        if step >= NUM_STEPS // 2 - 10:
            recent = min(recent, float(loss.detach()))
        if step == NUM_STEPS // 2 and recent > HOPELESS_LOSS:
            break
    with torch.no_grad():
        return float(torch.stack([_losses(generator, ball, color_map, random)[0] for _ in range(8)]).mean())


def _losses(generator: ImplicitGenerator3d, ball: Ball, color_map: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of logits and of colors on fresh latents, points and viewing directions.

    ``color_map`` (latent_dim, 12): linear map from a latent to its ball's colors before the sigmoid, per channel: the
    value at the center and the gradient along the three axes.
    """
    curriculum = generator.curriculum
    device = generator.device
    z = draw_latents(NUM_LATENTS, curriculum, random)
    points = draw_points(NUM_LATENTS, NUM_POINTS, curriculum, random).to(device)
    directions = F.normalize(torch.randn(points.shape, generator=random), dim=-1).to(device)
    logits, colors = generator.field_of_latents(z.to(device)).logits_and_colors(points, directions)
    at_center, along_axes = (z @ color_map).to(device).view(NUM_LATENTS, 1, 3, 4).split([1, 3], dim=-1)
    target_colors = (at_center.squeeze(-1) + (along_axes * (points / ball.radius).unsqueeze(2)).sum(dim=-1)).sigmoid()
    return (logits - ball.logits(points)).square().mean(), (colors - target_colors).square().mean()


def draw_points(batch: int, num: int, curriculum: Curriculum, random: torch.Generator) -> Tensor:
    """Draw points (batch, num, 3), uniform in the cube that the rays reach, on the device of ``random``."""
    uniform = torch.rand(batch, num, 3, generator=random, device=random.device)
    return (uniform * 2 - 1) * curriculum.ray_reach


def ball_hold_loss(logits: Tensor, points: Tensor, ball: Ball) -> Tensor:
    """One-sided squared error of logits (B, N) at points (B, N, 3) against the ball's, averaged over points and images.

    Only logits below the ball's inside of it, or above outside, contribute. Near its surface the loss is small.
    """
    outward = -ball.depths(points).sign()  # 1 outside
    return F.relu((logits - ball.logits(points)) * outward).square().mean()
