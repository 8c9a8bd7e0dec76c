"""Training steps as CUDA graphs: a GPU gets the operations of a whole step with one command.

A step consists of a few thousand small operations. Launching them one at a time takes the CPU longer than the GPU needs to
compute them (benchmarks/NOTES.md). A graph stores the operations with their memory addresses, so all values that change between
steps must be tensors at fixed addresses: scheduled values become tensors too, and the inputs are copied to where the graph reads
them. Whatever decides which operations a step consists of belongs to the step's kind, which has its own graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from distributed.processes import Processes
from settings.curriculum import Stage
from training.run.run_state import RunState
from training.steps import StepSettings

NUM_WARM_UP = 3  # steps of a kind before its graph is recorded: compilation, choice of algorithms, states of the optimizers

Update = Callable[[Any], dict[str, Tensor]]


def can_use_graphs(state: RunState, processes: Processes) -> bool:
    """Return whether steps of this run can be graphs: on one CUDA GPU, without fp16, ``--compile`` and ``--deterministic``.

    Loss scaling for fp16 decides on the CPU. Compiled code in graphs has not been tested. In a graph, the rates of averages are
    float32, so averages differ in the last bits, and the first steps of a resumed run are no graphs: a deterministic run
    could not be resumed exactly.
    """
    is_cuda = processes.device.type == "cuda" and torch.version.hip is None
    is_compiled = state.curriculum.is_siren and state.generator.siren.is_compiled
    others = state.scaler_G.is_enabled() or is_compiled or torch.are_deterministic_algorithms_enabled()
    return is_cuda and processes.world_size == 1 and not others


def step_kind(settings: StepSettings, stage: Stage) -> Hashable:
    """Return what determines the operations of a step: the batch, and all settings but the scheduled values.

    Of these, only whether there is a fade, a noise or a ball hold counts.
    """
    num_kept = math.ceil(settings.topk_fraction * stage.batch_size)
    fixed = replace(
        settings,
        render=replace(settings.render, interval=0.0, density_noise=float(settings.render.density_noise > 0)),
        fade_alpha=0.0 if settings.fade_alpha < 1 else 1.0,
        topk_fraction=num_kept / stage.batch_size,
        lambda_opacity_prior=0.0,
        lambda_ball_hold=float(settings.lambda_ball_hold > 0),
    )
    return stage.batch_size, stage.batch_split, fixed


class _Recorded(NamedTuple):
    """A recorded step: its graph, the inputs that it reads, and the scalars (N,) that it computes, with their names."""

    graph: torch.cuda.CUDAGraph
    read: list[Tensor | None]
    names: list[str]
    scalars: Tensor


class StepGraphs:
    """Graphs of one run's steps on the GPU ``device``. ``optimizers``: those that the steps use."""

    def __init__(self, device: torch.device, optimizers: Sequence[torch.optim.Adam]) -> None:
        self._device, self._optimizers = device, optimizers
        self._stream = torch.cuda.Stream(device)
        self.clear()

    def clear(self) -> None:
        """Forget all graphs. Needed after the state of a network or an optimizer has moved to other tensors."""
        self._recorded: dict[Hashable, _Recorded] = {}
        self._num_steps: Counter[Hashable] = Counter()

    def run(self, kind: Hashable, update: Update, inputs: Any) -> dict[str, Tensor]:
        """Return the scalars of ``update(inputs)``, a step of this kind: operation by operation at first, then by its graph.

        ``inputs``: nested tuples and lists of tensors on the device, numbers, and None. ``update`` gets the numbers as tensors
        (). The graph keeps the ``update`` with which it was recorded.
        """
        leaves, structure = pytree.tree_flatten(inputs)
        leaves = self._as_tensors(leaves)
        self._num_steps[kind] += 1
        if self._num_steps[kind] <= NUM_WARM_UP:
            return self._warm_up(update, pytree.tree_unflatten(leaves, structure))
        if kind not in self._recorded:
            self._recorded[kind] = self._record(update, leaves, structure)
        recorded = self._recorded[kind]
        for target, leaf in zip(recorded.read, leaves, strict=True):
            if target is not None:
                target.copy_(leaf)
        recorded.graph.replay()
        return dict(zip(recorded.names, recorded.scalars.clone().unbind(), strict=True))

    def _as_tensors(self, leaves: list[Any]) -> list[Any]:
        """Replace numbers by tensors (), which are copied to the device together and without waiting for it."""
        numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float))]
        if not numbers:
            return leaves
        tensors = iter(torch.tensor(numbers, dtype=torch.float32).pin_memory().to(self._device, non_blocking=True).unbind())
        return [next(tensors) if isinstance(leaf, (int, float)) else leaf for leaf in leaves]

    def _warm_up(self, update: Update, inputs: Any) -> dict[str, Tensor]:
        """Take a step on the stream that records, for which libraries allocate their own working memory."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            scalars = update(inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return scalars

    def _record(self, update: Update, leaves: list[Any], structure: pytree.TreeSpec) -> _Recorded:
        """Record the operations of a step, without executing them."""
        read = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        graph = torch.cuda.CUDAGraph()
        pool = next((recorded.graph.pool() for recorded in self._recorded.values()), None)
        # thread_local: another thread pins the memory of the next images meanwhile
        recording = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        with _capturable(self._optimizers), recording:
            scalars = update(pytree.tree_unflatten(read, structure))
            packed = torch.stack([scalar.float() for scalar in scalars.values()])
        return _Recorded(graph, read, list(scalars), packed)


@contextmanager
def _capturable(optimizers: Sequence[torch.optim.Adam]) -> Iterator[None]:
    """Allow a graph to contain the steps of ``optimizers``, in this context."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
