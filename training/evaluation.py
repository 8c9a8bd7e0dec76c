"""What a run measures of itself every ``--eval_freq`` steps: numbers that need no download and no real images."""

from __future__ import annotations

import torch

from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.views import ViewSettings, render_views
from metrics.shapes import Geometry, shape_statistics
from metrics.weighted_variance import latent_variances, mean_pose

NUM_SEEDS = 8


@torch.no_grad()
def evaluate(generator: ImplicitGenerator3d, image_size: int) -> dict[str, float]:
    """Scalars of fixed seeds at psi 1, seen from the mean pose with the narrowest interval.

    ``hit_rate``: rays that enter a surface. ``weighted_variance_1e4``: thickness of the surface, times 1e4, where any ray
    qualifies. ``bulge``: how much nearer the middle of the shapes is than their rim, world units; below 0 they are hollow
    (train.py --mirror_depth turns them outward). ``surface_psnr_db``: the picture of the roots alone against the
    volume-rendered one, on rays that hit.
    """
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    z = torch.cat([latent_from_seed(seed, curriculum.latent_dim, curriculum.z_dist) for seed in range(NUM_SEEDS)])
    field = generator.field(generator.film(z.to(device)))
    views = render_views(field, mean_pose(curriculum, NUM_SEEDS, device), curriculum, ViewSettings(image_size, 1))
    hit = torch.stack([view.hit_mask for view in views])
    scalars = {"eval/hit_rate": float(hit.float().mean())}
    if curriculum.pred_occ:
        variances = [v.variance for v in latent_variances(field, curriculum, image_size, device) if v.num_rays]
        if variances:
            scalars["eval/weighted_variance_1e4"] = 1e4 * sum(variances) / len(variances)
    shapes = Geometry(torch.stack([view.surface_depth for view in views]), torch.stack([view.normals for view in views]), hit)
    bulges = shape_statistics(shapes)["bulge"]
    if len(bulges):
        scalars["eval/bulge"] = float(bulges.mean())
    if hit.any():
        difference = torch.stack([(view.image - view.surface_image).square().mean(dim=0) for view in views])[hit]
        scalars["eval/surface_psnr_db"] = float(10 * torch.log10(4 / difference.mean().clamp_min(1e-12)))
    return scalars
