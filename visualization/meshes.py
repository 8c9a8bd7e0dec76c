"""Extract the surface of a field, through voxels, as a mesh in world coordinates.

Notation: N is the resolution. Voxels are ``occupancy[ix, iy, iz]`` at coordinates ``-cube_size/2 + i cube_size/(N-1)`` on
each axis, so both faces of the cube are sampled (the published lattice is sheared by a float division). The mesh is the level
set at ``level``, by marching cubes on logits. Occupancies jump from 0 to 1 within a voxel, which would give a stepped surface;
logits cross the level almost linearly.

A field is trained only where cameras look. Elsewhere its values are arbitrary, and there are often solid lumps that no image
shows. Meshes are therefore clipped to the ball of :func:`visible_radius`. Voxel files are not clipped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.safe_pickle import printable
from common.errors import UserError
from common.files import read_small_text, require_file, write_atomically, write_json
from fields.interface import Field
from generators.cameras import mean_direction
from generators.extraction import LatticeSpec, surface_slabs
from generators.root_finding import find_surface
from settings.curriculum import Curriculum
from visualization.gltf import Material, glb_bytes, linear_colors

if TYPE_CHECKING:
    from trimesh import Trimesh

CPU_POINTS, GPU_POINTS = 1 << 16, 1 << 20  # per query: enough to keep the device busy, few enough to see progress
NUM_REFINE_STEPS = 7
LOGIT_LIMIT = 16.0  # beyond it, float32 hardly distinguishes an occupancy from 1
MIN_LENGTH, MAX_LENGTH = 1e-6, 1e6  # of a cube's side, and of the clip radius; world units
MAX_MESH_BYTES = 1 << 30
MIN_LEVEL = 1e-6  # of the occupancy at the surface; the magnitude of its logit is near LOGIT_LIMIT


@dataclass(frozen=True)
class MeshSettings:
    """Settings of a mesh. ``level``: occupancy at the surface. ``clip_radius``: radius of the clip ball, or None."""

    cube_size: float = 0.3
    level: float = 0.5
    clip_radius: float | None = None
    largest_piece: bool = False

    def save(self, path: Path) -> None:
        """Write the settings as JSON. Raises UserError if the file cannot be written."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> MeshSettings:
        """Read a file written by :meth:`save`. Raises UserError if it is damaged."""
        text = read_small_text(path)
        try:
            settings = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            settings = None
        if settings is None or not settings.are_possible():
            raise UserError(f"{path} does not hold mesh settings; delete it to use the defaults")
        return settings

    def are_possible(self) -> bool:
        """Return whether a mesh can be computed with these settings: all are finite, and none is too small or too large."""
        numbers = (self.cube_size, self.level, 1.0 if self.clip_radius is None else self.clip_radius)
        if any(type(value) not in (int, float) for value in numbers):
            return False
        cube_size, level, clip_radius = numbers
        return (
            MIN_LENGTH <= cube_size <= MAX_LENGTH
            and MIN_LENGTH <= clip_radius <= MAX_LENGTH
            and MIN_LEVEL <= level <= 1 - MIN_LEVEL
        )


def visible_radius(curriculum: Curriculum) -> float:
    """Return the radius of the ball around the origin that contains what cameras at distance 1 sample.

    It is max(1 - ray_start, ray_end - 1) / cos(fov / 2). For most cameras, points beyond it are outside [ray_start, ray_end]
    or outside the image, so training does not make them free.
    """
    return curriculum.ray_reach / math.cos(math.radians(curriculum.fov) / 2)


def grid_coordinates(cube_size: float, resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the coordinates (N,) -cube_size/2 + i cube_size/(N-1), computed in float64 and rounded once."""
    i = torch.arange(resolution, dtype=torch.float64)
    return (-cube_size / 2 + i * (cube_size / (resolution - 1))).float().to(device)


def occupancy_of(values: Tensor, curriculum: Curriculum, spacing: float) -> Tensor:
    """Convert the field's logits or densities to occupancies in [0, 1].

    Occupancy fields: sigmoid(logit). Radiance fields: 1 - exp(-density * spacing), the alpha of a step of one voxel, so their
    surface depends on the resolution.
    """
    if curriculum.pred_occ:
        return torch.sigmoid(values)
    density = F.softplus(values) if curriculum.clamp_mode == "softplus" else F.relu(values)
    return 1 - torch.exp(-density * spacing)


@torch.no_grad()
def fill_occupancy(
    out: np.ndarray,
    field: Field,
    curriculum: Curriculum,
    cube_size: float,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda num_points: None,
) -> None:
    """Fill ``out`` (N, N, N) float32 with the occupancy of a field of one latent, a few slabs of constant x at a time.

    ``out`` may be a np.memmap; other memory does not grow with N. ``progress`` is called with the number of new points.
    """
    resolution = out.shape[0]
    axis = grid_coordinates(cube_size, resolution, device)
    num_points = CPU_POINTS if torch.device(device).type == "cpu" else GPU_POINTS
    num_slabs = max(1, num_points // resolution**2)
    for start in range(0, resolution, num_slabs):
        slab = axis[start : start + num_slabs]
        points = torch.stack(torch.meshgrid(slab, axis, axis, indexing="ij"), dim=-1).view(1, -1, 3)
        values = field.occupancy_logits(points)[0]
        occupancy = occupancy_of(values, curriculum, cube_size / (resolution - 1))
        out[start : start + num_slabs] = occupancy.view(len(slab), resolution, resolution).cpu().numpy()
        progress(points.shape[1])


def value_at_level(level: float, curriculum: Curriculum, spacing: float) -> float:
    """Return the logit or density at which :func:`occupancy_of` is ``level``, in (0, 1)."""
    if curriculum.pred_occ:
        return math.log(level / (1 - level))
    density = -math.log1p(-level) / spacing
    if curriculum.clamp_mode == "softplus":
        return density + math.log(-math.expm1(-density))
    return density


@torch.no_grad()
def fill_occupancy_near_surface(
    out: np.ndarray,
    field: Field,
    curriculum: Curriculum,
    cube_size: float,
    level: float = 0.5,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] = lambda num_points: None,
) -> int:
    """Fill ``out`` like :func:`fill_occupancy`, but query the field only near the surface. Return the number of queried points.

    Voxels next to the surface at ``level`` are exact, except for about 1 in 1000. Other voxels are interpolated from a coarser
    lattice, on the correct side of ``level`` (generators/extraction.py describes the accuracy). ``out`` may be a np.memmap;
    other memory grows with the surface area.
    """
    spec = LatticeSpec.of_cube(cube_size, out.shape[0])
    threshold = value_at_level(level, curriculum, spec.spacing)
    num_queried = 0
    for start, values, num_new in surface_slabs(
        lambda points: field.occupancy_logits(points.unsqueeze(0))[0], spec, threshold, device
    ):
        occupancy = occupancy_of(values, curriculum, spec.spacing)
        torch.from_numpy(out[start : start + len(values)]).copy_(occupancy)  # on all threads: first writes to memory are slow
        num_queried += num_new
        progress(values.numel())
    return num_queried


def extract_mesh(occupancy: np.ndarray, settings: MeshSettings) -> Trimesh | None:
    """Extract the surface of voxels (N, N, N) in [0, 1] as a closed mesh in world coordinates; None if there is none.

    Space outside the cube counts as free, so the mesh of a solid that leaves the cube is closed at its faces.
    """
    import trimesh
    from skimage.measure import marching_cubes

    levels, origin = _levels_around_solid(occupancy, settings)
    if levels is None:
        return None
    spacing = settings.cube_size / (occupancy.shape[0] - 1)
    vertices, faces, _, _ = marching_cubes(levels, 0.0, allow_degenerate=False, gradient_direction="ascent")
    mesh = trimesh.Trimesh((vertices + origin) * spacing - settings.cube_size / 2, faces, process=False)
    return largest_piece(mesh) if settings.largest_piece else mesh


def _levels_around_solid(occupancy: np.ndarray, settings: MeshSettings) -> tuple[np.ndarray | None, np.ndarray]:
    """Return logits minus the level's logit in the bounding box of the solid plus one free voxel, and its first index (3,)."""
    resolution = occupancy.shape[0]
    axis = grid_coordinates(settings.cube_size, resolution).numpy()
    solid = np.zeros((3, resolution), dtype=bool)  # along each axis: True if the slice contains a solid voxel
    for ix in range(resolution):
        slab = _slab_levels(occupancy, ix, axis, settings) > 0
        solid[0, ix] = slab.any()
        solid[1] |= slab.any(axis=1)
        solid[2] |= slab.any(axis=0)
    if not solid.any():
        return None, np.zeros(3)
    first = np.array([np.flatnonzero(line)[0] for line in solid]) - 1
    last = np.array([np.flatnonzero(line)[-1] for line in solid]) + 1
    levels = np.full(last - first + 1, -LOGIT_LIMIT, dtype=np.float32)
    low, high = np.maximum(first, 0), np.minimum(last, resolution - 1) + 1
    inside = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
    for ix in range(low[0], high[0]):
        slab = _slab_levels(occupancy, ix, axis, settings)
        levels[ix - first[0]][inside[1:]] = slab[low[1] : high[1], low[2] : high[2]]
    return levels, first


def _slab_levels(occupancy: np.ndarray, ix: int, axis: np.ndarray, settings: MeshSettings) -> np.ndarray:
    """Return logit(occupancy) - logit(level) (N, N) of a slab, made negative outside the clip ball, continuously at its edge."""
    values = np.asarray(occupancy[ix], dtype=np.float64)
    tiny = 1 / (1 + math.exp(LOGIT_LIMIT))
    values = np.clip(values, tiny, 1 - tiny)
    levels = np.log(values / (1 - values)) - math.log(settings.level / (1 - settings.level))
    if settings.clip_radius is not None:
        distance = np.sqrt(axis[ix] ** 2 + axis[:, None] ** 2 + axis[None, :] ** 2)
        spacing = axis[1] - axis[0]
        levels = np.minimum(levels, (settings.clip_radius - distance) / spacing * LOGIT_LIMIT)
    return levels


def surface_level(field: Field, curriculum: Curriculum, settings: MeshSettings, spacing: float) -> Callable[[Tensor], Tensor]:
    """Return a function whose zero level set is the mesh: points (N, 3) -> (N,), positive inside, negative beyond the clip ball.

    ``spacing``: voxel spacing, world units.
    """

    def level_at(points: Tensor) -> Tensor:
        occupancy = occupancy_of(field.occupancy_logits(points.unsqueeze(0))[0], curriculum, spacing)
        levels = torch.logit(occupancy, eps=1e-7) - math.log(settings.level / (1 - settings.level))
        if settings.clip_radius is not None:
            levels = torch.minimum(levels, (settings.clip_radius - points.norm(dim=-1)) / spacing * LOGIT_LIMIT)
        return levels

    return level_at


@torch.no_grad()
def refine_vertices(
    mesh: Trimesh,
    field: Field,
    curriculum: Curriculum,
    settings: MeshSettings,
    resolution: int,
    device: torch.device | str = "cpu",
) -> None:
    """Move each vertex of :func:`extract_mesh` along its edge of the grid to where the field crosses the level.

    Marching cubes interpolates linearly between the ends of the edge, which causes terraces where logits are not linear over a
    voxel. Bisection costs a few queries per vertex, far fewer than filling the voxels.
    """
    spacing = settings.cube_size / (resolution - 1)
    index = (np.asarray(mesh.vertices) + settings.cube_size / 2) / spacing
    rows, along = np.arange(len(index)), np.abs(index - index.round()).argmax(axis=1)
    ends = np.stack([index.round(), index.round()])  # (2, V, 3)
    ends[0, rows, along] = np.floor(index[rows, along])
    ends[1, rows, along] = ends[0, rows, along] + 1
    inside = ((ends >= 0) & (ends <= resolution - 1)).all(axis=(0, 2))
    positions = torch.from_numpy((ends * spacing - settings.cube_size / 2).astype(np.float32)).to(device)

    level_at = surface_level(field, curriculum, settings, spacing)
    levels = torch.stack([level_at(positions[0]), level_at(positions[1])])
    swap = levels[0] > levels[1]
    free = torch.where(swap.unsqueeze(-1), positions[1], positions[0])
    solid = torch.where(swap.unsqueeze(-1), positions[0], positions[1])
    root = find_surface(
        torch.tensor([0.0, 1.0], device=device).expand(1, len(free), 2),
        torch.stack([levels.amin(dim=0), levels.amax(dim=0)], dim=-1).unsqueeze(0),
        lambda t: level_at(torch.lerp(free, solid, t[0].unsqueeze(-1))).unsqueeze(0),
        num_steps=NUM_REFINE_STEPS,
        method="bisection",
    )
    moved = torch.lerp(free, solid, root.t[0].unsqueeze(-1)).cpu().numpy()
    mesh.vertices = np.where((root.hit_mask[0].cpu().numpy() & inside)[:, None], moved, mesh.vertices)


def largest_piece(mesh: Trimesh) -> Trimesh:
    """Return the connected piece of largest area. Cavities inside it are separate pieces, so they are removed."""
    import trimesh
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.faces
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges), dtype=np.int8), edges.T), shape=(len(mesh.vertices),) * 2)
    labels = connected_components(graph, directed=False)[1][faces[:, 0]]
    kept = faces[labels == np.bincount(labels, weights=mesh.area_faces).argmax()]
    used, renumbered = np.unique(kept, return_inverse=True)
    return trimesh.Trimesh(mesh.vertices[used], renumbered.reshape(kept.shape), process=False)


@torch.no_grad()
def vertex_colors(mesh: Trimesh, field: Field, curriculum: Curriculum, device: torch.device | str = "cpu") -> np.ndarray:
    """Return :func:`surface_colors` at each vertex, opaque: (V, 4) uint8."""
    points = torch.from_numpy(np.array(mesh.vertices, dtype=np.float32)).to(device)
    rgb = surface_colors(points, field, curriculum)
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, dtype=np.uint8)], axis=1)


def surface_colors(points: Tensor, field: Field, curriculum: Curriculum) -> np.ndarray:
    """Return the field's colors at points (N, 3), seen along the curriculum's mean view direction: (N, 3) uint8, sRGB.

    A single direction avoids seams, and training has seen it, unlike the direction opposite to the normal.
    """
    directions = mean_direction(curriculum.h_mean, curriculum.v_mean).to(points).expand_as(points)
    rgb = field.logits_and_colors(points.unsqueeze(0), directions.unsqueeze(0))[1][0].cpu().numpy()
    return np.round(rgb.clip(0, 1) * 255).astype(np.uint8)


def smooth_normals(mesh: Trimesh) -> np.ndarray:
    """Return unit vertex normals (V, 3), averaged over faces with weights by area; +y for a vertex without area.

    With weights by angle, as in trimesh, slivers of marching cubes would count as much as whole faces and appear as specks.
    """
    corners = np.asarray(mesh.vertices)[mesh.faces]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # length: twice the area
    sums = np.stack([np.bincount(mesh.faces.ravel(), np.repeat(w, 3), len(mesh.vertices)) for w in weighted.T], axis=1)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(length > 0, sums / np.maximum(length, 1e-300), (0.0, 1.0, 0.0))


def colored_mesh(field: Field, curriculum: Curriculum, resolution: int, device: torch.device | str = "cpu") -> Trimesh | None:
    """Extract the largest piece of all that the training cameras see, with vertex colors; None if there is no surface."""
    radius = visible_radius(curriculum)
    settings = MeshSettings(2.05 * radius, curriculum.tau, radius, largest_piece=True)
    voxels = np.empty((resolution,) * 3, dtype=np.float32)
    fill_occupancy_near_surface(voxels, field, curriculum, settings.cube_size, settings.level, device)
    mesh = extract_mesh(voxels, settings)
    if mesh is not None:
        refine_vertices(mesh, field, curriculum, settings, resolution, device)
        mesh.visual.vertex_colors = vertex_colors(mesh, field, curriculum, device)
    return mesh


def save_mesh(mesh: Trimesh, stem: Path, suffixes: tuple[str, ...] = (".ply", ".glb")) -> list[Path]:
    """Write ``stem`` + suffix for each of .ply, .glb, .obj. Raises UserError if a file cannot be written.

    Vertex colors are sRGB in .ply and .obj, and linear in .glb, which also holds normals and a matte material.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    for path in paths:
        content = glb_of_mesh(mesh) if path.suffix == ".glb" else mesh.export(file_type=path.suffix[1:])
        write_atomically(path, content.encode() if isinstance(content, str) else content)
    return paths


def glb_of_mesh(mesh: Trimesh) -> bytes:
    """Encode a mesh, with or without vertex colors, as a .glb file. It is lit, because colors alone hardly show the shape."""
    attributes = {"POSITION": np.asarray(mesh.vertices), "NORMAL": smooth_normals(mesh)}
    if mesh.visual.kind == "vertex":
        attributes["COLOR_0"] = linear_colors(np.asarray(mesh.visual.vertex_colors)[:, :3])
    return glb_bytes(attributes, np.asarray(mesh.faces), Material(is_lit=True))


def load_voxels(path: Path) -> np.ndarray:
    """Open the array (N, N, N) of a voxel file, memory-mapped. Raises UserError if the file is not valid."""
    if not os.path.exists(path):  # unlike Path.exists, False if the name is too long
        raise UserError(f"there is no voxel file {path}; extract_shapes.py writes them")
    require_file(path)
    try:
        voxels = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's header parser raises many types
        raise UserError(f"{path} is not a voxel file ({type(error).__name__}: {printable(error)})") from None
    if not isinstance(voxels, np.ndarray) or voxels.ndim != 3 or len(set(voxels.shape)) != 1 or voxels.shape[0] < 2:
        raise UserError(f"{path} must hold an array (N, N, N) with N at least 2")
    if voxels.dtype.kind != "f":
        raise UserError(f"{path} must hold floating-point occupancies in [0, 1], not {voxels.dtype}")
    if not all(np.isfinite(slab).all() for slab in voxels):
        raise UserError(f"{path} holds numbers that are not finite")
    return voxels


def load_mesh(path: Path) -> Trimesh:
    """Load the mesh of a file. Raises UserError if the file contains no valid mesh."""
    import trimesh

    if not os.path.isfile(path):
        raise UserError(f"there is no mesh {path}; extract_shapes.py writes them")
    if path.stat().st_size > MAX_MESH_BYTES:
        raise UserError(f"{path} has more than {MAX_MESH_BYTES} bytes, too many for a mesh of extract_shapes.py")
    try:
        with path.open("rb") as file:  # given a path, trimesh would also read the images that the file names
            mesh = trimesh.load(file, file_type=path.suffix[1:], force="mesh", process=False)
        num_faces, num_vertices = len(mesh.faces), len(mesh.vertices)
        is_sound = np.isfinite(mesh.vertices).all() and (
            not num_faces or 0 <= mesh.faces.min() <= mesh.faces.max() < num_vertices
        )
    except Exception as error:  # trimesh's readers raise many types
        raise UserError(f"{path} is not a readable mesh ({type(error).__name__})") from None
    if num_faces == 0:
        raise UserError(f"{path} contains no faces")
    if not is_sound:
        raise UserError(f"{path} contains vertices that are not finite, or faces with missing vertices")
    return mesh


def without_colors(mesh: Trimesh) -> Trimesh:
    """Return the mesh without its vertex colors."""
    import trimesh

    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
