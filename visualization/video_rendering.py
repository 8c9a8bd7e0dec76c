"""Render shots (a field and a pose) to videos; shared by the two video scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from checkpoints.loading import LoadedGenerator
from common.arguments import positive_float, positive_int
from fields.interface import Field
from visualization.generator_scripts import render_pose, report_preview, view_settings
from visualization.images import QUANTITIES, view_image
from visualization.trajectories import TrajectoryPose
from visualization.videos import VideoWriter

MAX_FRAMES = 100_000


class Shot(NamedTuple):
    """One frame to render. ``field``: the field of one latent, or a function that binds it when the frame is rendered."""

    field: Field | Callable[[], Field]
    pose: TrajectoryPose
    label: str


def frame_rate(text: str) -> float:
    """Argparse type: a frame rate that players support."""
    value = positive_float(text)
    if not 0.1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 0.1 and 1000")
    return value


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --quantities and --fps."""
    parser.add_argument(
        "--quantities", nargs="+", choices=QUANTITIES, default=["image", "depth", "normals"], help="write one video per quantity"
    )
    parser.add_argument("--fps", type=frame_rate, default=24, help="frames per second")
    parser.add_argument(
        "--batch_size",
        dest="old_batch_size",
        type=positive_int,
        help="accepted for compatibility, no effect: frames are rendered one by one",
    )


def render_shots(
    shots: Sequence[Shot], name: str, loaded: LoadedGenerator, output_dir: Path, args: argparse.Namespace
) -> list[Path]:
    """Render every shot and write ``{name}.mp4`` (image) and ``{name}_{quantity}.mp4``. Returns the videos' paths."""
    settings = view_settings(args)
    depth_range = loaded.curriculum.ray_start, loaded.curriculum.ray_end
    quantities = list(dict.fromkeys(args.quantities))
    paths = [output_dir / (f"{name}.mp4" if quantity == "image" else f"{name}_{quantity}.mp4") for quantity in quantities]
    with ExitStack() as stack:
        videos = [stack.enter_context(VideoWriter(path, args.fps)) for path in paths]
        for i, shot in enumerate(tqdm(shots, desc=name, unit="frame")):
            field = shot.field() if callable(shot.field) else shot.field
            view = render_pose(loaded, field, shot.pose, settings)
            if i == 0:
                report_preview(loaded, field, shot.pose, view, settings)
            for video, quantity in zip(videos, quantities, strict=True):
                video.add(view_image(view, quantity, *depth_range))
            if args.save_raw:
                view.save_raw(output_dir / f"raw_{shot.label}_{i}.npz", shot.label)
    print(f"wrote {', '.join(map(str, paths))}")
    return paths
