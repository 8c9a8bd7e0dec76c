"""Render meshes with pyrender (OpenGL, off screen through EGL), or by ray casting if OpenGL is not available.

Cameras follow generators/cameras.py: cam2world with the camera looking along its own -z, as in OpenGL. Both renderers
light a smooth matte surface from the upper left, from the right and from the camera, on white.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from common.errors import UserError
from generators.cameras import camera_ray_directions
from visualization.meshes import smooth_normals

if TYPE_CHECKING:
    from trimesh import Trimesh

RENDERERS = ("auto", "pyrender", "raycast")
GREY = (0.80, 0.81, 0.84)
# Directions toward the lights in the camera's frame (x right, y up, z to the viewer), and their strengths.
LIGHTS = (((-0.8, 0.9, 0.6), 0.75), ((0.9, -0.1, 0.4), 0.14), ((0.0, 0.0, 1.0), 0.14))
AMBIENT = 0.1
SUPERSAMPLING = 2
RAYS_PER_CHUNK = 1 << 18


class MeshRenderer(Protocol):
    """Interface of mesh renderers. ``name``: description for the user."""

    name: str

    def render(self, mesh: Trimesh, cam2world: np.ndarray, fov_degrees: float, size: int) -> np.ndarray:
        """Render a mesh with or without (gray) vertex colors; cam2world (4, 4). Returns (size, size, 3) uint8."""


def open_renderer(choice: str = "auto") -> MeshRenderer:
    """Create the renderer of a name in :data:`RENDERERS`; ``auto`` is pyrender, or ray casting if pyrender fails.

    Raises UserError if the chosen renderer is not available.
    """
    if choice == "raycast":
        return RaycastRenderer("ray casting")
    try:
        return PyrenderRenderer()
    except Exception as error:  # no package, EGL, display or driver: PyOpenGL has a different exception for each
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    if choice == "pyrender":
        raise UserError(f"pyrender does not work here ({reason}); use --renderer raycast")
    return RaycastRenderer(f"ray casting, as pyrender does not work here ({reason})")


class PyrenderRenderer:
    """Off-screen OpenGL renderer. Creating one verifies that OpenGL works."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            os.environ.setdefault("PYOPENGL_PLATFORM", "egl")  # read once, when OpenGL is imported
        with suppress(ImportError):  # Mesa and triton each bring an LLVM: triton after Mesa crashes the process (torch imports
            import triton  # noqa: F401  it with the first optimizer), the other order does not
        import pyrender

        self.name = f"pyrender ({os.environ.get('PYOPENGL_PLATFORM', sys.platform)})"
        self._pyrender = pyrender
        pyrender.OffscreenRenderer(8, 8).delete()

    def render(self, mesh: Trimesh, cam2world: np.ndarray, fov_degrees: float, size: int) -> np.ndarray:
        pyrender = self._pyrender
        scene = pyrender.Scene(bg_color=[1.0, 1.0, 1.0, 1.0], ambient_light=[AMBIENT] * 3)
        scene.add(pyrender.Mesh([self._primitive(mesh)]))
        scene.add(pyrender.PerspectiveCamera(yfov=math.radians(fov_degrees), znear=0.01, zfar=100.0), pose=cam2world)
        for direction, strength in LIGHTS:
            light = pyrender.DirectionalLight(color=np.ones(3), intensity=strength * math.pi)
            scene.add(light, pose=cam2world @ _looking_along(-np.array(direction)))
        renderer = pyrender.OffscreenRenderer(size, size)
        try:
            return renderer.render(scene)[0].copy()
        finally:
            renderer.delete()

    def _primitive(self, mesh: Trimesh):
        pyrender = self._pyrender
        material = pyrender.MetallicRoughnessMaterial(metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True)
        rgba = np.concatenate([surface_colors(mesh), np.ones((len(mesh.vertices), 1))], axis=1)
        return pyrender.Primitive(
            positions=np.asarray(mesh.vertices, dtype=np.float32),
            normals=smooth_normals(mesh).astype(np.float32),
            indices=np.asarray(mesh.faces, dtype=np.uint32),
            color_0=_to_linear(rgba).astype(np.float32),
            material=material,
        )


class RaycastRenderer:
    """Ray caster with 2 x 2 rays per pixel, through trimesh; fast if embreex is installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def render(self, mesh: Trimesh, cam2world: np.ndarray, fov_degrees: float, size: int) -> np.ndarray:
        fine = size * SUPERSAMPLING
        rotation = cam2world[:3, :3]
        directions = camera_ray_directions(fine, fov_degrees).double().numpy() @ rotation.T
        image = np.ones((fine * fine, 3))
        colors, normals = _to_linear(surface_colors(mesh)), smooth_normals(mesh)
        for start in range(0, len(directions), RAYS_PER_CHUNK):
            chunk = directions[start : start + RAYS_PER_CHUNK]
            origins = np.broadcast_to(cam2world[:3, 3], chunk.shape)
            points, ray_index, face_index = mesh.ray.intersects_location(origins, chunk, multiple_hits=False)
            if len(face_index) == 0:
                continue
            corners = mesh.faces[face_index]
            weights = _barycentric(np.asarray(mesh.vertices)[corners], points)
            normal = np.einsum("rc,rcx->rx", weights, normals[corners]) @ rotation
            albedo = np.einsum("rc,rcx->rx", weights, colors[corners])
            image[start + ray_index] = albedo * _shade(normal)[:, None]
        pixels = image.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
        return np.round(_to_srgb(pixels.clip(0, 1)) * 255).astype(np.uint8)


def surface_colors(mesh: Trimesh) -> np.ndarray:
    """Return colors (V, 3) in [0, 1]: the mesh's vertex colors, or gray."""
    if mesh.visual.kind == "vertex":
        return np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0
    return np.tile(np.array(GREY), (len(mesh.vertices), 1))


def _shade(normals: np.ndarray) -> np.ndarray:
    """Shade unnormalized normals (R, 3) in the camera's frame by Lambert's law. Returns (R,)."""
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    light = np.full(len(normals), AMBIENT)
    for direction, strength in LIGHTS:
        light += strength * (normals @ (np.array(direction) / np.linalg.norm(direction))).clip(0)
    return light


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Compute barycentric weights (R, 3) of points (R, 3) on triangles with corners (R, 3, 3)."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    area = (normal * normal).sum(axis=1).clip(1e-300)
    weight_b = (np.cross(points - a, c - a) * normal).sum(axis=1) / area
    weight_c = (np.cross(b - a, points - a) * normal).sum(axis=1) / area
    return np.stack([1 - weight_b - weight_c, weight_b, weight_c], axis=1).clip(0, 1)


def _looking_along(direction: np.ndarray) -> np.ndarray:
    """Return a pose (4, 4) whose -z axis points along ``direction``, the direction in which a light shines."""
    z = -direction / np.linalg.norm(direction)
    helper = np.array([0.0, 1.0, 0.0]) if abs(z[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = x, np.cross(z, x), z
    return pose


def _to_linear(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (approximated by gamma 2.2) to linear values, in which light is additive."""
    return srgb**2.2


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    return linear ** (1 / 2.2)


def pose_matrix(yaw: float, pitch: float) -> np.ndarray:
    """Return cam2world (4, 4), float64, in the convention of generators/cameras.py."""
    from generators.cameras import CameraPoses, camera_to_world

    poses = CameraPoses(torch.tensor([pitch], dtype=torch.float64), torch.tensor([yaw], dtype=torch.float64))
    return camera_to_world(poses)[0].numpy()
