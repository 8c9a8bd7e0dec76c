"""Whether the views of a shape agree: one image, moved by its own depth into the place of another, against that other.

A pixel of view A is a point in the world (its ray, its depth). Seen by camera B it should have the color that B's image
shows there, at the depth that B predicts there, unless something stands in between. A field whose depth is not where its
colors come from (fog, or colors that change with the direction) fails this, however good its images are one by one.
Source: the reprojection tests of multi-view stereo; 3D-aware GANs report it as multi-view consistency.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.cameras import CameraPoses, camera_rays, camera_to_world
from generators.views import View, ViewSettings, render_views
from settings.curriculum import Curriculum
from siren.field import Field

OCCLUSION = 0.1  # of the ray's length: a point so far behind what B sees is hidden from B
YAW_APART = 1.0  # in units of h_stddev: how far apart the two cameras stand


def project(points: Tensor, poses: CameraPoses, fov_degrees: float) -> tuple[Tensor, Tensor]:
    """World points (B, N, 3) seen from B poses: image coordinates (B, N, 2), and distances t along the ray (B, N).

    Coordinates are x to the right and y DOWN, in [-1, 1] from the first to the last pixel's center, as grid_sample has
    them with align_corners; the cameras' own pixels lie at these very places.
    """
    cam2world = camera_to_world(poses)
    relative = points - cam2world[:, None, :3, 3]
    x, y, z = (relative @ cam2world[:, :3, :3]).unbind(dim=-1)
    focal = 1 / math.tan(math.radians(fov_degrees) / 2)
    depth = (-z).clamp_min(1e-6)
    return torch.stack([focal * x / depth, -focal * y / depth], dim=-1), relative.norm(dim=-1)


def compare_views(a: list[View], b: list[View], curriculum: Curriculum, fov_degrees: float | None = None) -> dict[str, float]:
    """Move each view of ``a`` into the one of ``b`` beside it; views of one latent from two poses, all of one size.

    Only pixels that meet a surface in A, land on one in B and are not hidden there count. Returns
    ``consistency_psnr_db``: of colors in [-1, 1]; ``consistency_depth``: mean absolute difference between the point's
    distance from B and the depth that B predicts, world units; ``consistency_seen``: share of A's surface pixels that count.
    Where none does, only the last, as 0.
    """
    fov = curriculum.fov if fov_degrees is None else fov_degrees
    size = a[0].depth.shape[-1]
    poses_a, poses_b = (
        CameraPoses(torch.tensor([v.pitch for v in views]), torch.tensor([v.yaw for v in views])) for views in (a, b)
    )
    rays = camera_rays(poses_a, size, fov)
    depth_a, hit_a = (torch.stack([getattr(v, name) for v in a]).flatten(1) for name in ("depth", "hit_mask"))
    places, t = project(rays.origins + rays.directions * depth_a.unsqueeze(-1), poses_b, fov)
    maps_b = torch.stack([torch.cat([v.image, v.depth[None], v.hit_mask[None].float()]) for v in b])
    found = F.grid_sample(maps_b, places.unsqueeze(2), mode="bilinear", align_corners=True).squeeze(-1)  # (B, 5, N)
    colors_b, depth_b, hit_b = found[:, :3], found[:, 3], found[:, 4]
    inside = (places.abs() <= 1).all(dim=-1) & (hit_b > 0.999)
    hidden = t - depth_b > OCCLUSION * (curriculum.ray_end - curriculum.ray_start)
    counted = hit_a & inside & ~hidden
    seen = float(counted.sum() / hit_a.sum().clamp_min(1))
    if not counted.any():
        return {"consistency_seen": seen}
    colors_a = torch.stack([v.image for v in a]).flatten(2)
    error = (colors_a - colors_b).square().mean(dim=1)[counted].mean()
    return {
        "consistency_psnr_db": float(10 * torch.log10(4 / error.clamp_min(1e-12))),
        "consistency_depth": float((t - depth_b)[counted].abs().mean()),
        "consistency_seen": seen,
    }


@torch.no_grad()
def view_consistency(field: Field, curriculum: Curriculum, image_size: int, device: torch.device) -> dict[str, float]:
    """:func:`compare_views` of the B latents of ``field``, seen from half of YAW_APART to either side of the mean pose."""
    settings = ViewSettings(image_size, 1, last_back=curriculum.last_back)
    half = YAW_APART * curriculum.h_stddev / 2
    pairs = []
    for yaw in (curriculum.h_mean - half, curriculum.h_mean + half):
        angles = (torch.full((field.batch_size,), value, device=device) for value in (curriculum.v_mean, yaw))
        pairs.append(render_views(field, CameraPoses(*angles), curriculum, settings))
    return compare_views(*pairs, curriculum)
