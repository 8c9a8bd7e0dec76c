"""Losses between rendered images and photos. Images (B, 3, H, W) in [0, 1]; every loss is (B,), unweighted.

The pyramid compares averages over blocks of increasing size. Far from the solution, only these have a useful gradient: single
pixels of a nose that does not overlap the photo's nose do not indicate where to move it. The second term compares the position
and strength of edges, independently of the light: with features of a network if available, otherwise with image gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_LEVEL = 4  # pixels
# Images (B, 3, H, W) in [0, 1] -> feature maps (B, C, h, w), for any network.
Features = Callable[[Tensor], list[Tensor]]


def image_pyramid(images: Tensor) -> list[Tensor]:
    """Return the images and their repeated halvings by averaging, as long as sides are even and at least SMALLEST_LEVEL."""
    levels = [images]
    while levels[-1].shape[-1] % 2 == 0 and levels[-1].shape[-1] // 2 >= SMALLEST_LEVEL:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def pyramid_loss(rendered: Tensor, photo: Tensor) -> Tensor:
    """Squared error, averaged over the levels of an image pyramid."""
    pairs = zip(image_pyramid(rendered), image_pyramid(photo), strict=True)
    return torch.stack([(a - b).square().mean(dim=(1, 2, 3)) for a, b in pairs]).mean(dim=0)


def gradient_loss(rendered: Tensor, photo: Tensor) -> Tensor:
    """Absolute error of the differences between neighboring pixels, averaged over the levels of an image pyramid."""
    levels = []
    for a, b in zip(image_pyramid(rendered), image_pyramid(photo), strict=True):
        error = a - b
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        levels.append(across.abs().mean(dim=(1, 2, 3)) + down.abs().mean(dim=(1, 2, 3)))
    return torch.stack(levels).mean(dim=0)


def feature_loss(rendered: Tensor, photo: Tensor, features: Features) -> Tensor:
    """Squared distance of unit-length feature vectors, averaged over positions, summed over layers.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features", 2018, equation 1, with equal channel weights.
    """
    total = torch.zeros(len(rendered), device=rendered.device)
    for a, b in zip(features(rendered), features(photo), strict=True):
        distance = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1)
        total = total + distance.mean(dim=(1, 2))
    return total


def image_psnr_db(rendered: Tensor, photo: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,), decibels."""
    return -10 * torch.log10((rendered - photo).square().mean(dim=(1, 2, 3)).clamp_min(1e-10))
