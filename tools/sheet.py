"""A sheet of random images, of one generator or of several one above the other.

With the same latents where these are of one size, and the same poses where the camera prior is the same.

    python -m tools.sheet cats --output cats.png --num 48
    python -m tools.sheet outputs/a/generator.safetensors heads --output both.png --dataset_path photos/

They are drawn as eval_metrics.py draws them (random latents, poses of the camera prior, psi 1), so this is what a score is about,
not a selection. --dataset_path adds as many real ones below.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.arguments import ArgumentParser, add_device_argument, finite_float, int_between, resolve_device, seed_number
from common.errors import UserError
from common.program import run_script
from dataset import spec_over
from metrics.sampling import generated_images, real_images
from visualization.generator_scripts import load_with_notes
from visualization.images import image_grid, save_image

PADDING = 2  # px


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("generators", nargs="+", help="files, or names of shipped ones")
    parser.add_argument("--output", required=True, help="the image, .png")
    parser.add_argument("--num", type=int_between(1, 4096), default=48, help="images of each")
    parser.add_argument("--columns", type=int_between(1, 256), default=16)
    parser.add_argument("--image_size", type=int_between(4, 1024), default=64, help="pixels")
    parser.add_argument("--psi", type=finite_float, default=1.0, help="truncation")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--curriculum", help="name or .json file; needed where files do not carry their own settings")
    parser.add_argument("--dataset_path", help="real images to set below")
    parser.add_argument("--dataset", help="how these are cropped: a preset of dataset.py (default: the first generator's)")
    add_device_argument(parser)
    return parser.parse_args(argv)


def sheet(groups: Sequence[Tensor], columns: int) -> Tensor:
    """``groups`` of images, (N, 3, H, W) uint8 each, in rows of ``columns``; returns (3, height, width) in [-1, 1]."""
    images = [list(group.float() / 127.5 - 1) for group in groups]
    return image_grid([group[i : i + columns] for group in images for i in range(0, len(group), columns)], PADDING)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    output = Path(args.output)
    if output.suffix != ".png":
        raise UserError(f"--output {output}: name a .png")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    device = resolve_device(args.device)
    opened = [load_with_notes(path, args.curriculum, device) for path in args.generators]
    real = []
    if args.dataset_path:  # looked at first: rendering takes longer
        preset = args.dataset or opened[0].curriculum.dataset
        spec = spec_over(preset, opened[0].curriculum)
        real = [real_images(args.dataset_path, spec, args.num, args.image_size, args.seed)]
    groups = [generated_images(g, args.num, args.image_size, psi=args.psi, seed=args.seed, batch_size=16) for g in opened]
    save_image(output, sheet([*groups, *real], args.columns))
    below = f"; below, {len(real[0])} real ones" if real else ""
    print(f"wrote {output}: {args.num} images of each of {', '.join(map(str, args.generators))}{below}")


if __name__ == "__main__":
    run_script(main)
