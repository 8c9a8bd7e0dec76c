"""An outward start: fit the field to a ball before adversarial training.

From scratch, training sometimes finds the inward-facing (hollow) shape, which explains unposed images equally well; the
published runs start from a checkpoint picked by hand because of it. A solid ball bulges outward for every latent.

A narrow network is fitted as it is. In a deep and wide one (8 layers of 256) the latent moves the phases of every layer so
much that no ball is learned: the logits end as one constant, the field is empty. There the latent's influence, the
last layer of the mapping network, starts smaller; adversarial training makes it grow.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from generators.generator import ImplicitGenerator3d, draw_latents


class Attempt(NamedTuple):
    latent_influence: float  # factor on the mapping network's last weights
    learning_rate: float


ATTEMPTS = (Attempt(1.0, 1e-3), Attempt(0.5, 3e-4), Attempt(0.25, 3e-4))
NUM_STEPS = 400
NUM_LATENTS = 4
NUM_POINTS = 1024
LOGIT_PER_UNIT = 150.0
MAX_LOGIT = 6.0
GOOD_LOSS = 0.5  # the mean square error of logits in [-MAX_LOGIT, MAX_LOGIT]; a constant has about 10
HOPELESS_LOSS = 5.0  # half way


def fit_to_ball(generator: ImplicitGenerator3d, radius: float, seed: int) -> float:
    """Fit occupancy logits to a ball of ``radius`` (world units) at the origin, for all latents.

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
    recent = 2 * MAX_LOGIT**2
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = attempt.learning_rate * (1 - step / NUM_STEPS)
        loss = _loss(generator, radius, random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step >= NUM_STEPS // 2 - 10:
            recent = min(recent, float(loss.detach()))
        if step == NUM_STEPS // 2 and recent > HOPELESS_LOSS:
            break
    with torch.no_grad():
        return float(torch.stack([_loss(generator, radius, random) for _ in range(8)]).mean())


def _loss(generator: ImplicitGenerator3d, radius: float, random: torch.Generator) -> Tensor:
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    half_side = curriculum.ray_end - 1
    z = draw_latents(NUM_LATENTS, curriculum.latent_dim, curriculum.z_dist, random).to(device)
    points = ((torch.rand(NUM_LATENTS, NUM_POINTS, 3, generator=random) * 2 - 1) * half_side).to(device)
    target = ((radius - points.norm(dim=-1)) * LOGIT_PER_UNIT).clamp(-MAX_LOGIT, MAX_LOGIT)
    return (generator.field(generator.film(z)).occupancy_logits(points) - target).square().mean()
