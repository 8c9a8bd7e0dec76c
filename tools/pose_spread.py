"""Estimate the spread of poses in your photos: h_stddev, v_stddev and sample_dist of a curriculum.

    python -m tools.pose_spread photos/ --dataset CelebA         # by a network trained on the built-in heads
    python -m tools.pose_spread photos/ --checkpoint outputs/run # by the discriminator of a run on these photos

The first command is for faces. Its network is trained once, in a few minutes, and rejects images unlike its training data.
The second works for any object, but its result is biased toward the camera prior of the run: treat it as a hint. The last
line of output is the --set option for train.py. See docs/own_photos.md for the accuracy of both.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.arguments import ArgumentParser, add_device_argument, int_between, positive_int, resolve_device, seed_number
from common.cache_folder import cache_folder
from common.errors import UserError
from common.program import run_script
from dataset import DATASETS, spec_over
from metrics.pose_head import PoseHead, load_pose_head
from metrics.pose_readout import INPUT_SIZE, MAX_PITCH, MAX_YAW, PoseReadout, ReadoutSettings, get_pose_readout
from metrics.pose_statistics import ANGLES, Spread, calibrate, fit_prior, measure_spread, near, spread_record
from metrics.report import write_scores
from metrics.sampling import real_images
from visualization.images import image_grid, save_image

FEWEST_IMAGES = 20
NUM_GENERATED = 256  # images of known pose that calibrate a discriminator
SHEET_COLUMNS = 10
MAX_BEYOND = 0.05  # share of readings at the edge of the training poses
FOREIGN = 2.0  # limit of the mirror disagreement, as a multiple of that of held-out heads


@dataclass(frozen=True)
class Readings:
    """Predicted poses. ``poses`` (N, 2) of the images; ``known`` (M, 4): true and predicted poses of calibration images.

    ``notes``: warnings. ``disagreement`` (N, 2) and ``known_disagreement`` (M, 2): differences between the predictions for an
    image and its mirror image. They show how much noisier these images are than the calibration images. None if unknown.
    """

    poses: Tensor
    known: Tensor
    reader: dict[str, Any]
    notes: list[str]
    disagreement: Tensor | None = None
    known_disagreement: Tensor | None = None


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", metavar="PATH", help="photos: a folder (searched recursively), a glob or a zip")
    parser.add_argument("--dataset", help=f"crop of the photos: {', '.join(DATASETS)} (default: the run's, else Images)")
    parser.add_argument("--checkpoint", help="a training checkpoint, or a run's folder: use its discriminator")
    parser.add_argument("--num_images", type=positive_int, default=1000, help="maximum number of images, selected at random")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the selection of images and of generated images")
    heads, steps = ReadoutSettings.num_heads, ReadoutSettings.num_steps
    parser.add_argument("--num_heads", type=int_between(30, 10**6), default=heads, help="built-in heads for training the network")
    parser.add_argument("--readout_steps", type=positive_int, default=steps, help="training steps")
    parser.add_argument("--readout_cache", help="folder of trained networks (default: the cache of decoded images)")
    parser.add_argument("--sheet", metavar="PNG", help="write images of least, middle and greatest yaw and pitch, for inspection")
    parser.add_argument("--json", metavar="OUT", help="write all results as JSON")
    add_device_argument(parser)
    return parser


def read_with_heads(images: Tensor, readout: PoseReadout, name: str, settings: ReadoutSettings) -> Readings:
    """Predict the poses of ``images`` (N, 3, 32, 32) in [-1, 1] by the network trained on heads."""
    poses, disagreement = readout.read(images)
    ranges = torch.tensor([MAX_YAW, MAX_PITCH])
    beyond = float((poses.abs() > 0.95 * ranges).any(dim=1).float().mean())
    notes = []
    if beyond > MAX_BEYOND:
        notes.append(f"{beyond:.0%} of the images are at the edge of the training poses; the true spread may be larger")
    held_out = readout.held_out.cpu()
    reader: dict[str, Any] = {"kind": "built-in heads", "file": name, "settings": asdict(settings)}
    for i, angle in enumerate(ANGLES):
        here, there = _rms(disagreement[:, i]), _rms(held_out[:, 4 + i])
        reader[f"{angle}_mirror_disagreement"] = {"images": here, "held_out_heads": there}
        if here > FOREIGN * there:
            notes.append(
                f"{angle}: predictions for an image and its mirror image differ by {here:.2f} rad, for heads by {there:.2f}; "
                "these images are too unlike the training data, so the result is rejected"
            )
    return Readings(poses, held_out[:, :4], reader, notes, disagreement, held_out[:, 4:])


def read_with_discriminator(images: Tensor, head: PoseHead, seed: int) -> Readings:
    """Predict the poses of ``images`` (N, 3, H, H) in [-1, 1] by a discriminator, with H its image size."""
    readings, truth = head.read_generated(NUM_GENERATED, seed)
    c = head.curriculum
    prior = {name: getattr(c, name) for name in ("h_stddev", "v_stddev", "sample_dist")}
    reader = {"kind": "discriminator", "file": str(head.path), "step": head.step, "image_size": head.image_size, "prior": prior}
    known = torch.cat([truth, readings], dim=1)
    note = "a discriminator is biased toward the prior of its run and is inaccurate after a short run (docs/own_photos.md)"
    return Readings(head.read(images), known, reader, [note])


def spreads_of(readings: Readings) -> tuple[Spread, Spread]:
    """Estimate the spreads of yaw and pitch, with noise from known poses of a similar spread: wide poses have larger errors."""

    def measure(some: Tensor) -> tuple[Spread, Spread]:
        known, spreads = readings.known[some], []
        for i in range(2):
            calibration, ratio = calibrate(known[:, 2 + i], known[:, i]), 1.0
            if readings.disagreement is not None:
                ratio = _rms(readings.disagreement[:, i]) / max(_rms(readings.known_disagreement[some, i]), 1e-9)
            calibration = replace(calibration, noise=calibration.noise * ratio)
            spreads.append(measure_spread(readings.poses[:, i], calibration, trusted=ratio <= FOREIGN))
        return spreads[0], spreads[1]

    first = measure(torch.ones(len(readings.known), dtype=torch.bool))
    widths = [spread.stddev or spread.plain for spread in first]
    return measure(near(readings.known[:, :2], (widths[0], widths[1]), max(50, len(readings.known) // 10)))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def write_sheet(path: str, images: Tensor, poses: Tensor) -> None:
    """Write a sheet of five rows: least, middle and greatest yaw, least and greatest pitch. Raises UserError."""
    rows = []
    num = min(SHEET_COLUMNS, len(images))
    for i, places in ((0, ("least", "middle", "greatest")), (1, ("least", "greatest"))):
        order = poses[:, i].argsort()
        start = {"least": 0, "middle": (len(order) - num) // 2, "greatest": len(order) - num}
        rows += [list(images[order[start[place] : start[place] + num]]) for place in places]
    save_image(path, image_grid(rows))


def print_spreads(spreads: Sequence[Spread]) -> None:
    def angle(value: float | None) -> str:
        return f"{'unknown':>24}" if value is None else f"{value:+9.3f} rad {math.degrees(value):+7.1f} deg"

    print(f"  {'':<28}{'yaw':>24}{'pitch':>26}")
    rows = {
        "median": "median",
        "robust standard deviation": "robust",
        "plain standard deviation": "plain",
        "spread of the poses": "stddev",
    }
    for label, name in rows.items():
        print(f"  {label:<28}" + "  ".join(angle(getattr(spread, name)) for spread in spreads))
    for label, name in {"error on known poses (rms)": "error", "noise removed": "noise"}.items():
        print(f"  {label:<28}" + "  ".join(angle(getattr(spread.calibration, name)) for spread in spreads))
    kurtoses = ["unknown" if s.kurtosis is None else f"{s.kurtosis:+.2f}" for s in spreads]
    print(f"  {'excess kurtosis':<28}{kurtoses[0]:>24}  {kurtoses[1]:>24}   (gaussian 0, uniform -1.2)")


def report(args: Any, images: Tensor, readings: Readings) -> None:
    yaw, pitch = spreads_of(readings)
    prior = fit_prior(yaw, pitch)
    print(
        f"{args.path}: {len(images)} images, poses predicted by {readings.reader['kind']} ({Path(readings.reader['file']).name})"
    )
    print_spreads((yaw, pitch))
    for note in readings.notes:
        print(f"  note: {note}")
    settings = prior.settings() if prior else []
    record = {
        "path": args.path,
        "dataset": args.dataset,
        "num_images": len(images),
        "seed": args.seed,
        "reader": readings.reader,
        "yaw": spread_record(yaw),
        "pitch": spread_record(pitch),
        "prior": prior and asdict(prior),
        "set": settings,
        "notes": readings.notes,
    }
    if args.sheet:
        write_sheet(args.sheet, images, readings.poses)
        print(f"  sheet of images by pose: {args.sheet}")
    if args.json:
        write_scores(args.json, record)
    for name, spread in (("yaw", yaw), ("pitch", pitch)):
        if spread.stddev is None:
            print(f"  note: {name} cannot be estimated: the predictions hardly follow it, are too noisy, or were rejected")
    if prior is None:
        remedy = "train longer, or set them" if args.checkpoint else "set them"
        raise UserError(f"neither yaw nor pitch can be estimated from these images; {remedy} by eye (dataset.py --check)")
    print(f"--set {' '.join(settings)}")


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    device = resolve_device(args.device)
    head = load_pose_head(args.checkpoint, device) if args.checkpoint else None
    args.dataset = args.dataset or (head.curriculum.dataset if head else "Images")
    spec = spec_over(args.dataset, head.curriculum) if head else args.dataset
    images = real_images(args.path, spec, args.num_images, head.image_size if head else INPUT_SIZE, args.seed)
    if len(images) < FEWEST_IMAGES:
        raise UserError(f"{args.path} holds {len(images)} images; use at least {FEWEST_IMAGES}, preferably hundreds")
    images = images.float() / 127.5 - 1
    if head:
        readings = read_with_discriminator(images, head, args.seed)
    else:
        settings = ReadoutSettings(num_heads=args.num_heads, num_steps=args.readout_steps)
        cache_dir = Path(args.readout_cache) if args.readout_cache else cache_folder()
        readout, path = get_pose_readout(settings, cache_dir, device)
        readings = read_with_heads(images, readout, path.name, settings)
    report(args, images, readings)


if __name__ == "__main__":
    run_script(main)
