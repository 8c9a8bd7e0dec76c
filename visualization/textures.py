"""Low-polygon meshes with textures baked from the field.

A mesh is decimated, its vertices are moved back onto the field's surface, and xatlas unwraps it into charts. Each texel
gets the field's color at its own surface point: its position on the triangle, moved along the normal to the field's level
set. The texture resolution is therefore independent of the triangle size. Texels within GUTTER of a chart extrapolate its
triangles; all others repeat the nearest chart, because bilinear filters and mipmaps read them at chart edges.

Notation: V vertices of the unwrapped mesh (split at chart edges), F faces, S texels per side, K texels. ``uv`` is in
[0, 1] from the texture's top left, as in glTF; the center of texel (row, column) is at ((column, row) + 0.5) / S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.files import write_atomically
from fields.interface import Field
from generators.root_finding import find_surface
from settings.curriculum import Curriculum
from visualization.gltf import Material, glb_bytes, png_bytes
from visualization.meshes import MeshSettings, smooth_normals, surface_colors, surface_level

if TYPE_CHECKING:
    from trimesh import Trimesh

DEFAULT_FACES = 20_000
GUTTER = 2.0  # texels
PADDING = 4  # texels between charts
ATLAS_SHARE = 0.5  # initial estimate of the texture area covered by faces; the rest is unused space between charts
NUM_PROBES, NUM_ROOT_STEPS = 5, 3  # along the normal, from outside to inside; then inside the bracket
POINTS_PER_CHUNK = 1 << 18
CANDIDATES_PER_CHUNK = 1 << 22
MIN_AREA = 1e-9  # of a triangle, texels squared


@dataclass(frozen=True)
class TexturedMesh:
    """Textured mesh: ``positions``, unit ``normals`` (V, 3); ``tangents`` (V, 4) as in glTF; ``uv`` (V, 2); ``faces`` (F, 3).

    ``base_color`` and ``normal_map``: (S, S, 3) uint8; sRGB, and tangent space.
    """

    positions: np.ndarray
    normals: np.ndarray
    tangents: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    base_color: np.ndarray
    normal_map: np.ndarray | None = None


class Texels(NamedTuple):
    """Triangle of each texel, ``face`` (S, S), and barycentric weights of the texel's center, ``weights`` (S, S, 3).

    Texels outside all triangles have the face of the nearest inside texel, at ``distance`` (S, S) in texels.
    """

    face: np.ndarray
    weights: np.ndarray
    distance: np.ndarray


def decimate(
    mesh: Trimesh,
    num_faces: int,
    field: Field,
    curriculum: Curriculum,
    settings: MeshSettings,
    spacing: float,
    device: torch.device | str = "cpu",
) -> Trimesh:
    """Decimate a mesh to about ``num_faces`` faces, with vertices on the field's surface. A smaller mesh is unchanged.

    Edges are collapsed by quadric error (Garland and Heckbert, 1997). ``spacing``: voxel spacing, world units.
    """
    import fast_simplification
    import trimesh

    if len(mesh.faces) <= num_faces:
        return mesh
    vertices, faces = fast_simplification.simplify(
        np.asarray(mesh.vertices, dtype=np.float32), np.asarray(mesh.faces, dtype=np.int32), target_count=num_faces
    )
    coarse = trimesh.Trimesh(vertices, faces, process=False)
    level = surface_level(field, curriculum, settings, spacing)
    points, normals = (_tensor(values, device) for values in (vertices, smooth_normals(coarse)))
    coarse.vertices = move_to_surface(points, normals, level, _reach(coarse, spacing))[0].cpu().numpy()
    return coarse


@torch.no_grad()
def move_to_surface(points: Tensor, normals: Tensor, level_at: Callable[[Tensor], Tensor], reach: float) -> tuple[Tensor, Tensor]:
    """Move points along their normals to the zero crossing of ``level_at``, if there is one within ``reach``.

    Args:
        points: (N, 3).
        normals: (N, 3), unit, out of the solid.
        level_at: points (N, 3) -> (N,), positive in the solid.

    Returns the points (N, 3), and a mask (N,), True where the surface was found.
    """
    moved, masks = [], []
    for point, normal in zip(points.split(POINTS_PER_CHUNK), normals.split(POINTS_PER_CHUNK), strict=True):
        t = torch.linspace(-reach, reach, NUM_PROBES, device=points.device)
        probes = point.unsqueeze(1) - normal.unsqueeze(1) * t[:, None]
        levels = level_at(probes.flatten(0, 1)).view(1, len(point), NUM_PROBES)
        root = find_surface(
            t.expand(1, len(point), NUM_PROBES),
            levels,
            lambda t_root, point=point, normal=normal: level_at(point - normal * t_root[0].unsqueeze(-1)).unsqueeze(0),
            num_steps=NUM_ROOT_STEPS,
        )
        hit = root.hit_mask[0]
        moved.append(torch.where(hit.unsqueeze(-1), point - normal * root.t[0].unsqueeze(-1), point))
        masks.append(hit)
    return torch.cat(moved), torch.cat(masks)


def texture_mesh(
    mesh: Trimesh,
    size: int,
    field: Field,
    curriculum: Curriculum,
    settings: MeshSettings,
    spacing: float,
    device: torch.device | str = "cpu",
    with_normal_map: bool = False,
) -> TexturedMesh:
    """Unwrap a mesh of the field's surface and bake a texture of ``size`` by ``size`` texels.

    ``settings``, ``spacing``: those used to extract the mesh. Colors come from
    :func:`visualization.meshes.surface_colors`.
    """
    original, faces, uv = unwrap(mesh, size)
    positions, normals = np.asarray(mesh.vertices)[original], smooth_normals(mesh)[original]
    tangents = vertex_tangents(positions, normals, uv, faces)
    texels = rasterize(uv, faces, size)
    baked = (texels.distance <= GUTTER).nonzero()
    corners, weights = faces[texels.face[baked]], texels.weights[baked]
    inside = np.clip(weights, 0, 1)  # normals, unlike positions, must not be extrapolated far beyond their triangle
    normal = _unit(_interpolate(normals, corners, inside))
    points, hit = move_to_surface(
        _tensor(_interpolate(positions, corners, weights), device),
        _tensor(normal, device),
        surface_level(field, curriculum, settings, spacing),
        _reach(mesh, spacing),
    )
    with torch.no_grad():
        color = np.concatenate([surface_colors(part, field, curriculum) for part in points.split(POINTS_PER_CHUNK)])
    source = _nearest_of(texels.distance <= GUTTER)
    normal_map = None
    if with_normal_map:
        true = field_normals(points, hit, normal, field, settings, spacing)
        frame_tangents = _interpolate(tangents[:, :3], corners, inside)
        packed = tangent_space(true, normal, frame_tangents, tangents[corners[:, 0], 3])
        normal_map = _filled(packed, baked, source)
    return TexturedMesh(positions, normals, tangents, uv, faces, _filled(color, baked, source), normal_map)


def unwrap(mesh: Trimesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unwrap a mesh into ``size`` x ``size`` texels. Returns the original vertex indices (V,), faces (F, 3), uv (V, 2)."""
    import xatlas

    atlas = xatlas.Atlas()
    normals = smooth_normals(mesh).astype(np.float32)
    atlas.add_mesh(np.asarray(mesh.vertices, dtype=np.float32), np.asarray(mesh.faces, dtype=np.uint32), normals)
    options = xatlas.PackOptions()
    options.padding = PADDING
    options.texels_per_unit = float(np.sqrt(ATLAS_SHARE / mesh.area)) * size
    atlas.generate(xatlas.ChartOptions(), options)
    original, faces, uv = atlas[0]
    # The atlas is slightly smaller or larger than requested and not square: scale it without distortion.
    extent = np.array([atlas.width, atlas.height], dtype=np.float64)
    return original.astype(np.int64), faces.astype(np.int64), uv * (extent / extent.max())


def rasterize(uv: np.ndarray, faces: np.ndarray, size: int) -> Texels:
    """Find the triangle that contains each texel's center, and the barycentric weights. uv (V, 2), faces (F, 3)."""
    place = uv * size - 0.5  # (V, 2): texel centers are at integer coordinates
    corners = place[faces]
    first = np.ceil(corners.min(axis=1)).astype(np.int64).clip(0, size - 1)
    last = np.floor(corners.max(axis=1)).astype(np.int64).clip(0, size - 1)
    extent = (last - first + 1).clip(0)
    num_candidates = extent.prod(axis=1)
    face_map = np.full((size, size), -1, dtype=np.int64)
    edge1, edge2 = (corners[:, i] - corners[:, 0] for i in (1, 2))
    has_area = np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]) > MIN_AREA
    chunk_of_face = np.cumsum(num_candidates) // CANDIDATES_PER_CHUNK
    for chunk in np.unique(chunk_of_face):
        index = np.flatnonzero(chunk_of_face == chunk)
        face = np.repeat(index, num_candidates[index])
        start = np.cumsum(num_candidates[index]) - num_candidates[index]
        order = np.arange(len(face)) - np.repeat(start, num_candidates[index])
        column = first[face, 0] + order % extent[face, 0]
        row = first[face, 1] + order // extent[face, 0]
        weights = _barycentric(corners[face], np.stack([column, row], axis=1))
        inside = (weights >= -1e-9).all(axis=1) & has_area[face]
        face_map[row[inside], column[inside]] = face[inside]
    distance, source = _distance_to(face_map >= 0)
    face_map = face_map[source]
    rows, columns = np.indices((size, size))
    center = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    weights = _barycentric(corners[face_map.ravel()], center).reshape(size, size, 3)
    return Texels(face_map, weights, distance)


def vertex_tangents(positions: np.ndarray, normals: np.ndarray, uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return tangents (V, 4) as in glTF: unit tangent along +u, and the sign such that sign * cross(normal, tangent) is -v."""
    edge1, edge2 = (positions[faces[:, i]] - positions[faces[:, 0]] for i in (1, 2))
    (du1, dv1), (du2, dv2) = ((uv[faces[:, i]] - uv[faces[:, 0]]).T[:, :, None] for i in (1, 2))
    orientation = np.sign(du1 * dv2 - du2 * dv1)
    along_u, along_v = (edge1 * dv2 - edge2 * dv1) * orientation, (edge2 * du1 - edge1 * du2) * orientation
    u_sum, v_sum = np.zeros_like(positions), np.zeros_like(positions)
    for corner in range(3):
        np.add.at(u_sum, faces[:, corner], along_u)
        np.add.at(v_sum, faces[:, corner], along_v)
    tangent = u_sum - normals * (u_sum * normals).sum(axis=1, keepdims=True)
    helper = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])  # where triangles have no area in the texture
    tangent = _unit(np.where(np.linalg.norm(tangent, axis=1, keepdims=True) > 1e-12, tangent, helper))
    sign = np.where((np.cross(normals, tangent) * v_sum).sum(axis=1, keepdims=True) > 0, -1.0, 1.0)
    return np.concatenate([tangent, sign], axis=1)


@torch.no_grad()
def field_normals(
    points: Tensor, hit: Tensor, normal: np.ndarray, field: Field, settings: MeshSettings, spacing: float
) -> np.ndarray:
    """Return the field's normals (K, 3) at surface points (K, 3), or the mesh's ``normal`` where the mesh was clipped."""
    if settings.clip_radius is not None:
        hit = hit & (points.norm(dim=-1) < settings.clip_radius - spacing)
    found = torch.cat([field.normals(part.unsqueeze(0))[0] for part in points.split(POINTS_PER_CHUNK)]).cpu().numpy()
    return np.where(hit.cpu().numpy()[:, None], found, normal)


def tangent_space(vectors: np.ndarray, normals: np.ndarray, tangents: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Encode unit vectors (K, 3) as normal map values (K, 3) uint8 in frames of unit normals, tangents (K, 3), sign (K,)."""
    tangents = _unit(tangents - normals * (tangents * normals).sum(axis=1, keepdims=True))
    bitangents = np.cross(normals, tangents) * sign[:, None]
    local = np.stack([(vectors * axis).sum(axis=1) for axis in (tangents, bitangents, normals)], axis=1)
    return np.round((local.clip(-1, 1) + 1) / 2 * 255).astype(np.uint8)


def save_textured_mesh(mesh: TexturedMesh, stem: Path, suffixes: tuple[str, ...] = (".glb",)) -> list[Path]:
    """Write ``stem`` + suffix: .glb, with embedded textures; .obj, with separate .mtl, _texture.png and _normals.png.

    With a normal map, the material is lit, because the map needs lighting; otherwise it is unlit and looks like the rendered
    image. Raises UserError if a file cannot be written.
    """
    contents: dict[str, bytes] = {}
    if ".glb" in suffixes:
        contents[".glb"] = _glb(mesh)
    if ".obj" in suffixes:  # last, as it needs the others
        contents["_texture.png"] = png_bytes(mesh.base_color)
        if mesh.normal_map is not None:
            contents["_normals.png"] = png_bytes(mesh.normal_map)
        contents[".mtl"] = _mtl(mesh, stem.name)
        contents[".obj"] = _obj(mesh, stem.name)
    paths = [stem.with_name(stem.name + ending) for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomically(path, content)
    return paths


def _glb(mesh: TexturedMesh) -> bytes:
    attributes = {"POSITION": mesh.positions, "NORMAL": mesh.normals, "TEXCOORD_0": mesh.uv}
    if mesh.normal_map is not None:
        attributes["TANGENT"] = mesh.tangents
    is_lit = mesh.normal_map is not None
    return glb_bytes(attributes, mesh.faces, Material(is_lit, mesh.base_color, mesh.normal_map))


def _mtl(mesh: TexturedMesh, name: str) -> bytes:
    """Encode the material. ``illum 0`` means unshaded colors."""
    is_lit = mesh.normal_map is not None
    lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", f"illum {int(is_lit)}", f"map_Kd {name}_texture.png"]
    if is_lit:
        lines.append(f"norm {name}_normals.png")
    return ("\n".join(lines) + "\n").encode()


def _obj(mesh: TexturedMesh, name: str) -> bytes:
    lines = [f"mtllib {name}.mtl", "usemtl surface"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in mesh.positions.tolist()]
    lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in mesh.uv.tolist()]  # in OBJ, v runs up
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.normals.tolist()]
    lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


# -- arrays ----------------------------------------------------------------------------------------------------------------


def _reach(mesh: Trimesh, spacing: float) -> float:
    """Maximum distance of the field's surface from a face: half an edge length, and at least half a voxel."""
    return max(spacing, float(np.median(mesh.edges_unique_length))) / 2


def _tensor(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def _interpolate(values: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Interpolate values (V, C) at corners (K, 3) with weights (K, 3). Returns (K, C)."""
    return sum(values[corners[:, i]] * weights[:, i : i + 1] for i in range(3))


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Compute barycentric weights (K, 3) of points (K, 2) in triangles (K, 3, 2); degenerate triangles use the first corner."""
    a = triangles[:, 0]
    edge1, edge2, offset = triangles[:, 1] - a, triangles[:, 2] - a, points - a
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    safe = np.where(np.abs(area) > MIN_AREA, area, np.inf)
    weight_b = (offset[:, 0] * edge2[:, 1] - offset[:, 1] * edge2[:, 0]) / safe
    weight_c = (edge1[:, 0] * offset[:, 1] - edge1[:, 1] * offset[:, 0]) / safe
    return np.stack([1 - weight_b - weight_c, weight_b, weight_c], axis=1)


def _distance_to(mask: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the distance (S, S) to the nearest texel of a mask (S, S), and the indices of that texel."""
    from scipy.ndimage import distance_transform_edt

    distance, index = distance_transform_edt(~mask, return_indices=True)
    return distance, tuple(index)


def _nearest_of(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    return _distance_to(mask)[1]


def _filled(values: np.ndarray, baked: tuple[np.ndarray, ...], source: tuple[np.ndarray, ...]) -> np.ndarray:
    """Fill an image (S, S, 3) with values (K, 3) of baked texels; other texels copy the baked one at ``source``."""
    size = source[0].shape[0]
    image = np.zeros((size, size, 3), dtype=values.dtype)
    image[baked] = values
    return image[source]
