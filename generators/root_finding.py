"""Intersection of rays with the surface. Source: docs/method.md, "Finding the surface"; GOF, section 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surface(NamedTuple):
    """Surface on rays. ``t``: (B, R), distance of the root, or the far end without one. ``hit_mask``: (B, R), True for a hit."""

    t: Tensor
    hit_mask: Tensor


def find_surface(
    t_coarse: Tensor,
    levels: Tensor,
    evaluate: Callable[[Tensor], Tensor],
    *,
    num_steps: int,
    method: str = "secant",
) -> Surface:
    """Find the first crossing from free (level < 0) to solid, and refine it inside its bracket.

    Args:
        t_coarse: (B, R, S), increasing along S.
        levels: (B, R, S), occupancy logits minus logit(tau) at t_coarse.
        evaluate: t (B, R) -> level (B, R). Rays without a bracket are evaluated too, at an arbitrary t on the ray, because
            static shapes need no synchronization with a GPU.
        num_steps: number of refinement steps, with one evaluation each.
        method: ``secant`` (safeguarded: it stays inside the bracket) or ``bisection``.

    A ray has no surface if its first sample is solid or none of its samples is.
    """
    solid = levels >= 0
    crosses = ~solid[..., :-1] & solid[..., 1:]
    hit_mask = crosses.any(dim=-1) & ~solid[..., 0]
    first = crosses.to(torch.uint8).argmax(dim=-1, keepdim=True)
    t_low, t_high = t_coarse.gather(-1, first).squeeze(-1), t_coarse.gather(-1, first + 1).squeeze(-1)
    level_low, level_high = levels.gather(-1, first).squeeze(-1), levels.gather(-1, first + 1).squeeze(-1)

    for _ in range(num_steps):
        t = _guess(t_low, t_high, level_low, level_high, hit_mask, method)
        level = evaluate(t)
        free = level < 0
        t_low, level_low = torch.where(free, t, t_low), torch.where(free, level, level_low)
        t_high, level_high = torch.where(free, t_high, t), torch.where(free, level_high, level)
    t = _guess(t_low, t_high, level_low, level_high, hit_mask, method)
    return Surface(torch.where(hit_mask, t, t_coarse[..., -1]), hit_mask)


def _guess(t_low: Tensor, t_high: Tensor, level_low: Tensor, level_high: Tensor, hit_mask: Tensor, method: str) -> Tensor:
    if method == "bisection":
        return (t_low + t_high) / 2
    slope = torch.where(hit_mask, level_high - level_low, 1.0)
    fraction = torch.where(hit_mask, -level_low / slope.clamp_min(1e-12), 0.5)
    return t_low + fraction.clamp(0, 1) * (t_high - t_low)
