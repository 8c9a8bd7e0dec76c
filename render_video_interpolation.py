"""A video that walks from seed to seed and back to the first, while the camera moves.

    python render_video_interpolation.py pretrained/heads.safetensors --seeds 0 1 2 3 --trajectory front

Between two seeds the styles (of a SIREN: its FiLM parameters) are interpolated linearly; the last seed leads back to the
first and the camera ends where it began, so the video can be played on repeat. Writes
``interpolation_{seeds}_{trajectory}.mp4`` and so on, as render_video.py does. With --save_raw a frame is named after the seed
that its segment starts from.
Every frame is another latent, so there is nothing to share between them, and --plain changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from common.arguments import ArgumentParser, int_between, seed_number
from common.program import run_script
from generators.generator import Styles
from visualization.generator_scripts import (
    add_generator_arguments,
    add_view_arguments,
    bind_field,
    film_from_seed,
    open_generator,
)
from visualization.trajectories import TRAJECTORIES
from visualization.video_rendering import MAX_FRAMES, Shot, add_video_arguments, render_shots

MAX_SEEDS_IN_NAME = 8


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="vids")
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2, 3], help="the seeds, in order")
    parser.add_argument("--trajectory", choices=sorted(TRAJECTORIES), default="front", help="where the camera goes")
    parser.add_argument("--num_frames", type=int_between(1, MAX_FRAMES), default=36, help="frames from one seed to the next")
    add_video_arguments(parser)
    add_view_arguments(parser)
    args = parser.parse_args(argv)
    loaded, output_dir = open_generator(args)

    films = [film_from_seed(loaded, seed, args.psi) for seed in args.seeds]
    walk = interpolate_closed(films, args.num_frames)
    poses = TRAJECTORIES[args.trajectory](len(walk), loaded.curriculum)
    shots = [
        Shot(partial(bind_field, loaded, film), pose, args.seeds[i // args.num_frames])
        for i, (film, pose) in enumerate(zip(walk, poses, strict=True))
    ]
    render_shots(shots, f"interpolation_{_seeds_name(args.seeds)}_{args.trajectory}", loaded, output_dir, args)


def interpolate_closed(films: Sequence[Styles], num_frames: int) -> list[Styles]:
    """``num_frames`` steps from each to the next and from the last to the first, whose own frame is not repeated."""
    pairs = zip(films, [*films[1:], films[0]], strict=True)
    return [start.lerp(end, i / num_frames) for start, end in pairs for i in range(num_frames)]


def _seeds_name(seeds: Sequence[int]) -> str:
    if len(seeds) <= MAX_SEEDS_IN_NAME:
        return "_".join(map(str, seeds))
    return f"{seeds[0]}_to_{seeds[-1]}_{len(seeds)}_seeds"


if __name__ == "__main__":
    run_script(main)
