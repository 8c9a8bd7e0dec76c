"""Augmentation of everything that D sees, real and generated alike, so that it cannot learn a small set by heart.

An image is changed with probability p in each of four ways: brightness, contrast, saturation, a shift. While p stays below
about 0.8, G can still tell which images it has to make ("non-leaking"). p follows how sure D is of the real images:
where more of them score above 0 (with a relativistic loss: above a generated one) than ``augment_target`` allows, it
rises. Sources: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (p and its
control); Zhao et al., "Differentiable Augmentation", NeurIPS 2020 (colors and shifts alone go a long way, and reach G
through a gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor

GENERATED, REAL = 0, 1  # places in a step's numbers
NUM_UNIFORMS = 9  # per image: four for whether, five for how
MAX_P = 0.8
IMAGES_TO_FULL = 20_000.0  # in which p could rise from 0 to 1
MAX_BRIGHTNESS = 0.4  # in units of [-1, 1]
MAX_SHIFT = 1 / 8  # of the image's side


def augment(images: Tensor, uniforms: Tensor, p: Tensor) -> Tensor:
    """``images`` (B, 3, H, W) in [-1, 1], changed as ``uniforms`` (B, NUM_UNIFORMS) in [0, 1) say, with probability ``p`` ().

    Twice differentiable, for R1 and R2 look through it. Values may leave [-1, 1].
    """
    does = (uniforms[:, :4] < p).to(images.dtype)[:, :, None, None, None]
    how = (uniforms[:, 4:] * 2 - 1).to(images.dtype)[:, :, None, None, None]
    images = images + does[:, 0] * how[:, 0] * MAX_BRIGHTNESS
    images = _scaled_about(images, images.mean(dim=(1, 2, 3), keepdim=True), does[:, 1] * how[:, 1])
    images = _scaled_about(images, images.mean(dim=1, keepdim=True), does[:, 2] * how[:, 2])
    reach = MAX_SHIFT * images.shape[-1] * does[:, 3]
    rows, columns = ((reach * how[:, i]).round().long() for i in (3, 4))
    return _shifted(_shifted(images, rows, 2), columns, 3)


def _scaled_about(images: Tensor, middle: Tensor, exponent: Tensor) -> Tensor:
    """Differences from ``middle`` times 2 to the ``exponent``."""
    return middle + (images - middle) * torch.exp2(exponent)


def _shifted(images: Tensor, by: Tensor, axis: int) -> Tensor:
    """Shifted by (B, 1, 1, 1) pixels along ``axis``; what comes in repeats the edge."""
    size = images.shape[axis]
    shape = [1, 1, 1, 1]
    shape[axis] = size
    places = (torch.arange(size, device=images.device).view(shape) - by).clamp(0, size - 1)
    return images.gather(axis, places.expand_as(images))


def adapted(p: Tensor, sureness: Tensor, target: float, num_images: int) -> Tensor:
    """``p`` () after a step on ``num_images`` real images. ``sureness`` (): the mean sign of their scores (or leads), in [-1, 1].

    By the sign alone, so it settles where half of the steps are surer: near the target with batches of 4 or more. A NaN
    leaves p as it is.
    """
    return (p + torch.sign(sureness - target) * (num_images / IMAGES_TO_FULL)).clamp(0.0, MAX_P)
