"""Views of latents for evaluation, images, videos and metrics. Deterministic: samples are not jittered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import npz_bytes, write_atomically
from fields.interface import Field
from generators.cameras import CameraPoses, Rays, camera_rays, mean_direction
from generators.renderer import RenderSettings, image_colors, ray_points, render
from generators.root_finding import Surface
from settings.curriculum import Curriculum

RAYS_PER_CHUNK = 1 << 15  # of all latents together; bounds the memory


@dataclass(frozen=True)
class ViewSettings:
    """Settings of a view. None means the curriculum's value (``interval``: its ``view_interval``).

    ``surface_only``: a fast preview of an occupancy field with a single color per ray, at the root. Rays without a root show the
    background or, with ``last_back``, the color at the far end. The depth is that of the root.
    """

    image_size: int = 256
    ray_step_multiplier: int = 2
    lock_view_dependence: bool = False
    interval: float | None = None
    fov_degrees: float | None = None
    last_back: bool | None = None
    surface_only: bool = False

    def render_settings(self, curriculum: Curriculum) -> RenderSettings:
        last_back = curriculum.view_last_back if self.last_back is None else self.last_back
        settings = replace(RenderSettings.from_curriculum(curriculum, self.interval), last_back=last_back)
        settings = settings.multiply_steps(self.ray_step_multiplier)
        if self.surface_only:  # the interval shrinks to the root, whose single sample gets all of the weight
            background = None if last_back else float(settings.white_back)
            settings = replace(settings, surface_sample=True, num_surface=1, num_fine=0, interval=0.0)
            settings = replace(settings, last_back=True, background=background)
        return settings


@dataclass
class View:
    """One image with its depth, normals and surface, on the CPU, float32. H = W = image size.

    ``image`` and ``surface_image`` (3, H, W) in [-1, 1]; ``depth``, ``depth_over_far`` (see
    :class:`generators.renderer.RenderOutput`) and ``surface_depth`` (H, W), distances along the ray (without a surface,
    ``surface_depth`` is the curriculum's ray_end); ``hit_mask`` (H, W), True where the ray enters the surface; ``normals``
    (3, H, W), unit, world coordinates, 0 without a surface; ``yaw`` and ``pitch`` in radians.
    """

    image: Tensor
    depth: Tensor
    depth_over_far: Tensor
    surface_depth: Tensor
    hit_mask: Tensor
    normals: Tensor
    surface_image: Tensor
    yaw: float
    pitch: float

    def save_raw(self, path: str | Path, label: str) -> None:
        """Write an .npz file with every array under its field's name.

        It also holds ``yaw``, ``pitch``, and ``seed`` (for a latent file: ``latent``). Raises UserError if it cannot be written.
        """
        arrays = {name: value.numpy() for name, value in vars(self).items() if isinstance(value, Tensor)}
        arrays |= {"yaw": np.float64(self.yaw), "pitch": np.float64(self.pitch)}
        arrays |= {"seed": np.int64(label)} if label.isdecimal() else {"latent": np.array(label)}
        write_atomically(path, npz_bytes(arrays), sync=False)


def make_pose(yaw: float, pitch: float, device: torch.device | str = "cpu") -> CameraPoses:
    """Return a single pose, (1,) each, radians."""
    return CameraPoses(torch.tensor([pitch], device=device), torch.tensor([yaw], device=device))


class LockedDirections:
    """A field whose colors are always those seen along ``ahead`` (3,), the mean view direction (``--lock_view_dependence``)."""

    def __init__(self, field: Field, ahead: Tensor) -> None:
        self._field = field
        self._ahead = ahead
        self.batch_size = field.batch_size

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return self._field.occupancy_logits(points)

    def normals(self, points: Tensor) -> Tensor:
        return self._field.normals(points)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self._field.logits_and_colors(points, self._ahead.to(directions).expand_as(directions))


@torch.no_grad()
def render_view(field: Field, pose: CameraPoses, curriculum: Curriculum, settings: ViewSettings) -> View:
    """Render a field of one latent from one pose (1,), with depth, surface, normals and mask."""
    return render_views(field, pose, curriculum, settings)[0]


@torch.no_grad()
def render_views(field: Field, poses: CameraPoses, curriculum: Curriculum, settings: ViewSettings) -> list[View]:
    """Render a field of B latents, the i-th latent from the i-th of B poses."""
    if settings.lock_view_dependence:
        field = LockedDirections(field, mean_direction(curriculum.h_mean, curriculum.v_mean))
    size = settings.image_size
    rays = camera_rays(poses, size, curriculum.fov if settings.fov_degrees is None else settings.fov_degrees)
    render_settings = settings.render_settings(curriculum)
    columns = [view_columns(field, part, render_settings) for part in rays.split(RAYS_PER_CHUNK // field.batch_size)]
    image, depth, depth_over_far, surface_depth, hit_mask, normals, surface_image = (
        torch.cat(column, dim=1).cpu().unflatten(1, (size, size)) for column in zip(*columns, strict=True)
    )
    return [
        View(
            image=image[i].permute(2, 0, 1).contiguous() * 2 - 1,
            depth=depth[i],
            depth_over_far=depth_over_far[i],
            surface_depth=surface_depth[i],
            hit_mask=hit_mask[i],
            normals=normals[i].permute(2, 0, 1).contiguous(),
            surface_image=surface_image[i].permute(2, 0, 1).contiguous() * 2 - 1,
            yaw=float(poses.yaw[i]),
            pitch=float(poses.pitch[i]),
        )
        for i in range(field.batch_size)
    ]


def view_columns(field: Field, rays: Rays, settings: RenderSettings) -> tuple[Tensor, ...]:
    """Render the arrays of a :class:`View` for rays (B, R).

    Returns rgb, depth, depth over far, surface depth, hit mask, normals and surface color. Colors are (B, R, 3) in [0, 1],
    normals (B, R, 3), the others (B, R).
    """
    output = render(field, rays, settings)
    colors, surface = image_colors(output, settings), output.surface
    normals, surface_colors = surface_appearance(field, rays, surface, colors if settings.is_root_only else None)
    return colors, output.depth, output.depth_over_far, surface.t, surface.hit_mask, normals, surface_colors


def surface_appearance(field: Field, rays: Rays, surface: Surface, root_colors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Query normals (B, R, 3) and colors (B, R, 3) in [0, 1] at the roots. Both are 0 for rays without a root.

    ``root_colors``: the colors at the roots, if already known.
    """
    hit = surface.hit_mask
    normals, colors = torch.zeros_like(rays.directions), torch.zeros_like(rays.directions)
    index = hit.any(dim=0).nonzero().squeeze(-1)  # query a ray for all latents if it hits the surface of any
    if len(index):
        points = ray_points(rays, surface.t.unsqueeze(-1))[:, index]
        keep = hit[:, index].unsqueeze(-1)
        known = None if root_colors is None else root_colors[:, index]
        colors[:, index] = keep * (field.logits_and_colors(points, rays.directions[:, index])[1] if known is None else known)
        normals[:, index] = field.normals(points) * keep
    return normals, colors
