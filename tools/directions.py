"""Compute principal directions of a generator's styles, and render and measure their effects.

    python -m tools.directions heads --output_dir directions
    python render_video.py heads --seed 3 --direction directions/heads_directions.safetensors:0:1.5

These are the directions of the largest variance of the styles of 10,000 latents (GANSpace, section 3). Writes
``NAME_directions.safetensors``, which render scripts take as --direction FILE:K:AMOUNT; ``NAME_direction_K.png`` for each
direction, with the mean latent moved by -2 to 2 standard deviations, images above normals; and ``NAME_directions.json`` with
the changes between -1 and 1 standard deviations, seen from the mean pose:
- shape: root mean square change of the surface's depth, world units, over pixels that show a surface in both;
- color: root mean square change of the field's color, in [0, 1], at the points of the mean latent's surface;
- share of each: its square divided by the sum of squares over all directions measured.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.latents import Directions, GeneratorName, save_directions
from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, add_device_argument, image_side, int_between, resolve_device
from common.errors import UserError
from common.files import make_output_dir, write_json
from common.program import run_script
from fields.interface import Field
from generators.cameras import CameraPoses, camera_rays
from generators.pose_prior import mean_poses
from generators.renderer import RenderSettings, ray_points, render
from generators.styles import StyleDistribution, style_distribution
from generators.views import View, ViewSettings, render_view
from visualization.generator_scripts import load_with_notes
from visualization.images import image_grid, save_image, view_image

AMOUNTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
MEASURE_SIZE = 64  # pixels


class Movement(NamedTuple):
    """Changes along a direction between -1 and 1 standard deviations; see the module's docstring."""

    shape: float
    color: float


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", metavar="PATH", help="a generator file, or the name of a pretrained generator")
    parser.add_argument("--curriculum", help="name or .json file; required if the file does not contain its settings")
    parser.add_argument("--output_dir", default="directions", help="output folder; created if missing")
    parser.add_argument("--num_directions", type=int_between(1, 512), default=8, help="number of directions")
    parser.add_argument("--image_size", type=image_side, default=128, help="side of an image in pixels")
    add_device_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    loaded = load_with_notes(args.path, args.curriculum, resolve_device(args.device))
    if not loaded.curriculum.pred_occ:
        raise UserError(f"{args.path} is a radiance field without a surface, by which directions are measured")
    output_dir = make_output_dir(args.output_dir)
    name = GeneratorName.of(loaded.generator, args.path)
    distribution = style_distribution(loaded.generator)
    num = min(args.num_directions, len(distribution.sigma))
    pose = mean_poses(loaded.curriculum, 1, distribution.mean.device)
    movements = []
    for k in tqdm(range(num), unit="direction"):
        movements.append(measure(loaded, distribution, k, pose))
        save_image(output_dir / f"{name.name}_direction_{k}.png", sheet(loaded, distribution, k, pose, args.image_size))
    report = report_of(distribution, movements)
    parts = (distribution.directions[:num], distribution.sigma[:num], distribution.mean)
    path = output_dir / f"{name.name}_directions.safetensors"
    save_directions(path, Directions(*parts, name), report)
    write_json(path.with_suffix(".json"), report)
    print(f"{table(report)}\nwrote {path} and {num} sheets")


def field_at(loaded: LoadedGenerator, distribution: StyleDistribution, k: int, amount: float) -> Field:
    """Return the field of the mean latent moved along direction ``k`` by ``amount`` standard deviations."""
    coordinates = torch.zeros(1, len(distribution.sigma), device=distribution.mean.device)
    coordinates[0, k] = amount
    with torch.no_grad():
        return loaded.generator.field(distribution.styles(coordinates))


@torch.no_grad()
def measure(loaded: LoadedGenerator, distribution: StyleDistribution, k: int, pose: CameraPoses) -> Movement:
    """Measure the changes along direction ``k``. Raises UserError if the mean latent has no surface."""
    rays = camera_rays(pose, MEASURE_SIZE, loaded.curriculum.fov)
    settings = RenderSettings.from_curriculum(loaded.curriculum)
    mean, low, high = (field_at(loaded, distribution, k, amount) for amount in (0.0, -1.0, 1.0))
    at_mean, at_low, at_high = (render(field, rays, settings).surface for field in (mean, low, high))
    if not at_mean.hit_mask.any():
        raise UserError("the mean latent has no surface, so nothing can be measured; use a trained generator")
    both = at_low.hit_mask & at_high.hit_mask
    shape = _rms((at_high.t - at_low.t)[both])
    points = ray_points(rays, at_mean.t.unsqueeze(-1))[:, at_mean.hit_mask[0]]
    directions = rays.directions[:, at_mean.hit_mask[0]]
    colors = [field.logits_and_colors(points, directions)[1] for field in (low, high)]
    return Movement(shape, _rms(colors[1] - colors[0]))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def sheet(loaded: LoadedGenerator, distribution: StyleDistribution, k: int, pose: CameraPoses, image_size: int) -> Tensor:
    """Render a sheet (3, H, W) in [-1, 1]: a column per amount, images above normals."""
    settings = ViewSettings(image_size=image_size)
    fields = [field_at(loaded, distribution, k, amount) for amount in AMOUNTS]
    views: list[View] = [render_view(field, pose, loaded.curriculum, settings) for field in fields]
    depth_range = loaded.curriculum.ray_start, loaded.curriculum.ray_end
    return image_grid([[view_image(view, quantity, *depth_range) for view in views] for quantity in ("image", "normals")])


def report_of(distribution: StyleDistribution, movements: Sequence[Movement]) -> list[dict[str, Any]]:
    """Return one entry per direction, with its share of the styles' variance."""
    variances = distribution.sigma.square()
    totals = Movement(*(max(sum(value**2 for value in column), 1e-30) for column in zip(*movements, strict=True)))
    return [
        {
            "direction": k,
            "variance_share": float(variances[k] / variances.sum()),
            "shape_rms_depth": moved.shape,
            "color_rms": moved.color,
            "shape_share": moved.shape**2 / totals.shape,
            "color_share": moved.color**2 / totals.color,
        }
        for k, moved in enumerate(movements)
    ]


def table(report: Sequence[dict[str, Any]]) -> str:
    lines = ["direction  variance   depth, rms   share   color, rms   share"]
    for entry in report:
        shape = f"{entry['shape_rms_depth']:11.5f}  {entry['shape_share']:6.1%}"
        color = f"{entry['color_rms']:11.4f}  {entry['color_share']:6.1%}"
        lines.append(f"{entry['direction']:9d}  {entry['variance_share']:8.1%}  {shape}  {color}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
