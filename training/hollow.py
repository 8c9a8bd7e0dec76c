"""The watch against hollow shapes: look now and then which way the shapes bulge, and turn them outward where they don't.

From unposed images a shape and its hollow twin look the same (training/mirror.py), so which of them a run finds is chance. Its
shapes say which it was: seen from the front, the middle of an object is nearer than its rim; of its mold, farther.
The rest of the run is as good either way: mirroring keeps what both networks have learned. It disturbs fog, though, which
may bulge either way before it takes shape: so only what stays hollow is turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.views import ViewSettings, render_views
from metrics.geometry import surfaces_of
from metrics.shapes import shape_statistics
from metrics.weighted_variance import mean_pose

NUM_SEEDS = 16
FEWEST_SHAPES = 8  # with a surface; fewer say nothing about the generator
MAX_SIZE = 32  # pixels; more see no more of a bulge
HOLLOW = 0.05  # of a ray's length
MIN_TURN_PSNR_DB = 14.0  # of images after a turn against those before: a mold leaves 16 and more, a truly concave object 10
PATIENCE = 4  # looks in a row: fog that is still to take shape goes inward for a while, and comes out again


@dataclass(frozen=True)
class Bulge:
    """``mean`` over ``num_shapes`` latents, world units, positive outward, and its ``standard_error``."""

    mean: float
    standard_error: float
    num_shapes: int

    def is_hollow(self, ray_length: float) -> bool:
        """Whether the shapes, on the whole and beyond doubt, go inward."""
        surely = self.mean + 2 * self.standard_error
        return self.num_shapes >= FEWEST_SHAPES and self.mean < -HOLLOW * ray_length and surely < 0


@torch.no_grad()
def measure_bulge(generator: ImplicitGenerator3d, image_size: int) -> Bulge:
    """Of fixed latents at psi 1 from the mean pose: :func:`metrics.shapes.shape_statistics`, the same at every call."""
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    field = generator.field(generator.film(latents_of_first_seeds(NUM_SEEDS, curriculum).to(device)))
    settings = ViewSettings(min(image_size, MAX_SIZE), 1, surface_only=True)
    views = render_views(field, mean_pose(curriculum, NUM_SEEDS, device), curriculum, settings)
    bulges = shape_statistics(surfaces_of(views))["bulge"].double()
    if len(bulges) < 2:
        return Bulge(0.0, 0.0, len(bulges))
    return Bulge(float(bulges.mean()), float(bulges.std() / len(bulges) ** 0.5), len(bulges))
