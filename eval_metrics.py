"""Compare generated images with real ones: FID, KID, IS (torch-fidelity), and fd, kd, prc, swd, which download nothing.

    python eval_metrics.py generator.pth --dataset_path photos/ --curriculum CelebA
    python eval_metrics.py model.safetensors --dataset_path data/heads64/images --metrics fd prc swd
    torchrun --standalone --nproc_per_node=8 eval_metrics.py model.safetensors --dataset_path photos/

Rendered images are passed to the metrics as tensors, without image files. See docs/metrics.md for what the numbers mean.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser, int_between, positive_int, seed_number
from common.errors import UserError, one_line
from common.program import run_script
from dataset import get_dataset_spec, spec_over
from distributed.sharding import shared_work
from loading.files import PARTS, Split
from metrics.efficientnet import INPUT_SIZE, WEIGHTS_SHA256, find_weights_file
from metrics.fidelity import EXTRACTORS, find_weights, read_state_dict
from metrics.registry import METRICS, Evaluation
from metrics.report import add_common_arguments, load, model_record, print_table, rendering_record, write_scores
from metrics.sampling import generated_images, image_settings, real_images
from settings.checks import MAX_COUNT
from settings.curriculum import Curriculum

FEW_IMAGES_FOR_FID = 2048  # with fewer images than feature dimensions, the covariance is singular
PUBLISHED_NUM_IMAGES, PUBLISHED_IMAGE_SIZE = 2048, 128
INCEPTION = "inception-v3-compat"


def count_or_all(text: str) -> int | str:
    """Parse a positive number or the word "all", for argparse."""
    return text if text == "all" else positive_int(text)


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("Compare generated images with real ones: " + ", ".join(METRICS))
    add_common_arguments(parser, psi=1.0, image_size=128, output_json="outputs/eval_metrics.json")
    parser.add_argument(
        "--dataset_path", "--real_image_dir", required=True, help="the real images: a folder (searched recursively), glob or zip"
    )
    parser.add_argument("--dataset", help="crop of the real images: a preset of dataset.py (default: the curriculum's)")
    parser.add_argument(
        "--split", choices=PARTS, help="which real images (default: the held-out ones if there are any, else all)"
    )
    parser.add_argument(
        "--num_holdout", type=int_between(0, MAX_COUNT), help="number of held-out images (default: the curriculum's)"
    )
    parser.add_argument("--num_images", type=positive_int, default=PUBLISHED_NUM_IMAGES, help="number of generated images")
    parser.add_argument("--num_real", type=count_or_all, help="number of real images, or all (default: as many as are generated)")
    parser.add_argument(
        "--real_resize",
        choices=["antialiased", "nearest"],
        default="antialiased",
        help="resizing of real images: antialiased, as in training, or nearest, as for published scores",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of latents, poses and the selection of real images")
    parser.add_argument(
        "--num_seeds",
        type=int_between(1, MAX_COUNT),
        default=1,
        help="score this many sets of images, with consecutive seeds; the results are means and standard deviations",
    )
    described = "; ".join(f"{name}: {metric.description}" for name, metric in METRICS.items())
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["fid", "kid", "is"], help=described)
    parser.add_argument("--feature_extractor", default=INCEPTION, help=f"one of {', '.join(EXTRACTORS)}")
    parser.add_argument("--feature_extractor_weights", help="a local file with its weights (default: downloaded once and cached)")
    return parser


def _check_arguments(args: Any) -> None:
    """Check the arguments before any image is rendered. Raises UserError."""
    if Path(args.output_json).is_dir():
        raise UserError(f"--output_json {args.output_json} is a folder; name a file in it")
    if args.dataset is not None:
        get_dataset_spec(args.dataset)
    most = max(args.metrics, key=lambda name: METRICS[name].min_images)
    if args.num_images < METRICS[most].min_images:
        raise UserError(f"--num_images {args.num_images} is too small for {most}; use at least {METRICS[most].min_images}")


def _check_weights(args: Any) -> Path | None:
    """Return the weights file, checked before rendering so that a missing file fails at once. Raises UserError."""
    if "is" in args.metrics and args.feature_extractor != INCEPTION:
        raise UserError(
            f"IS is the entropy of Inception's classes, which {args.feature_extractor} does not have; leave `is` out of --metrics"
            f" (--metrics fid kid), or use --feature_extractor {INCEPTION}"
        )
    if any(METRICS[name].is_perceptual for name in args.metrics):
        find_weights_file()
    if not any(METRICS[name].needs_weights for name in args.metrics):
        return None
    path = find_weights(args.feature_extractor, args.feature_extractor_weights)
    read_state_dict(path)
    return path


def departures(args: Any, num_real: int, part: str, curriculum: Curriculum) -> list[str]:
    """Describe how FID, KID and IS deviate from the published protocol. ``num_real``: real images used; ``part``: their split.

    Published: 2048 images at 128 px, psi 1, poses of the prior, against all real images, resized to the nearest pixel.
    """
    found = []
    if args.num_images != PUBLISHED_NUM_IMAGES:
        found.append(f"{args.num_images} generated images instead of {PUBLISHED_NUM_IMAGES}")
    if args.image_size != PUBLISHED_IMAGE_SIZE:
        found.append(f"{args.image_size} px instead of {PUBLISHED_IMAGE_SIZE}")
    if args.psi != 1:
        found.append(f"psi {args.psi:g} instead of 1")
    if args.num_real != "all":
        found.append(f"{num_real} real images instead of all (--num_real all)")
    if part != "all":
        found.append(f"real images of the {part} split instead of all (--split all)")
    if args.real_resize != "nearest":
        found.append("real images resized with antialiasing instead of to the nearest pixel (--real_resize nearest)")
    if args.feature_extractor != INCEPTION:
        found.append(f"features of {args.feature_extractor} instead of {INCEPTION}")
    if curriculum.last_back:
        found.append("rendered with last_back, as in this generator's training, instead of without")
    return found


def _comparability_notes(names: Sequence[str], deviations: Sequence[str]) -> list[str]:
    """Return notes on whether the scores are comparable with published ones."""
    published = [name for name in names if METRICS[name].needs_weights]
    if not published:
        return []
    scores = ", ".join(name.upper() for name in published)
    if deviations:
        return [f"not comparable with published {scores}; deviations from the published protocol: {'; '.join(deviations)}"]
    return [
        f"{scores} follow the published protocol with one exception: published images were saved as compressed files, these"
        " were not; with that caveat, they are comparable with the paper's scores for the same photos"
    ]


def _notes(evaluation: Evaluation, num_wanted: int | None, deviations: Sequence[str]) -> list[str]:
    notes = _comparability_notes(evaluation.names, deviations)
    if num_wanted is not None and len(evaluation.real) < num_wanted:
        notes.append(
            f"only {len(evaluation.real)} real images are available instead of the requested {num_wanted}; all were used"
        )
    biased = [name for name in ("fid", "fd") if name in evaluation.names]
    if biased and min(len(evaluation.real), len(evaluation.fake)) < FEW_IMAGES_FOR_FID:
        few = f"from fewer than {FEW_IMAGES_FOR_FID} images"
        notes.append(f"{' and '.join(biased)} {few}: biased upward; compare at equal counts only")
    return notes


def _num_real(args: Any) -> int | None:
    """Return the requested number of real images; None means all."""
    return None if args.num_real == "all" else args.num_real or args.num_images


def _protocol(args: Any, evaluation: Evaluation, preset: str, curriculum: Curriculum) -> dict[str, Any]:
    import PIL
    import torchvision

    split = _split(args, curriculum)
    protocol: dict[str, Any] = {
        "num_real": len(evaluation.real),
        "num_fake": len(evaluation.fake),
        "num_images_requested": args.num_images,
        "num_real_requested": args.num_real or args.num_images,
        "image_size": args.image_size,
        "dataset_path": str(args.dataset_path),
        "dataset_preset": preset,
        "real_part": split.part,
        "num_holdout": split.num_holdout,
        "real_resize": f"dataset.py: {args.real_resize}, Pillow {PIL.__version__}",
        "seed": args.seed,
        "num_seeds": args.num_seeds,
        "psi": args.psi,
        "poses": "drawn from the curriculum's distribution",
        "rendering": rendering_record(image_settings(curriculum)),
        "files": "none: uint8 tensors",
        "device": str(evaluation.device),
        "torchvision": torchvision.__version__,
    }
    if any(METRICS[name].needs_weights for name in evaluation.names):
        import torch_fidelity

        weights = evaluation.weights_file
        protocol |= {"torch_fidelity": torch_fidelity.__version__, **vars(evaluation.fidelity_settings)}
        protocol |= {"feature_extractor_weights": weights.name if weights else None}
        protocol |= {"feature_resize": "by the extractor, bilinear as in TensorFlow 1"}
    if any(METRICS[name].is_perceptual for name in evaluation.names):
        protocol["perceptual_features"] = f"EfficientNet-Lite0 at {INPUT_SIZE} px, bicubic, antialiased"
        protocol["perceptual_weights_sha256"] = WEIGHTS_SHA256
    return protocol


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    _check_arguments(args)
    with shared_work(args) as processes:
        loaded = load(args)
        weights = _check_weights(args)
        preset = args.dataset or loaded.curriculum.dataset
        real = None
        if processes.is_main:  # while the other processes render
            spec = spec_over(preset, loaded.curriculum, nearest=args.real_resize == "nearest")
            split = _split(args, loaded.curriculum)
            real = real_images(args.dataset_path, spec, _num_real(args), args.image_size, args.seed, split=split)
        sets = [
            generated_images(
                loaded,
                args.num_images,
                args.image_size,
                psi=args.psi,
                seed=seed,
                batch_size=args.batch_size,
                processes=processes,
            )
            for seed in range(args.seed, args.seed + args.num_seeds)
        ]
    fakes = [images for images in sets if images is not None]  # of the main process only
    if real is not None:
        evaluation = Evaluation(
            real,
            fakes[0],
            tuple(dict.fromkeys(args.metrics)),
            args.seed,
            device=loaded.generator.device,
            extractor=args.feature_extractor,
            weights_file=weights,
        )
        report(args, loaded, evaluation, compute_scores(evaluation, fakes), preset)


def _split(args: Any, curriculum: Curriculum) -> Split:
    num = curriculum.num_holdout if args.num_holdout is None else args.num_holdout
    return Split(args.split or ("holdout" if num else "all"), num)


@dataclass(frozen=True)
class Scores:
    """Scores of one or more sets of images: means, deviations (empty for one set), each set's scores by seed, and failures.

    ``failures``: the reason for each metric that failed for at least one set, by name.
    """

    means: dict[str, float]
    deviations: dict[str, float]
    per_seed: dict[int, dict[str, float]]
    failures: dict[str, str]


def compute_scores(evaluation: Evaluation, fakes: Sequence[Tensor]) -> Scores:
    """Compute the metrics of ``evaluation`` for each of ``fakes``, (N, 3, H, W) uint8, with consecutive seeds.

    Raises UserError if all metrics fail.
    """
    per_seed: dict[int, dict[str, float]] = {}
    failures: dict[str, str] = {}
    for seed, fake in enumerate(fakes, evaluation.seed):
        one = replace(evaluation, fake=fake, seed=seed)
        per_seed[seed] = {}
        for name in evaluation.names:
            try:
                per_seed[seed] |= METRICS[name].compute(one)
            except (UserError, OSError, MemoryError) as error:  # keep the scores that are already computed
                failures[name] = one_line(error) or type(error).__name__
    means, deviations = over_seeds(list(per_seed.values()))
    if failures and not means:
        raise UserError(next(iter(failures.values())))
    return Scores(means, deviations, per_seed, failures)


def over_seeds(scores: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return means and standard deviations of the scores that all seeds have; no deviations for one seed."""
    common = [name for name in scores[0] if all(name in other for other in scores)]
    columns = {name: [other[name] for other in scores] for name in common}
    means = {name: statistics.fmean(values) for name, values in columns.items()}
    deviations = {name: statistics.stdev(values) for name, values in columns.items()} if len(scores) > 1 else {}
    return means, deviations


def report(args: Any, loaded: LoadedGenerator, evaluation: Evaluation, scores: Scores, preset: str) -> None:
    """Write and print ``scores``. Raises UserError if a metric failed."""
    curriculum, num_real = loaded.curriculum, len(evaluation.real)
    departed = departures(args, num_real, _split(args, curriculum).part, curriculum)
    notes = _notes(evaluation, _num_real(args), departed)
    for note in notes:
        print(f"note: {note}")
    protocol = {**_protocol(args, evaluation, preset, curriculum), "departures_from_published": departed}
    record: dict[str, Any] = {"metrics": scores.means, "failed": scores.failures, "notes": notes, "protocol": protocol}
    title = f"{len(evaluation.fake)} generated and {num_real} real images at {args.image_size} px"
    if scores.deviations:
        record |= {"deviations": scores.deviations, "per_seed": scores.per_seed}
        title += f", mean and standard deviation of {len(scores.per_seed)} seeds"
    write_scores(args.output_json, {**record, "model": model_record(args, loaded)})
    print_table(title, scores.means, scores.deviations)
    print(f"written to {args.output_json}")
    if scores.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in scores.failures.items())
        count = f"{len(scores.failures)} of {len(evaluation.names)} scores failed"
        raise UserError(f"{count} ({failed}); the others are in {args.output_json}")


if __name__ == "__main__":
    run_script(main)
