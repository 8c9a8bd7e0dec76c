"""Render a video of a seed or a latent: the camera moves once around an ellipse in front of it.

    python render_video.py pretrained/heads.safetensors --seed 0

Writes ``{seed}.mp4`` (H.264) with its frames in ``{seed}_frames/``, and ``{seed}_{quantity}.mp4`` for quantities other than
the image. For a latent of invert.py (``--latent inverted/photo_latent.safetensors``), the file name replaces the seed.
The loop is closed, so it can be played on repeat. visualization/images.py documents the coloring.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence

from common.arguments import ArgumentParser, int_between, seed_number
from common.program import run_script
from visualization.generator_scripts import (
    add_generator_arguments,
    add_latent_arguments,
    add_view_arguments,
    bind_field,
    given_seeds,
    open_generator,
    open_subjects,
    share_between_views,
    view_settings,
)
from visualization.trajectories import ellipse
from visualization.video_rendering import MAX_FRAMES, Shot, add_video_arguments, render_shots


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="vids")
    parser.add_argument("--seed", "--seeds", dest="seeds", type=seed_number, nargs="+", help="seeds, one video each (default: 0)")
    add_latent_arguments(parser)
    parser.add_argument("--num_frames", type=int_between(1, MAX_FRAMES), default=36, help="frames of the loop")
    add_video_arguments(parser)
    add_view_arguments(parser)
    args = parser.parse_args(argv)
    loaded, output_dir = open_generator(args)

    seeds = given_seeds(args, args.seeds, [0])
    poses = ellipse(args.num_frames, loaded.curriculum)
    for make_subject in open_subjects(loaded, args.path, seeds, args.psi, args.latent, args.direction):
        subject = make_subject()
        field = bind_field(loaded, subject)
        if not args.plain:
            field = share_between_views(loaded, field, poses, view_settings(args))
        shots = [Shot(field, pose, subject.label) for pose in poses]
        render_shots(shots, subject.label, loaded, output_dir, args)


if __name__ == "__main__":
    run_script(main)
