"""Pivotal tuning of the generator's weights to one photo, with regularization of the shape.

The latent found by the search is the pivot. Its styles, pose and crop are fixed, and the weights are optimized until the image
matches the photo. Unconstrained, this would crumple the surface, since a crumpled surface can show any image from one side. The
tuned field is therefore kept close to the pivot's: occupancy at random points of the volume and near the surface, normals at
the surface, and colors of the surface that the photo does not show. Source: Roich et al., "Pivotal Tuning", 2021. These terms
replace their locality regularization, since here the shape can be queried. N points.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fields.interface import Field
from generators.cameras import CameraPoses, Rays, camera_positions, camera_rays, mean_direction
from generators.pose_prior import mean_poses
from generators.renderer import RenderSettings, as_images, draw_noise, ray_points, render
from inversion.camera import photo_rays
from inversion.losses import image_psnr_db
from inversion.search import Candidates, Progress, Scene, SearchSettings, falling_rate, image_loss
from visualization.meshes import occupancy_of

POOL_SIZE = 48  # pixels of the views that find surface points
POOL_YAWS = (-0.6, -0.3, 0.0, 0.3, 0.6)  # radians from the mean pose
NEAR_SURFACE = 0.01  # world units: standard deviation of the offset from the surface, for half of the occupancy points
SEEN_COSINE = 0.3  # of the angle between normal and the direction to the photo's camera; above it, the photo determines colors
FROZEN = "mapping"  # in the names of parameters that a fixed latent does not use


@dataclass(frozen=True)
class TuneSettings:
    """Settings of tuning. ``num_points``: points of each regularizer, per step."""

    num_steps: int = 100
    rate: float = 5e-4
    num_points: int = 1024
    lambda_occupancy: float = 1.0
    lambda_normal: float = 0.02
    lambda_color: float = 0.1


# By the curriculum's model, if not the defaults. Weights of a tri-plane backbone have unit scale (equalized learning rate), so
# a step must be larger, and it costs less time.
TUNE_SETTINGS = {"TRIPLANE": TuneSettings(num_steps=300, rate=4e-3)}


def tune_settings_of(model: str, num_steps: int | None = None) -> TuneSettings:
    """Return the settings for a curriculum's ``model``, with ``num_steps`` steps unless that is None."""
    settings = TUNE_SETTINGS.get(model, TuneSettings())
    return settings if num_steps is None else replace(settings, num_steps=num_steps)


class SurfacePool(NamedTuple):
    """Points on the pivot's surface, their normals and colors in [0, 1]: (N, 3) each. ``seen`` (N,): True where in the photo."""

    points: Tensor
    normals: Tensor
    colors: Tensor
    seen: Tensor


class Tuning:
    """Tuning for one photo, step by step; ``weights``: the best so far, by name; None before the first step."""

    def __init__(self, scene: Scene, photo: Tensor, pivot: Candidates, settings: TuneSettings, search: SearchSettings, seed: int):
        """photo: (3, S, S) in [0, 1]. ``search``: the weights of the image loss."""
        self.scene, self.settings, self.search = scene, settings, search
        self.photo = photo.unsqueeze(0).to(scene.device)
        self.pivot = pivot
        self.weights: dict[str, Tensor] | None = None
        self._styles = scene.distribution.styles(pivot.coordinates, pivot.offsets)
        self._random = torch.Generator().manual_seed(seed)

    def run(self) -> Iterator[Progress]:
        scene, settings = self.scene, self.settings
        size = self.photo.shape[-1]
        generator = copy.deepcopy(scene.generator)
        tuned = {name: value for name, value in generator.named_parameters() if FROZEN not in name}
        for value in tuned.values():
            value.requires_grad_(True)
        with torch.no_grad():
            pivot_field = scene.generator.field(self._styles)
            pool = surface_pool(pivot_field, self.pivot.poses(), scene)
            rays = photo_rays(self.pivot.poses(), self.pivot.crop(), size, size, scene.curriculum.fov)
        optimizer = torch.optim.Adam(tuned.values(), lr=settings.rate, betas=(0.9, 0.99))
        best, best_psnr = math.inf, math.nan
        pitch, yaw = self.pivot.angles[0].tolist()
        rendering = RenderSettings.from_curriculum(scene.curriculum)
        for step in range(settings.num_steps):
            optimizer.param_groups[0]["lr"] = settings.rate * falling_rate(step, settings.num_steps)
            field = generator.field(self._styles)
            # Jittered as in training: weights that overfit fixed samples lose 2 dB when rendered with twice as many.
            noise = draw_noise(1, size * size, rendering, scene.device, self._random)
            image = as_images(render(field, rays, rendering, noise).rgb, size)
            loss = image_loss(image, self.photo, scene.features, self.search).sum() + self._hold(field, pivot_field, pool)
            if float(loss.detach()) < best:
                best, best_psnr = float(loss.detach()), float(image_psnr_db(image.detach(), self.photo))
                self.weights = {name: value.detach().clone() for name, value in tuned.items()}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield Progress(step + 1, best, best_psnr, yaw, pitch, size)

    def _hold(self, field: Field, pivot: Field, pool: SurfacePool) -> Tensor:
        """Regularization toward the pivot's field: occupancies, normals, and colors that the photo does not show."""
        settings, num = self.settings, self.settings.num_points
        near_points = self._draw(pool.points, num)
        noise = torch.randn(len(near_points), 3, generator=self._random).to(near_points.device) * NEAR_SURFACE
        c = self.scene.curriculum
        anywhere = (torch.rand(num, 3, generator=self._random).to(near_points.device) * 2 - 1) * c.ray_reach
        points = torch.cat([near_points + noise, anywhere]).unsqueeze(0)
        spacing = (c.ray_end - c.ray_start) / c.num_steps_coarse  # only used by a radiance field: the alpha of a ray's step
        with torch.no_grad():
            alphas = occupancy_of(pivot.occupancy_logits(points), c, spacing)
        loss = settings.lambda_occupancy * (occupancy_of(field.occupancy_logits(points), c, spacing) - alphas).square().mean()
        if len(pool.points):
            index = self._indices(len(pool.points), num).to(pool.points.device)
            cosines = (field.normals(pool.points[index].unsqueeze(0)) * pool.normals[index]).sum(dim=-1)
            loss = loss + settings.lambda_normal * (1 - cosines).mean()
            points = pool.points[index].unsqueeze(0)
            error = field.logits_and_colors(points, self._ahead(points))[1] - pool.colors[index]
            loss = loss + settings.lambda_color * (error.square().mean(dim=-1) * ~pool.seen[index]).mean()
        return loss

    def _ahead(self, points: Tensor) -> Tensor:
        """Repeat the mean view direction for each of points (1, N, 3)."""
        curriculum = self.scene.curriculum
        return mean_direction(curriculum.h_mean, curriculum.v_mean).to(points.device).expand_as(points)

    def _indices(self, total: int, num: int) -> Tensor:
        return torch.randint(total, (num,), generator=self._random)

    def _draw(self, rows: Tensor, num: int) -> Tensor:
        """Draw ``num`` random rows of (N, 3); empty if there are none."""
        return rows[self._indices(len(rows), num).to(rows.device)] if len(rows) else rows


def surface_pool(field: Field, photo_poses: CameraPoses, scene: Scene) -> SurfacePool:
    """Sample the pivot's surface from the photo's camera and those of POOL_YAWS."""
    curriculum = scene.curriculum
    device = scene.device
    points = []
    for offset in POOL_YAWS:
        points.append(_surface_points(field, mean_poses(curriculum, 1, device, offset), scene))
    points.append(_surface_points(field, photo_poses, scene))
    found = torch.cat(points)
    if not len(found):
        return SurfacePool(found, found, found, found.new_zeros(0, dtype=torch.bool))
    normals = field.normals(found.unsqueeze(0))[0]
    ahead = mean_direction(curriculum.h_mean, curriculum.v_mean).to(device).expand(1, len(found), 3)
    colors = field.logits_and_colors(found.unsqueeze(0), ahead)[1][0]
    to_camera = torch.nn.functional.normalize(camera_positions(photo_poses) - found, dim=-1)
    return SurfacePool(found, normals, colors, (normals * to_camera).sum(dim=-1) > SEEN_COSINE)


def _surface_points(field: Field, poses: CameraPoses, scene: Scene) -> Tensor:
    """Return the points where the rays of a view enter the surface, (N, 3)."""
    rays = camera_rays(poses, POOL_SIZE, scene.curriculum.fov)
    surface = render(field, rays, RenderSettings.from_curriculum(scene.curriculum)).surface
    return ray_points(Rays(*rays), surface.t.unsqueeze(-1))[0][surface.hit_mask[0]]
