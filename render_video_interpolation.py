"""Render a video that interpolates from seed to seed, or latent to latent, and back to the first, while the camera moves.

    python render_video_interpolation.py pretrained/heads.safetensors --seeds 0 1 2 3 --trajectory front

Between two seeds, the styles (FiLM parameters of a SIREN) are interpolated linearly. The last seed leads back to the first
and the camera returns to its start, so the video can be played on repeat. Writes
``interpolation_{seeds}_{trajectory}.mp4`` etc., like render_video.py. With --save_raw, a frame is named after the seed at
the start of its segment.
Each frame has a different latent, so nothing is cached between frames and --plain has no effect.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, int_between, seed_number
from common.program import run_script
from visualization.generator_scripts import (
    Subject,
    add_generator_arguments,
    add_latent_arguments,
    add_view_arguments,
    bind_field,
    given_seeds,
    open_generator,
    open_subjects,
)
from visualization.trajectories import TRAJECTORIES
from visualization.video_rendering import MAX_FRAMES, Shot, add_video_arguments, render_shots

MAX_SEEDS_IN_NAME = 8


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_generator_arguments(parser, output_dir="vids")
    parser.add_argument("--seeds", type=seed_number, nargs="+", help="the seeds, in order (default: 0 1 2 3)")
    add_latent_arguments(parser)
    parser.add_argument("--trajectory", choices=sorted(TRAJECTORIES), default="front", help="camera trajectory")
    parser.add_argument("--num_frames", type=int_between(1, MAX_FRAMES), default=36, help="frames from one seed to the next")
    parser.add_argument(
        "--depth_map", action="store_true", help="also write a depth video; same as --quantities depth, for compatibility"
    )
    add_video_arguments(parser)
    add_view_arguments(parser)
    args = parser.parse_args(argv)
    args.quantities = [*args.quantities, "depth"] if args.depth_map else args.quantities
    loaded, output_dir = open_generator(args)

    seeds = given_seeds(args, args.seeds, [0, 1, 2, 3])
    subjects = [make() for make in open_subjects(loaded, args.path, seeds, args.psi, args.latent, args.direction)]
    walk = interpolate_closed(alike(subjects, loaded), args.num_frames)
    poses = TRAJECTORIES[args.trajectory](len(walk), loaded.curriculum)
    shots = [Shot(partial(bind_field, loaded, subject), pose, subject.label) for subject, pose in zip(walk, poses, strict=True)]
    name = f"interpolation_{_name_of([subject.label for subject in subjects])}_{args.trajectory}"
    render_shots(shots, name, loaded, output_dir, args)


def alike(subjects: Sequence[Subject], loaded: LoadedGenerator) -> list[Subject]:
    """Return ``subjects`` that all have weights if any has: those without tuned weights get the generator's own."""
    tuned = [subject.weights for subject in subjects if subject.weights is not None]
    if not tuned:
        return list(subjects)
    own = loaded.generator.state_dict()
    names = set().union(*tuned)

    def completed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weights.get(name, own[name]) for name in names}

    return [replace(subject, weights=completed(subject.weights or {})) for subject in subjects]


def interpolate_closed(subjects: Sequence[Subject], num_frames: int) -> list[Subject]:
    """Take ``num_frames`` steps from each subject to the next and from the last to the first, without repeating the first."""
    pairs = zip(subjects, [*subjects[1:], subjects[0]], strict=True)
    return [start.lerp(end, i / num_frames) for start, end in pairs for i in range(num_frames)]


def _name_of(labels: Sequence[str]) -> str:
    if len(labels) <= MAX_SEEDS_IN_NAME:
        return "_".join(labels)
    return f"{labels[0]}_to_{labels[-1]}_{len(labels)}_seeds"


if __name__ == "__main__":
    run_script(main)
