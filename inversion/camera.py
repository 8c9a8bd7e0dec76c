"""Rays through a photo's pixels, for a photo that is cropped differently from the training images.

A photo's pixel p = (x, y) in [-1, 1], x to the right and y up, is at q = scale * R(roll) p + shift in the image plane of the
generator's camera, whose images cover q in [-1, 1]. The photo is not resampled; the rays move instead.
B batch, S side of an image in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.cameras import CameraPoses, Rays, camera_to_world, rays_from_cameras
from metrics.shapes import normals_to_camera


class Crop(NamedTuple):
    """``shift_x``, ``shift_y``: half images; ``roll``: radians, counterclockwise; ``log_scale``. (B,) each; 0 is the identity."""

    shift_x: Tensor
    shift_y: Tensor
    roll: Tensor
    log_scale: Tensor


def no_crop(num: int, device: torch.device | str = "cpu") -> Crop:
    """Identity crop of ``num`` images."""
    return Crop(*torch.zeros(4, num, device=device))


def pixel_centers(size: int, full_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Pixel centers (size,) in [-1, 1] of an image of ``full_size`` pixels that is reduced to ``size`` by averaging blocks."""
    if full_size % size:
        raise ValueError(f"{full_size} pixels do not reduce to {size} by a whole factor")
    return torch.linspace(-1, 1, full_size, device=device).view(size, -1).mean(dim=1)


def photo_rays(poses: CameraPoses, crop: Crop, size: int, full_size: int, fov_degrees: float) -> Rays:
    """Rays (B, size * size, 3) through a photo's pixels, row-major from the top left; differentiable in poses and crop.

    ``full_size``: the photo's side; ``size``: the side after reduction by averaging, a divisor of ``full_size``.
    """
    centers = pixel_centers(size, full_size, poses.yaw.device)
    y, x = torch.meshgrid(-centers, centers, indexing="ij")
    x, y = x.reshape(1, -1), y.reshape(1, -1)
    cos, sin = (f(crop.roll).unsqueeze(1) * crop.log_scale.exp().unsqueeze(1) for f in (torch.cos, torch.sin))
    plane_x = cos * x - sin * y + crop.shift_x.unsqueeze(1)
    plane_y = sin * x + cos * y + crop.shift_y.unsqueeze(1)
    depth = torch.full_like(plane_x, -1 / math.tan(math.radians(fov_degrees) / 2))
    directions = F.normalize(torch.stack([plane_x, plane_y, depth], dim=-1), dim=-1)  # (B, S * S, 3), camera axes
    return rays_from_cameras(camera_to_world(poses), directions)


def normals_in_photo(normals: Tensor, poses: CameraPoses, crop: Crop) -> Tensor:
    """Rotate normals (B, 3, H, W) from world axes to the photo's axes: x to its right, y up, z toward the camera."""
    cos, sin = torch.cos(crop.roll)[:, None, None], torch.sin(crop.roll)[:, None, None]
    x, y, z = normals_to_camera(normals, poses).unbind(dim=1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x, z], dim=1)
