"""Render seeds from five viewpoints: image, depth, surface depth, mask, normals, surface image, and a grid of all.

    python render_multiview_images.py pretrained/heads.safetensors --seeds_start 0 --seeds_end 4

Writes ``{quantity}_{seed}_{i}.png`` for view i (yaw -0.5, -0.25, 0, 0.25, 0.5 rad from the mean pose) and
``grid_{seed}.png``, with a row per quantity and a column per view. For a latent of invert.py
(``--latent inverted/photo_latent.safetensors``), the file name replaces the seed. visualization/images.py documents the
coloring of each quantity.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence

from tqdm import tqdm

from common.arguments import ArgumentParser, seed_number, seed_range
from common.program import run_script
from visualization.generator_scripts import (
    add_generator_arguments,
    add_latent_arguments,
    add_view_arguments,
    bind_field,
    given_seeds,
    open_generator,
    open_subjects,
    render_pose,
    report_preview,
    share_between_views,
    view_settings,
)
from visualization.images import QUANTITIES, image_grid, save_image, view_image
from visualization.trajectories import multiview


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="imgs")
    parser.add_argument("--seeds_start", type=seed_number, help="the first seed (default: 0)")
    parser.add_argument("--seeds_end", type=seed_number, help="one past the last seed (default: 100)")
    add_latent_arguments(parser)
    add_view_arguments(parser)
    args = parser.parse_args(argv)
    is_range = args.seeds_start is not None or args.seeds_end is not None
    start, end = args.seeds_start or 0, 100 if args.seeds_end is None else args.seeds_end
    seeds = given_seeds(args, seed_range(start, end) if is_range else None, range(100))
    loaded, output_dir = open_generator(args)
    subjects = open_subjects(loaded, args.path, seeds, args.psi, args.latent, args.direction)
    settings = view_settings(args)
    depth_range = loaded.curriculum.ray_start, loaded.curriculum.ray_end
    poses = multiview(loaded.curriculum)

    progress = tqdm(total=len(subjects) * len(poses), unit="view")
    for number, make_subject in enumerate(subjects):
        subject = make_subject()
        field = bind_field(loaded, subject)
        if not args.plain:
            field = share_between_views(loaded, field, poses, settings)
        columns = []
        for i, pose in enumerate(poses):
            view = render_pose(loaded, field, pose, settings)
            if number == 0 and i == 0:
                report_preview(loaded, field, pose, view, settings)
            columns.append([view_image(view, quantity, *depth_range) for quantity in QUANTITIES])
            for quantity, image in zip(QUANTITIES, columns[-1], strict=True):
                save_image(output_dir / f"{quantity}_{subject.label}_{i}.png", image)
            if args.save_raw:
                view.save_raw(output_dir / f"raw_{subject.label}_{i}.npz", subject.label)
            progress.update()
        save_image(output_dir / f"grid_{subject.label}.png", image_grid(list(zip(*columns, strict=True))))
    progress.close()
    print(f"wrote {len(subjects) * len(poses)} views of {len(subjects)} latents to {output_dir}")


if __name__ == "__main__":
    run_script(main)
