"""Cameras of the training prior, drawn beside the rendered head."""

from __future__ import annotations

import math

import torch

from checkpoints.loading import LoadedGenerator
from generators.pose_prior import draw_poses
from viewing.camera import BrowserCamera, camera_at

NUM_CAMERAS = 60


def prior_cameras(loaded: LoadedGenerator) -> list[BrowserCamera]:
    """Draw NUM_CAMERAS cameras from the training prior, the same at each call."""
    curriculum = loaded.curriculum
    poses = draw_poses(NUM_CAMERAS, curriculum, torch.Generator().manual_seed(0))
    fov = math.radians(curriculum.fov)
    return [camera_at(float(yaw), float(pitch), 1.0, fov) for pitch, yaw in zip(poses.pitch, poses.yaw, strict=True)]


def prior_reach(cameras: list[BrowserCamera]) -> float:
    """Largest distance of the cameras from the line of sight of the mean one, world units."""
    positions = torch.tensor([camera.position for camera in cameras])
    middle = positions.mean(dim=0)
    return float((positions - middle).norm(dim=1).max())
