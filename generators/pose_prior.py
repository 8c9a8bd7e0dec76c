"""A curriculum's prior over camera poses: independent samples, and its extent around the mean.

Source: docs/method.md, "Cameras and rays".
"""

from __future__ import annotations

import math

import torch

from generators.cameras import PITCH_EPS, CameraPoses, sample_camera_poses
from settings.curriculum import Curriculum

NUM_STDDEVS = {"gaussian": 2.0, "truncated_gaussian": 2.0, "hybrid": 2.0, "uniform": 1.0}  # 95 % of a normal distribution


def mean_poses(curriculum: Curriculum, num: int = 1, device: torch.device | str = "cpu", yaw_offset: float = 0.0) -> CameraPoses:
    """Return the mean pose of the curriculum, turned by ``yaw_offset`` radians, ``num`` times."""
    pitch = torch.full((num,), curriculum.v_mean, device=device)
    return CameraPoses(pitch, torch.full((num,), curriculum.h_mean + yaw_offset, device=device))


def sample_prior_poses(num: int, curriculum: Curriculum, generator: torch.Generator) -> CameraPoses:
    """Sample poses (num,) from the curriculum's distribution with :func:`sample_camera_poses`."""
    return sample_camera_poses(
        num,
        h_mean=curriculum.h_mean,
        v_mean=curriculum.v_mean,
        h_stddev=curriculum.h_stddev,
        v_stddev=curriculum.v_stddev,
        sample_dist=curriculum.sample_dist,
        generator=generator,
    )


def draw_poses(num: int, curriculum: Curriculum, generator: torch.Generator) -> CameraPoses:
    """Sample (num,) poses from the curriculum's distribution, on the CPU.

    Poses are sampled one by one, because the hybrid distribution chooses its component once per call.
    """
    poses = [sample_prior_poses(1, curriculum, generator) for _ in range(num)]
    return CameraPoses(torch.cat([pose.pitch for pose in poses]), torch.cat([pose.yaw for pose in poses]))


def pose_half_widths(curriculum: Curriculum) -> tuple[float, float]:
    """Return the half widths around the mean pitch and yaw that hold nearly all training poses, radians; 0 for one fixed pose."""
    c = curriculum
    if c.sample_dist is None:
        return 0.0, 0.0
    if c.sample_dist != "spherical_uniform":
        return NUM_STDDEVS[c.sample_dist] * c.v_stddev, NUM_STDDEVS[c.sample_dist] * c.h_stddev
    ends = [(c.v_mean + sign * c.v_stddev) / math.pi for sign in (-1, 1)]  # uniform in (1 - cos pitch) / 2
    pitches = [math.acos(1 - 2 * min(max(end, PITCH_EPS), 1 - PITCH_EPS)) for end in ends]
    return max(abs(pitch - c.v_mean) for pitch in pitches), c.h_stddev
