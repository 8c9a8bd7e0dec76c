"""Train variants of a curriculum with several seeds and collect their scores in one table.

    python -m tools.ablation hollow --dataset_path data/heads64 --output_dir outputs/hollow --seeds 1 2 3 4
    python -m tools.ablation recipe --dataset_path data/heads64 --output_dir outputs/recipe --curriculum SYNTH --steps 30000
    python -m tools.ablation triplane --dataset_path cats64.zip --output_dir outputs/ladder --set img_size=32 --seeds 0 1 \\
        --minutes 30 --eval_images 800

Each run is a `train.py` process with its own folder OUTPUT_DIR/VARIANT_sSEED, of equal steps or, with --minutes, equal time.
An interrupted ablation resumes where it stopped, and the same command with more seeds, steps or minutes extends it (except
``cosine``, whose schedule depends on its end). Scores are the measurements of each run at its last step (metrics.jsonl,
docs/metrics.md). Writes OUTPUT_DIR/GROUP.json (every run) and OUTPUT_DIR/GROUP.md (means over seeds). With several GPUs, start
it once per GPU with CUDA_VISIBLE_DEVICES and different seeds, then once with all seeds for the table.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.arguments import ArgumentParser, add_settings_argument, positive_float, positive_int, seed_number
from common.errors import UserError
from common.files import make_output_dir, write_atomically, write_json
from common.program import run_script
from settings.registry import get_curriculum
from training.run.recorder import training_minutes

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
NO_BALL = ("init_ball_radius=0", "ball_hold_steps=0")
BALL = ("init_ball_radius=0.08", "ball_hold_steps=0")
HOLD = ("init_ball_radius=0.08", "ball_hold_steps=1000", "ball_hold_lambda=0.3")
NO_WATCH = ("hollow_check_interval=0",)
WATCH = ("hollow_check_interval=50",)
SMALL_SIREN = ("model=SPATIALSIRENBASELINE", "hidden_dim=64", "num_layers=4", "latent_dim=64", "gen_lr=3e-4")  # that of CATS_TINY
PROGRESSIVE_DISCRIMINATOR = (  # that of CATS_TINY
    "discriminator=ProgressiveEncoderDiscriminator",
    "disc_channels=(4,8,16,24,32,48,64,64,64)",
    "fade_steps=100",
    "disc_lr=6e-4",
    "r1_lambda=0.02",
    "r2_lambda=0.02",
    "r1_interval=1",
    "grad_clip=1",
)

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "hollow": {
        "plain": (*NO_BALL, *NO_WATCH),
        "ball": (*BALL, *NO_WATCH),
        "hold": (*HOLD, *NO_WATCH),
        "watch": (*NO_BALL, *WATCH),
        "both": (*HOLD, *WATCH),
    },
    "recipe": {
        "as_it_is": (),
        "no_opacity_prior": ("with_opacprior=False",),
        "no_normal_term": ("with_normal_loss=False",),
        "neither": ("with_opacprior=False", "with_normal_loss=False"),
        "strong_normal_term": ("normal_lambda=0.5",),
        "wide_interval": ("decay_beta=0",),
        "narrow_interval": ("interval_max=0.03", "interval_min=0.03"),
        "weak_r1": ("r1_lambda=0.02",),
        "strong_r1": ("r1_lambda=1",),
        "lazy_r1": ("r1_interval=4",),
        "own_images": ("share_images=False",),
        "relativistic": ("gan_loss=relativistic", "r2_lambda={r1_lambda}"),
        "relativistic_without_r2": ("gan_loss=relativistic", "r2_lambda=0"),
        "non_saturating": ("gan_loss=non_saturating", "r2_lambda=0"),
        "non_saturating_with_r2": ("gan_loss=non_saturating", "r2_lambda={r1_lambda}"),
        "strong_pose": ("pos_lambda=15",),
        "short_memory": ("betas=(0.0,0.9)",),
        "large_batch": ("batch_size=32",),
        "warm_up": ("lr_warmup_steps=200",),
        "cosine": ("lr_decay=cosine", "end_step={steps}"),
        "augmented": ("augment_target=0.6",),
    },
    "triplane": {
        "as_it_is": (),
        "progressive_discriminator": PROGRESSIVE_DISCRIMINATOR,
        "siren": SMALL_SIREN,
        "siren_and_progressive_discriminator": (*SMALL_SIREN, *PROGRESSIVE_DISCRIMINATOR),
        "wide_siren_and_progressive_discriminator": (*SMALL_SIREN, "hidden_dim=128", *PROGRESSIVE_DISCRIMINATOR),
        "product": ("plane_reduce=product",),
        "no_normal_term": ("with_normal_loss=False",),
        "no_opacity_prior": ("with_opacprior=False",),
        "no_pose_term": ("pos_lambda=0",),
        "penalties_every_step": ("r1_interval=1",),
        "wide_interval": ("decay_beta=0",),
        "narrower_interval": ("interval_min=0.012",),
    },
}
DEFAULT_CURRICULUM = {"hollow": "SYNTH_TINY", "recipe": "SYNTH_TINY", "triplane": "CATS_TRIPLANE"}

# Columns of the table: the name in metrics.jsonl, a heading and the number format.
COLUMNS = (
    ("depth_correlation", "depth correlation", "{:.2f}"),
    ("depth_error", "depth error x 1e3", "{:.1f}"),
    ("normal_median_degrees", "normals, degrees", "{:.0f}"),
    ("mask_iou", "mask IoU", "{:.2f}"),
    ("bulge", "bulge x 1e3", "{:.0f}"),
    ("weighted_variance_1e4", "weighted variance x 1e4", "{:.2f}"),
    ("surface_psnr_db", "surface/volume, dB", "{:.0f}"),
    ("consistency_psnr_db", "consistency, dB", "{:.1f}"),
    ("swd", "SWD", "{:.0f}"),
    ("fd", "fd", "{:.0f}"),
    ("precision", "precision", "{:.2f}"),
    ("recall", "recall", "{:.2f}"),
    ("shape_correlation", "correlation of shapes", "{:.3f}"),
    ("shape_deviation", "deviation of shapes", "{:.2f}"),
)
TIMES_1000 = ("depth_error", "bulge")
NEVER = 10**9  # steps between evaluations: only at the end
SHORTEST = 0.05  # minutes
SAVE_INTERVAL = 125  # steps between checkpoints of a run of --minutes


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--dataset_path", required=True, help="a set with ground truth (tools/synthetic_heads.py), or any photos")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--variants", nargs="+", help="variants of the group to train (default: all)")
    parser.add_argument("--curriculum", help="name or .json file (default: CATS_TRIPLANE for triplane, otherwise SYNTH_TINY)")
    add_settings_argument(parser, "settings for all variants")
    parser.add_argument("--seeds", nargs="+", type=seed_number, default=[0, 1, 2], help="seeds of each variant (default: 0 1 2)")
    parser.add_argument("--steps", type=positive_int, default=1200, help="steps of each run (default: %(default)s)")
    parser.add_argument("--minutes", type=positive_float, help="minutes of each run, instead of --steps")
    parser.add_argument("--eval_images", type=int, default=256, help="images for fd and SWD (default: %(default)s)")
    parser.add_argument("--only_table", action="store_true", help="do not train; write the table of the existing runs")
    args = parser.parse_args(argv)
    args.curriculum = args.curriculum or DEFAULT_CURRICULUM[args.group]
    return args


def variant_settings(args: Any, variant: str) -> list[str]:
    """Return the settings of a variant, which may refer to the number of steps and to the R1 weight of the curriculum.

    Raises UserError if it refers to the number of steps and --minutes is given.
    """
    settings = GROUPS[args.group][variant]
    if args.minutes and any("{steps}" in setting for setting in settings):
        raise UserError(f"the variant {variant} depends on the number of steps; use --steps instead of --minutes")
    r1_lambda = get_curriculum(args.curriculum).with_overrides(args.set).r1_lambda
    return [setting.format(steps=args.steps, r1_lambda=r1_lambda) for setting in settings]


def settings_of(args: Any, variant: str) -> list[str]:
    """Return the arguments of train.py's --set."""
    return [*args.set, *variant_settings(args, variant)]


def distinct(args: Any, variants: list[str]) -> list[str]:
    """Return ``variants`` without those equal to an earlier one in this curriculum.

    Variants with invalid settings are skipped, unless --variants names them or they come first: those raise UserError.
    """
    found: dict[str, Any] = {}
    for variant in variants:
        try:
            curriculum = get_curriculum(args.curriculum).with_overrides(settings_of(args, variant))
        except UserError as error:
            if args.variants or not found:
                raise
            print(f"{variant} is skipped: {error}", flush=True)
            continue
        same = next((name for name, other in found.items() if other == curriculum), None)
        if same is None:
            found[variant] = curriculum
        else:
            print(f"{variant} is the same run as {same} with {args.curriculum}; skipped", flush=True)
    return list(found)


def train(args: Any, variant: str, seed: int) -> int:
    """Train one run to --steps or for --minutes; return train.py's exit status."""
    folder = folder_of(args, variant, seed)
    command = [sys.executable, str(TRAIN), "--curriculum", args.curriculum, "--dataset_path", args.dataset_path]
    command += ["--output_dir", str(folder), "--seed", str(seed)]
    if args.minutes:
        minutes = minutes_left(folder, args.minutes)
        if not minutes:
            return 0
        command += ["--max_minutes", f"{minutes:.2f}", "--eval_freq", str(NEVER), "--sample_interval", "0"]
    else:
        command += ["--max_steps", str(args.steps), "--eval_freq", str(args.steps), "--sample_interval", str(args.steps)]
    save = SAVE_INTERVAL if args.minutes else max(1, args.steps // 4)
    command += ["--eval_images", str(args.eval_images), "--model_save_interval", str(save)]
    command += ["--keep", "1", "--milestone_interval", "0", "--no-use_logger"]
    return subprocess.run([*command, "--set", *settings_of(args, variant)], check=False).returncode


def minutes_left(folder: Path, minutes: float) -> float:
    """Return how much longer a run has to train; 0 if it was evaluated after about that time, most of which is training."""
    left = minutes - (training_minutes(folder) if (folder / "log.jsonl").is_file() else 0)
    is_finished = read_run(folder) is not None and left < 0.1 * minutes
    return 0 if is_finished else max(left, SHORTEST)


def folder_of(args: Any, variant: str, seed: int) -> Path:
    return Path(args.output_dir) / f"{variant}_s{seed}"


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return the last measurement of a run and the steps at which it was mirrored; None if there is no measurement."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    measured = [line for line in lines if "hit_rate" in line]
    if not measured:
        return None
    return {**measured[-1], "mirrored": [line["step"] for line in lines if line.get("mirrored_depth")]}


def is_hollow(run: dict[str, Any]) -> bool | None:
    """Return whether a run is hollow, by depth correlation if there is ground truth, else by bulge; None without a surface."""
    sign = run.get("depth_correlation", run.get("bulge"))
    return None if sign is None else sign < 0


def table(runs: dict[str, dict[int, dict[str, Any]]], settings: dict[str, list[str]]) -> str:
    """Return a Markdown table of means and standard deviations over seeds, a row per variant, and the variants' ``settings``."""
    shown = [column for column in COLUMNS if any(column[0] in run for seeds in runs.values() for run in seeds.values())]
    lines = ["| variant | seeds | step | hollow | mirrored | " + " | ".join(heading for _, heading, _ in shown) + " |"]
    lines.append("|---" * (5 + len(shown)) + "|")
    for variant, seeds in runs.items():
        found = list(seeds.values())
        if not found:
            continue
        steps = sorted({run["step"] for run in found})
        cells = [variant, str(len(found)), "-".join(map(str, sorted({steps[0], steps[-1]}))), _count_hollow(found)]
        cells.append(str(sum(bool(run["mirrored"]) for run in found)))
        for name, _, form in shown:
            values = [run[name] * (1000 if name in TIMES_1000 else 1) for run in found if name in run]
            spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(form.format(statistics.fmean(values)) + spread if values else "-")
        lines.append("| " + " | ".join(cells) + " |")
    explained = [f"- `{name}`: `{' '.join(settings[name])}`" for name, seeds in runs.items() if seeds]
    return "\n".join([*lines, "", *explained, ""])


def _count_hollow(runs: list[dict[str, Any]]) -> str:
    verdicts = [is_hollow(run) for run in runs]
    unknown = verdicts.count(None)
    return f"{verdicts.count(True)} of {len(runs)}" + (f" ({unknown} without a surface)" if unknown else "")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    variants = args.variants or list(GROUPS[args.group])
    unknown = [name for name in variants if name not in GROUPS[args.group]]
    if unknown:
        raise UserError(f"--variants {unknown[0]}: not in {args.group}; use {', '.join(GROUPS[args.group])}")
    variants = distinct(args, variants)
    output = make_output_dir(args.output_dir)
    failed = []
    if not args.only_table:
        for seed in args.seeds:  # seeds in the outer loop: an interrupted ablation still compares all variants
            for variant in variants:
                started = time.monotonic()
                print(f"{variant}, seed {seed}", flush=True)
                status = train(args, variant, seed)
                if status:
                    failed.append(f"{variant}_s{seed} (status {status})")
                    if status in (2, 128 + 2, 128 + 15):
                        raise UserError(f"the run {failed[-1]} failed, see its message above; repeat the command to resume")
                print(f"  {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    runs = {v: {s: run for s in args.seeds if (run := read_run(folder_of(args, v, s))) is not None} for v in variants}
    record = {"group": args.group, "curriculum": args.curriculum, "set": args.set, "steps": None if args.minutes else args.steps}
    record |= {"minutes": args.minutes, "failed": failed}
    settings = record["settings"] = {v: variant_settings(args, v) for v in variants}
    record["runs"] = {variant: {str(seed): run for seed, run in seeds.items()} for variant, seeds in runs.items()}
    write_json(output / f"{args.group}.json", record)
    text = table(runs, settings)
    write_atomically(output / f"{args.group}.md", text.encode())
    print(text)


if __name__ == "__main__":
    run_script(main)
