"""Geometry as seen from a camera, and scores that compare two sets of such views.

N views of H x W pixels. Depth is the distance t along the unit ray. Normals are unit, outward, in the CAMERA's axes (x to
the right, y up, z toward the camera), because an image shows the orientation of a surface relative to its camera, while
each generator is free to choose which world direction has zero yaw.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import CameraPoses, camera_to_world

MIN_OVERLAP = 16  # pixels; views with fewer are not scored
FLAT = 1e-6  # world units; a smaller standard deviation of depth is rounding error


class Geometry(NamedTuple):
    """N views: ``depth`` (N, H, W); ``normals`` (N, 3, H, W); ``mask`` (N, H, W) bool, True on a surface.

    Normals are in camera axes unless the function that returns them says otherwise.
    """

    depth: Tensor
    normals: Tensor
    mask: Tensor


def normals_to_camera(normals: Tensor, poses: CameraPoses) -> Tensor:
    """Rotate world-axis normals (N, 3, H, W) into the camera axes of N poses."""
    rotation = camera_to_world(poses)[:, :3, :3]
    return torch.einsum("nji,njhw->nihw", rotation, normals)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the masked pixels of each view: (N, H, W), (N, H, W) -> (N,)."""
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1)


def _centered(depth: Tensor, mask: Tensor) -> Tensor:
    return depth - _mean(depth, mask)[:, None, None]


def mirrored(geometry: Geometry) -> Geometry:
    """Return the hollow counterpart: depth reflected at each view's mean, and normals with x and y negated."""
    depth = 2 * _mean(geometry.depth, geometry.mask)[:, None, None] - geometry.depth
    return Geometry(depth, geometry.normals * torch.tensor([-1.0, -1.0, 1.0])[:, None, None], geometry.mask)


def flattened(geometry: Geometry) -> Geometry:
    """Return a flat counterpart: each view's mean depth, with normals toward the camera."""
    depth = _mean(geometry.depth, geometry.mask)[:, None, None].expand_as(geometry.depth)
    facing = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand_as(geometry.normals)
    return Geometry(depth, facing, geometry.mask)


def compare(predicted: Geometry, generated: Geometry) -> dict[str, float]:
    """Return the errors of ``generated`` against ``predicted``, averaged over the views whose masks overlap.

    depth_mae, depth_rmse: world units, on pixels of both masks. *_aligned: after each view's mean difference is removed.
    depth_correlation: Pearson correlation per view; negative means that the surface is hollow where the image shows a bulge.
    normal_mean_degrees, normal_median_degrees: angle between normals. mask_iou, hit_rate (share of pixels with a surface):
    over all views. num_views_compared: number of the num_views views that overlap enough; if 0, the errors are NaN.
    """
    both = predicted.mask & generated.mask
    union = (predicted.mask | generated.mask).sum(dim=(1, 2))
    iou = torch.where(union > 0, both.sum(dim=(1, 2)) / union.clamp_min(1), 1.0)
    compared = both.sum(dim=(1, 2)) >= MIN_OVERLAP
    results = {"num_views": len(both), "num_views_compared": int(compared.sum())}
    results |= {"mask_iou": float(iou.mean()), "hit_rate": float(generated.mask.float().mean())}
    predicted, generated, both = (
        Geometry(*(part[compared] for part in predicted)),
        Geometry(*(part[compared] for part in generated)),
        both[compared],
    )
    difference = generated.depth - predicted.depth
    aligned = _centered(difference, both)
    degrees = _angle_degrees(generated.normals, predicted.normals)
    medians = torch.where(both, degrees, torch.nan).flatten(1).nanmedian(dim=1).values
    per_view = {
        "depth_mae": _mean(difference.abs(), both),
        "depth_rmse": _mean(difference.square(), both).sqrt(),
        "depth_mae_aligned": _mean(aligned.abs(), both),
        "depth_rmse_aligned": _mean(aligned.square(), both).sqrt(),
        "depth_correlation": _correlation(predicted.depth, generated.depth, both),
        "normal_mean_degrees": _mean(degrees, both),
        "normal_median_degrees": medians,
    }
    return results | {name: float(values.double().mean()) for name, values in per_view.items()}


def _angle_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between vectors (N, 3, H, W). A float32 arc cosine would be off by a tenth of a degree near 0."""
    cross = torch.linalg.cross(a, b, dim=1).norm(dim=1)
    return torch.rad2deg(torch.atan2(cross, (a * b).sum(dim=1)))


def _correlation(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the Pearson correlation (N,) over each view's masked pixels, 0 if either depth is flat (FLAT)."""
    a, b = (_centered(depth.double(), mask) for depth in (a, b))
    std_a, std_b = (_mean(depth.square(), mask).sqrt() for depth in (a, b))
    known = (std_a > FLAT) & (std_b > FLAT)
    return torch.where(known, _mean(a * b, mask) / (std_a * std_b).clamp_min(FLAT**2), 0.0)


def shape_statistics(geometry: Geometry) -> dict[str, Tensor]:
    """Return statistics (M,) of the M views with a surface; no predictor is involved.

    coverage: share of pixels with a surface. relief: standard deviation of the depth, world units. bulge: mean depth of the
    mask's outer half (by distance from its centroid) minus that of its inner half, world units; negative for hollow shapes.
    facing: mean cosine between the normals and the camera's axis.
    """
    kept = geometry.mask.sum(dim=(1, 2)) >= MIN_OVERLAP
    depth, normals, mask = (part[kept] for part in geometry)
    size = depth.shape[-1]
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    center_x, center_y = (_mean(axis.expand_as(depth), mask)[:, None, None] for axis in (x, y))
    radius = ((x - center_x).square() + (y - center_y).square()).sqrt()
    middle = torch.where(mask, radius, torch.nan).flatten(1).nanmedian(dim=1).values[:, None, None]
    outer, inner = mask & (radius > middle), mask & (radius <= middle)
    return {
        "coverage": mask.float().mean(dim=(1, 2)),
        "relief": _mean(_centered(depth, mask).square(), mask).sqrt(),
        "bulge": _mean(depth, outer) - _mean(depth, inner),
        "facing": _mean(normals[:, 2], mask),
    }


def compare_statistics(real: Geometry, generated: Geometry) -> dict[str, float | None]:
    """Return the means of :func:`shape_statistics` of both sets and the Wasserstein-1 distances of their distributions."""
    reals, fakes = shape_statistics(real), shape_statistics(generated)
    results: dict[str, float | None] = {}
    quantiles = (torch.arange(256) + 0.5) / 256
    for name in reals:
        a, b = reals[name], fakes[name]
        known = len(a) > 0 and len(b) > 0
        results[f"{name}_real"] = float(a.mean()) if len(a) else None
        results[f"{name}_generated"] = float(b.mean()) if len(b) else None
        results[f"{name}_w1"] = float((a.quantile(quantiles) - b.quantile(quantiles)).abs().mean()) if known else None
    return results
