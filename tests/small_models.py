"""A small generator with a surface, for the tests of scripts and metrics."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS

BALL_RADIUS = 0.07
NUM_FIT_STEPS = 400


def tiny_curriculum() -> Curriculum:
    """SYNTH_TINY with an even smaller network."""
    return CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=16", "num_layers=3", "latent_dim=16"])


def fit_colored_ball(generator: ImplicitGenerator3d, num_steps: int = NUM_FIT_STEPS) -> float:
    """Fit every latent's field to a ball of BALL_RADIUS whose color changes with position. Returns the last loss."""
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    latent_dim = generator.curriculum.latent_dim
    for _ in range(num_steps):
        points = (torch.rand(8, 256, 3, generator=random) - 0.5) * 0.34
        directions = F.normalize(torch.randn(8, 256, 3, generator=random), dim=-1)
        field = generator.field_of_latents(torch.randn(8, latent_dim, generator=random))
        logits, colors = field.logits_and_colors(points, directions)
        target = ((BALL_RADIUS - points.norm(dim=-1)) * 150).clamp(-5, 5)
        loss = F.mse_loss(logits.clamp(-6, 6), target) + F.mse_loss(colors, (points / BALL_RADIUS * 0.4 + 0.5).clamp(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def make_tiny_generator() -> ImplicitGenerator3d:
    """Return the fitted generator, in eval mode, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(tiny_curriculum())
    with torch.no_grad():  # a plain network needs a smooth start, and latents that differ a little only
        generator.siren.network[0].layer.weight.mul_(0.3)
        generator.siren.mapping_network.network[-1].weight.mul_(0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products only wait for each other on more
    try:
        fit_colored_ball(generator)
    finally:
        torch.set_num_threads(threads)
    return generator.eval()


def make_empty_generator() -> ImplicitGenerator3d:
    """A generator whose fields are free everywhere: no surface at all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(tiny_curriculum())
    with torch.no_grad():
        generator.siren.final_layer.weight.zero_()
        generator.siren.final_layer.bias.fill_(-10)
    return generator.eval()


def save_generator(generator: ImplicitGenerator3d, path: Path) -> Path:
    from checkpoints.files import save_inference

    save_inference(path, generator, step=0)
    return path
