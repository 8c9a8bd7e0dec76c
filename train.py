"""Train a generator on a folder of photos, or on the built-in synthetic heads.

    python train.py --curriculum CelebA --dataset_path photos/ --output_dir outputs/celeba
    torchrun --nproc_per_node=8 train.py --curriculum CATS --dataset_path cats.zip --output_dir outputs/cats

Run the same command again to resume from the last checkpoint (docs/long_runs.md). Exit status:

    0      the curriculum ended, or --max_steps, --max_minutes or --n_epochs was reached; a checkpoint is written
    2      bad input, output folder in use, or images missing; a run in progress writes a checkpoint first
    3      the last state could not be saved (disk full); earlier checkpoints are intact
    4      the run diverged, even after recovery from a checkpoint; the checkpoints are intact
    5      another process of the run, or the connection to it, was lost; the last checkpoint is intact
    128+N  signal N (SIGINT, SIGTERM, SIGUSR1, SIGHUP) stopped the run; a checkpoint is written. A second signal kills it
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from checkpoints.files import damage_in, latest_checkpoint, list_checkpoints, load_training_checkpoint
from common.arguments import (
    ArgumentParser,
    add_device_argument,
    add_settings_argument,
    nonnegative_int,
    positive_float,
    positive_int,
    resolve_device,
    seed_number,
)
from common.errors import UserError, print_notice
from common.files import make_output_dir, write_json
from common.locks import require_posix
from common.program import keep_freed_memory, run_script
from dataset import DATASETS, Split, find_images, part_of
from distributed.processes import Processes, join_processes
from metrics.fidelity import read_state_dict
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from training.mirror import best_mirroring
from training.options import RunOptions
from training.run.console import steady_output
from training.run.recorder import Recorder
from training.run.run_folder import FolderLock, clean_up, disk_space_warning, set_aside_newer
from training.run.run_state import RunState
from training.trainer import Trainer

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--curriculum", required=True, help="a name from curriculums.py, or a .json file")
    parser.add_argument("--output_dir", required=True, help="folder for checkpoints, samples and logs")
    parser.add_argument(
        "--dataset_path", help="folder, glob or zip of images (python -m tools.synthetic_heads creates a synthetic set)"
    )
    parser.add_argument("--dataset", choices=sorted(DATASETS), help="crop preset (default: the curriculum's)")
    add_settings_argument(parser, "override curriculum settings")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="{auto,never,PATH}",
        help="auto: resume from the newest intact checkpoint in --output_dir; never: exit if the folder holds a checkpoint;"
        " PATH: resume from this checkpoint",
    )
    load_help = "start a new run from a run's folder, published files, a checkpoint, a generator file, or a name such as cats"
    parser.add_argument("--load_dir", help=load_help)
    parser.add_argument("--load_dict", action="store_true", help="ignored, kept for old commands: file formats are detected")
    parser.add_argument("--set_step", type=int, help="with --load_dir: the initial step")
    parser.add_argument("--mirror_depth", action="store_true", help="with --load_dir: mirror a hollow shape in depth")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of all random numbers of the run")
    parser.add_argument("--max_steps", type=positive_int, help="stop at this step")
    parser.add_argument("--max_minutes", type=positive_float, help="stop after this many minutes, to resume later")
    parser.add_argument("--n_epochs", type=positive_int, help="stop after this many passes over the images")
    parser.add_argument("--sample_interval", type=nonnegative_int, default=500, help="steps between sample grids; 0: none")
    parser.add_argument(
        "--model_save_interval", type=nonnegative_int, default=1000, help="steps between checkpoints; 0: only the last"
    )
    parser.add_argument("--keep", type=positive_int, default=3, help="number of recent checkpoints to keep")
    parser.add_argument(
        "--milestone_interval",
        type=nonnegative_int,
        default=10_000,
        help="steps between checkpoints that are never deleted; 0: none",
    )
    parser.add_argument(
        "--max_bad_steps",
        type=positive_int,
        default=20,
        help="return to a checkpoint after this many consecutive non-finite steps",
    )
    parser.add_argument(
        "--eval_freq",
        type=nonnegative_int,
        default=0,
        help="steps between evaluations, logged in metrics.jsonl, with one more at the end; 0: none",
    )
    parser.add_argument(
        "--eval_images", type=nonnegative_int, default=256, help="images per evaluation of fd, SWD, FID and KID; 0: none"
    )
    parser.add_argument(
        "--feature_extractor_weights",
        help="file with the Inception weights for FID and KID (default: the torch cache)",
    )
    parser.add_argument(
        "--log_interval", type=positive_int, default=20, help="steps between entries in log.jsonl and TensorBoard"
    )
    parser.add_argument("--use_logger", action=argparse.BooleanOptionalAction, default=True, help="write TensorBoard logs")
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True, help="cache decoded images on disk")
    parser.add_argument("--amp", choices=["auto", *AMP_DTYPES], default="auto", help="precision of the discriminator on a GPU")
    parser.add_argument(
        "--cuda_graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on one GPU: replay training steps as CUDA graphs; faster, but needs more memory"
        " (no effect with fp16, --compile or --deterministic)",
    )
    parser.add_argument("--compile", action="store_true", help="on a GPU: compile the field's training passes with torch.compile")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU: make a resumed run bitwise identical to an uninterrupted one; slower",
    )
    parser.add_argument("--port", type=int, help="port of the process group on the first machine, if torchrun does not set it")
    add_device_argument(parser)
    return parser.parse_args(argv)


def resolve_amp(choice: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype for --amp ``choice``, or None for float32. Always None on a CPU."""
    if device.type == "cpu":
        return None
    if choice == "auto":
        choice = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return AMP_DTYPES[choice]


def device_name(device: torch.device) -> str:
    """Return a readable name of ``device`` for run.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


@contextlib.contextmanager
def deterministic(is_enabled: bool) -> Iterator[None]:
    """Make every operation in this context bitwise reproducible. Raises UserError if an operation cannot be."""
    if not is_enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it on first use
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"--deterministic: {error} Omit the option, or use --device cpu") from error
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Round denormal numbers to zero on a CPU, which computes slowly with them.

    Occupancies of empty space and their gradients are denormal.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def check_dataset(arguments: argparse.Namespace, curriculum: Curriculum) -> None:
    """Check the images, and the weights for FID, before anything else. Raises UserError."""
    if not arguments.dataset_path:
        raise UserError(
            f"--dataset_path is missing: give a folder, glob or zip of images for the curriculum {curriculum.name}"
            " (python -m tools.synthetic_heads creates a synthetic set)"
        )
    part_of(find_images(arguments.dataset_path), Split("train", curriculum.num_holdout))
    if arguments.feature_extractor_weights:
        read_state_dict(Path(arguments.feature_extractor_weights))


def is_relaunched() -> bool:
    """Return whether a launcher restarted this command: torchrun after a process died, or Slurm after a requeue."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _has_resumed_from(path: str, present: list[tuple[int, Path]]) -> bool:
    """Return whether ``present`` has a checkpoint written after --resume PATH. That run moved older files aside."""
    if not Path(path).exists():  # the run removed it as one of its oldest checkpoints
        return bool(present)
    return bool(present) and present[0][0] > load_training_checkpoint(path)["step"]


def checkpoint_to_resume(arguments: argparse.Namespace, output_dir: Path) -> Path | None:
    """Return the checkpoint that --resume names or finds, or None for a new run. Raises UserError."""
    present = list_checkpoints(output_dir)
    if arguments.resume == "never" and not is_relaunched():
        if present:
            raise UserError(f"{output_dir} already holds {present[0][1].name}; choose another --output_dir or --resume auto")
        return None
    if arguments.resume not in ("auto", "never") and not (is_relaunched() and _has_resumed_from(arguments.resume, present)):
        path = Path(arguments.resume)
        damage = damage_in(path)
        if damage:
            raise UserError(
                f"--resume {path}: the file is damaged or not a checkpoint ({damage}); give another, or use --resume auto"
            )
        return path
    newest = latest_checkpoint(output_dir, notice=print_notice)
    if present and newest is None:
        raise UserError(
            f"none of the {len(present)} checkpoints in {output_dir} is intact; give another one with --resume PATH,"
            " or move them away to start over"
        )
    return newest


def prepare_state(
    arguments: argparse.Namespace, curriculum: Curriculum, output_dir: Path, processes: Processes, amp_dtype: torch.dtype | None
) -> RunState:
    """Resume the run in ``output_dir``, or start a new one, from scratch or from another run's weights.

    Raises UserError in all processes.
    """
    state = RunState(curriculum, arguments.seed, processes.device, amp_dtype)
    notes: list[str] = []
    chosen = processes.all_or_none(lambda: checkpoint_to_resume(arguments, output_dir), only_main=True)
    path = processes.broadcast_text(str(chosen or ""))

    def load() -> None:
        if path:
            changed = state.resume(Path(path), processes.world_size)
            notes.append(
                f"resuming from {path}, step {state.step}" + (f"; changed settings: {', '.join(changed)}" if changed else "")
            )
        elif arguments.load_dir:
            state.start_from(Path(arguments.load_dir), notes)
            state.step = arguments.set_step or 0
            if arguments.mirror_depth:
                mirroring = best_mirroring(state.averages["ema"].generator, curriculum.stage_at(state.step).img_size)
                state.mirror_depth(mirroring.invert)
                psnr_db = f"{mirroring.psnr_db:.1f} dB"
                notes.append(f"{mirroring.description}: PSNR {psnr_db} between the images before and after")

    processes.all_or_none(load)
    if processes.is_main:
        if path and arguments.resume != "auto":
            moved = set_aside_newer(output_dir, state.step)
            notes += [f"moved {len(moved)} checkpoints after step {state.step} to {moved[0].parent}"] if moved else []
        for note in notes:
            print_notice(note)
    return state


def run_options(arguments: argparse.Namespace, output_dir: Path, started: float) -> RunOptions:
    """Return the options of the trainer. ``started``: start of the command, by the monotonic clock."""
    return RunOptions(
        output_dir=output_dir,
        dataset_path=arguments.dataset_path,
        max_steps=arguments.max_steps,
        max_minutes=arguments.max_minutes,
        num_epochs=arguments.n_epochs,
        sample_interval=arguments.sample_interval,
        save_interval=arguments.model_save_interval,
        milestone_interval=arguments.milestone_interval,
        num_kept=arguments.keep,
        max_bad_steps=arguments.max_bad_steps,
        eval_interval=arguments.eval_freq,
        eval_images=arguments.eval_images,
        eval_weights=Path(arguments.feature_extractor_weights) if arguments.feature_extractor_weights else None,
        log_interval=arguments.log_interval,
        use_tensorboard=arguments.use_logger,
        use_cache=arguments.cache,
        use_graphs=arguments.cuda_graphs,
        started=started,
    )


def train(arguments: argparse.Namespace, curriculum: Curriculum, options: RunOptions, processes: Processes) -> Trainer:
    """Resume or start a run, and train to the end or a limit. The caller holds the lock of the output folder."""
    output_dir = options.output_dir
    amp_dtype = resolve_amp(arguments.amp, processes.device)
    state = prepare_state(arguments, curriculum, output_dir, processes, amp_dtype)
    if arguments.compile:
        state.generator.siren.is_compiled = True
    trainer = Trainer(state, options, processes)
    trainer.open_images()
    if state.is_fresh and curriculum.init_ball_radius:
        fitting = "fitting the field to" if curriculum.is_siren else "the field is"
        stretch = curriculum.init_ball_stretch
        if processes.is_main:
            stretched = f", stretched by {stretch} along x, y and z" if stretch != (1, 1, 1) else ""
            print_notice(f"outward start: {fitting} a ball of radius {curriculum.init_ball_radius}{stretched}")
        state.start_outward()
    processes.broadcast(state.weights())
    recorder = None
    if processes.is_main:
        record = {"arguments": vars(arguments), "curriculum": curriculum.to_dict(), "world_size": processes.world_size}
        record["machine"] = {"device": device_name(processes.device), "torch": torch.__version__}
        write_json(output_dir / "run.json", record)
        warning = disk_space_warning(output_dir, state.num_bytes(), options.num_kept)
        if warning:
            print_notice(warning)
        recorder = Recorder(output_dir, state.step, curriculum.end_step, options.use_tensorboard)
    try:
        reason = trainer.run(recorder)
    finally:
        if recorder:
            recorder.close()
    if processes.is_main:
        print(f"stopped at step {state.step}: {reason}; the generator is in {output_dir / 'generator.safetensors'}")
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    arguments = parse_arguments(argv)
    require_posix("training")
    if not arguments.load_dir and (arguments.set_step is not None or arguments.mirror_depth):
        raise UserError("--set_step and --mirror_depth require --load_dir")
    if arguments.load_dir and arguments.resume not in ("auto", "never"):
        raise UserError("--load_dir starts a new run and --resume PATH continues one; give only one of them")
    crop = [f"dataset={arguments.dataset}"] if arguments.dataset else []  # saved with the weights: metrics need it
    curriculum = get_curriculum(arguments.curriculum).with_overrides([*arguments.set, *crop])
    if arguments.compile and not curriculum.is_siren:
        raise UserError(f"--compile is for SIREN models, and this model is {curriculum.model}; omit the option")
    device = resolve_device(arguments.device)
    output_dir = make_output_dir(arguments.output_dir)
    check_dataset(arguments, curriculum)
    processes = join_processes(device, arguments.port)
    if processes.device.type == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs; sums stay float32
    options = run_options(arguments, output_dir, started)
    with contextlib.ExitStack() as stack:
        stack.enter_context(steady_output())
        stack.enter_context(flushed_denormals())
        stack.enter_context(processes.handle_failures())
        stack.enter_context(deterministic(arguments.deterministic))
        processes.all_or_none(lambda: _take_folder(output_dir, stack), only_main=True)
        trainer = train(arguments, curriculum, options, processes)
        processes.close()
        sys.stdout.flush()
        if trainer.stop_signals.number is not None:
            os._exit(128 + trainer.stop_signals.number)


def _take_folder(output_dir: Path, stack: contextlib.ExitStack) -> None:
    stack.callback(FolderLock(output_dir, print_notice).release)
    clean_up(output_dir)


if __name__ == "__main__":
    run_script(main)
