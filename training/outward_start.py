"""An outward start: fit the field to a ball before adversarial training.

From scratch, training sometimes finds the inward-facing (hollow) shape, which explains unposed images equally well; the
published runs start from a checkpoint picked by hand because of it. A solid ball bulges outward for every latent.
"""

from __future__ import annotations

import torch

from generators.generator import ImplicitGenerator3d, draw_latents

NUM_STEPS = 400
NUM_LATENTS = 4
NUM_POINTS = 1024
LEARNING_RATE = 1e-3
LOGIT_PER_UNIT = 150.0
MAX_LOGIT = 6.0


def fit_to_ball(generator: ImplicitGenerator3d, radius: float, seed: int, num_steps: int = NUM_STEPS) -> float:
    """Fit occupancy logits to a ball of ``radius`` (world units) at the origin. Returns the last loss (MSE of logits)."""
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    half_side = curriculum.ray_end - 1
    loss = torch.zeros(())
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / num_steps)
        z = draw_latents(NUM_LATENTS, curriculum.latent_dim, curriculum.z_dist, random).to(device)
        points = ((torch.rand(NUM_LATENTS, NUM_POINTS, 3, generator=random) * 2 - 1) * half_side).to(device)
        target = ((radius - points.norm(dim=-1)) * LOGIT_PER_UNIT).clamp(-MAX_LOGIT, MAX_LOGIT)
        logits = generator.field(generator.film(z)).occupancy_logits(points)
        loss = (logits - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
