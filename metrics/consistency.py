"""Multi-view consistency: reproject one view into another by its own depth, and compare the two.

Each pixel of view A defines a world point by its ray and depth. Camera B should see that point with the color of its own
image and at the depth that it predicts, unless the point is occluded. A field fails this test if its depth is not where
its colors come from (fog), or if its colors depend on the viewing direction, even if each image looks good by itself.
Source: the reprojection tests of multi-view stereo, which 3D-aware GANs report as multi-view consistency.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from common.psnr import psnr_db
from fields.interface import Field
from generators.cameras import CameraPoses, camera_rays, camera_to_world
from generators.pose_prior import mean_poses
from generators.views import View, ViewSettings, render_views
from settings.curriculum import Curriculum

OCCLUSION = 0.1  # fraction of the ray's length: a point this far behind the surface that B sees is occluded
YAW_DISTANCE = 1.0  # yaw between the two cameras, in units of h_stddev


def project(points: Tensor, poses: CameraPoses, fov_degrees: float) -> tuple[Tensor, Tensor]:
    """Project world points (B, N, 3) into B cameras; return image coordinates (B, N, 2) and ray distances t (B, N).

    Coordinates have x to the right and y DOWN. They run over [-1, 1] from the first to the last pixel's center, as in
    grid_sample with align_corners. The pixels of generators.cameras use the same grid.
    """
    cam2world = camera_to_world(poses)
    relative = points - cam2world[:, None, :3, 3]
    x, y, z = (relative @ cam2world[:, :3, :3]).unbind(dim=-1)
    focal = 1 / math.tan(math.radians(fov_degrees) / 2)
    depth = (-z).clamp_min(1e-6)
    return torch.stack([focal * x / depth, -focal * y / depth], dim=-1), relative.norm(dim=-1)


def compare_views(a: list[View], b: list[View], curriculum: Curriculum, fov_degrees: float | None = None) -> dict[str, float]:
    """Reproject each view of ``a`` into its counterpart in ``b``: two poses of the same latent, all views of one size.

    A pixel counts if it has a surface in A, lands on a surface in B and is not occluded in B. Returns
    ``consistency_psnr_db``: PSNR of colors in [-1, 1]; ``consistency_depth``: mean absolute difference between the point's
    distance from B and the depth that B predicts, world units; ``consistency_seen``: share of A's surface pixels that count.
    If no pixel counts, returns only ``consistency_seen``, as 0.
    """
    fov = curriculum.fov if fov_degrees is None else fov_degrees
    size = a[0].depth.shape[-1]
    poses_a, poses_b = (
        CameraPoses(torch.tensor([v.pitch for v in views]), torch.tensor([v.yaw for v in views])) for views in (a, b)
    )
    rays = camera_rays(poses_a, size, fov)
    depth_a, hit_a = (torch.stack([getattr(v, name) for v in a]).flatten(1) for name in ("depth", "hit_mask"))
    coordinates, t = project(rays.origins + rays.directions * depth_a.unsqueeze(-1), poses_b, fov)
    maps_b = torch.stack([torch.cat([v.image, v.depth[None], v.hit_mask[None].float()]) for v in b])
    sampled = F.grid_sample(maps_b, coordinates.unsqueeze(2), mode="bilinear", align_corners=True).squeeze(-1)  # (B, 5, N)
    colors_b, depth_b, hit_b = sampled[:, :3], sampled[:, 3], sampled[:, 4]
    inside = (coordinates.abs() <= 1).all(dim=-1) & (hit_b > 0.999)
    occluded = t - depth_b > OCCLUSION * (curriculum.ray_end - curriculum.ray_start)
    counted = hit_a & inside & ~occluded
    seen = float(counted.sum() / hit_a.sum().clamp_min(1))
    if not counted.any():
        return {"consistency_seen": seen}
    colors_a = torch.stack([v.image for v in a]).flatten(2)
    error = (colors_a - colors_b).square().mean(dim=1)[counted].mean()
    return {
        "consistency_psnr_db": psnr_db(float(error), peak=2),
        "consistency_depth": float((t - depth_b)[counted].abs().mean()),
        "consistency_seen": seen,
    }


@torch.no_grad()
def view_consistency(field: Field, curriculum: Curriculum, image_size: int, device: torch.device) -> dict[str, float]:
    """Apply :func:`compare_views` to the B latents of ``field``, with cameras YAW_DISTANCE / 2 to each side of the mean pose."""
    settings = ViewSettings(image_size, 1, last_back=curriculum.last_back)
    half = YAW_DISTANCE * curriculum.h_stddev / 2
    first, second = (
        render_views(field, mean_poses(curriculum, field.batch_size, device, yaw_offset), curriculum, settings)
        for yaw_offset in (-half, half)
    )
    return compare_views(first, second, curriculum)
