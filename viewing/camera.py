"""The browser's camera, and the pixels of its image that show the field.

In training, the cameras see a square frame through the origin from distance 1. The browser's camera may be anywhere, so the frame
is rendered as a square of that size through the origin, perpendicular to the line of sight. Everything else is background. In
the browser's image, the frame is a rectangle of whole pixels: :class:`Block`. At distance 1, looking at the origin, it equals
the image of the other scripts. Angles are radians; world axes as in generators/cameras.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.cameras import CameraPoses, Rays, camera_to_world
from settings.curriculum import Curriculum

MIN_HEIGHT, MAX_HEIGHT = 16, 1200  # pixels of a frame, for any window size that the browser reports
MIN_ASPECT, MAX_ASPECT = 0.1, 10.0
VIEW_MARGIN = 1.25  # ratio of the browser's field of view to the curriculum's
MIN_DISTANCE = 0.05


@dataclass(frozen=True)
class BrowserCamera:
    """``position`` (3,), world; ``wxyz``: camera-to-world unit quaternion of a camera that looks along +z with +y down
    (OpenCV's axes, which viser uses); ``fov``: vertical; ``aspect``: width over height; ``height``: of the window in pixels."""

    position: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    fov: float
    aspect: float
    height: int

    def is_possible(self) -> bool:
        """Return whether the camera can be rendered: a browser may send any values."""
        numbers = (*self.position, *self.wxyz, self.fov, self.aspect)
        return (
            all(math.isfinite(number) and abs(number) < 1e6 for number in numbers)
            and math.hypot(*self.position) >= MIN_DISTANCE
            and math.hypot(*self.wxyz) > 1e-3
            and 1e-3 < self.fov < math.pi - 1e-3
            and MIN_ASPECT <= self.aspect <= MAX_ASPECT
        )

    def rotation(self) -> Tensor:
        """Camera-to-world rotation (3, 3)."""
        w, x, y, z = (float(number) / math.hypot(*self.wxyz) for number in self.wxyz)
        return torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )

    def pose(self) -> tuple[float, float]:
        """Yaw and pitch of the position, in the convention of the other scripts."""
        x, y, z = self.position
        return math.atan2(z, x), math.acos(max(-1.0, min(1.0, y / math.hypot(x, y, z))))


class Block(NamedTuple):
    """Rows ``top`` to ``top + rows`` and columns ``left`` to ``left + columns`` of an image of ``height`` x ``width`` pixels."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int


def window_half_side(curriculum: Curriculum) -> float:
    """Half side of the training frame at the origin, world units: tan(fov / 2)."""
    return math.tan(math.radians(curriculum.fov) / 2)


def fitting_distance(half_side: float, fov: float, aspect: float) -> float:
    """Distance at which a square of half side ``half_side`` fits into the browser's image, at least 1."""
    return max(1.0, half_side * VIEW_MARGIN / (math.tan(fov / 2) * min(aspect, 1.0)))


def visible_block(camera: BrowserCamera, half_side: float, image_size: int) -> Block:
    """Pixels of the visible frame: about ``image_size`` squared, fewer if the frame is small in the window."""
    spans = _visible_spans(camera, half_side)
    most = max(MIN_HEIGHT, min(camera.height, MAX_HEIGHT))
    if spans is None:
        return Block(MIN_HEIGHT, max(1, round(MIN_HEIGHT * camera.aspect)), 0, 0, 0, 0)
    (left, right), (top, bottom) = spans
    height = round(image_size / math.sqrt(camera.aspect * (right - left) * (bottom - top)))
    height = max(MIN_HEIGHT, min(height, most))
    width = max(1, round(height * camera.aspect))
    first_row, first_column = round(top * height), round(left * width)
    return Block(height, width, first_row, first_column, round(bottom * height) - first_row, round(right * width) - first_column)


def _visible_spans(camera: BrowserCamera, half_side: float) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Horizontal and vertical spans of the frame, in [0, 1] of the browser's image, or None if it is out of view."""
    x, y, z = (-camera.rotation().t() @ torch.tensor(camera.position)).tolist()  # the origin in the camera's axes
    if z <= MIN_DISTANCE / 2:
        return None
    slope = math.tan(camera.fov / 2)
    spans = []
    for middle, extent in ((x, slope * camera.aspect), (y, slope)):
        ends = (((middle + sign * half_side) / (z * extent) + 1) / 2 for sign in (-1, 1))
        low, high = (max(0.0, min(1.0, end)) for end in ends)
        if high - low < 1e-3:
            return None
        spans.append((low, high))
    return spans[0], spans[1]


def block_rays(camera: BrowserCamera, block: Block) -> tuple[Rays, Tensor]:
    """Rays (1, R, 3) through a block's pixels, row-major, and the cosine (R,) of each to the line of sight.

    They start at the distance of the training cameras, so :func:`generators.renderer.render` samples them at the distances
    used in training. A distance t along them is ``t + |position| - 1`` from the camera.
    """
    slope = math.tan(camera.fov / 2)
    rows = (torch.arange(block.rows) + block.top + 0.5) / block.height * 2 - 1
    columns = (torch.arange(block.columns) + block.left + 0.5) / block.width * 2 - 1
    y, x = torch.meshgrid(rows * slope, columns * slope * camera.aspect, indexing="ij")
    local = F.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3), dim=-1)
    directions = local @ camera.rotation().t()
    origins = torch.tensor(camera.position) + (math.hypot(*camera.position) - 1) * directions
    return Rays(origins.unsqueeze(0), directions.unsqueeze(0)), local[:, 2]


def camera_at(yaw: float, pitch: float, distance: float, fov: float, aspect: float = 1.0, height: int = 256) -> BrowserCamera:
    """Return the camera that looks at the origin from a pose in the convention of the other scripts."""
    cam2world = camera_to_world(CameraPoses(torch.tensor([pitch]), torch.tensor([yaw])))[0]
    axes = cam2world[:3, :3] * torch.tensor([1.0, -1.0, -1.0])  # axes right, up, back -> right, down, forward
    x, y, z = (cam2world[:3, 3] * distance).tolist()
    return BrowserCamera((x, y, z), quaternion(axes), fov, aspect, height)


def quaternion(rotation: Tensor) -> tuple[float, float, float, float]:
    """Convert a rotation (3, 3) to a unit quaternion (w, x, y, z), an eigenvector of Bar-Itzhack's symmetric matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.double().tolist()
    matrix = torch.tensor(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ],
        dtype=torch.float64,
    )
    w, x, y, z = torch.linalg.eigh(matrix).eigenvectors[:, -1].tolist()
    return w, x, y, z
