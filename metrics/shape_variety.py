"""The variety of a generator's shapes, measured on depth maps of many latents seen from the front.

Image scores do not measure it. A generator that paints many faces on a single shape can have a good FID and a good
geometry score.
"""

from __future__ import annotations

from pathlib import Path

import torch

from common.errors import UserError
from common.files import read_json
from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.pose_prior import mean_poses
from generators.views import ViewSettings, render_views
from heads.parameters import sample_heads
from heads.render import render_heads
from metrics.geometry import surfaces_of
from metrics.shapes import FLAT, MIN_OVERLAP, Geometry, shape_statistics
from settings.curriculum import Curriculum

NUM_SHAPES = 64
MAX_SIZE = 32  # pixels; a higher resolution adds no information on how shapes differ
BATCH_SIZE = 16


def shape_variety(geometry: Geometry) -> dict[str, float]:
    """Return the variety of N >= 2 shapes seen from one pose, over the rays that hit all of them, with mean depths removed.

    ``shape_correlation``: Pearson correlation of the depths of two shapes, averaged over pairs. 1 means shapes
    that differ only in the scale of their relief.
    ``shape_deviation``: standard deviation between shapes, averaged over rays, divided by the relief (the standard deviation
    of the mean shape over rays). 0 means identical shapes. Returns {} if too few rays hit all shapes or a shape is flat.
    """
    shared = geometry.mask.all(dim=0)
    if len(geometry.mask) < 2 or int(shared.sum()) < MIN_OVERLAP:
        return {}
    depth = geometry.depth[:, shared].double()
    depth = depth - depth.mean(dim=1, keepdim=True)
    relief = depth.mean(dim=0).std(correction=0)
    if float(relief) < FLAT or float(depth.std(dim=1).min()) < FLAT:
        return {}
    correlations = torch.corrcoef(depth)
    num = len(depth)
    between_pairs = (correlations.sum() - num) / (num * (num - 1))
    return {
        "shape_correlation": float(between_pairs),
        "shape_deviation": float(depth.std(dim=0).mean() / relief),
    }


@torch.no_grad()
def front_geometry(generator: ImplicitGenerator3d, image_size: int, num: int = NUM_SHAPES, psi: float = 1.0) -> Geometry:
    """Render the surfaces of the first ``num`` seeds from the mean pose, with normals in world axes."""
    curriculum = generator.curriculum
    device = generator.device
    settings = ViewSettings(image_size, 1, surface_only=True)
    views = []
    for z in latents_of_first_seeds(num, curriculum).to(device).split(BATCH_SIZE):
        field = generator.field_of_latents(z, psi)
        views += render_views(field, mean_poses(curriculum, len(z), device), curriculum, settings)
    return surfaces_of(views)


def generated_variety(generator: ImplicitGenerator3d, image_size: int, psi: float = 1.0) -> dict[str, float]:
    """Return :func:`shape_variety` of NUM_SHAPES seeds, and ``bulge_positive``: the share of seeds that bulge outward.

    Renders at ``image_size`` px, at most MAX_SIZE. A seed without a surface does not count as bulging. Deterministic.
    """
    geometry = front_geometry(generator, min(image_size, MAX_SIZE), psi=psi)
    bulges = shape_statistics(geometry)["bulge"]
    return {**shape_variety(geometry), "bulge_positive": int((bulges > 0).sum()) / NUM_SHAPES}


def true_variety(folder: str | Path, curriculum: Curriculum, image_size: int) -> dict[str, float]:
    """Return :func:`shape_variety` of NUM_SHAPES built-in heads of the set in ``folder``, with the suffix ``_true``.

    Returns {} for other sets. The cameras are those of ``curriculum``. ``image_size`` as in :func:`generated_variety`.
    """
    seed = _seed_of_heads(Path(folder))
    if seed is None:
        return {}
    poses = mean_poses(curriculum, NUM_SHAPES)
    heads = render_heads(sample_heads(range(NUM_SHAPES), seed), poses, min(image_size, MAX_SIZE), curriculum.fov)
    return {f"{name}_true": value for name, value in shape_variety(Geometry(heads.depth, heads.normals, heads.mask)).items()}


def _seed_of_heads(folder: Path) -> int | None:
    """Return the seed of a set by tools/synthetic_heads.py, or None for any other set."""
    try:
        meta = read_json(folder / "meta.json")
        return meta["seed"] if meta["kind"] == "procedural heads" and type(meta["seed"]) is int else None
    except (UserError, KeyError):
        return None
