"""Sliced Wasserstein distance of the patches of a Laplacian pyramid: a distance of image sets that needs no network.

It is not FID and does not compare with it: it sees textures and colors up to 7 x 7 pixels at each scale, not objects.
Source: Karras et al., "Progressive Growing of GANs", section 5. Unlike there, patches are normalized with the REAL set's
mean and deviation alone: normalizing each set by its own would hide a wrong overall color.
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
MAX_PATCHES = 1 << 16  # of a level and set: bounds the time for sorting
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """(N, 3, H, W) float -> levels (N, 3, h, w), each half of the one before, fine to coarse, down to 16 px or so.

    Each level but the last is the image minus what its halved version says of it.
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
    """Random patches, (N * num_per_image, 3, 49)."""
    num, channels, height, width = images.shape
    rows = torch.randint(height - PATCH_SIZE + 1, (num, num_per_image), generator=generator)
    columns = torch.randint(width - PATCH_SIZE + 1, (num, num_per_image), generator=generator)
    offsets = torch.arange(PATCH_SIZE)
    index = ((rows[..., None, None] + offsets[:, None]) * width + columns[..., None, None] + offsets).flatten(1)
    index = index.unsqueeze(1).expand(-1, channels, -1)
    patches = images.flatten(2).gather(2, index).unflatten(2, (num_per_image, PATCH_SIZE**2))
    return patches.transpose(1, 2).flatten(0, 1)


def _descriptors(images: Tensor, seed: int) -> list[Tensor]:
    """Patches of every level of uint8 images, each (P, 3, 49). Walked in blocks: float images are four times the size."""
    generator = torch.Generator().manual_seed(seed)
    num_per_image = max(1, min(MAX_PATCHES_PER_IMAGE, MAX_PATCHES // len(images)))
    blocks = []
    for block in images.split(256):
        levels = laplacian_pyramid(block.float() / 127.5 - 1)
        blocks.append([_patches(level, num_per_image, generator) for level in levels])
    return [torch.cat(level) for level in zip(*blocks, strict=True)]


def sliced_distance(real: Tensor, fake: Tensor, seed: int) -> float:
    """Mean 1-D Wasserstein-1 distance of two equally large point sets (P, D) over random unit directions, times 1e3."""
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
    """real, fake: (N, 3, H, W) uint8, at least 8 px; of the larger set the first images are used.

    Returns ``swd`` (the mean over levels), ``swd_{h}`` per level, and ``swd_real_halves``: the same between two halves of
    the real images, which is about what a perfect generator of so few images would score. Raises UserError for too small
    images, or fewer than two real ones.
    """
    if min(real.shape[-2:]) < 8 or len(real) < 2:
        raise UserError(f"swd needs images of at least 8 px and at least 2 real ones, not {len(real)} of {real.shape[-1]} px")
    distances = _distances(real, fake, seed)
    sizes = [real.shape[-1]]
    while len(sizes) < len(distances):
        sizes.append(-(-sizes[-1] // 2))
    half = len(real) // 2
    floor = _distances(real[:half], real[half:], seed)
    results = {"swd": sum(distances) / len(distances), "swd_real_halves": sum(floor) / len(floor)}
    return results | {f"swd_{size}": distance for size, distance in zip(sizes, distances, strict=True)}
