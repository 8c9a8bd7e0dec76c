"""Compose the README's images from the output of docs/make_images.sh: NAME.png, NAME.webp, NAME_between.webp."""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from pathlib import Path

import numpy as np
from PIL import Image

from common.arguments import ArgumentParser, seed_number
from common.program import run_script
from visualization.images import from_uint8, image_grid, to_uint8

IMAGE_VIEWS, OTHER_VIEWS = (0, 1, 2, 3, 4), (0, 2, 4)
MILLISECONDS = 50  # per frame


def read(path: Path):
    with Image.open(path) as image:
        return from_uint8(np.asarray(image.convert("RGB")))


def animate(output: str, folders: list[list[Path]]) -> None:
    """Write an animation of a grid. ``folders``: rows of folders with frames 000.png, 001.png, ..."""
    frames = []
    for i in range(len(list(folders[0][0].glob("*.png")))):
        rows = [[read(folder / f"{i:03d}.png") for folder in row] for row in folders]
        frames.append(Image.fromarray(to_uint8(image_grid(rows))))
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, quality=70, method=6)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("work_dir", type=Path, help="folder that contains imgs/, vids/ and meshes/")
    parser.add_argument("output", help="path of the output files without a suffix, such as docs/NAME")
    parser.add_argument("--seeds", type=seed_number, nargs="+", required=True)
    args = parser.parse_args()
    work, rows = args.work_dir, []
    for seed in args.seeds:
        row = [read(work / "imgs" / f"image_{seed}_{i}.png") for i in IMAGE_VIEWS]
        row += [read(work / "imgs" / f"normals_{seed}_{i}.png") for i in OTHER_VIEWS]
        row += [read(next((work / "meshes").glob(f"{seed}_*_{i}.png"))) for i in OTHER_VIEWS]
        rows.append(row)
    Image.fromarray(to_uint8(image_grid(rows))).save(f"{args.output}.png", optimize=True)

    vids = work / "vids"
    turning = [[vids / f"{seed}{suffix}_frames" for seed in args.seeds] for suffix in ("", "_normals")]
    animate(f"{args.output}.webp", turning)
    walk = f"interpolation_{'_'.join(map(str, args.seeds))}_ellipse"
    animate(f"{args.output}_between.webp", [[vids / f"{walk}_frames", vids / f"{walk}_normals_frames"]])
    print(f"wrote {args.output}.png, {args.output}.webp and {args.output}_between.webp")


if __name__ == "__main__":
    run_script(main)
