"""Train a generator on a folder of photos, or on the built-in heads.

    python train.py --curriculum CelebA --dataset_path photos/ --output_dir outputs/celeba
    torchrun --nproc_per_node=8 train.py --curriculum CATS --dataset_path cats.zip --output_dir outputs/cats

Run the same command again and it goes on where it stood. Exit status: 0 when it ended or reached --max_steps,
--max_minutes or --n_epochs; 2 for bad input; 128 + N when signal N stopped it (a checkpoint is written first).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import cli
from checkpoint_files import write_atomically
from checkpoints import latest_checkpoint
from curriculums import Curriculum, get_curriculum
from dataset import DATASETS, find_images
from scripts_common import positive_float, positive_int, seed_number
from training.distributed import Processes, join_processes
from training.recorder import Recorder
from training.run_state import RunState
from training.trainer import RunOptions, Trainer

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--curriculum", required=True, help="a name from curriculums.py, or a .json file")
    parser.add_argument("--output_dir", required=True, help="checkpoints, samples and logs go here")
    parser.add_argument("--dataset_path", help="folder, glob or zip of images (python synthetic_heads.py makes a built-in set)")
    parser.add_argument("--dataset", choices=sorted(DATASETS), help="crop preset, if not the curriculum's")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change settings of the curriculum")
    parser.add_argument("--load_dir", help="start a new run from the weights in this folder (ours or published files)")
    parser.add_argument("--load_dict", action="store_true", help="accepted for old commands: the form of a file is recognised")
    parser.add_argument("--set_step", type=int, help="with --load_dir: the step to start at")
    parser.add_argument("--mirror_depth", action="store_true", help="with --load_dir: turn a hollow shape outward")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--max_steps", type=positive_int, help="stop at this step")
    parser.add_argument("--max_minutes", type=positive_float, help="stop after this time, and resume later")
    parser.add_argument("--n_epochs", type=positive_int, help="stop after this many passes over the images")
    parser.add_argument("--sample_interval", type=int, default=500, help="steps between sample grids; 0: none")
    parser.add_argument("--model_save_interval", type=int, default=1000, help="steps between checkpoints; 0: only the last")
    parser.add_argument("--eval_freq", type=int, default=0, help="steps between measurements (training/evaluation.py); 0: none")
    parser.add_argument("--log_interval", type=positive_int, default=20, help="steps between lines in log.jsonl and TensorBoard")
    parser.add_argument("--use_logger", action=argparse.BooleanOptionalAction, default=True, help="TensorBoard")
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True, help="keep decoded images in a cache")
    parser.add_argument("--amp", choices=["auto", *AMP_DTYPES], default="auto", help="the discriminator's precision on a GPU")
    parser.add_argument("--port", type=int, help="of the first machine's process group, where torchrun does not set it")
    cli.add_device_argument(parser)
    return parser.parse_args(argv)


def resolve_amp(choice: str, device: torch.device) -> torch.dtype | None:
    if device.type == "cpu":
        return None
    if choice == "auto":
        choice = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return AMP_DTYPES[choice]


def check_dataset(arguments: argparse.Namespace, curriculum: Curriculum) -> None:
    """Look at the images before anything else is done. Raises UserError."""
    if not arguments.dataset_path:
        raise cli.UserError(
            f"--dataset_path is missing: a folder, glob or zip of images for the curriculum {curriculum.name}"
            " (python synthetic_heads.py makes a built-in set)"
        )
    find_images(arguments.dataset_path)


def prepare_state(
    arguments: argparse.Namespace, curriculum: Curriculum, output_dir: Path, processes: Processes, amp_dtype: torch.dtype | None
) -> RunState:
    """Resume what is in ``output_dir``, or start: from another run's weights, or afresh."""
    state = RunState(curriculum, arguments.seed, processes.device, amp_dtype)
    notes: list[str] = []
    newest = latest_checkpoint(output_dir, notice=notes.append)
    if newest is not None:
        state.resume(newest)
        notes.append(f"resuming from {newest}, step {state.step}")
    elif arguments.load_dir:
        state.start_from(Path(arguments.load_dir), notes)
        state.step = arguments.set_step or 0
        if arguments.mirror_depth:
            state.mirror_depth()
    if processes.is_main:
        for note in notes:
            print(note, file=sys.stderr)
    return state


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if not arguments.load_dir and (arguments.set_step is not None or arguments.mirror_depth):
        raise cli.UserError("--set_step and --mirror_depth go with --load_dir")
    curriculum = get_curriculum(arguments.curriculum).with_overrides(arguments.set)
    device = cli.resolve_device(arguments.device)
    output_dir = cli.make_output_dir(arguments.output_dir)
    check_dataset(arguments, curriculum)
    processes = join_processes(device, arguments.port)
    amp_dtype = resolve_amp(arguments.amp, processes.device)
    if processes.device.type == "cpu":
        cli.keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs; sums stay float32
    state = prepare_state(arguments, curriculum, output_dir, processes, amp_dtype)
    options = RunOptions(
        output_dir=output_dir,
        dataset_path=arguments.dataset_path,
        dataset_preset=arguments.dataset or curriculum.dataset,
        max_steps=arguments.max_steps,
        max_minutes=arguments.max_minutes,
        num_epochs=arguments.n_epochs,
        sample_interval=arguments.sample_interval,
        save_interval=arguments.model_save_interval,
        eval_interval=arguments.eval_freq,
        log_interval=arguments.log_interval,
        use_tensorboard=arguments.use_logger,
        use_cache=arguments.cache,
    )
    recorder = None
    trainer = Trainer(state, options, processes, amp_dtype)
    trainer.open_images()
    if state.is_fresh and curriculum.init_ball_radius:
        if processes.is_main:
            print(f"outward start: fitting the field to a ball of radius {curriculum.init_ball_radius}", file=sys.stderr)
        state.start_outward()
    if processes.is_main:
        record = {"arguments": vars(arguments), "curriculum": curriculum.to_dict(), "world_size": processes.world_size}
        write_atomically(output_dir / "run.json", json.dumps(record, indent=1).encode())
        recorder = Recorder(output_dir, state.step, curriculum.end_step, options.use_tensorboard)
    try:
        reason = trainer.run(recorder)
    finally:
        if recorder:
            recorder.close()
    if processes.is_main:
        print(f"stopped at step {state.step}: {reason}; the generator is in {output_dir / 'generator.safetensors'}")
    processes.close()
    if trainer.stopped_by_signal is not None:
        sys.stdout.flush()
        os._exit(128 + trainer.stopped_by_signal)


if __name__ == "__main__":
    cli.run(main)
