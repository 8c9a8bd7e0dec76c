"""Score a generator's surfaces against its own images, with ground truth data (tools/synthetic_heads.py).

    python -m tools.eval_geometry model.safetensors --dataset_path data/heads64

A generated head matches no head of the set, so it has no per-pixel ground truth. The set does give the relation between
images of heads and their geometry. A small network trained on the set predicts depth, normals and mask of each generated
image, and these are compared with the generator's surface. See docs/metrics.md.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.arguments import ArgumentParser, positive_int, seed_number
from common.cache_folder import cache_folder
from common.errors import UserError
from common.program import run_script
from metrics.geometry import background_is_white, generated_geometry, geometry_settings, over_background, score
from metrics.predictor import PredictorSettings, get_predictor
from metrics.report import add_common_arguments, load, model_record, print_table, rendering_record, write_scores
from metrics.shape_variety import generated_variety, true_variety
from metrics.shapes import compare_statistics
from metrics.truth import camera_fov, find_truth, read_truth
from settings.curriculum import Curriculum


def make_parser() -> ArgumentParser:
    parser = ArgumentParser("Compare generated surfaces with the geometry that the generated images show.")
    add_common_arguments(parser, psi=1.0, image_size=None, output_json="outputs/eval_geometry.json")
    parser.add_argument("--dataset_path", required=True, help="a set with ground truth: a folder with images/ and ground_truth/")
    parser.add_argument("--num_images", type=positive_int, default=256, help="generated images")
    parser.add_argument("--num_truth", type=positive_int, default=4000, help="maximum number of views of the set")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of latents, poses and the predictor's training")
    parser.add_argument(
        "--predictor_steps", type=positive_int, default=PredictorSettings.num_steps, help="training steps of the predictor"
    )
    parser.add_argument("--predictor_cache", help="folder of trained predictors (default: the cache of decoded images)")
    return parser


def _table(record: dict[str, Any]) -> dict[str, Any]:
    rows = {f"score {name}": value for name, value in record["score"].items()}
    for group in ("mirrored", "flat"):
        rows |= {f"{group} {name}": value for name, value in record["baselines"][group].items()}
    rows |= {f"noise floor {name}": value for name, value in record["noise_floor"].items() if not name.startswith("num_")}
    return rows | record["shape_statistics"] | record["shape_variety"]


def _protocol(args: Any, curriculum: Curriculum, size: int, num_truth: int, settings: PredictorSettings) -> dict[str, Any]:
    return {
        "dataset_path": str(args.dataset_path),
        "num_truth": num_truth,
        "num_images": args.num_images,
        "image_size": size,
        "psi": args.psi,
        "seed": args.seed,
        "fov_degrees": curriculum.fov,
        "white_background": curriculum.white_back,
        "predictor": asdict(settings),
        "normals": "camera axes (x right, y up, z toward the camera)",
        "depth": "distance along the unit ray, world units; aligned: each view's mean difference removed",
        "rendering": rendering_record(geometry_settings(curriculum, size).render_settings(curriculum)),
    }


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not allow, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    files = find_truth(args.dataset_path, args.num_truth)
    loaded = load(args)
    if not loaded.curriculum.pred_occ:
        raise UserError(
            f"curriculum {loaded.curriculum.name} is a radiance field without a surface to score; use an occupancy curriculum"
        )
    notes = []
    fov = camera_fov(args.dataset_path)
    if fov is not None and abs(fov - loaded.curriculum.fov) > 1e-6:
        notes.append(f"the set was rendered with a fov of {fov:g} degrees, but the generator uses {loaded.curriculum.fov:g}")
    device = loaded.generator.device
    settings = PredictorSettings(seed=args.seed, num_steps=args.predictor_steps)
    cache_dir = Path(args.predictor_cache) if args.predictor_cache else cache_folder()
    data = read_truth(files)
    predictor, floor, predictor_path = get_predictor(files, settings, cache_dir, device, lambda: data)
    curriculum = over_background(loaded.curriculum, background_is_white(data))
    size = data.images.shape[-1]
    images, generated = generated_geometry(
        loaded, curriculum, args.num_images, size, psi=args.psi, seed=args.seed, batch_size=args.batch_size
    )
    variety = generated_variety(loaded.generator, size, args.psi) | true_variety(args.dataset_path, loaded.curriculum, size)
    record: dict[str, Any] = {
        **score(predictor.predict(images), generated),
        "noise_floor": floor,
        "shape_statistics": compare_statistics(data.geometry, generated),
        "shape_variety": variety,
        "notes": notes,
        "protocol": _protocol(args, curriculum, size, len(data.images), settings),
        "predictor_file": predictor_path.name,
        "model": model_record(args, loaded),
    }
    for note in notes:
        print(f"note: {note}")
    write_scores(args.output_json, _finite(record))
    print_table(f"{args.num_images} generated views at {size} px, against geometry predicted from their images", _table(record))
    print(f"written to {args.output_json}")


if __name__ == "__main__":
    run_script(main)
