"""Package a trained generator for distribution: a small file and its model card.

    python -m tools.package_model outputs/mine --name mine --scores outputs/eval_geometry.json outputs/eval_metrics.json

This writes pretrained/mine.safetensors, which all scripts accept by name, and the card pretrained/mine.json: command,
curriculum, data, seed, steps, device and minutes of the run, and the scores with their protocols. By default (--precision
auto), weights are stored in half precision if the PSNR to full-precision images is at least 60 dB.

With --ball_slope, a tri-plane generator is packaged with a weaker ball (triplane/network.py). It no longer needs the ball that
it was trained with, and a weaker one may give sharper surfaces and better images: try a few values (docs/results.md).
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.files import latest_checkpoint, save_inference
from checkpoints.loading import PRETRAINED_DIR, LoadedGenerator, load_generator
from common.arguments import ArgumentParser, positive_float
from common.errors import UserError
from common.files import make_output_dir, read_json, write_atomically
from common.program import run_script
from common.psnr import psnr_db
from generators.generator import draw_latents
from generators.pose_prior import draw_poses
from generators.views import ViewSettings, render_views
from metrics.report import write_scores
from training.run.recorder import training_minutes
from triplane.network import BALL_SLOPE

MAX_BYTES = 5_000_000
INVISIBLE_DB = 60.0
NUM_IMAGES = 8
IMAGE_SIZE = 64
DTYPES = {"full": torch.float32, "half": torch.float16}
NOT_IN_COMMAND = {  # options of train.py that do not affect the result; nor do those that end in _interval
    "output_dir",
    "resume",
    "device",
    "use_logger",
    "cache",
    "keep",
    "eval_freq",
    "eval_images",
    "feature_extractor_weights",
    "port",
    "load_dict",
}


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", help="a run's output folder, or a generator file")
    parser.add_argument("--name", required=True, help="a short name: letters, digits, - and _")
    parser.add_argument("--run_dir", help="folder of the run of a generator file, for the card")
    parser.add_argument("--scores", nargs="+", default=[], metavar="JSON", help="results of the eval scripts for this generator")
    parser.add_argument("--note", default="", help="a sentence for the card")
    parser.add_argument("--minutes", type=positive_float, help="training time in minutes, if the run's log is incomplete")
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    slope_help = f"slope of a tri-plane generator's ball, in logits per world unit (in training: {BALL_SLOPE:g})"
    parser.add_argument("--ball_slope", type=positive_float, help=slope_help)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model of that name")
    parser.add_argument("--output_dir", default=str(PRETRAINED_DIR))
    return parser.parse_args(argv)


def set_ball_slope(loaded: LoadedGenerator, slope: float) -> None:
    """Set the slope of the ball's logits, in logits per world unit. Raises UserError for a SIREN, which has no such term.

    The sign is kept: it is negative in a generator that was mirrored and inverted.
    """
    if loaded.curriculum.is_siren:
        raise UserError(f"--ball_slope needs a tri-plane generator, but the model is {loaded.curriculum.model}; leave it out")
    ball_slope = loaded.generator.triplane.ball_slope
    ball_slope.copy_(slope * ball_slope.sign())


@torch.no_grad()
def images(loaded: LoadedGenerator) -> torch.Tensor:
    """Render NUM_IMAGES images (N, 3, H, W) in [-1, 1] of fixed latents and poses."""
    c = loaded.curriculum
    z = draw_latents(NUM_IMAGES, c, torch.Generator().manual_seed(0))
    poses = draw_poses(NUM_IMAGES, c, torch.Generator().manual_seed(1))
    views = render_views(loaded.generator.field_of_latents(z), poses, c, ViewSettings(IMAGE_SIZE, 1))
    return torch.stack([view.image for view in views])


def half_precision_psnr(loaded: LoadedGenerator) -> float:
    """Return the PSNR in dB between images with half-precision and full-precision weights."""
    with tempfile.TemporaryDirectory(prefix="gof_package_") as folder:
        path = Path(folder) / "half.safetensors"
        save_inference(path, loaded.generator, loaded.step or 0, torch.float16)
        error = (images(load_generator(path)) - images(loaded)).square().mean()
    return psnr_db(float(error), peak=2)


def training_record(folder: Path, minutes: float | None) -> dict[str, Any]:
    """Return the card's record of a run, read from its folder. Minutes do not include start-up."""
    run = read_json(folder / "run.json")
    arguments = {
        key: value for key, value in run["arguments"].items() if key not in NOT_IN_COMMAND and not key.endswith("_interval")
    }
    arguments["dataset_path"] = Path(arguments["dataset_path"]).name  # where it was stored is private
    record = {"command": _command(arguments), "seed": arguments.get("seed"), "world_size": run.get("world_size")}
    record["dataset"] = {"preset": run["curriculum"]["dataset"], "path": arguments["dataset_path"]}
    record |= {"minutes": round(minutes or training_minutes(folder), 1), **run.get("machine", {})}
    return record


def _command(arguments: dict[str, Any]) -> str:
    """Return the training command without options that do not affect the result."""
    words = ["python train.py"]
    for key, value in arguments.items():
        if value is True:
            words.append(f"--{key}")
        elif value is not None and value is not False and value != []:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([f"--{key}", *map(str, values)]))
    return " ".join(words)


def model_card(args: Any, loaded: LoadedGenerator, run_dir: Path | None, dtype: str, psnr: float) -> dict[str, Any]:
    card: dict[str, Any] = {"name": args.name, "curriculum": loaded.curriculum.name, "step": loaded.step, "precision": dtype}
    card["half_precision_psnr_db"] = round(psnr, 1)
    if not loaded.curriculum.is_siren:
        card["ball_slope"] = float(loaded.generator.triplane.ball_slope)
    if args.note:
        card["note"] = args.note
    if run_dir is not None:
        card["training"] = training_record(run_dir, args.minutes)
    card["scores"] = {}
    for path in map(Path, args.scores):
        content = read_json(path)
        model = content.pop("model", {})
        if isinstance(model, dict) and model.get("step") not in (None, loaded.step):
            raise UserError(
                f"{path} holds scores of step {model['step']}, but the generator is at step {loaded.step}; run the script again"
            )
        content.get("protocol", {}).pop("dataset_path", None)
        card["scores"][path.stem] = content
    card["settings"] = loaded.curriculum.to_dict()
    return card


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if not args.name.replace("-", "").replace("_", "").isalnum() or not args.name.isascii():
        raise UserError(f"--name {args.name!r}: use letters, digits, - and _")
    target = Path(args.output_dir) / f"{args.name}.safetensors"
    if target.exists() and not args.overwrite:
        raise UserError(f"{target} already exists; choose another --name, or use --overwrite")
    path = Path(args.path)
    run_dir = Path(args.run_dir) if args.run_dir else None
    if path.is_dir():
        run_dir, newest = path, latest_checkpoint(path)
        if newest is None:
            raise UserError(f"{path} holds no intact checkpoint; name the folder of a run, or a generator file")
        path = newest
    loaded = load_generator(path)
    if args.ball_slope:
        set_ball_slope(loaded, args.ball_slope)
    psnr = half_precision_psnr(loaded)
    dtype = args.precision if args.precision != "auto" else ("half" if psnr >= INVISIBLE_DB else "full")
    output = make_output_dir(args.output_dir)
    card = model_card(args, loaded, run_dir, dtype, psnr)
    with tempfile.TemporaryDirectory(dir=output, prefix=".package_") as folder:
        packed = Path(folder) / "packed.safetensors"
        save_inference(packed, loaded.generator, loaded.step or 0, DTYPES[dtype], {"name": args.name})
        size = packed.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"the file would be {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; use --precision half")
        write_atomically(target, packed.read_bytes())
    write_scores(output / f"{args.name}.json", {**card, "bytes": size})
    print(f"{target}: {size / 1e6:.2f} MB, {dtype} precision (PSNR of half precision: {psnr:.0f} dB); card: {args.name}.json")


if __name__ == "__main__":
    run_script(main)
