"""Sliced Wasserstein distance of Laplacian pyramid patches: a distance between image sets that needs no network.

It is not comparable with FID. It measures texture and color up to 7 x 7 pixels at each scale, not objects.
Source: Karras et al., "Progressive Growing of GANs", section 5. Unlike there, both sets are normalized with the REAL set's
mean and deviation, because normalizing each set by its own would hide a wrong overall color.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError

PATCH_SIZE = 7
MIN_SIZE = 16
NUM_DIRECTIONS = 512
MAX_PATCHES_PER_IMAGE = 128
MAX_PATCHES = 1 << 16  # per level and set; bounds the sorting time
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Return the Laplacian pyramid of float images (N, 3, H, W): levels (N, 3, h, w), fine to coarse, down to about 16 px.

    Each level but the last is the image minus its half-size version, scaled up again.
    """
    levels = []
    while min(images.shape[-2:]) >= 2 * MIN_SIZE:
        smaller = _blur(images)[..., ::2, ::2]
        larger = F.interpolate(smaller, size=images.shape[-2:], mode="bilinear", align_corners=False)
        levels.append(images - larger)
        images = smaller
    return [*levels, images]


def _blur(images: Tensor) -> Tensor:
    kernel = torch.tensor(_BLUR)
    weight = torch.outer(kernel, kernel).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), weight, groups=images.shape[1])


def _patches(images: Tensor, num_per_image: int, generator: torch.Generator) -> Tensor:
    """Sample random patches (N * num_per_image, 3, 49)."""
    num, channels, height, width = images.shape
    rows = torch.randint(height - PATCH_SIZE + 1, (num, num_per_image), generator=generator)
    columns = torch.randint(width - PATCH_SIZE + 1, (num, num_per_image), generator=generator)
    offsets = torch.arange(PATCH_SIZE)
    index = ((rows[..., None, None] + offsets[:, None]) * width + columns[..., None, None] + offsets).flatten(1)
    index = index.unsqueeze(1).expand(-1, channels, -1)
    patches = images.flatten(2).gather(2, index).unflatten(2, (num_per_image, PATCH_SIZE**2))
    return patches.transpose(1, 2).flatten(0, 1)


def _descriptors(images: Tensor, seed: int) -> list[Tensor]:
    """Sample patches (P, 3, 49) of every level of uint8 images, in blocks: float images take four times the memory."""
    generator = torch.Generator().manual_seed(seed)
    num_per_image = max(1, min(MAX_PATCHES_PER_IMAGE, MAX_PATCHES // len(images)))
    blocks = []
    for block in images.split(256):
        levels = laplacian_pyramid(block.float() / 127.5 - 1)
        blocks.append([_patches(level, num_per_image, generator) for level in levels])
    return [torch.cat(level) for level in zip(*blocks, strict=True)]


def sliced_distance(real: Tensor, fake: Tensor, seed: int) -> float:
    """Return the mean 1-D Wasserstein-1 distance of two point sets (P, D) over random unit directions, times 1e3."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(real.shape[1], NUM_DIRECTIONS, generator=generator), dim=0)
    total = 0.0
    for some in directions.split(64, dim=1):
        total += float(((real @ some).sort(dim=0).values - (fake @ some).sort(dim=0).values).abs().mean(dim=0).sum())
    return 1e3 * total / NUM_DIRECTIONS


def _distances(real: Tensor, fake: Tensor, seed: int) -> list[float]:
    count = min(len(real), len(fake))
    distances = []
    pairs = zip(_descriptors(real[:count], seed), _descriptors(fake[:count], seed + 1), strict=True)
    for real_patches, fake_patches in pairs:
        mean, std = real_patches.mean(dim=(0, 2), keepdim=True), real_patches.std(dim=(0, 2), keepdim=True) + 1e-8
        normalized = [((patches - mean) / std).flatten(1) for patches in (real_patches, fake_patches)]
        distances.append(sliced_distance(*normalized, seed))
    return distances


def sliced_wasserstein(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """Compare ``real`` and ``fake``: (N, 3, H, W) uint8, at least 8 px; extra images of the larger set are unused.

    Returns ``swd`` (the mean over levels), ``swd_{h}`` per level, and ``swd_real_halves``: the distance between two halves
    of the real images, about the score of a perfect generator with so few images. Raises UserError for images that are too
    small, or for fewer than two real images.
    """
    if min(real.shape[-2:]) < 8 or len(real) < 2:
        raise UserError(f"swd needs at least 2 real images of at least 8 px, not {len(real)} of {real.shape[-1]} px")
    distances = _distances(real, fake, seed)
    sizes = [real.shape[-1]]
    while len(sizes) < len(distances):
        sizes.append(-(-sizes[-1] // 2))
    half = len(real) // 2
    floor = _distances(real[:half], real[half:], seed)
    results = {"swd": sum(distances) / len(distances), "swd_real_halves": sum(floor) / len(floor)}
    return results | {f"swd_{size}": distance for size, distance in zip(sizes, distances, strict=True)}
