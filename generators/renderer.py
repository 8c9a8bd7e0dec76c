"""The single render path: coarse samples -> surface -> samples -> field -> weights -> color and depth.

Training, evaluation and all scripts use :func:`render`. It only depends on the interface :class:`fields.interface.Field`, so
it can render anything that implements it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fields.interface import Field, RayField
from generators import samplers, volume_rendering
from generators.cameras import Rays
from generators.root_finding import Surface, find_surface
from generators.samplers import RenderNoise
from settings.curriculum import Curriculum


@dataclass(frozen=True)
class RenderSettings:
    """Settings for rendering a batch. ``interval`` is Delta, the half width around the surface; others as in the curriculum."""

    t_near: float
    t_far: float
    num_coarse: int
    num_surface: int
    num_fine: int
    interval: float | Tensor
    pred_occ: bool = True
    surface_sample: bool = True
    tau: float = 0.5
    root_method: str = "secant"
    num_root_steps: int = 4
    clamp_mode: str = "relu"
    density_noise: float | Tensor = 0.0
    last_back: bool = False
    white_back: bool = False
    background: float | None = None  # color of rays without a surface, for image_colors; None: the composited color

    @classmethod
    def from_curriculum(cls, curriculum: Curriculum, interval: float | None = None) -> RenderSettings:
        """Return the curriculum's settings. ``interval`` None means that of views."""
        return cls(
            t_near=curriculum.ray_start,
            t_far=curriculum.ray_end,
            num_coarse=curriculum.num_steps_coarse,
            num_surface=curriculum.num_steps_surface if curriculum.surface_sample else 0,
            num_fine=curriculum.num_steps_fine if curriculum.hierarchical_sample else 0,
            interval=curriculum.view_interval if interval is None else interval,
            pred_occ=curriculum.pred_occ,
            surface_sample=curriculum.surface_sample,
            tau=curriculum.tau,
            root_method=curriculum.root_method,
            num_root_steps=curriculum.n_secant_steps,
            clamp_mode=curriculum.clamp_mode,
            last_back=curriculum.last_back,
            white_back=curriculum.white_back,
        )

    @property
    def is_root_only(self) -> bool:
        """True if the only sample of a ray that is composited is its root."""
        return self.num_surface == 1 and self.num_fine == 0 and self.interval == 0

    def multiply_steps(self, factor: int) -> RenderSettings:
        """Return settings with all sample counts multiplied by ``factor`` (``ray_step_multiplier``)."""
        return replace(
            self, num_coarse=self.num_coarse * factor, num_surface=self.num_surface * factor, num_fine=self.num_fine * factor
        )


class Samples(NamedTuple):
    """Samples on rays, front to back: ``t`` and ``logits`` (B, R, S), ``colors`` (B, R, S, 3) in [0, 1]."""

    t: Tensor
    logits: Tensor
    colors: Tensor


@dataclass
class RenderOutput:
    """A rendered batch of rays.

    ``rgb`` (B, R, 3) in [0, 1]; ``depth`` (B, R), as published: the weighted mean distance, normalized by the total weight
    however small that is; ``depth_over_far`` (B, R): the weighted mean distance with the remaining weight at the far end;
    composited samples ``t``, ``alphas``, ``weights`` (B, R, S), front to back; ``surface`` with t and hit_mask (B, R), without
    gradient (rays of a radiance field never hit a surface).
    """

    rgb: Tensor
    depth: Tensor
    depth_over_far: Tensor
    t: Tensor
    alphas: Tensor
    weights: Tensor
    surface: Surface


def draw_noise(
    batch: int, rays: int, settings: RenderSettings, device: torch.device, generator: torch.Generator | None = None
) -> RenderNoise:
    """Draw the random numbers of :func:`render` for a batch on the generator's device, and move them to ``device``."""
    source = generator.device if generator is not None else device

    def uniform(num: int) -> Tensor | None:
        return torch.rand(batch, rays, num, generator=generator, device=source).to(device) if num else None

    def gaussian(num: int) -> Tensor | None:
        if not settings.density_noise:
            return None
        return torch.randn(batch, rays, num, generator=generator, device=source).to(device)

    if settings.surface_sample:
        return RenderNoise(surface_jitter=uniform(settings.num_surface), importance=uniform(settings.num_fine))
    return RenderNoise(
        coarse_jitter=uniform(settings.num_coarse),
        importance=uniform(settings.num_fine),
        coarse_density=gaussian(settings.num_coarse),
        density=gaussian(settings.num_coarse + settings.num_fine),
    )


def ray_points(rays: Rays, t: Tensor) -> Tensor:
    """Return the points (B, R * S, 3) at distances t (B, R, S)."""
    points = torch.addcmul(rays.origins.unsqueeze(2), rays.directions.unsqueeze(2), t.unsqueeze(-1))
    return points.flatten(1, 2)


def render(field: Field, rays: Rays, settings: RenderSettings, noise: RenderNoise | None = None) -> RenderOutput:
    """Render rays (B, R) of a field of B latents. Without ``noise``, samples are not jittered and the result is deterministic.

    Source: docs/method.md, "Rendering".
    """
    noise = noise or RenderNoise()
    if settings.surface_sample:
        samples, surface = _samples_around_surface(field, rays, settings, noise)
    else:
        samples, surface = _coarse_and_fine_samples(field, rays, settings, noise)
    alphas = _alphas(samples.logits, samples.t, settings, noise.density)
    return composite(samples.t, alphas, samples.colors, surface, settings)


def _samples_around_surface(field: Field, rays: Rays, settings: RenderSettings, noise: RenderNoise) -> tuple[Samples, Surface]:
    """Sample the interval around the surface, and by coarse weight (GOF).

    The coarse samples, which find the surface, carry no gradient and are not composited.
    """
    t_coarse = _coarse_samples(rays, settings)
    with torch.no_grad():
        coarse_logits = query_logits(field, rays, t_coarse)
        surface = _surface(field, rays, settings, t_coarse, coarse_logits)
        low, high = samplers.surface_interval(surface.t, surface.hit_mask, settings.interval, settings.t_near, settings.t_far)
        t = samplers.surface_samples(low, high, settings.num_surface, noise.surface_jitter)
        if settings.num_fine:
            coarse_weights = volume_rendering.compute_weights(volume_rendering.alphas_from_logits(coarse_logits))
            fine = samplers.importance_samples(t_coarse, coarse_weights, settings.num_fine, noise.importance)
            t = torch.cat([t, fine], dim=-1).sort(dim=-1).values
    logits, colors = query_logits_and_colors(field, rays, t)
    return Samples(t, logits, colors), surface


def _coarse_and_fine_samples(field: Field, rays: Rays, settings: RenderSettings, noise: RenderNoise) -> tuple[Samples, Surface]:
    """Sample the whole ray, and by coarse weight; all samples are composited (pi-GAN, NeRF)."""
    t = samplers.jitter(_coarse_samples(rays, settings), noise.coarse_jitter)
    logits, colors = query_logits_and_colors(field, rays, t)
    surface = _surface(field, rays, settings, t, logits.detach())
    if settings.num_fine:
        with torch.no_grad():
            coarse_weights = volume_rendering.compute_weights(_alphas(logits, t, settings, noise.coarse_density))
            fine = samplers.importance_samples(t, coarse_weights, settings.num_fine, noise.importance)
        fine_logits, fine_colors = query_logits_and_colors(field, rays, fine)
        t, order = torch.cat([t, fine], dim=-1).sort(dim=-1)
        logits = torch.cat([logits, fine_logits], dim=-1).gather(-1, order)
        colors = torch.cat([colors, fine_colors], dim=-2).gather(-2, order.unsqueeze(-1).expand(*order.shape, 3))
    return Samples(t, logits, colors), surface


def _coarse_samples(rays: Rays, settings: RenderSettings) -> Tensor:
    """Return evenly spaced samples (B, R, num_coarse) between near and far."""
    batch, num_rays = rays.directions.shape[:2]
    return samplers.coarse_samples(settings.t_near, settings.t_far, settings.num_coarse, batch, num_rays, rays.directions.device)


def composite(t: Tensor, alphas: Tensor, colors: Tensor, surface: Surface, settings: RenderSettings) -> RenderOutput:
    """Composite sorted samples: t, alphas (B, R, S), colors (B, R, S, 3) in [0, 1]."""
    weights = volume_rendering.compute_weights(alphas)
    if settings.last_back:
        weights = volume_rendering.add_remainder_to_last(weights)
    rgb = volume_rendering.composite_colors(weights, colors, settings.white_back)
    # An empty ray's expected distance is 0 / 1e-5. The recorded reference images show such rays at the near end.
    depth = volume_rendering.composite_depth(weights, t).clamp(settings.t_near, settings.t_far)
    depth_over_far = volume_rendering.composite_depth_over(weights, t, settings.t_far).clamp(settings.t_near, settings.t_far)
    return RenderOutput(rgb, depth, depth_over_far, t, alphas, weights, surface)


def image_colors(output: RenderOutput, settings: RenderSettings) -> Tensor:
    """Return the colors (B, R, 3) in [0, 1] that an image shows: those composited, or ``background`` without a surface."""
    if settings.background is None:
        return output.rgb
    return torch.where(output.surface.hit_mask.unsqueeze(-1), output.rgb, settings.background)


def as_images(values: Tensor, size: int) -> Tensor:
    """Arrange values (B, size * size, C) of rays, pixels row-major from the top left, as images (B, C, size, size)."""
    return values.transpose(1, 2).unflatten(2, (size, size))


def query_logits(field: Field, rays: Rays, t: Tensor) -> Tensor:
    """Query occupancy logits (B, R, S) at increasing t (B, R, S), without computing colors."""
    if isinstance(field, RayField):
        return field.occupancy_logits_on_rays(rays.origins, rays.directions, t)
    return field.occupancy_logits(ray_points(rays, t)).view(t.shape)


def query_logits_and_colors(field: Field, rays: Rays, t: Tensor) -> tuple[Tensor, Tensor]:
    """Query logits (B, R, S) and colors (B, R, S, 3) at t (B, R, S), front to back."""
    if isinstance(field, RayField):
        return field.logits_and_colors_on_rays(rays.origins, rays.directions, t)
    directions = rays.directions.unsqueeze(2).expand(*t.shape, 3).flatten(1, 2)
    logits, colors = field.logits_and_colors(ray_points(rays, t), directions)
    return logits.view(t.shape), colors.view(*t.shape, 3)


def _alphas(logits: Tensor, t: Tensor, settings: RenderSettings, gaussian: Tensor | None) -> Tensor:
    if settings.pred_occ:
        return volume_rendering.alphas_from_logits(logits)
    if gaussian is not None:
        logits = logits + settings.density_noise * gaussian
    return volume_rendering.alphas_from_densities(logits, t, settings.clamp_mode)


@torch.no_grad()
def _surface(field: Field, rays: Rays, settings: RenderSettings, t: Tensor, logits: Tensor) -> Surface:
    if not settings.pred_occ:  # a density has no surface level
        far = torch.full_like(t[..., 0], settings.t_far)
        return Surface(far, torch.zeros_like(far, dtype=torch.bool))
    threshold = math.log(settings.tau / (1 - settings.tau))
    return find_surface(
        t,
        logits - threshold,
        lambda t_ray: query_logits(field, rays, t_ray.unsqueeze(-1)).squeeze(-1) - threshold,
        num_steps=settings.num_root_steps,
        method=settings.root_method,
    )
