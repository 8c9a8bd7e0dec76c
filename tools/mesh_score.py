"""Compare exported meshes, rendered without lights, with the field's colors at its surface.

    python -m tools.mesh_score heads

For each seed, the surface is extracted as in extract_shapes.py and written to .glb files: with vertex colors, at all faces
and decimated to --faces, and with a texture. Each file is read back by trimesh and rendered by OpenGL (pyrender) without
lights from five viewpoints. PSNR is against ``surface_image`` of the same pose: for each pixel, the field's color where the
ray enters the surface, on black. Writes ``mesh_score.json`` and, with --sheet, an image of the comparison.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, image_side, int_between, seed_number
from common.errors import UserError
from common.files import write_json
from common.program import run_script
from common.psnr import psnr_db
from fields.interface import Field
from generators.views import ViewSettings, make_pose, render_view
from visualization.generator_scripts import add_generator_arguments, field_from_seed, open_generator
from visualization.gltf import linear_to_srgb
from visualization.images import from_uint8, image_grid, save_image
from visualization.mesh_rendering import PyrenderRenderer, open_renderer, pose_matrix
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy_near_surface,
    refine_vertices,
    save_mesh,
    vertex_colors,
    visible_radius,
)
from visualization.textures import DEFAULT_FACES, decimate, save_textured_mesh, texture_mesh
from visualization.trajectories import TrajectoryPose, multiview

SAMPLES = 5  # per side of a pixel, odd: the one in the middle is kept, as a ray through a pixel sees one point


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    loaded, output_dir = open_generator(args)
    renderer = open_renderer("pyrender")
    assert isinstance(renderer, PyrenderRenderer)
    poses = multiview(loaded.curriculum)
    squared_errors: dict[str, list[list[float]]] = {}
    num_faces: dict[str, list[int]] = {}
    for seed in args.seeds:
        field = field_from_seed(loaded, seed, args.psi)
        references = [surface_image(loaded, field, pose, args.image_size) for pose in poses]
        rows = [references]
        for name, (path, faces) in write_meshes(loaded, field, output_dir / str(seed), args).items():
            rows.append([draw_unlit(path, pose, args.image_size) for pose in poses])
            errors = [float((drawn - true).square().mean()) / 4 for drawn, true in zip(rows[-1], references, strict=True)]
            squared_errors.setdefault(name, []).append(errors)
            num_faces.setdefault(name, []).append(faces)
            print(f"seed {seed}, {name}: {faces} faces, {psnr_db(np.mean(errors), peak=1):.2f} dB")
        if args.sheet:
            save_image(output_dir / f"{seed}_compared.png", image_grid(rows))
    scores = {name: summary(errors, num_faces[name]) for name, errors in squared_errors.items()}
    for name, score in scores.items():
        print(f"{name}: {score['psnr_db']:.2f} dB (lowest view {score['psnr_db_lowest_view']:.2f})")
    record = {name: getattr(args, name) for name in ("seeds", "psi", "image_size", "voxel_resolution", "faces", "texture")}
    report = {"scores": scores, **record, "views": [list(pose) for pose in poses], "drawn_by": renderer.name}
    write_json(output_dir / "mesh_score.json", report)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="mesh_score")
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2, 3], help="seeds, one shape each")
    parser.add_argument("--image_size", type=image_side, default=256, help="side of an image in pixels")
    parser.add_argument("--voxel_resolution", type=int_between(2, 1024), default=256, help="voxels along a side")
    parser.add_argument(
        "--faces", type=int_between(16, 1 << 30), default=DEFAULT_FACES, help="number of faces of the decimated meshes"
    )
    parser.add_argument("--texture", type=int_between(16, 16384), default=1024, help="texels along a side")
    parser.add_argument("--sheet", action="store_true", help="also write SEED_compared.png: the reference, and a row per mesh")
    return parser.parse_args(argv)


def write_meshes(loaded: LoadedGenerator, field: Field, stem: Path, args: argparse.Namespace) -> dict[str, tuple[Path, int]]:
    """Write the .glb files to compare; return path and number of faces by name. Raises UserError if there is no surface."""
    curriculum, device = loaded.curriculum, loaded.generator.device
    settings = MeshSettings(level=curriculum.tau, clip_radius=visible_radius(curriculum))
    voxels = np.empty((args.voxel_resolution,) * 3, dtype=np.float32)
    fill_occupancy_near_surface(voxels, field, curriculum, settings.cube_size, settings.level, device)
    mesh = extract_mesh(voxels, settings)
    if mesh is None:
        raise UserError(f"seed {stem.name} has no surface; choose other --seeds")
    refine_vertices(mesh, field, curriculum, settings, args.voxel_resolution, device)
    spacing = settings.cube_size / (args.voxel_resolution - 1)
    coarse = decimate(mesh, args.faces, field, curriculum, settings, spacing, device)
    written = {}
    for name, colored in (("all faces, vertex colors", mesh), (f"{args.faces} faces, vertex colors", coarse)):
        colored.visual.vertex_colors = vertex_colors(colored, field, curriculum, device)
        (path,) = save_mesh(colored, stem.with_name(f"{stem.name}_{len(colored.faces)}"), (".glb",))
        written[name] = path, len(colored.faces)
    textured = texture_mesh(coarse, args.texture, field, curriculum, settings, spacing, device)
    (path,) = save_textured_mesh(textured, stem.with_name(f"{stem.name}_texture"))
    return written | {f"{args.faces} faces, texture": (path, len(coarse.faces))}


def surface_image(loaded: LoadedGenerator, field: Field, pose: TrajectoryPose, size: int) -> Tensor:
    """Render (3, size, size) in [-1, 1]: the field's color where a pixel's ray enters the surface, black elsewhere."""
    settings = ViewSettings(image_size=size, fov_degrees=pose.fov_degrees)
    camera = make_pose(pose.yaw, pose.pitch, loaded.generator.device)
    view = render_view(field, camera, loaded.curriculum, settings)
    return torch.where(view.hit_mask, view.surface_image, -1.0)


def draw_unlit(path: Path, pose: TrajectoryPose, size: int) -> Tensor:
    """Render a .glb file's colors on black, through the pixel centers of :func:`surface_image`: (3, size, size) in [-1, 1].

    The rays of generators/cameras.py go through the image's corners, OpenGL's through the middles of its corner pixels: the
    field of view is widened by half a pixel at each side.
    """
    import pyrender

    half_angle = math.tan(math.radians(pose.fov_degrees) / 2) * size / (size - 1)
    scene = pyrender.Scene(bg_color=[0.0, 0.0, 0.0, 1.0])
    scene.add(pyrender.Mesh([read_primitive(path)]))
    scene.add(
        pyrender.PerspectiveCamera(yfov=2 * math.atan(half_angle), znear=0.01, zfar=10.0), pose=pose_matrix(pose.yaw, pose.pitch)
    )
    renderer = pyrender.OffscreenRenderer(size * SAMPLES, size * SAMPLES)
    try:
        image = renderer.render(scene, flags=pyrender.RenderFlags.FLAT | pyrender.RenderFlags.SKIP_CULL_FACES)[0]
    finally:
        renderer.delete()
    return from_uint8(image[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES].copy())


def read_primitive(path: Path):
    """Return pyrender's primitive for the mesh of a .glb file, read by trimesh. The flat shader outputs sRGB values unchanged."""
    import pyrender
    import trimesh

    (mesh,) = trimesh.load(path, process=False).geometry.values()
    positions, indices = np.asarray(mesh.vertices, dtype=np.float32), np.asarray(mesh.faces, dtype=np.uint32)
    image = mesh.visual.material.baseColorTexture
    if image is None:
        linear = np.asarray(mesh.visual.vertex_attributes["color"], dtype=np.float64) / 65535
        return pyrender.Primitive(positions=positions, indices=indices, color_0=linear_to_srgb(linear).astype(np.float32))
    texture = pyrender.Texture(source=np.array(image.convert("RGB")), source_channels="RGB")
    material = pyrender.MetallicRoughnessMaterial(baseColorTexture=texture, doubleSided=True)
    uv = np.asarray(mesh.visual.uv, dtype=np.float32)
    return pyrender.Primitive(positions=positions, indices=indices, texcoord_0=uv, material=material)


def summary(squared_errors: Sequence[Sequence[float]], num_faces: Sequence[int]) -> dict[str, object]:
    """Return the PSNR of the mean squared error (colors in [0, 1]) over all views, for each seed, and of the worst view."""
    errors = np.array(squared_errors)
    return {
        "psnr_db": psnr_db(errors.mean(), peak=1),
        "psnr_db_by_seed": [psnr_db(error, peak=1) for error in errors.mean(axis=1)],
        "psnr_db_lowest_view": psnr_db(errors.max(), peak=1),
        "num_faces": list(num_faces),
    }


if __name__ == "__main__":
    run_script(main)
