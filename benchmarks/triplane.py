"""Compare the training cost of tri-planes with that of a SIREN: milliseconds of one thread per image, and their ratio.

    python benchmarks/triplane.py                # CATS_TRIPLANE, untrained, and a SIREN of CATS_TINY, at 32 and 64 px

Each uses the sample counts of its curriculum. They are measured alternately, so that changes in the machine's speed affect
both, and the minimum CPU time over the rounds is reported. ``forward``: from latents to images, normals and the hold to the
ball. ``backward``: the backward pass of the sum of their losses. D is not included.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from checkpoints.loading import load_generator
from common.arguments import ArgumentParser, positive_int
from common.program import keep_freed_memory, run_script
from distributed.processes import Processes
from generators.generator import ImplicitGenerator3d
from settings.registry import get_curriculum
from training.inputs import draw_inputs
from training.outward_start import Ball, ball_hold_loss
from training.steps import GeneratorInputs, StepSettings, generate

STEP = 1000  # of the schedules: the field is still held to the ball
ALONE = Processes(0, 1, torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as train.py does
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    generators = [ImplicitGenerator3d(get_curriculum(arguments.triplane)), load_generator(arguments.siren).generator]
    names = [generator.curriculum.name for generator in generators]
    for size in arguments.sizes:
        best = [[float("inf")] * 2 for _ in generators]
        for round_number in range(arguments.rounds):
            for times, generator in zip(best, generators, strict=True):
                taken = time_step(generator, size, arguments.batch, round_number)
                times[:] = map(min, times, taken)
        for name, times in zip(names, best, strict=True):
            print(f"{size} px {name:<16} forward {times[0]:6.2f} ms, backward {times[1]:6.2f} ms per image")
        ratios = [siren / triplane for triplane, siren in zip(*best, strict=True)]
        print(f"{size} px ratio            forward {ratios[0]:6.2f},    backward {ratios[1]:6.2f}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--triplane", default="CATS_TRIPLANE", help="a curriculum; its untrained generator, a ball, is measured")
    parser.add_argument("--siren", default="cats_siren", help="a generator file with a surface, as normals are part of the cost")
    parser.add_argument("--sizes", type=positive_int, nargs="+", default=[32, 64], help="image sizes in pixels")
    parser.add_argument("--batch", type=positive_int, default=8, help="images per step")
    parser.add_argument("--rounds", type=positive_int, default=5, help="number of rounds, of which the fastest counts")
    return parser.parse_args(argv)


def time_step(generator: ImplicitGenerator3d, size: int, batch: int, step: int) -> tuple[float, float]:
    """Return the milliseconds per image of the forward and of the backward pass."""
    curriculum = generator.curriculum.with_overrides([f"img_size={size}", f"batch_size={batch}"])
    settings = StepSettings.at(curriculum, STEP)
    inputs = draw_inputs(curriculum, settings, batch, ALONE, seed=0, step=step, purpose="G")
    started = time.process_time()
    loss = field_losses(generator, inputs, settings)
    between = time.process_time()
    loss.backward()
    ended = time.process_time()
    generator.zero_grad(set_to_none=True)
    return (between - started) / batch * 1e3, (ended - between) / batch * 1e3


def field_losses(generator: ImplicitGenerator3d, inputs: GeneratorInputs, settings: StepSettings) -> torch.Tensor:
    """Return a loss with gradients through images, occupancies, normals at and near the surface, and the ball's points."""
    generated = generate(generator, inputs, settings)
    hits = generated.output.surface.hit_mask
    points = generated.rays.origins + generated.output.surface.t.unsqueeze(-1) * generated.rays.directions
    num = int(hits.sum(dim=1).max())
    order = hits.byte().argsort(dim=1, descending=True, stable=True)[:, :num, None].expand(-1, -1, 3)
    at_surface = points.gather(1, order)
    beside = at_surface + generator.curriculum.h_sample * inputs.neighbors.gather(1, order)
    normals = generated.field.normals(torch.cat([at_surface, beside], dim=1))
    logits = generated.field.occupancy_logits(inputs.ball_points)
    held = ball_hold_loss(logits, inputs.ball_points, Ball.of(generator.curriculum))
    return generated.images.square().mean() + generated.output.alphas.square().mean() + normals[..., 0].square().mean() + held


if __name__ == "__main__":
    run_script(main)
