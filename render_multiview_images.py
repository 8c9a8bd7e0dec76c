"""Images of seeds from five sides: image, depth, surface depth, mask, normals, surface image, and a grid of all.

    python render_multiview_images.py pretrained/heads.safetensors --seeds_start 0 --seeds_end 4

Writes ``{quantity}_{seed}_{i}.png`` with i the view's number (yaw -0.5, -0.25, 0, 0.25, 0.5 rad from the mean pose) and
``grid_{seed}.png``: a row per quantity, a column per view. How quantities are colored stands in visualization/images.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from common.arguments import ArgumentParser, seed_number, seed_range
from common.program import run_script
from visualization.generator_scripts import (
    add_generator_arguments,
    add_view_arguments,
    field_from_seed,
    open_generator,
    render_pose,
    report_preview,
    save_raw,
    share_between_views,
)
from visualization.images import QUANTITIES, image_grid, save_image, view_image
from visualization.trajectories import multiview


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="imgs")
    parser.add_argument("--seeds_start", type=seed_number, default=0, help="the first seed")
    parser.add_argument("--seeds_end", type=seed_number, default=100, help="one past the last seed")
    add_view_arguments(parser)
    args = parser.parse_args(argv)
    seeds = seed_range(args.seeds_start, args.seeds_end)
    loaded, output_dir = open_generator(args)
    depth_range = loaded.curriculum.ray_start, loaded.curriculum.ray_end
    poses = multiview(loaded.curriculum)

    progress = tqdm(total=len(seeds) * len(poses), unit="view")
    for seed in seeds:
        field = share_between_views(loaded, field_from_seed(loaded, seed, args.psi), poses, args)
        columns = []
        for i, pose in enumerate(poses):
            view = render_pose(loaded, field, pose, args)
            if seed == seeds[0] and i == 0:
                report_preview(loaded, field, pose, view, args)
            columns.append([view_image(view, quantity, *depth_range) for quantity in QUANTITIES])
            for quantity, image in zip(QUANTITIES, columns[-1], strict=True):
                save_image(output_dir / f"{quantity}_{seed}_{i}.png", image)
            if args.save_raw:
                save_raw(view, output_dir, seed, i)
            progress.update()
        save_image(output_dir / f"grid_{seed}.png", image_grid(list(zip(*columns, strict=True))))
    progress.close()
    print(f"wrote {len(seeds) * len(poses)} views of {len(seeds)} seeds to {output_dir}")


if __name__ == "__main__":
    run_script(main)
