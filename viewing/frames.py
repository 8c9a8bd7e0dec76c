"""One frame: a field seen by the browser's camera, rendered in pieces so that it can be canceled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fields.interface import Field
from generators.cameras import Rays
from generators.renderer import RenderSettings, image_colors, render
from generators.views import ViewSettings, surface_appearance
from settings.curriculum import Curriculum
from viewing.camera import Block, BrowserCamera, block_rays, visible_block, window_half_side
from viewing.pool import RenderPool
from visualization.images import depth_image

QUANTITIES = ("image", "normals", "depth")
BACKGROUND = 255  # gray level outside the frame
NO_SURFACE_DEPTH = 100.0  # world units, behind all objects of the scene


@dataclass(frozen=True)
class FrameSettings:
    """``quantity``: one of QUANTITIES. ``surface``: render one color per ray, at the root, instead of the volume.

    ``with_depth``: also return the depth of the pixels, for occlusion with the scene's objects.
    """

    quantity: str = "image"
    surface: bool = False
    image_size: int = 256
    with_depth: bool = False


@dataclass(frozen=True)
class Frame:
    """``pixels`` (H, W, 3) uint8; ``depth`` (H, W) along the line of sight, world units, or None; ``block``: the visible part."""

    pixels: np.ndarray
    depth: np.ndarray | None
    block: Block
    image_size: int

    def cropped(self) -> np.ndarray:
        """Return the frame (rows, columns, 3), uint8, without the background."""
        block = self.block
        return self.pixels[block.top : block.top + block.rows, block.left : block.left + block.columns]


class FrameJob:
    """A frame in progress: call :meth:`advance` until it returns the frame."""

    def __init__(self, field: Field, curriculum: Curriculum, camera: BrowserCamera, settings: FrameSettings) -> None:
        self._field, self._curriculum, self._settings = field, curriculum, settings
        self._block = visible_block(camera, window_half_side(curriculum), settings.image_size)
        self._rays, self._cosines = block_rays(camera, self._block)
        self._distance = math.hypot(*camera.position) - 1
        self._render_settings = _render_settings(curriculum, settings)
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._num_done = 0
        self.num_rays = self._rays.directions.shape[1]

    def advance(self, num_rays: int, device: torch.device | str, pool: RenderPool | None = None) -> Frame | None:
        """Render the next ``num_rays`` rays on the field's device, on a CPU in the threads of ``pool``.

        Return the frame when all are done, else None.
        """

        def render_part(part: slice) -> tuple[Tensor, Tensor]:
            rays = Rays(self._rays.origins[:, part].to(device), self._rays.directions[:, part].to(device))
            return _pixels(self._field, rays, self._render_settings, self._settings, self._curriculum)

        end = min(self._num_done + num_rays, self.num_rays)
        if end > self._num_done:
            part = slice(self._num_done, end)
            self._parts += [render_part(part)] if pool is None else pool.map(render_part, part)
            self._num_done = end
        return self._assemble() if end == self.num_rays else None

    def _assemble(self) -> Frame:
        block = self._block
        pixels = np.full((block.height, block.width, 3), BACKGROUND, dtype=np.uint8)
        depth = np.full((block.height, block.width), NO_SURFACE_DEPTH, dtype=np.float32) if self._settings.with_depth else None
        inside = (slice(block.top, block.top + block.rows), slice(block.left, block.left + block.columns))
        if self._parts:
            colors, t = (torch.cat(column) for column in zip(*self._parts, strict=True))
            pixels[inside] = (colors.clamp(0, 1) * 255).round().byte().view(block.rows, block.columns, 3).numpy()
            if depth is not None:
                along_sight = (t + self._distance) * self._cosines
                along_sight = torch.where(torch.isfinite(along_sight), along_sight, NO_SURFACE_DEPTH)
                depth[inside] = along_sight.view(block.rows, block.columns).numpy()
        return Frame(pixels, depth, block, self._settings.image_size)


def _render_settings(curriculum: Curriculum, settings: FrameSettings) -> RenderSettings:
    surface_only = curriculum.pred_occ and (settings.surface or settings.quantity == "normals")
    return ViewSettings(ray_step_multiplier=1, surface_only=surface_only).render_settings(curriculum)


@torch.no_grad()
def _pixels(
    field: Field, rays: Rays, render_settings: RenderSettings, settings: FrameSettings, curriculum: Curriculum
) -> tuple[Tensor, Tensor]:
    """Render colors (R, 3) in [0, 1] and distances t (R,), infinite without a hit, both on the CPU."""
    output = render(field, rays, render_settings)
    hit = output.surface.hit_mask
    if curriculum.pred_occ:
        t = torch.where(hit, output.surface.t, math.inf)
    else:
        t = torch.where(output.weights.sum(dim=-1) > 0.5, output.depth, math.inf)
    if settings.quantity == "normals":
        normals, _ = surface_appearance(field, rays, output.surface, output.rgb)
        colors = torch.where(hit.unsqueeze(-1), (normals + 1) / 2, 1.0)
    elif settings.quantity == "depth":
        depth = t if settings.surface and curriculum.pred_occ else output.depth_over_far
        shown = depth_image(depth.nan_to_num(posinf=curriculum.ray_end).cpu(), curriculum.ray_start, curriculum.ray_end)
        colors = (shown.permute(1, 2, 0) + 1) / 2
    else:
        colors = image_colors(output, render_settings)
    return colors[0].float().cpu(), t[0].float().cpu()
