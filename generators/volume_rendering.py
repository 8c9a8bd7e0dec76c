"""Compositing along rays. Shapes: B batch, R rays, S samples.

Source: docs/method.md, "Rendering"; NeRF, section 4; GOF, section 3.

alpha_i   = sigmoid(logit_i)                        occupancy (GOF)
          = 1 - exp(-delta_i * clamp(density_i))    radiance (pi-GAN, NeRF)
weight_i  = alpha_i * transmittance_i,  transmittance_i = prod_{j<i} (1 - alpha_j + 1e-10)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LAST_DELTA = 1e10


def alphas_from_logits(occupancy_logits: Tensor) -> Tensor:
    """Convert occupancy logits (..., S) to alphas (..., S) in [0, 1]."""
    return torch.sigmoid(occupancy_logits)


def alphas_from_densities(densities: Tensor, t: Tensor, clamp_mode: str = "relu") -> Tensor:
    """Convert densities (noise already added) at sorted t, (B, R, S), to alphas (B, R, S). ``clamp_mode``: relu or softplus."""
    deltas = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], LAST_DELTA)], dim=-1)
    clamped = F.softplus(densities) if clamp_mode == "softplus" else F.relu(densities)
    return 1 - torch.exp(-deltas * clamped)


def compute_transmittance(alphas: Tensor) -> Tensor:
    """Return the transmittance (..., S), the fraction of the ray that reaches each sample. alphas: (..., S), front to back."""
    survival = 1 - alphas + 1e-10
    return _RunningProduct.apply(torch.cat([torch.ones_like(alphas[..., :1]), survival[..., :-1]], dim=-1))


def scan(operation: Callable[..., Tensor], values: Tensor) -> Tensor:
    """Apply torch.cumsum or torch.cumprod along the last dimension of values (..., S)."""
    return scan_by_columns(operation, values) if values.is_cuda else operation(values, dim=-1)


def scan_by_columns(operation: Callable[..., Tensor], values: Tensor) -> Tensor:
    """Compute :func:`scan` along the first dimension of a copy: on a GPU, PyTorch is slow along a short last one."""
    return operation(values.movedim(-1, 0).contiguous(), dim=0).movedim(0, -1).contiguous()


class _RunningProduct(torch.autograd.Function):
    """torch.cumprod of positive factors (..., S). PyTorch's gradient checks for zeros, which synchronizes with a GPU."""

    @staticmethod
    def forward(ctx, factors: Tensor) -> Tensor:  # type: ignore[override]
        products = scan(torch.cumprod, factors)
        ctx.save_for_backward(factors, products)
        return products

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        factors, products = ctx.saved_tensors
        return scan(torch.cumsum, (grad * products).flip(-1)).flip(-1) / factors


def compute_weights(alphas: Tensor) -> Tensor:
    """Return the weights (..., S), which sum to at most 1. alphas: (..., S) in [0, 1], front to back."""
    return alphas * compute_transmittance(alphas)


def add_remainder_to_last(weights: Tensor) -> Tensor:
    """Add the remaining weight, 1 - sum of weights, to the last sample (``last_back``)."""
    rest = 1 - weights.sum(dim=-1, keepdim=True)
    return torch.cat([weights[..., :-1], weights[..., -1:] + rest], dim=-1)


def weighted_sum(weights: Tensor, colors: Tensor) -> Tensor:
    """Sum weights (..., S) times colors (..., S, 3) over samples. On a GPU, this is faster than products of small matrices."""
    return (weights.unsqueeze(-1) * colors).sum(dim=-2)


def composite_colors(weights: Tensor, colors: Tensor, white_back: bool = False) -> Tensor:
    """Composite colors (B, R, S, 3) in [0, 1] with weights (B, R, S) to (B, R, 3). ``white_back``: remaining weight is white."""
    color = weighted_sum(weights, colors) if weights.is_cuda else (weights.unsqueeze(-2) @ colors).squeeze(-2)
    if white_back:
        color = color + 1 - weights.sum(dim=-1, keepdim=True)
    return color


def composite_depth(weights: Tensor, t: Tensor) -> Tensor:
    """Return the expected distance, sum w t / (sum w + 1e-5): (B, R)."""
    return (weights * t).sum(dim=-1) / (weights.sum(dim=-1) + 1e-5)


def composite_depth_over(weights: Tensor, t: Tensor, t_far: float) -> Tensor:
    """Return the expected distance with the remaining weight at ``t_far``, sum w t + (1 - sum w) t_far: (B, R)."""
    return (weights * t).sum(dim=-1) + (1 - weights.sum(dim=-1)) * t_far
