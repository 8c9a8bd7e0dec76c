"""The thickness of surfaces along rays, measured by the variance of the rendering weights.

Source: docs/method.md, "Evaluation protocol"; GOF, section 4.

On coarse samples t_1..t_n only, with alpha set to 0 in front of (t_surface - interval_max / 2):

    variance = sum_i w_i (t_i - mean)^2 / ((sum_i w_i + 1e-5) (n - 1) / n),    mean = sum_i w_i t_i / (sum_i w_i + 1e-5)

over rays with sum w > 0.99. A ray without a surface is treated as if the surface were at t = 1. A field whose weights are
concentrated on one sample scores 0. The result is deterministic for given poses.

A radiance field has no surface, so no alpha is set to 0. Its last sample, whose alpha represents everything beyond the
ray's end, is excluded. Otherwise empty rays would count as perfectly thin surfaces there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fields.interface import Field
from generators import volume_rendering
from generators.cameras import CameraPoses, Rays, camera_rays
from generators.renderer import RenderSettings, render
from generators.views import RAYS_PER_CHUNK
from settings.curriculum import Curriculum

NUM_SAMPLES = 36
MIN_WEIGHT_SUM = 0.99
MEAN_EPS = 1e-5
T_WITHOUT_SURFACE = 1.0  # the published depth of a ray that hits nothing; the recorded values depend on it


class LatentVariance(NamedTuple):
    """``variance`` of one latent: the mean over its ``num_rays`` valid rays, NaN if there are none."""

    variance: float
    num_rays: int


class _ColorlessField:
    """A field without its colors, which this metric does not need. Skipping them halves the computation."""

    def __init__(self, field: Field) -> None:
        self.occupancy_logits, self.normals, self.batch_size = field.occupancy_logits, field.normals, field.batch_size

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.occupancy_logits(points), torch.zeros_like(directions)


def weight_variance(t: Tensor, weights: Tensor) -> Tensor:
    """Return the variance (...) by the formula above. t, weights: (..., S), front to back."""
    weight_sum = weights.sum(dim=-1) + MEAN_EPS
    mean = (weights * t).sum(dim=-1) / weight_sum
    num = t.shape[-1]
    return (weights * (t - mean.unsqueeze(-1)).square()).sum(dim=-1) / (weight_sum * ((num - 1) / num))


@torch.no_grad()
def ray_variances(field: Field, rays: Rays, curriculum: Curriculum) -> tuple[Tensor, Tensor]:
    """Return variance (B, R) and valid (B, R), True where the weights sum to more than 0.99."""
    settings = replace(
        RenderSettings.from_curriculum(curriculum),
        surface_sample=False,
        num_coarse=NUM_SAMPLES,
        num_fine=0,
        last_back=False,
        white_back=False,
    )
    output = render(_ColorlessField(field), rays, settings)
    if settings.pred_occ:
        t_surface = torch.where(output.surface.hit_mask, output.surface.t, T_WITHOUT_SURFACE)
        in_front = output.t < (t_surface - curriculum.interval_max / 2).unsqueeze(-1)
        alphas = torch.where(in_front, 0.0, output.alphas)
    else:
        alphas = output.alphas.clone()
        alphas[..., -1] = 0
    weights = volume_rendering.compute_weights(alphas)
    return weight_variance(output.t, weights), weights.sum(dim=-1) > MIN_WEIGHT_SUM


@torch.no_grad()
def latent_variances(field: Field, poses: CameraPoses, curriculum: Curriculum, image_size: int) -> list[LatentVariance]:
    """Return one value per latent of ``field``, each seen from its own pose of ``poses`` (B,) at ``image_size`` px."""
    rays = camera_rays(poses, image_size, curriculum.fov)
    pieces = [ray_variances(field, part, curriculum) for part in rays.split(RAYS_PER_CHUNK // field.batch_size)]
    variance, valid = (torch.cat(column, dim=1).cpu() for column in zip(*pieces, strict=True))
    num_rays = valid.sum(dim=1)
    means = torch.where(valid, variance.double(), 0.0).sum(dim=1) / num_rays
    return [LatentVariance(float(mean), int(num)) for mean, num in zip(means, num_rays, strict=True)]
