"""Render the shapes that extract_shapes.py extracted: the surface of each voxel file from five viewpoints.

    python render_meshimg.py --input_dir shapes

For each ``{stem}_voxel.npy``, write ``{stem}_mesh.ply`` (the surface), ``{stem}_{i}.png`` for view i (yaw -0.5, -0.25, 0,
0.25, 0.5 rad from the front) and ``{stem}_views.png``, all views in a row. The surface is ``{stem}.ply`` next to the voxels
if it exists; otherwise, as for voxels of the published code, it is extracted from the voxels.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import ArgumentParser, image_side, positive_float
from common.errors import UserError
from common.files import make_output_dir
from common.output_folders import claim_folder, read_claim
from common.program import run_script
from visualization.images import from_uint8, image_grid, save_image
from visualization.mesh_rendering import RENDERERS, MeshRenderer, open_renderer, pose_matrix
from visualization.meshes import MeshSettings, extract_mesh, load_mesh, load_voxels, save_mesh, without_colors
from visualization.trajectories import MULTIVIEW_YAWS

if TYPE_CHECKING:
    from trimesh import Trimesh

SUFFIX = "_voxel.npy"
MAX_NAMED = 5


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    paths = find_voxel_files(args)
    output_dir = make_output_dir(args.output_dir)
    renderer = open_renderer(args.renderer)
    print(f"rendering with {renderer.name}")
    num_rendered, failures = 0, {}
    for path in paths:
        try:
            num_rendered += render_file(path, output_dir, renderer, args)
        except UserError as error:  # continue with the other files
            failures[path] = error
            print(f"{path}: skipped: {error}", file=sys.stderr)
    if failures:
        named = ", ".join(map(str, list(failures)[:MAX_NAMED])) + (", ..." if len(failures) > MAX_NAMED else "")
        first = next(iter(failures.values()))
        raise UserError(
            f"{len(failures)} of {len(paths)} voxel files failed ({named}); {num_rendered} are rendered; first: {first}"
        )
    if num_rendered == 0:
        raise UserError(f"none of the {len(paths)} voxel files has a surface; is the generator trained?")


def render_file(path: Path, output_dir: Path, renderer: MeshRenderer, args: argparse.Namespace) -> bool:
    """Write the mesh and images of one voxel file. Return False if it has no surface. Raises UserError."""
    stem = path.name.removesuffix(SUFFIX).removesuffix(".npy")
    mesh = mesh_of(path, stem, args)
    if mesh is None:
        print(f"{path}: no surface inside the cube; no image", file=sys.stderr)
        return False
    claim = read_claim(path.parent)
    if claim is not None:
        claim_folder(output_dir, claim["generator"], claim["sha256"])
    save_mesh(mesh, output_dir / f"{stem}_mesh", (".ply",))
    poses = [pose_matrix(pi / 2 + offset, pi / 2) for offset in MULTIVIEW_YAWS]
    images = [from_uint8(renderer.render(mesh, pose, args.fov, args.image_size)) for pose in poses]
    for i, image in enumerate(images):
        save_image(output_dir / f"{stem}_{i}.png", image)
    save_image(output_dir / f"{stem}_views.png", image_grid([images], padding=0))
    print(f"{path}: {len(images)} images in {output_dir}")
    return True


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", metavar="VOXELS", nargs="*", help="voxel files (default: all in --input_dir)")
    parser.add_argument("--input_dir", default="shapes", help="the folder that extract_shapes.py wrote")
    parser.add_argument("--output_dir", default="mesh_images", help="output folder; created if missing")
    parser.add_argument("--cube_size", type=positive_float, help="side of the voxels' cube (default: as recorded, or 0.3)")
    parser.add_argument("--level", type=positive_float, help="occupancy at the surface (default: as recorded, or 0.5)")
    parser.add_argument("--clip_radius", type=positive_float, help="free beyond this distance (default: as recorded, or none)")
    parser.add_argument("--largest_piece", action="store_true", help="keep only the largest connected piece")
    parser.add_argument("--mesh_colors", action="store_true", help="render the colored .ply next to the voxels")
    parser.add_argument("--image_size", type=image_side, default=512, help="side of an image in pixels")
    parser.add_argument("--fov", type=positive_float, default=12.0, help="field of view in degrees")
    parser.add_argument("--renderer", choices=RENDERERS, default="auto", help="auto: pyrender, or ray casting without GL")
    args = parser.parse_args(argv)
    if args.fov >= 180:
        parser.error("--fov must be below 180 degrees")
    if args.level is not None and args.level >= 1:
        parser.error("--level must be between 0 and 1")
    return args


def find_voxel_files(args: argparse.Namespace) -> list[Path]:
    """Return the voxel files given as arguments, or those in the input folder. Raises UserError if there are none."""
    if args.paths:
        return [Path(path) for path in args.paths]
    paths = sorted(Path(args.input_dir).glob(f"*{SUFFIX}"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise UserError(f"no voxel files (*{SUFFIX}) in {args.input_dir}; run extract_shapes.py first, or pass the files")
    return paths


def mesh_of(path: Path, stem: str, args: argparse.Namespace) -> Trimesh | None:
    """Return the surface of the voxels, gray unless --mesh_colors; None if there is none.

    The .ply that extract_shapes.py extracted from the same voxels is a refined version of the surface: its vertices were
    moved onto the field's surface. It is used unless an argument requests a different surface.
    """
    voxels = load_voxels(path)
    beside = path.with_name(f"{stem}.ply")
    overrides = {name: getattr(args, name) for name in ("cube_size", "level", "clip_radius") if getattr(args, name) is not None}
    is_current = beside.is_file() and beside.stat().st_mtime >= path.stat().st_mtime
    if args.mesh_colors or (is_current and not overrides and not args.largest_piece):
        mesh = load_mesh(beside)
        return mesh if args.mesh_colors else without_colors(mesh)
    recorded = path.with_name(f"{stem}.json")
    settings = MeshSettings.load(recorded) if recorded.is_file() else MeshSettings()
    settings = replace(settings, **overrides, largest_piece=args.largest_piece or settings.largest_piece)
    if not settings.are_possible():
        raise UserError("--cube_size, --level or --clip_radius is too small or too large for a mesh")
    return extract_mesh(voxels, settings)


if __name__ == "__main__":
    run_script(main)
