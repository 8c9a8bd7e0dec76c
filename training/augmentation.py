"""Adaptive augmentation of all images that D sees, real and generated, so that D cannot memorize a small data set.

Each of four augmentations is applied with probability p: brightness, contrast, saturation, and translation. While p stays
below about 0.8, the augmentations do not leak into the generated images. p follows the sign of the real scores (ADA's r_t):
it rises when the mean sign exceeds ``augment_target``. A relativistic loss uses the sign of the differences between real and
generated scores. Sources: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (p and
its control); Zhao et al., "Differentiable Augmentation", NeurIPS 2020 (color and translation alone are effective, and are
differentiable for G).
"""

from __future__ import annotations

import torch
from torch import Tensor

GENERATED, REAL = 0, 1  # indices into GeneratorInputs.augmentation
NUM_UNIFORMS = 9  # per image: four decide which augmentations apply, five set their strengths
MAX_P = 0.8
IMAGES_TO_FULL = 20_000.0  # real images during which p can rise from 0 to 1
MAX_BRIGHTNESS = 0.4  # in units of [-1, 1]
MAX_SHIFT = 1 / 8  # of the image's side


def augment(images: Tensor, uniforms: Tensor, p: Tensor) -> Tensor:
    """Augment ``images`` (B, 3, H, W) in [-1, 1], each augmentation with probability ``p`` ().

    ``uniforms`` (B, NUM_UNIFORMS) in [0, 1) are the random numbers. Twice differentiable, as R1 and R2 require. Values may
    leave [-1, 1].
    """
    applies = (uniforms[:, :4] < p).to(images.dtype)[:, :, None, None, None]
    strengths = (uniforms[:, 4:] * 2 - 1).to(images.dtype)[:, :, None, None, None]
    images = images + applies[:, 0] * strengths[:, 0] * MAX_BRIGHTNESS
    images = _scale_about(images, images.mean(dim=(1, 2, 3), keepdim=True), applies[:, 1] * strengths[:, 1])
    images = _scale_about(images, images.mean(dim=1, keepdim=True), applies[:, 2] * strengths[:, 2])
    max_shift = MAX_SHIFT * images.shape[-1] * applies[:, 3]
    rows, columns = ((max_shift * strengths[:, i]).round().long() for i in (3, 4))
    return _shift(_shift(images, rows, 2), columns, 3)


def _scale_about(images: Tensor, center: Tensor, exponent: Tensor) -> Tensor:
    """Scale differences from ``center`` by 2 to the ``exponent``."""
    return center + (images - center) * torch.exp2(exponent)


def _shift(images: Tensor, offsets: Tensor, axis: int) -> Tensor:
    """Shift by ``offsets`` (B, 1, 1, 1) pixels along ``axis``, and repeat the edge."""
    size = images.shape[axis]
    shape = [1, 1, 1, 1]
    shape[axis] = size
    indices = (torch.arange(size, device=images.device).view(shape) - offsets).clamp(0, size - 1)
    return images.gather(axis, indices.expand_as(images))


def adapted(p: Tensor, mean_sign: Tensor, target: float, num_images: int) -> Tensor:
    """Return ``p`` () after a step on ``num_images`` real images.

    ``mean_sign`` () in [-1, 1]: mean sign of their scores, or of their score differences with a relativistic loss. Only the
    sign of its difference from ``target`` counts, so p settles where half of the steps exceed the target. With batches of 4
    or more, the mean is then near the target. A NaN leaves p unchanged.
    """
    return (p + torch.sign(mean_sign - target) * (num_images / IMAGES_TO_FULL)).clamp(0.0, MAX_P)
