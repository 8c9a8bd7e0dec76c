"""Tiny generators of every combination: a ball of colors that depend on the position, smaller than the frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from unittest import mock

import torch
from matrix_combinations import Combination
from torch import Tensor
from torch.nn import functional as F

import heads.camera_prior
import inversion.outputs
import inversion.search
import training.outward_start
import viewing.server
import web.export
from generators.generator import ImplicitGenerator3d
from siren.backends import folded
from siren.siren import BOX_SIDE, EMBEDDING_RESOLUTION
from small_models import BALL_RADIUS

DENSITY_PER_LOGIT = 40.0  # makes the ball of a radiance field opaque
LOGITS_PER_UNIT = 150.0
SEED = 3  # of the features; with it, all models fit the ball well


# Sizes in modules of the product on which only time and memory depend.
SMALL_SIZES = (
    (heads.camera_prior, "CELL", 24),
    (inversion.outputs, "MESH_RESOLUTION", 40),
    (inversion.outputs, "NUM_FRAMES", 3),
    (inversion.search, "BANK_SIZE", 8),
    (training.outward_start, "NUM_STEPS", 20),
    (viewing.server, "MESH_RESOLUTION", 40),
    (web.export, "TURNTABLE_FRAMES", 2),
    (web.export, "TURNTABLE_SIZE", 16),
)
SMALL_GRIDS = {"EmbeddingPiGAN128": 12, "EmbeddingPiGAN256": 8}  # published grids have up to 28 million numbers


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    """Within this context, use SMALL_SIZES and SMALL_GRIDS."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(EMBEDDING_RESOLUTION, SMALL_GRIDS))
        for module, name, value in SMALL_SIZES:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@cache
def ball_weights(model: str) -> dict[str, Tensor]:
    """Return the weights of a tiny occupancy generator whose fields are balls of radius BALL_RADIUS."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        generator = ImplicitGenerator3d(Combination(model, "occupancy", None, "black").curriculum())
        with torch.no_grad():
            if model == "TRIPLANE":  # a ball from the start; its colors need contrast
                generator.triplane.ball_radius.fill_(BALL_RADIUS)
                generator.triplane.ball_slope.fill_(LOGITS_PER_UNIT)
                generator.triplane.decoder.output_weight[1:].normal_()
                return generator.state_dict()
            to_box = 1 if model != "TALLSIREN" else 2 / BOX_SIDE  # it alone does not scale points
            generator.siren.network[0].layer.weight.mul_(0.3 * to_box)
            generator.siren.mapping_network.network[-1].weight.mul_(0.03)  # latents differ a little
            if generator.siren.embedding_grid is not None:
                generator.siren.embedding_grid.mul_(0.05)
        fit_ball(generator)
    return generator.state_dict()


@torch.no_grad()
def fit_ball(generator: ImplicitGenerator3d) -> None:
    """Solve the two linear heads of a SIREN for a ball in closed form: the features are random, but smooth."""
    siren, random = generator.siren, torch.Generator().manual_seed(0)
    directions, away = (F.normalize(torch.randn(8, 2000, 3, generator=random), dim=-1) for _ in range(2))
    points = away * torch.rand(8, 2000, 1, generator=random) * 0.19  # more of them at the center
    field = generator.field_of_latents(torch.randn(8, generator.curriculum.latent_dim, generator=random))
    weights = field._folded
    hidden = folded.features(weights, field._encode(points))
    phases = torch.baddbmm(weights.color_bias.unsqueeze(1), hidden, weights.color_weight)
    phases = torch.baddbmm(phases, directions, weights.direction_weight)
    radii = points.norm(dim=-1, keepdim=True)
    solve(siren.final_layer, hidden, (BALL_RADIUS**2 - radii**2) * (LOGITS_PER_UNIT / (2 * BALL_RADIUS)))  # smooth everywhere
    solve(siren.color_layer_linear[0], phases.sin(), (points / BALL_RADIUS * 1.5).clamp(-2, 2))


def solve(layer: torch.nn.Linear, inputs: Tensor, targets: Tensor) -> None:
    """Set a linear layer to the ridge regression of targets (B, N, K) on inputs (B, N, H)."""
    columns = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1).flatten(0, 1).double()
    gram = columns.t() @ columns + 1e-4 * torch.eye(columns.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, columns.t() @ targets.flatten(0, 1).double()).float()
    layer.weight.copy_(solution[:-1].t())
    layer.bias.copy_(solution[-1])


def make_generator(combination: Combination) -> ImplicitGenerator3d:
    """Return the generator of a valid combination, in eval mode."""
    generator = ImplicitGenerator3d(combination.curriculum())
    generator.load_state_dict(ball_weights(combination.model))
    if combination.field == "radiance":
        with torch.no_grad():
            generator.siren.final_layer.weight.mul_(DENSITY_PER_LOGIT)
            generator.siren.final_layer.bias.mul_(DENSITY_PER_LOGIT)
    return generator.eval()
