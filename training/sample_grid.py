"""Sample grids of a run: fixed latents from a few yaws, as image, depth, normals and mask."""

from __future__ import annotations

import torch
from torch import Tensor

from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.views import ViewSettings, render_views
from visualization.images import image_grid, view_image

NUM_SEEDS = 6
YAWS = (-0.4, 0.0, 0.4)


@torch.no_grad()
def sample_grid(generator: ImplicitGenerator3d, image_size: int, interval: float) -> Tensor:
    """Render a grid (3, H, W) in [-1, 1] with a row of views at psi 1 per seed. ``interval``: Delta of the surface samples."""
    c, device = generator.curriculum, generator.device
    settings = ViewSettings(image_size=image_size, ray_step_multiplier=1, interval=interval)
    yaws = torch.tensor(YAWS, device=device) + c.h_mean
    poses = CameraPoses(torch.full_like(yaws, c.v_mean), yaws)
    # The expected depth of a ray that hits nothing is meaningless, so show the surface depth if there are surfaces.
    quantities = ("image", "surface_depth" if c.pred_occ else "depth", "normals", "mask")
    rows = []
    for seed in range(NUM_SEEDS):
        z = latent_from_seed(seed, c).to(device)
        views = render_views(generator.field_of_latents(z.expand(len(yaws), -1)), poses, c, settings)
        rows.append([view_image(view, quantity, c.ray_start, c.ray_end) for quantity in quantities for view in views])
    return image_grid(rows)
