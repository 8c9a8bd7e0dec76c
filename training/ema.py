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

    def next_rate(self) -> float:
        """Count an update, and return 1 - decay for it. Also forget the truncation mean, which the update changes."""
        self.num_updates += 1
        self.generator.truncation_mean = None
        return 1 - ema_decay_at(self.decay, self.num_updates)

    @torch.no_grad()
    def update(self, generator: ImplicitGenerator3d, is_finite: Tensor, rate: float | Tensor) -> None:
        """Average in the weights of ``generator``, unless ``is_finite`` () bool is False: some of them are not finite.

        ``rate``: that of :meth:`next_rate`, a number or a tensor ().
        """
        own, weights = list(self.generator.parameters()), list(generator.parameters())
        if is_finite.device.type != "cpu":  # do not synchronize with the GPU
            weights = [torch.where(is_finite, new, old) for new, old in zip(weights, own, strict=True)]
        elif not is_finite:
            weights = own
        if isinstance(rate, Tensor):
            differences = torch._foreach_sub(weights, own)
            torch._foreach_mul_(differences, rate)
            torch._foreach_add_(own, differences)
        else:
            torch._foreach_lerp_(own, weights, rate)
