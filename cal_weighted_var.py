"""Measure the thickness of a generator's surfaces: variance of the rendering weights along rays, times 1e4; lower is thinner.

    python cal_weighted_var.py generator.pth --curriculum CelebA --seeds_start 0 --seeds_end 1000
    torchrun --standalone --nproc_per_node=8 cal_weighted_var.py generator.pth --curriculum CelebA

See metrics/weighted_variance.py for the formula and docs/metrics.md for its meaning.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, seed_number, seed_range
from common.errors import UserError
from common.program import run_script
from distributed.processes import Processes
from distributed.sharding import shared_work
from generators.cameras import CameraPoses
from generators.pose_prior import mean_poses
from metrics import weighted_variance
from metrics.report import add_common_arguments, load, model_record, print_table, write_scores
from metrics.sampling import pose_of_seed
from metrics.weighted_variance import LatentVariance, latent_variances
from settings.curriculum import Curriculum
from visualization.generator_scripts import field_from_seed

SCALE = 1e4


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("Measure the mean variance of the rendering weights along rays, over seeds.")
    add_common_arguments(parser, psi=0.7, image_size=128, output_json="outputs/weighted_variance.json", batches=False)
    parser.add_argument("--seeds_start", type=seed_number, default=0, help="the first seed")
    parser.add_argument("--seeds_end", type=seed_number, default=1000, help="end of the seed range (exclusive)")
    parser.add_argument(
        "--pose",
        choices=["prior", "mean"],
        default="prior",
        help="prior: one pose per seed, sampled from the curriculum's distribution, as published; mean: the mean pose",
    )
    return parser


def _protocol(args: Any, curriculum: Curriculum, device: torch.device) -> dict[str, Any]:
    masking = f"alpha = 0 in front of (surface - {curriculum.interval_max / 2:g})"
    return {
        "seeds_start": args.seeds_start,
        "seeds_end": args.seeds_end,
        "psi": args.psi,
        "image_size": args.image_size,
        "samples": f"{weighted_variance.NUM_SAMPLES} coarse samples alone, evenly spaced, not jittered",
        "pose": _pose_record(args.pose, curriculum),
        "masking": masking if curriculum.pred_occ else "none (a radiance field has no surface); the last sample left out",
        "valid_rays": f"sum of weights > {weighted_variance.MIN_WEIGHT_SUM}",
        "variance": "sum w (t - mean)^2 / ((sum w + 1e-5) (n - 1) / n); mean over rays, then over seeds",
        "scale": SCALE,
        "device": str(device),
    }


def _pose_record(pose: str, curriculum: Curriculum) -> dict[str, Any]:
    keys = ("h_mean", "v_mean", *(("h_stddev", "v_stddev", "sample_dist") if pose == "prior" else ()))
    return {"pose": pose, **{key: getattr(curriculum, key) for key in keys}}


def summarize(values: dict[int, LatentVariance]) -> dict[str, float | int]:
    """Average over seeds with a valid ray, times SCALE. Raises UserError if no seed has one."""
    valid = [value.variance * SCALE for value in values.values() if value.num_rays]
    if not valid:
        raise UserError(
            f"none of the {len(values)} seeds has a ray whose weights sum to more than {weighted_variance.MIN_WEIGHT_SUM}: "
            "the field is empty; check that the generator is trained and that --curriculum matches it"
        )
    deviation = statistics.stdev(valid) if len(valid) > 1 else 0.0
    return {
        "weighted_variance_1e4": math.fsum(valid) / len(valid),
        "std_over_seeds_1e4": deviation,
        "num_seeds": len(valid),
        "num_seeds_without_valid_rays": len(values) - len(valid),
        "mean_valid_rays": sum(value.num_rays for value in values.values()) / len(values),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    seeds = seed_range(args.seeds_start, args.seeds_end)
    with shared_work(args) as processes:
        loaded = load(args)
        values = _measure(loaded, seeds, args, processes)
    if processes.is_main:
        report(args, loaded, values)


def _measure(loaded: LoadedGenerator, seeds: Sequence[int], args: Any, processes: Processes) -> dict[int, LatentVariance]:
    """Measure every n-th seed in each of n processes, and gather all values on the main one."""
    device, curriculum = loaded.generator.device, loaded.curriculum
    own = torch.full((len(seeds[processes.rank :: processes.world_size]), 2), math.nan, dtype=torch.float64)
    for i, seed in enumerate(tqdm(seeds[processes.rank :: processes.world_size], unit="seed", leave=False)):
        field = field_from_seed(loaded, seed, args.psi)
        pose = pose_of_seed(seed, curriculum) if args.pose == "prior" else mean_poses(curriculum, 1, device)
        pose = CameraPoses(pose.pitch.to(device), pose.yaw.to(device))
        (value,) = latent_variances(field, pose, curriculum, args.image_size)
        own[i] = torch.tensor(value, dtype=torch.float64)
    parts = processes.gather(own)
    found = {}
    for rank, part in enumerate(parts):
        for seed, (variance, num_rays) in zip(seeds[rank :: processes.world_size], part.tolist(), strict=True):
            found[seed] = LatentVariance(variance, int(num_rays))
    return dict(sorted(found.items()))


def report(args: Any, loaded: LoadedGenerator, values: dict[int, LatentVariance]) -> None:
    """Write and print the results."""
    device = loaded.generator.device
    results = summarize(values)
    per_seed = {seed: value.variance * SCALE if value.num_rays else None for seed, value in values.items()}
    protocol = _protocol(args, loaded.curriculum, device)
    record = {"metrics": results, "protocol": protocol, "per_seed_1e4": per_seed, "model": model_record(args, loaded)}
    write_scores(args.output_json, record)
    if results["num_seeds_without_valid_rays"]:
        print(f"note: {results['num_seeds_without_valid_rays']} seeds have no valid ray and were excluded")
    print_table(f"{results['num_seeds']} seeds at {args.image_size} px", results)
    print(f"written to {args.output_json}")


if __name__ == "__main__":
    run_script(main)
