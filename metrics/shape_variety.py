"""Whether a generator's shapes differ, or one shape carries many faces: depths of many latents, seen from the front.

No score of images sees that. A generator with a single shape for all can pass FID, and its surfaces the geometry score.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from common.errors import UserError
from common.files import read_small_text
from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.views import ViewSettings, render_views
from heads.parameters import sample_heads
from heads.render import render_heads
from metrics.geometry import surfaces_of
from metrics.shapes import FLAT, MIN_OVERLAP, Geometry, shape_statistics
from metrics.weighted_variance import mean_pose
from settings.curriculum import Curriculum

NUM_SHAPES = 64
MAX_SIZE = 32  # pixels; more see no more of how shapes differ
BATCH_SIZE = 16


def shape_variety(geometry: Geometry) -> dict[str, float]:
    """Of N >= 2 shapes seen from one pose, over the rays that meet all of them, each shape's mean depth removed.

    ``shape_correlation``: Pearson's between the depths of two shapes, averaged over pairs; 1: all have the same shape.
    ``shape_deviation``: standard deviation between shapes, averaged over rays, over the relief: the standard deviation over
    rays of the mean shape. 0: all have the same shape. Empty where too few rays meet all shapes, or the shapes are flat.
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
    """Surfaces of the first ``num`` seeds from the mean pose, normals in world axes."""
    curriculum = generator.curriculum
    device = next(generator.parameters()).device
    settings = ViewSettings(image_size, 1, surface_only=True)
    views = []
    for z in latents_of_first_seeds(num, curriculum).to(device).split(BATCH_SIZE):
        field = generator.field(generator.film(z, psi))
        views += render_views(field, mean_pose(curriculum, len(z), device), curriculum, settings)
    return surfaces_of(views)


def generated_variety(generator: ImplicitGenerator3d, image_size: int, psi: float = 1.0) -> dict[str, float]:
    """:func:`shape_variety` of NUM_SHAPES seeds, and ``bulge_positive``: the share of them that bulge outward.

    At ``image_size`` pixels, at most MAX_SIZE. A seed without a surface does not bulge. Deterministic.
    """
    geometry = front_geometry(generator, min(image_size, MAX_SIZE), psi=psi)
    bulges = shape_statistics(geometry)["bulge"]
    return {**shape_variety(geometry), "bulge_positive": int((bulges > 0).sum()) / NUM_SHAPES}


def true_variety(folder: str | Path, curriculum: Curriculum, image_size: int) -> dict[str, float]:
    """The same numbers of NUM_SHAPES of the built-in heads in ``folder``, ``_true`` after their names; empty for other sets.

    ``curriculum``: whose cameras look. ``image_size`` as in :func:`generated_variety`.
    """
    seed = _seed_of_heads(Path(folder))
    if seed is None:
        return {}
    pose = CameraPoses(*(torch.full((NUM_SHAPES,), mean) for mean in (curriculum.v_mean, curriculum.h_mean)))
    heads = render_heads(sample_heads(range(NUM_SHAPES), seed), pose, min(image_size, MAX_SIZE), curriculum.fov)
    return {f"{name}_true": value for name, value in shape_variety(Geometry(heads.depth, heads.normals, heads.mask)).items()}


def _seed_of_heads(folder: Path) -> int | None:
    """Of the set that tools/synthetic_heads.py wrote; None where it is another."""
    try:
        meta = json.loads(read_small_text(folder / "meta.json"))
        return meta["seed"] if meta["kind"] == "procedural heads" and type(meta["seed"]) is int else None
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
