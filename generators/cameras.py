"""Cameras and rays.

World axes: +y up. A camera looks at the origin along its own -z. Its +x points to the right of the image, and its +y up. At
yaw = pitch = pi/2 it is at (0, 0, 1) with its axes parallel to the world's. Angles are radians:

    position = (sin pitch cos yaw, cos pitch, sin pitch sin yaw)        on the unit sphere

so a larger yaw moves the camera toward -x and a larger pitch moves it down. ``t`` is the distance along the unit ray
from the camera. Source: docs/method.md, "Cameras and rays"; pi-GAN, section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PITCH_EPS = 1e-5


class CameraPoses(NamedTuple):
    """Camera poses: ``pitch`` and ``yaw``, (B,) each, radians."""

    pitch: Tensor
    yaw: Tensor

    def part(self, images: slice) -> CameraPoses:
        """Return some of the poses."""
        return CameraPoses(self.pitch[images], self.yaw[images])

    def to(self, device: torch.device | str) -> CameraPoses:
        return CameraPoses(self.pitch.to(device), self.yaw.to(device))


class Rays(NamedTuple):
    """Rays: ``origins`` and unit ``directions``, (B, R, 3) each, world coordinates, pixels row-major from the top left."""

    origins: Tensor
    directions: Tensor

    def split(self, num_rays: int) -> list[Rays]:
        """Split into parts of at most max(1, ``num_rays``) rays per image."""
        origins, directions = (rays.split(max(1, num_rays), dim=1) for rays in self)
        return [Rays(o, d) for o, d in zip(origins, directions, strict=True)]


def sample_camera_poses(
    num: int,
    *,
    h_mean: float,
    v_mean: float,
    h_stddev: float,
    v_stddev: float,
    sample_dist: str | None,
    generator: torch.Generator | None = None,
) -> CameraPoses:
    """Sample ``num`` poses on the CPU. Returns pitch (B,) and yaw (B,), radians. Raises ValueError for an unknown distribution.

    ``sample_dist``: ``gaussian``; ``uniform`` (half width = stddev); ``truncated_gaussian`` (truncated at 2 sigma);
    ``hybrid`` (half of the batches uniform with twice the stddev as half width, half gaussian);
    ``spherical_uniform`` (uniform area on the sphere: yaw uniform in h_mean +- h_stddev, and (1 - cos pitch) / 2 uniform in
    (v_mean +- v_stddev) / pi); None (the mean). Source: docs/method.md, "Cameras and rays".
    """
    if sample_dist == "hybrid":
        if torch.rand((), generator=generator) < 0.5:
            sample_dist, h_stddev, v_stddev = "uniform", 2 * h_stddev, 2 * v_stddev
        else:
            sample_dist = "gaussian"
    if sample_dist is None:
        yaw, pitch = torch.full((num,), float(h_mean)), torch.full((num,), float(v_mean))
    elif sample_dist == "gaussian":
        yaw = torch.randn(num, generator=generator) * h_stddev + h_mean
        pitch = torch.randn(num, generator=generator) * v_stddev + v_mean
    elif sample_dist == "uniform":
        yaw = (torch.rand(num, generator=generator) * 2 - 1) * h_stddev + h_mean
        pitch = (torch.rand(num, generator=generator) * 2 - 1) * v_stddev + v_mean
    elif sample_dist == "truncated_gaussian":
        yaw = _truncated_normal(num, generator) * h_stddev + h_mean
        pitch = _truncated_normal(num, generator) * v_stddev + v_mean
    elif sample_dist == "spherical_uniform":
        yaw = (torch.rand(num, generator=generator) * 2 - 1) * h_stddev + h_mean
        v = (torch.rand(num, generator=generator) * 2 - 1) * (v_stddev / math.pi) + v_mean / math.pi
        pitch = torch.arccos(1 - 2 * v.clamp(PITCH_EPS, 1 - PITCH_EPS))
    else:
        raise ValueError(f"unknown sample_dist {sample_dist!r}")
    return CameraPoses(pitch.clamp(PITCH_EPS, math.pi - PITCH_EPS), yaw)


def _truncated_normal(num: int, generator: torch.Generator | None) -> Tensor:
    """Sample the standard normal distribution truncated at 2 sigma by inverse transform sampling. Returns (num,)."""
    edge = math.erf(2 / math.sqrt(2))
    uniform = torch.rand(num, generator=generator, dtype=torch.float64) * 2 - 1
    return (torch.erfinv(uniform * edge) * math.sqrt(2)).float()


def camera_positions(poses: CameraPoses) -> Tensor:
    """Return camera positions on the unit sphere, (B, 3)."""
    pitch = poses.pitch.clamp(PITCH_EPS, math.pi - PITCH_EPS)
    sin_pitch = torch.sin(pitch)
    return torch.stack([sin_pitch * torch.cos(poses.yaw), torch.cos(pitch), sin_pitch * torch.sin(poses.yaw)], dim=-1)


def mean_direction(h_mean: float, v_mean: float) -> Tensor:
    """Return the unit view direction (3,) of a camera at the mean pose. (0, 0, -1) if both means are pi/2."""
    pose = CameraPoses(*(torch.tensor([mean], dtype=torch.float64) for mean in (v_mean, h_mean)))
    direction = -camera_positions(pose)[0]
    return torch.where(direction.abs() < 1e-9, 0.0, direction).float()  # cos(pi/2) is not exactly 0 in floating point


def camera_to_world(poses: CameraPoses) -> Tensor:
    """Return cam2world (B, 4, 4) of cameras that look at the origin: columns (-left, true_up, -forward, position)."""
    position = camera_positions(poses)
    forward = -position / position.norm(dim=-1, keepdim=True)
    up = torch.zeros_like(forward)
    up[..., 1].fill_(1)  # unlike assignment, fill_ makes no host tensor, so it does not synchronize with a GPU
    left = torch.nn.functional.normalize(torch.linalg.cross(up, forward), dim=-1)
    true_up = torch.nn.functional.normalize(torch.linalg.cross(forward, left), dim=-1)
    cam2world = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    cam2world[..., :3, 0] = -left
    cam2world[..., :3, 1] = true_up
    cam2world[..., :3, 2] = -forward
    cam2world[..., :3, 3] = position
    cam2world[..., 3, 3].fill_(1)
    return cam2world


def camera_ray_directions(size: int, fov_degrees: float, device: torch.device | str = "cpu") -> Tensor:
    """Return unit directions in the camera's frame, (size * size, 3), pixels row-major from the top left."""
    x = torch.linspace(-1, 1, size, device=device)
    y = torch.linspace(1, -1, size, device=device)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    z = torch.full_like(grid_x, -1 / math.tan(math.radians(fov_degrees) / 2))
    return torch.nn.functional.normalize(torch.stack([grid_x, grid_y, z], dim=-1).reshape(-1, 3), dim=-1)


def camera_rays(poses: CameraPoses, size: int, fov_degrees: float) -> Rays:
    """Return rays through every pixel of a (size, size) image: (B, size * size, 3) each."""
    cam2world = camera_to_world(poses)
    directions = camera_ray_directions(size, fov_degrees, cam2world.device).to(cam2world.dtype)
    return rays_from_cameras(cam2world, directions)


def rays_from_cameras(cam2world: Tensor, directions: Tensor) -> Rays:
    """Return rays (B, R) of cameras (B, 4, 4) along unit ``directions`` (R, 3) or (B, R, 3) in camera axes."""
    # Not a matrix product: with TF32 a GPU would round both factors to 11 bits, which shifts an image by a fraction of a pixel.
    world_directions = (directions.unsqueeze(-2) * cam2world[:, None, :3, :3]).sum(dim=-1)
    return Rays(cam2world[:, None, :3, 3].expand_as(world_directions), world_directions)
