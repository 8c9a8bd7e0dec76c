"""Exponential moving averages of the generator (docs/method.md, "Optimization")."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from generators.generator import ImplicitGenerator3d
from settings.schedules import ema_decay_at


class MovingAverage:
    """A generator with averaged weights: average <- average + (1 - decay) (weights - average), with a warm-up of the decay."""

    def __init__(self, generator: ImplicitGenerator3d, decay: float) -> None:
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, generator: ImplicitGenerator3d, is_finite: Tensor) -> None:
        """Average in the weights of ``generator``, unless ``is_finite`` () bool is False: some of them are not finite."""
        self.num_updates += 1
        rate = 1 - ema_decay_at(self.decay, self.num_updates)
        own, weights = list(self.generator.parameters()), list(generator.parameters())
        if is_finite.device.type != "cpu":  # do not synchronize with the GPU
            weights = [torch.where(is_finite, new, old) for new, old in zip(weights, own, strict=True)]
        elif not is_finite:
            weights = own
        torch._foreach_lerp_(own, weights, rate)
        self.generator.truncation_mean = None
