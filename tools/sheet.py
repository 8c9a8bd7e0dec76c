"""Write a sheet of random images of one or more generators, one below the other.

Generators with the same latent size share latents, and generators with the same camera prior share poses.

    python -m tools.sheet cats --output cats.png --num 48
    python -m tools.sheet outputs/a/generator.safetensors heads --output both.png --dataset_path photos/

Latents and poses are sampled as in eval_metrics.py (random latents, poses of the camera prior, psi 1), so the images are the
ones that are scored, without selection. --dataset_path adds as many real images below.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from common.arguments import ArgumentParser, add_device_argument, finite_float, int_between, resolve_device, seed_number
from common.errors import UserError
from common.program import run_script
from dataset import spec_over
from metrics.sampling import generated_images, real_images
from visualization.generator_scripts import load_with_notes
from visualization.images import WHITE, image_grid, save_image

PADDING = 2  # px, between images
GROUP_PADDING = 10  # px, between groups


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("generators", nargs="+", help="generator files, or names of pretrained generators")
    parser.add_argument("--output", required=True, help="output file, .png")
    parser.add_argument("--num", type=int_between(1, 4096), default=48, help="images per generator")
    parser.add_argument("--columns", type=int_between(1, 256), default=16, help="images per row")
    parser.add_argument("--image_size", type=int_between(4, 1024), default=64, help="pixels")
    parser.add_argument("--psi", type=finite_float, default=1.0, help="truncation")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--curriculum", help="name or .json file; required if the files do not contain their settings")
    parser.add_argument("--dataset_path", help="real images to add below")
    parser.add_argument("--dataset", help="crop of the real images: a preset of dataset.py (default: the first generator's)")
    add_device_argument(parser)
    return parser.parse_args(argv)


def sheet(groups: Sequence[Tensor], columns: int) -> Tensor:
    """Arrange groups of images, (N, 3, H, W) uint8 each, in rows of ``columns``, with wider gaps between the groups.

    Returns:
        (3, height, width) in [-1, 1].
    """
    grids = []
    for group in groups:
        images = list(group.float() / 127.5 - 1)
        grids.append(image_grid([images[i : i + columns] for i in range(0, len(images), columns)], PADDING))
    width = max(grid.shape[2] for grid in grids)
    padded = [pad(grid, (0, width - grid.shape[2], 0, GROUP_PADDING), value=WHITE) for grid in grids]
    return torch.cat(padded, dim=1)[:, :-GROUP_PADDING]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    output = Path(args.output)
    if output.suffix != ".png":
        raise UserError(f"--output {output}: must end in .png")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist; create it first")
    device = resolve_device(args.device)
    opened = [load_with_notes(path, args.curriculum, device) for path in args.generators]
    real = []
    if args.dataset_path:  # read first, since rendering takes longer
        preset = args.dataset or opened[0].curriculum.dataset
        spec = spec_over(preset, opened[0].curriculum)
        real = [real_images(args.dataset_path, spec, args.num, args.image_size, args.seed)]
    groups = [generated_images(g, args.num, args.image_size, psi=args.psi, seed=args.seed, batch_size=16) for g in opened]
    save_image(output, sheet([*groups, *real], args.columns))
    below = f"; {len(real[0])} real images below" if real else ""
    print(f"wrote {output}: {args.num} images of each of {', '.join(map(str, args.generators))}{below}")


if __name__ == "__main__":
    run_script(main)
