"""Detection of hollow shapes: measure at intervals whether shapes bulge outward or inward.

Unposed images cannot distinguish a shape from its hollow twin (training/mirror.py), so a run finds either by chance. The
shapes show which one: from the front, the center of an object is nearer than its rim, and the center of a mold is farther.
Mirroring turns a mold into an object and keeps what both networks have learned. Early in a run, though, shapes are fog that
may bulge either way, and mirroring disturbs it. So only shapes that stay hollow are mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.pose_prior import mean_poses
from generators.views import ViewSettings, render_views
from metrics.geometry import surfaces_of
from metrics.shapes import shape_statistics

NUM_SEEDS = 16
MIN_SHAPES = 8  # with a surface; fewer are too few to judge the generator
MAX_SIZE = 32  # pixels; more do not improve the measurement
HOLLOW = 0.05  # fraction of a ray's length
MIN_MIRROR_PSNR_DB = 14.0  # of images after mirroring against those before: 16 or more for a mold, 10 for a concave object
PATIENCE = 4  # consecutive checks: shapes that are still forming may be hollow for a while


@dataclass(frozen=True)
class Bulge:
    """Bulge of the shapes: ``mean`` over ``num_shapes`` latents, positive outward, and its ``standard_error``, world units."""

    mean: float
    standard_error: float
    num_shapes: int

    def is_hollow(self, ray_length: float) -> bool:
        """Return whether the shapes bulge inward on average, by more than two standard errors."""
        upper_bound = self.mean + 2 * self.standard_error
        return self.num_shapes >= MIN_SHAPES and self.mean < -HOLLOW * ray_length and upper_bound < 0


@torch.no_grad()
def measure_bulge(generator: ImplicitGenerator3d, image_size: int) -> Bulge:
    """Measure the bulge of fixed latents at psi 1 from the mean pose (:func:`metrics.shapes.shape_statistics`)."""
    curriculum = generator.curriculum
    device = generator.device
    field = generator.field_of_latents(latents_of_first_seeds(NUM_SEEDS, curriculum).to(device))
    settings = ViewSettings(min(image_size, MAX_SIZE), 1, surface_only=True)
    views = render_views(field, mean_poses(curriculum, NUM_SEEDS, device), curriculum, settings)
    bulges = shape_statistics(surfaces_of(views))["bulge"].double()
    if len(bulges) < 2:
        return Bulge(0.0, 0.0, len(bulges))
    return Bulge(float(bulges.mean()), float(bulges.std() / len(bulges) ** 0.5), len(bulges))
