"""An image of a curriculum's camera prior: the range of poses in training.

    python dataset.py --check photos/ --curriculum CelebA --set h_stddev=0.4

It shows one built-in head at quantiles of the prior's yaw (columns) and pitch (rows), labeled in degrees. The prior fits if
your own images show about the same range of poses. No other setting matters more.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.errors import UserError
from common.files import write_atomically
from generators.cameras import CameraPoses, sample_prior_poses
from heads.parameters import sample_heads
from heads.render import render_heads
from settings.curriculum import Curriculum
from visualization.images import image_grid, png_bytes, to_uint8

NUM_POSES = 20_000
YAW_QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
PITCH_QUANTILES = (0.02, 0.5, 0.98)
HEAD = 3  # index in the built-in set with seed 0
CELL = 128  # pixels


def prior_angles(curriculum: Curriculum) -> tuple[Tensor, Tensor]:
    """Return yaw at YAW_QUANTILES and pitch at PITCH_QUANTILES of the curriculum's prior, in radians relative to the front.

    A positive yaw moves the camera to the image's left (toward -x), a positive pitch moves it down.
    """
    poses = sample_prior_poses(NUM_POSES, curriculum, torch.Generator().manual_seed(0))
    yaw, pitch = poses.yaw - math.pi / 2, poses.pitch - math.pi / 2
    return yaw.quantile(torch.tensor(YAW_QUANTILES)), pitch.quantile(torch.tensor(PITCH_QUANTILES))


def write_camera_prior(curriculum: Curriculum, path: str | Path) -> str:
    """Write the image and return a description of the prior. Raises UserError if the file cannot be written."""
    yaw, pitch = prior_angles(curriculum)
    grid_pitch, grid_yaw = torch.meshgrid(pitch, yaw, indexing="ij")
    poses = CameraPoses(grid_pitch.flatten() + math.pi / 2, grid_yaw.flatten() + math.pi / 2)
    images = render_heads(sample_heads([HEAD] * len(poses.yaw), seed=0), poses, CELL, curriculum.fov).images
    rows = list(images.view(len(pitch), len(yaw), 3, CELL, CELL))
    image = Image.fromarray(to_uint8(image_grid([list(row) for row in rows])))
    draw = ImageDraw.Draw(image)
    for i, row_pitch in enumerate(pitch.tolist()):
        for j, column_yaw in enumerate(yaw.tolist()):
            text = f"yaw {math.degrees(column_yaw):+.0f}, pitch {math.degrees(row_pitch):+.0f}"
            draw.text((j * (CELL + 2) + 4, i * (CELL + 2) + 2), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    try:
        write_atomically(path, png_bytes(np.asarray(image)))
    except UserError as error:
        raise UserError(f"{error}; choose another file with --prior_output") from None
    low, high, down, up = (math.degrees(angle) for angle in (yaw[0], yaw[-1], pitch[0], pitch[-1]))
    kind = curriculum.sample_dist or "one fixed pose"
    return (
        f"camera prior of {curriculum.name}: {kind}, 96 % of yaws in {low:+.0f} .. {high:+.0f} degrees,"
        f" of pitches in {down:+.0f} .. {up:+.0f}"
    )
