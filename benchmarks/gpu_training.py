"""Measure training steps of tri-planes on a GPU: as CUDA graphs, eager, and with plain lookups.

    python benchmarks/gpu_training.py --json gpu_training.json            # expected: about 2 minutes on an H200
    python benchmarks/gpu_training.py --device cpu --quick                # only tests that this script runs

Steps are whole ones, by training/trainer.py, on the same random images of 64 px, from untrained weights: draws of random numbers,
D, G, averages, and R1 and R2 in every fourth step. Times are wall-clock times between two synchronizations. Memory is the most
that PyTorch reserved, graphs included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common.arguments import ArgumentParser, add_device_argument, positive_int, resolve_device
from common.errors import UserError
from common.program import run_script
from dataset import training_spec
from distributed.processes import Processes
from settings.registry import get_curriculum
from training.cuda_graphs import NUM_WARM_UP
from training.options import RunOptions
from training.run.run_state import RunState
from training.trainer import Trainer
from triplane import gpu_lookup

Row = dict[str, Any]


class Variant(NamedTuple):
    """How steps are taken: as CUDA graphs or eager, with or without the kernels for lookups."""

    name: str
    use_graphs: bool
    use_kernels: bool


VARIANTS = (
    Variant("graphs", True, True),
    Variant("eager", False, True),
    Variant("eager, plain lookups", False, False),
)


def seconds_of_a_step(device: torch.device, name: str, batch_size: int, variant: Variant, num_steps: int) -> Row:
    """Measure ``num_steps`` steps of the curriculum ``name`` in its stage of 64 px, or on a CPU in its first.

    Raises UserError if no graph was recorded on a GPU.
    """
    curriculum = get_curriculum(name).with_overrides([f"batch_size={batch_size}"])
    first_step = next((s.start_step for s in curriculum.stages if s.img_size == 64), 0) if device.type == "cuda" else 0
    state = RunState(curriculum, 0, device, torch.bfloat16 if device.type == "cuda" else None)
    state.step = first_step
    enabled_before = gpu_lookup.ENABLED
    gpu_lookup.ENABLED = enabled_before and variant.use_kernels
    try:
        trainer = Trainer(state, RunOptions(Path(), "", use_graphs=variant.use_graphs), Processes(0, 1, device))
        stage = curriculum.stage_at(first_step)
        num_channels = training_spec(curriculum).num_channels
        real = torch.rand(batch_size, num_channels, stage.img_size, stage.img_size, device=device) * 2 - 1

        def take(num: int) -> None:
            for _ in range(num):
                state.set_learning_rates(state.step)
                trainer._step(real, stage)
                state.step += 1

        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            take((NUM_WARM_UP + 1) * curriculum.r1_interval)  # until steps with and without penalties are recorded
            if variant.use_graphs and not trainer._graphs._recorded:
                raise UserError(f"no step of {name} became a graph (see can_use_graphs in training/cuda_graphs.py)")
        _wait(device)
        started = time.perf_counter()
        take(num_steps)
        _wait(device)
        seconds = (time.perf_counter() - started) / num_steps
    finally:
        gpu_lookup.ENABLED = enabled_before
    row = {"curriculum": name, "variant": variant.name, "size": stage.img_size, "batch_size": batch_size}
    reserved = torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
    return {**row, "seconds": seconds, "images_per_s": batch_size / seconds, "reserved_gib": reserved}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--curriculum", default="CATS_TRIPLANE", help="a name or a .json file (default: CATS_TRIPLANE)")
    parser.add_argument("--batch_sizes", type=positive_int, nargs="+", default=[16, 64], help="images per step (default: 16 64)")
    parser.add_argument("--quick", action="store_true", help="one step each, only to test this script")
    parser.add_argument("--json", type=Path, help="write the results as JSON")
    add_device_argument(parser)
    args: argparse.Namespace = parser.parse_args(argv)
    device = resolve_device(args.device)
    if device.type != "cuda" and not args.quick:
        raise UserError("this measures a GPU; use benchmarks/run.py for the CPU, or --quick to test the script")
    torch.set_float32_matmul_precision("high")  # as train.py
    rows = []
    for batch_size in [2] if args.quick else args.batch_sizes:
        for variant in VARIANTS:
            row = seconds_of_a_step(device, args.curriculum, batch_size, variant, 1 if args.quick else 40)
            rows.append(row)
            print(
                f"{row['variant']}, batches of {batch_size}, {row['size']} px:"
                f" {1000 * row['seconds']:.1f} ms a step, {row['images_per_s']:.0f} images/s"
            )
    if args.json is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
