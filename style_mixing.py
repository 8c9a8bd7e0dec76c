"""Combine the geometry of one latent with the appearance of another, in grids of images and normals.

    python style_mixing.py heads --rows 0 1 2 3 --columns 4 5 6 7
    python style_mixing.py cats --row_latents inverted/photo_latent.safetensors --columns 4 5 6

Each row has one geometry and each column one appearance: the styles of the first layers come from the row, those of the other
layers from the column. --split is the number of layers from the row; the default is half. For a SIREN, taking all but the color
layer from the row leaves the surface bit-identical, but changes the appearance little. The top row and the left column show the
latents themselves. Writes ``mix_image.png`` and ``mix_normals.png``.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, image_side, positive_int, seed_number
from common.errors import UserError
from common.program import run_script
from generators.generator import Styles
from generators.pose_prior import mean_poses
from generators.styles import geometry_layers, num_style_layers
from generators.views import View, ViewSettings, render_view
from visualization.generator_scripts import (
    Subject,
    add_generator_arguments,
    bind_field,
    mix_subjects,
    open_generator,
    open_subjects,
)
from visualization.images import image_grid, save_image, view_image

QUANTITIES = ("image", "normals")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="mixed")
    parser.add_argument("--rows", type=seed_number, nargs="+", default=[], help="seeds of the geometry")
    parser.add_argument("--columns", type=seed_number, nargs="+", default=[], help="seeds of the appearance")
    parser.add_argument("--row_latents", nargs="+", default=[], metavar="FILE", help="latent files of invert.py, as more rows")
    parser.add_argument(
        "--column_latents", nargs="+", default=[], metavar="FILE", help="latent files of invert.py, as more columns"
    )
    parser.add_argument("--split", type=positive_int, help="number of layers from the row (default: half)")
    parser.add_argument("--image_size", type=image_side, default=128, help="side of an image in pixels")
    args = parser.parse_args(argv)
    if not (args.rows or args.row_latents) or not (args.columns or args.column_latents):
        parser.error("specify at least one seed or latent for the rows and one for the columns")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    loaded, output_dir = open_generator(args)
    rows = [make() for make in open_subjects(loaded, args.path, args.rows, args.psi, args.row_latents)]
    columns = [make() for make in open_subjects(loaded, args.path, args.columns, args.psi, args.column_latents)]
    split = _split_of(args.split, rows[0].styles, loaded)
    views = [[None, *(_view(loaded, column, args.image_size) for column in columns)]]
    for row in tqdm(rows, unit="row"):
        mixed = [_view(loaded, mix_subjects(loaded, row, column, split), args.image_size) for column in columns]
        views.append([_view(loaded, row, args.image_size), *mixed])
    for quantity in QUANTITIES:
        save_image(output_dir / f"mix_{quantity}.png", _grid(views, quantity, loaded, args.image_size))
    print(f"wrote {len(rows)} geometries with {len(columns)} appearances, {split} layers from the rows, to {output_dir}")


def _split_of(chosen: int | None, styles: Styles, loaded: LoadedGenerator) -> int:
    """Return the number of layers from the row. Raises UserError if the network does not have more layers than that."""
    if chosen is None:
        return geometry_layers(styles, loaded.curriculum)
    num_layers = num_style_layers(styles, loaded.curriculum)
    if chosen >= num_layers:
        raise UserError(f"--split {chosen}: this generator has {num_layers} layers, so use 1 to {num_layers - 1}")
    return chosen


def _view(loaded: LoadedGenerator, subject: Subject, image_size: int) -> View:
    """Render a latent from the mean pose."""
    curriculum = loaded.curriculum
    pose = mean_poses(curriculum, 1, loaded.generator.device)
    return render_view(bind_field(loaded, subject), pose, curriculum, ViewSettings(image_size=image_size))


def _grid(views: Sequence[Sequence[View | None]], quantity: str, loaded: LoadedGenerator, image_size: int) -> Tensor:
    """Assemble a grid (3, H, W) in [-1, 1], white where a view is None."""
    depth_range = loaded.curriculum.ray_start, loaded.curriculum.ray_end
    blank = torch.ones(3, image_size, image_size)
    return image_grid([[blank if view is None else view_image(view, quantity, *depth_range) for view in row] for row in views])


if __name__ == "__main__":
    run_script(main)
