"""Objects drawn beside the rendered head: its mesh, and cameras of the training prior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from checkpoints.loading import LoadedGenerator
from generators.cameras import sample_prior_poses
from siren.field import Field
from viewing.camera import BrowserCamera, camera_at
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy_near_surface,
    refine_vertices,
    vertex_colors,
    visible_radius,
)

if TYPE_CHECKING:
    from trimesh import Trimesh

RESOLUTION = 128  # voxels along a side
NUM_CAMERAS = 60


def colored_mesh(loaded: LoadedGenerator, field: Field, device: torch.device) -> Trimesh | None:
    """Extract the surface with vertex colors: a Trimesh in world coordinates, or None if there is no surface."""
    curriculum = loaded.curriculum
    radius = visible_radius(curriculum)
    settings = MeshSettings(2.05 * radius, curriculum.tau, radius, largest_piece=True)
    voxels = np.empty((RESOLUTION,) * 3, dtype=np.float32)
    fill_occupancy_near_surface(voxels, field, curriculum, settings.cube_size, settings.level, device)
    mesh = extract_mesh(voxels, settings)
    if mesh is not None:
        refine_vertices(mesh, field, curriculum, settings, RESOLUTION, device)
        mesh.visual.vertex_colors = vertex_colors(mesh, field, curriculum, device)
    return mesh


def prior_cameras(loaded: LoadedGenerator) -> list[BrowserCamera]:
    """Draw NUM_CAMERAS cameras from the training prior, the same at each call."""
    curriculum = loaded.curriculum
    poses = sample_prior_poses(NUM_CAMERAS, curriculum, torch.Generator().manual_seed(0))
    fov = math.radians(curriculum.fov)
    return [camera_at(float(yaw), float(pitch), 1.0, fov) for pitch, yaw in zip(poses.pitch, poses.yaw, strict=True)]


def prior_reach(cameras: list[BrowserCamera]) -> float:
    """Largest distance of the cameras from the line of sight of the mean one, world units."""
    positions = torch.tensor([camera.position for camera in cameras])
    middle = positions.mean(dim=0)
    return float((positions - middle).norm(dim=1).max())
