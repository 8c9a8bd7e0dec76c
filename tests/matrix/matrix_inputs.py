"""Inputs of the matrix: photos on a transparent background, and a set with ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.synthetic_heads import generate

NUM_PHOTOS = 10
PHOTO_SIZE = 16  # pixels


def make_photos(folder: Path) -> Path:
    """Write discs of random colors; outside of them, photos are transparent."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[-1 : 1 : PHOTO_SIZE * 1j, -1 : 1 : PHOTO_SIZE * 1j]
    for i in range(NUM_PHOTOS):
        random = np.random.default_rng(i)
        pixels = np.zeros((PHOTO_SIZE, PHOTO_SIZE, 4), np.uint8)
        pixels[..., :3] = (random.uniform(60, 200, 3) + 40 * np.stack([x, y, x * y], axis=-1)).astype(np.uint8)
        pixels[..., 3] = 255 * (x**2 + y**2 < 0.67**2)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def make_heads(folder: Path) -> Path:
    """Write 8 synthetic heads with their geometry."""
    generate(folder, num_images=8, image_size=16, num_workers=1)
    return folder
