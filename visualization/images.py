"""Convert views to images. An image is a float tensor (3, H, W) in [-1, 1]; files are PNG.

The coloring is the same for every view and frame, so that images are comparable and videos do not flicker:

- image, surface image: unchanged; a surface image is white where the ray has no surface.
- depth, surface depth: near is bright yellow, far is dark violet, linear over the curriculum's [ray_start, ray_end];
  a surface depth is white where the ray has no surface. The remaining weight of a ray counts as far, because the expected
  distance of a nearly empty ray is noise.
- normals: (n + 1) / 2 as red, green, blue, in world axes (a face toward the frontal camera is blue); white without surface.
- mask: white where the ray enters the surface, else black.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.files import write_atomically
from generators.views import View

QUANTITIES = ("image", "depth", "surface_depth", "mask", "normals", "surface_image")
WHITE = 1.0
# Colors from far to near, in [0, 1], with evenly increasing lightness, so that depth is readable in grayscale.
DEPTH_COLORS = (
    *((0.05, 0.03, 0.16), (0.22, 0.08, 0.42), (0.45, 0.13, 0.51), (0.68, 0.21, 0.47)),
    *((0.88, 0.34, 0.37), (0.97, 0.55, 0.32), (0.99, 0.77, 0.44), (0.99, 0.96, 0.70)),
)


def view_image(view: View, quantity: str, t_near: float, t_far: float) -> Tensor:
    """Return one of :data:`QUANTITIES` of a view as an image (3, H, W) in [-1, 1]. ``t_near``, ``t_far``: the depth range."""
    if quantity == "image":
        return view.image.clamp(-1, 1)
    if quantity == "depth":
        return depth_image(view.depth_over_far, t_near, t_far)
    if quantity == "surface_depth":
        return _on_white(depth_image(view.surface_depth, t_near, t_far), view.hit_mask)
    if quantity == "mask":
        return (view.hit_mask.float() * 2 - 1).expand(3, -1, -1)
    if quantity == "normals":
        return _on_white(view.normals, view.hit_mask)
    if quantity == "surface_image":
        return _on_white(view.surface_image, view.hit_mask)
    raise ValueError(f"unknown quantity {quantity!r}; known: {', '.join(QUANTITIES)}")


def depth_image(depth: Tensor, t_near: float, t_far: float) -> Tensor:
    """Map depth (H, W) to an image (3, H, W) in [-1, 1]: t_near is bright, t_far is dark, values beyond are clamped."""
    colors = torch.tensor(DEPTH_COLORS, dtype=torch.float32)
    nearness = ((t_far - depth.float()) / (t_far - t_near)).nan_to_num(0).clamp(0, 1) * (len(colors) - 1)
    below = nearness.floor().long().clamp(max=len(colors) - 2)
    fraction = (nearness - below).unsqueeze(-1)
    rgb = colors[below] * (1 - fraction) + colors[below + 1] * fraction
    return rgb.permute(2, 0, 1) * 2 - 1


def _on_white(image: Tensor, hit_mask: Tensor) -> Tensor:
    return torch.where(hit_mask, image.clamp(-1, 1), WHITE)


def image_grid(rows: Sequence[Sequence[Tensor]], padding: int = 2) -> Tensor:
    """Arrange rows of equally sized images (3, H, W) on white. Rows may differ in length."""
    height, width = rows[0][0].shape[1:]
    num_columns = max(len(row) for row in rows)
    canvas_size = (3, len(rows) * (height + padding) - padding, num_columns * (width + padding) - padding)
    canvas = torch.full(canvas_size, WHITE)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + padding), j * (width + padding)
            canvas[:, top : top + height, left : left + width] = image
    return canvas


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert an image (3, H, W) in [-1, 1], clamped, to (H, W, 3) uint8, rounded to nearest."""
    scaled = (image.detach().cpu().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Convert pixels (H, W, 3) uint8 to an image (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode pixels (H, W, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def save_image(path: str | Path, image: Tensor) -> None:
    """Write an image (3, H, W) in [-1, 1] atomically as PNG. Raises UserError if it cannot be written."""
    write_atomically(path, png_bytes(to_uint8(image)), sync=False)
