"""Differentiable queries of a field through torch.compile, for GPUs (``train.py --compile``, :attr:`Siren.is_compiled`).

A compiled pass fuses each sine with the adjacent casts, products and sums, and recomputes it in the backward pass. It
therefore saves and reads one number per point and unit instead of two. The rest of training is not compiled: G's step depends
on numbers that change every step, each of which would trigger a recompilation, and D's gradient penalty needs a second
derivative, which compiled code does not provide. On a CPU, siren/backends/blocked.py does the same by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from siren.backends import folded
from siren.backends.folded import FoldedSiren


def logits_and_colors(siren: FoldedSiren, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Map x (B, N, C) to logits (B, N) and, given directions (B, N, 3), colors (B, N, 3) in [0, 1]. Differentiable once."""
    return _compiled(_logits_and_colors)(siren, x, directions)


def logits_and_gradients(siren: FoldedSiren, x: Tensor) -> tuple[Tensor, Tensor]:
    """Map x (B, N, C) to logits (B, N) and d logit / d x (B, N, C). Differentiable once."""
    return _compiled(folded.logits_and_gradients)(siren, x)


def _logits_and_colors(siren: FoldedSiren, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    hidden = folded.features(siren, x)
    colors = None if directions is None else folded.colors(siren, hidden, directions)
    return folded.logits(siren, hidden), colors


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)  # shapes only change between stages and when the ball hold ends
