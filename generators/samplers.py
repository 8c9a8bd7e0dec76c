"""Samplers along rays. t: (B, R, S), distance along the unit ray.

Source: docs/method.md, "Surface-aware sampling and the shrinking interval"; GOF, section 3; NeRF, section 5.2.

Every sampler is deterministic given its random numbers, which :func:`generators.renderer.draw_noise` draws for a whole batch.
A batch that is split, or sharded over processes, therefore uses the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from generators.volume_rendering import scan


class RenderNoise(NamedTuple):
    """Random numbers for one rendered batch. Parts that the settings do not need are None.

    ``surface_jitter`` (B, R, S_surface), ``coarse_jitter`` (B, R, S_coarse) and ``importance`` (B, R, S_fine) are
    uniform in [0, 1); ``coarse_density`` and ``density`` (B, R, S) are normal, for radiance fields.
    """

    surface_jitter: Tensor | None = None
    coarse_jitter: Tensor | None = None
    importance: Tensor | None = None
    coarse_density: Tensor | None = None
    density: Tensor | None = None

    def part(self, images: slice) -> RenderNoise:
        """Return the random numbers of some images of the batch."""
        return RenderNoise(*(None if numbers is None else numbers[images] for numbers in self))

    @classmethod
    def cat(cls, parts: Sequence[RenderNoise]) -> RenderNoise:
        """Join the random numbers of several batches."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))


def coarse_samples(t_near: float, t_far: float, num: int, batch: int, rays: int, device: torch.device) -> Tensor:
    """Return evenly spaced samples (B, R, num), endpoints included, the same for all rays."""
    return torch.linspace(t_near, t_far, num, device=device).expand(batch, rays, num)


def jitter(t: Tensor, uniform: Tensor | None) -> Tensor:
    """Jitter evenly spaced samples by up to half a spacing. ``uniform``: in [0, 1), shaped like t; None leaves t unchanged."""
    if uniform is None:
        return t
    return t + (uniform - 0.5) * (t[..., 1:2] - t[..., 0:1])


def surface_interval(
    t_surface: Tensor, hit_mask: Tensor, half_width: float | Tensor, t_near: float, t_far: float
) -> tuple[Tensor, Tensor]:
    """Return the ends (B, R) of [t - Delta, t + Delta], shifted into [near, far]; [near, far] itself without a surface."""
    low = (t_surface - half_width).clamp(max=t_far - 2 * half_width).clamp(min=t_near)
    high = (low + 2 * half_width).clamp(max=t_far)
    return torch.where(hit_mask, low, t_near), torch.where(hit_mask, high, t_far)


def surface_samples(t_low: Tensor, t_high: Tensor, num: int, uniform: Tensor | None = None) -> Tensor:
    """Return jittered samples (B, R, num), evenly spaced from t_low to t_high (B, R) inclusive. A single sample is at t_high."""
    fractions = torch.linspace(0, 1, num, device=t_low.device) if num > 1 else torch.ones(num, device=t_low.device)
    return jitter(t_low.unsqueeze(-1) + (t_high - t_low).unsqueeze(-1) * fractions, uniform)


def importance_samples(t: Tensor, weights: Tensor, num: int, uniform: Tensor | None = None) -> Tensor:
    """Sample the piecewise-constant density that ``weights`` define between midpoints, by inverse CDF (NeRF, section 5.2).

    t, weights: (B, R, S). uniform: (B, R, num) in [0, 1), or None for evenly spaced quantiles. Returns (B, R, num).
    """
    bins = (t[..., 1:] + t[..., :-1]) / 2
    pdf = weights[..., 1:-1] + 1e-5
    cdf = scan(torch.cumsum, pdf / pdf.sum(dim=-1, keepdim=True))
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], dim=-1)
    if uniform is None:
        quantiles = (torch.arange(num, device=t.device, dtype=t.dtype) + 0.5) / num
        uniform = quantiles.expand(*t.shape[:-1], num)
    above = torch.searchsorted(cdf, uniform.contiguous(), right=True).clamp(1, cdf.shape[-1] - 1)
    below = above - 1
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    bin_below, bin_above = bins.gather(-1, below), bins.gather(-1, above)
    fraction = ((uniform - cdf_below) / (cdf_above - cdf_below).clamp_min(1e-8)).clamp(0, 1)
    return bin_below + fraction * (bin_above - bin_below)
