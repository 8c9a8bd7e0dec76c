"""Scores of generated surfaces against the geometry that their images show (docs/metrics.md, tools/eval_geometry.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from checkpoints.loading import LoadedGenerator
from common.errors import UserError
from generators.cameras import CameraPoses
from generators.views import View, ViewSettings, render_views
from metrics.sampling import sample_fields
from metrics.shapes import Geometry, compare, flattened, mirrored, normals_to_camera
from metrics.truth import TruthSet
from settings.curriculum import Curriculum


def surfaces_of(views: list[View]) -> Geometry:
    """Return the surfaces of ``views``, with normals in WORLD axes."""
    return Geometry(*(torch.stack([getattr(view, name) for view in views]) for name in ("surface_depth", "normals", "hit_mask")))


def background_is_white(data: TruthSet) -> bool:
    """Return whether the background of the set's images is brighter than mid-gray on average."""
    outside = ~data.geometry.mask.unsqueeze(1).expand_as(data.images)
    return bool(outside.any()) and float(data.images[outside].float().mean()) > 127.5


def over_background(curriculum: Curriculum, is_white: bool) -> Curriculum:
    """Return the curriculum with the set's background color, unchanged if it uses ``last_back``."""
    if curriculum.last_back:
        return curriculum
    return replace(curriculum, white_back=is_white, random_back=False, eval_last_back=None)


def geometry_settings(curriculum: Curriculum, image_size: int) -> ViewSettings:
    """Return the settings of scored views: ``last_back`` as in training, twice the curriculum's samples per ray."""
    return ViewSettings(image_size=image_size, last_back=curriculum.last_back)


def generated_geometry(
    loaded: LoadedGenerator, curriculum: Curriculum, num: int, image_size: int, *, psi: float, seed: int, batch_size: int
) -> tuple[Tensor, Geometry]:
    """Render ``num`` images (N, 3, H, W) uint8 and their surfaces, with normals in camera axes."""
    settings = geometry_settings(curriculum, image_size)
    views: list[View] = []
    poses: list[CameraPoses] = []
    for field, pose in sample_fields(loaded, num, psi=psi, seed=seed, batch_size=batch_size, what="generated geometry"):
        views += render_views(field, pose, curriculum, settings)
        poses.append(CameraPoses(pose.pitch.cpu(), pose.yaw.cpu()))
    images = torch.stack([((view.image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for view in views])
    all_poses = CameraPoses(*(torch.cat(column) for column in zip(*poses, strict=True)))
    surfaces = surfaces_of(views)
    return images, surfaces._replace(normals=normals_to_camera(surfaces.normals, all_poses))


def score(predicted: Geometry, generated: Geometry) -> dict[str, Any]:
    """Compare both geometries, and add the scores of each generated surface mirrored in depth and flattened as baselines."""
    results = compare(predicted, generated)
    if not results["num_views_compared"]:
        raise UserError(
            f"none of the {results['num_views']} generated views has a surface where its image shows an object; "
            "check that the generator was trained on the set of --dataset_path"
        )
    baselines = {"mirrored": compare(predicted, mirrored(generated)), "flat": compare(predicted, flattened(generated))}
    keys = ("depth_mae_aligned", "normal_mean_degrees", "normal_median_degrees")
    return {
        "score": {
            **results,
            "mirrored_depth_mae": baselines["mirrored"]["depth_mae_aligned"],
            "bulges_outward": results["depth_correlation"] > 0,
        },
        "baselines": {name: {key: values[key] for key in keys} for name, values in baselines.items()},
    }
