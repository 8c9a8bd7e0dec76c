"""Tiny generators of every combination: a ball of colors that depend on the position, smaller than the frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from unittest import mock

import torch
from combinations import Combination
from torch import Tensor

import heads.camera_prior
import inversion.outputs
import small_models
import viewing.shapes
import web.export
from generators.generator import ImplicitGenerator3d
from siren.siren import EMBEDDING_RESOLUTION

DENSITY_PER_LOGIT = 40.0  # makes the ball of a radiance field opaque
NUM_FIT_STEPS = 250


# Sizes in modules of the product on which only time and memory depend.
SMALL_SIZES = (
    (heads.camera_prior, "CELL", 24),
    (inversion.outputs, "MESH_RESOLUTION", 40),
    (inversion.outputs, "NUM_FRAMES", 3),
    (viewing.shapes, "RESOLUTION", 40),
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
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(Combination(model, "occupancy", None, "black").curriculum())
        with torch.no_grad():
            if model == "TRIPLANE":  # a ball from the start; its colors need contrast
                generator.triplane.ball_radius.fill_(small_models.BALL_RADIUS)
                generator.triplane.decoder.output_weight[1:].normal_()
                return generator.state_dict()
            generator.siren.network[0].layer.weight.mul_(0.3)
            generator.siren.mapping_network.network[-1].weight.mul_(0.1)
            if generator.siren.embedding_grid is not None:
                generator.siren.embedding_grid.mul_(0.3)
        small_models.fit_colored_ball(generator, NUM_FIT_STEPS)
    return {name: value.detach().clone() for name, value in generator.state_dict().items()}


def make_generator(combination: Combination) -> ImplicitGenerator3d:
    """Return the generator of a valid combination, in eval mode."""
    generator = ImplicitGenerator3d(combination.curriculum())
    generator.load_state_dict(ball_weights(combination.model))
    if combination.field == "radiance":
        with torch.no_grad():
            generator.siren.final_layer.weight.mul_(DENSITY_PER_LOGIT)
            generator.siren.final_layer.bias.mul_(DENSITY_PER_LOGIT)
    return generator.eval()
