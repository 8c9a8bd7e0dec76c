"""Measure an iteration of train.py and its phases, and compare the time with that of the necessary arithmetic.

The necessary arithmetic (two FLOP per multiply-add, FiLM folded in, sines not counted):

- per generated image, once for D and once for G (with share_images, once for both): coarse samples and root steps with
  occupancy only; composited samples with color
- G's backward pass: twice the forward pass of the composited samples
- G's normals at two points per ray that hits: a logit and its gradient cost two occupancies, their backward pass four more
- D, as counted by torch's FlopCounterMode: two forward passes, the backward pass, the double backward of R1 and R2 if they
  are due, and in G's step one forward pass and the gradient with respect to the image (relativistic: one more forward pass)

The mapping network, optimizers and averages are not counted. The floor is FLOP / GEMM rate at the time of the iteration.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.flops import flops_of_D, flops_of_images, flops_per_hit
from benchmarks.measure import Gemm
from benchmarks.networks import Network
from common.program import keep_freed_memory
from dataset import training_spec
from distributed.processes import Processes
from settings.curriculum import Stage
from training import trainer
from training.options import RunOptions
from training.run.run_state import RunState

STEP = 5000  # halfway through BFM's first stage
PHASES = ("generate_for_D", "D_forward", "D_backward", "G_forward", "G_backward", "optimizers_and_rest")


def measure(network: Network, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure the seconds of an iteration and of its phases (medians of ``rounds``), and their ratio to the floor.

    ``size``: image size in pixels, which selects BFM's stage. ``batch``: number of images, at most the stage's.
    """
    keep_freed_memory()  # as train.py does
    torch.set_flush_denormal(True)
    trainer_, stage = _trainer(network, size, batch)
    curriculum, step = trainer_.curriculum, trainer_.state.step
    real = (
        torch.rand(batch, training_spec(curriculum).num_channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    with _phases() as clock:
        trainer_._step(real, stage)
    gemm, rows = Gemm(), []
    floor = flops_of_images(curriculum, size) * batch + flops_of_D(trainer_.state.discriminator, curriculum, size, step) * batch
    for _ in range(rounds):
        with _phases() as clock:
            timed = gemm.around(lambda: trainer_._step(real, stage))
        num_hits = float(timed.value["G/hit_rate"]) * batch * size**2
        flops = floor + num_hits * flops_per_hit(curriculum)
        clock["optimizers_and_rest"] = timed.seconds - sum(clock.values())
        rows.append((timed.work / (flops / 1e9), timed.seconds, flops, num_hits, clock))
        trainer_.state.step = step
    over_floor, seconds = (statistics.median(row[i] for row in rows) for i in (0, 1))
    return {
        "size": size,
        "batch": batch,
        "stage_batch": curriculum.stage_at(step).batch_size,
        "rounds": rounds,
        "over_floor": over_floor,
        "seconds": seconds,
        "seconds_per_image": seconds / batch,
        "gflop_per_image": rows[0][2] / batch / 1e9,
        "hit_rate": rows[0][3] / batch / size**2,
        "phases_s": {name: statistics.median(row[4][name] for row in rows) for name in PHASES},
    }


def _trainer(network: Network, size: int, batch: int) -> tuple[trainer.Trainer, Stage]:
    """Return a run at the curriculum's stage of ``size`` px, with the generator of ``network``, which has a surface."""
    curriculum = network.curriculum
    stage = next(stage for stage in curriculum.stages if stage.img_size == size)
    processes = Processes(0, 1, torch.device("cpu"))
    state = RunState(curriculum, 0, processes.device, None)
    state.generator.load_state_dict(network.generator.state_dict())
    state.step = stage.start_step + STEP
    options = RunOptions(Path(tempfile.gettempdir()), "", use_cache=False)
    return trainer.Trainer(state, options, processes), replace(stage, batch_size=batch)


# -- phases --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _phases() -> Iterator[dict[str, float]]:
    """Measure the seconds of each phase of the iterations in this context, by timing the functions that the trainer calls."""
    clock = dict.fromkeys(PHASES[:-1], 0.0)
    latest = ["D"]  # the network whose losses were computed last
    plain = {name: getattr(trainer, name) for name in ("generate", "discriminator_losses", "generator_losses")}
    backward = Tensor.backward

    def timed(phase: Callable[[], str], call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            name, started = phase(), time.perf_counter()
            latest[0] = name[0] if name.endswith("_forward") else latest[0]
            result = call(*args, **kwargs)
            clock[name] += time.perf_counter() - started
            return result

        return wrapped

    trainer.generate = timed(lambda: "G_forward" if torch.is_grad_enabled() else "generate_for_D", plain["generate"])
    trainer.discriminator_losses = timed(lambda: "D_forward", plain["discriminator_losses"])
    trainer.generator_losses = timed(lambda: "G_forward", plain["generator_losses"])
    Tensor.backward = timed(lambda: f"{latest[0]}_backward", backward)
    try:
        yield clock
    finally:
        Tensor.backward = backward
        for name, function in plain.items():
            setattr(trainer, name, function)
