"""Extract shapes of seeds, or of latents of invert.py (--latent): an occupancy grid, and a colored mesh of the surface.

    python extract_shapes.py pretrained/heads.safetensors --seeds 0 1 2 3

Writes for each seed, with N the voxel resolution:
- ``{seed}_{N}_voxel.npy``: float32 occupancy in [0, 1], index [ix, iy, iz], coordinate -cube_size/2 + i cube_size/(N-1).
- ``{seed}_{N}.ply``, ``.glb`` (and ``.obj`` with --obj): the surface in world coordinates with vertex colors.
  With --texture, .glb (and .obj, with its .mtl and _texture.png) has a texture of the field's colors instead.
- ``{seed}_{N}.json``: the mesh settings, for render_meshimg.py.
The field is queried only at voxels near the surface; the other values are interpolated (--dense queries all voxels). The mesh
is clipped to the ball that the training cameras sampled (--no_clip keeps the rest). The voxels are not clipped.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from common.arguments import ArgumentParser, int_between, positive_float, resolve_device, seed_number
from common.errors import UserError
from common.files import atomic_file
from common.program import run_script
from fields.interface import Field
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from visualization.generator_scripts import (
    add_generator_arguments,
    add_latent_arguments,
    bind_field,
    given_seeds,
    open_generator,
    open_subjects,
)
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy,
    fill_occupancy_near_surface,
    refine_vertices,
    save_mesh,
    vertex_colors,
    visible_radius,
)
from visualization.textures import DEFAULT_FACES, decimate, save_textured_mesh, texture_mesh

if TYPE_CHECKING:
    from trimesh import Trimesh

MESH_ENDINGS = (".ply", ".glb", ".obj", ".mtl", "_texture.png", "_normals.png")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    loaded, output_dir = open_generator(args, fallback=CURRICULUMS["CelebA"])
    device = loaded.generator.device
    args.level = loaded.curriculum.tau if args.level is None else args.level
    clip_radius = None if args.no_clip or not loaded.is_camera_known else visible_radius(loaded.curriculum)
    if loaded.is_camera_known:
        note_cut(args.cube_size, visible_radius(loaded.curriculum))
    else:
        print("note: the mesh is not clipped, because the training cameras are unknown; add --curriculum NAME", file=sys.stderr)
    settings = MeshSettings(args.cube_size, args.level, clip_radius, args.largest_piece)
    if not settings.are_possible():
        raise UserError("--cube_size or --level is too small or too large for a mesh; choose another value")

    seeds = given_seeds(args, args.seeds, [0, 1, 2, 3])
    subjects = open_subjects(loaded, args.path, seeds, args.psi, args.latent, args.direction)
    labels, num_meshes = [], 0
    for make_subject in subjects:
        subject = make_subject()
        label, field = subject.label, bind_field(loaded, subject)
        shown = f"seed {label}" if label.isdecimal() else label
        labels.append(label)
        stem = output_dir / f"{label}_{args.voxel_resolution}"
        voxels = write_voxels(stem.with_name(f"{stem.name}_voxel.npy"), field, loaded.curriculum, args, device)
        settings.save(stem.with_name(f"{stem.name}.json"))
        mesh = extract_mesh(voxels, settings)
        if mesh is None:
            remove_others(stem, [])
            print(f"{shown}: no surface at level {args.level} inside the cube; only the voxels were written", file=sys.stderr)
            continue
        refine_vertices(mesh, field, loaded.curriculum, settings, args.voxel_resolution, device)
        mesh, paths = write_meshes(mesh, stem, field, loaded.curriculum, settings, args)
        remove_others(stem, paths)
        num_meshes += 1
        print(f"{shown}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces: {', '.join(map(str, paths))}")
    if num_meshes == 0:
        what = "seed or latent" if args.latent else "seed"
        raise UserError(f"no {what} of {' '.join(labels)} has a surface at --level {args.level}; is the generator trained?")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="shapes")
    parser.add_argument("--seeds", type=seed_number, nargs="+", help="seeds, one shape each (default: 0 1 2 3)")
    add_latent_arguments(parser)
    parser.add_argument("--cube_size", type=positive_float, default=0.3, help="side of the cube around the origin")
    parser.add_argument("--voxel_resolution", type=int_between(2, 4096), default=256, help="voxels along a side, at least 2")
    parser.add_argument(
        "--level", type=positive_float, help="occupancy at the surface, between 0 and 1 (default: the curriculum's tau)"
    )
    parser.add_argument("--largest_piece", action="store_true", help="keep only the largest connected piece of the mesh")
    parser.add_argument("--no_clip", action="store_true", help="keep parts of the mesh that no training camera sampled")
    parser.add_argument("--dense", action="store_true", help="query the field at every voxel, not only near the surface")
    parser.add_argument("--obj", action="store_true", help="also write the mesh as .obj")
    parser.add_argument(
        "--faces",
        type=int_between(16, 1 << 30),
        help=f"decimate the mesh to this number of faces (default: {DEFAULT_FACES} with --texture, else all)",
    )
    parser.add_argument(
        "--texture",
        type=int_between(16, 16384),
        metavar="SIDE",
        help="bake the field's colors into a texture of SIDE x SIDE texels",
    )
    parser.add_argument(
        "--normal_map", action="store_true", help="with --texture: also bake a normal map; the mesh is then lit instead of unlit"
    )
    args = parser.parse_args(argv)
    if args.normal_map and args.texture is None:
        parser.error("--normal_map needs --texture, which creates the charts for it")
    if args.texture is not None and args.faces is None:
        args.faces = DEFAULT_FACES
    if args.level is not None and args.level >= 1:
        parser.error("--level must lie between 0 and 1")
    return args


def write_meshes(
    mesh: Trimesh, stem: Path, field: Field, curriculum: Curriculum, settings: MeshSettings, args: argparse.Namespace
) -> tuple[Trimesh, list[Path]]:
    """Decimate, color and texture the mesh according to the arguments, and write it. Returns the mesh and the files written."""
    spacing = settings.cube_size / (args.voxel_resolution - 1)
    device = resolve_device(args.device)
    if args.faces is not None:
        mesh = decimate(mesh, args.faces, field, curriculum, settings, spacing, device)
    mesh.visual.vertex_colors = vertex_colors(mesh, field, curriculum, device)
    others = (".glb", ".obj") if args.obj else (".glb",)
    if args.texture is None:
        return mesh, save_mesh(mesh, stem, (".ply", *others))
    textured = texture_mesh(mesh, args.texture, field, curriculum, settings, spacing, device, args.normal_map)
    return mesh, [*save_mesh(mesh, stem, (".ply",)), *save_textured_mesh(textured, stem, others)]


def remove_others(stem: Path, written: Sequence[Path]) -> None:
    """Remove meshes and textures of earlier commands, which could be mistaken for those of this one."""
    for ending in MESH_ENDINGS:
        path = stem.with_name(stem.name + ending)
        if path not in written:
            path.unlink(missing_ok=True)


def note_cut(cube_size: float, radius: float) -> None:
    """Print a note on stderr if the cube may cut off a shape. ``radius``: of the ball that the cameras see, world units."""
    if cube_size / 2 < radius:
        print(
            f"note: the cube ends at {cube_size / 2:g} from the origin, but cameras see up to {radius:.3f}, so a shape may be"
            f" cut off; --cube_size {math.ceil(200 * radius) / 100:g} contains all of it",
            file=sys.stderr,
        )


def write_voxels(path: Path, field: Field, curriculum: Curriculum, args: argparse.Namespace, device: torch.device) -> np.ndarray:
    """Write the voxel file through a memory map, so that 512^3 voxels need no memory, and rename it when it is complete."""
    resolution = args.voxel_resolution
    free = shutil.disk_usage(path.parent).free
    if 4 * resolution**3 > free:  # writing to a mapped file on a full disk ends the process
        raise UserError(f"{path} needs {4 * resolution**3} bytes, but the disk has {free} left; use a lower --voxel_resolution")
    try:
        with (
            atomic_file(path, sync=False) as file,
            tqdm(total=resolution**3, desc=path.stem, unit="point", unit_scale=True) as progress,
        ):
            voxels = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.float32, shape=(resolution,) * 3)
            if args.dense:
                fill_occupancy(voxels, field, curriculum, args.cube_size, device, progress.update)
                num_queried = resolution**3
            else:
                num_queried = fill_occupancy_near_surface(
                    voxels, field, curriculum, args.cube_size, args.level, device, progress.update
                )
            voxels.flush()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"{path.name}: queried {num_queried} of {resolution**3} points ({num_queried / resolution**3:.1%})")
    return voxels


if __name__ == "__main__":
    run_script(main)
