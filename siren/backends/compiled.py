"""The differentiated queries of a field through torch.compile: what ``train.py --compile`` turns on, for GPUs.

A compiled pass fuses each sine with the casts, products and sums beside it and recomputes it in the backward pass, so that
one number per point and unit is kept and read, not two. Every other step of training stays as it is: the rest of
G's step depends on numbers that change each step, for which torch.compile would compile again, and D's penalty on the
gradient needs a second derivative, which compiled code does not give. On a CPU siren/backends/blocked.py does the same by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from siren.backends import folded
from siren.backends.folded import FoldedSiren

_is_on = False


def turn_on(value: bool = True) -> None:
    """For all fields of this process."""
    global _is_on
    _is_on = value


def is_on() -> bool:
    """Whether the query to come is to be compiled: only where a gradient is recorded."""
    return _is_on and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def logits_and_colors(siren: FoldedSiren, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x (B, N, C), directions (B, N, 3) -> (B, N), and (B, N, 3) in [0, 1]. Differentiable once."""
    return _compiled(_logits_and_colors)(siren, x, directions)


def logits_and_gradients(siren: FoldedSiren, x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, N, C) -> (B, N) and d logit / d x, (B, N, C). Differentiable once."""
    return _compiled(folded.logits_and_gradients)(siren, x)


def _logits_and_colors(siren: FoldedSiren, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    hidden = folded.features(siren, x)
    colors = None if directions is None else folded.colors(siren, hidden, directions)
    return folded.logits(siren, hidden), colors


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)  # shapes change with the stage, and where the hold to a ball ends
