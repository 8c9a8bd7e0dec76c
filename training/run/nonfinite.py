"""Guards that keep NaN and infinity out of the weights, the averages and the checkpoints.

A step with a non-finite gradient is skipped: its optimizer does not change the weights. The number of skipped steps, the
number of consecutive ones, and the term that failed first are tracked on the device, without synchronizing with a GPU. The
trainer reads them when it logs. Gradients are averaged over processes before the check, so all processes skip the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError

GRADIENT_NORMS = ("D/grad_norm", "G/grad_norm")


class Diverged(UserError):
    """Training diverged and recovery failed. The last checkpoint is intact."""

    exit_status = 4


@dataclass(frozen=True)
class BadSteps:
    """Counts of skipped steps.

    ``skipped``: steps of the whole run in which an optimizer step was skipped. ``in_a_row``: consecutive skipped steps up to
    now. ``first_step``, ``first_term``: step and first failing term of the current or latest streak.
    """

    skipped: int = 0
    in_a_row: int = 0
    first_step: int = 0
    first_term: str = ""


class Guard:
    """Count bad steps on ``device``, starting from ``known``."""

    def __init__(self, device: torch.device, known: BadSteps) -> None:
        # skipped, in a row, first step of the streak, index of the term that failed first
        start = [known.skipped, known.in_a_row, known.first_step, -1]
        self._counts = torch.tensor(start, dtype=torch.int64, device=device)
        self._names: list[str] = []
        self._known_term = known.first_term

    def watch(self, step: int, terms: dict[str, Tensor]) -> None:
        """Record whether this step was bad. ``terms``: its scalars, in the order in which they were computed.

        A term that ends (G/ball_hold) keeps its index, since the counts may refer to it. Terms that appear later (a lazy D/r1
        and D/r2) get the last indices, but rank before the gradients computed from them.
        """
        self._names += [name for name in terms if name not in self._names]
        ended = torch.zeros((), device=self._counts.device)
        is_bad = ~torch.isfinite(torch.stack([terms.get(name, ended).float() for name in self._names]))
        # indexing with a list would synchronize with the GPU
        rank = torch.stack([bad * (1 if name in GRADIENT_NORMS else 2) for name, bad in zip(self._names, is_bad, strict=True)])
        first = rank.argmax()  # the first of equal values
        skipped = torch.stack([is_bad[self._names.index(name)] for name in GRADIENT_NORMS]).any()
        old_skipped, old_row, old_step, old_term = self._counts.unbind()
        starts = skipped & (old_row == 0)
        row = torch.where(skipped, old_row + 1, 0)
        first_step, first_term = torch.where(starts, step, old_step), torch.where(starts, first, old_term)
        self._counts = torch.stack([old_skipped + skipped, row, first_step, first_term])

    def read(self) -> BadSteps:
        """Read the counts. This synchronizes with the device."""
        skipped, in_a_row, first_step, index = self._counts.tolist()
        return BadSteps(skipped, in_a_row, first_step, self._names[index] if index >= 0 else self._known_term)


def nan_unless_finite(loss: Tensor) -> Tensor:
    """Return ``loss``. If it is not finite, its whole gradient becomes NaN, so that every process skips the step."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def step_if_finite(optimizer: torch.optim.Adam, scaler: torch.amp.GradScaler, grad_norm: Tensor) -> None:
    """Step ``optimizer`` if the norm () of its unscaled gradient is finite, without synchronizing with a GPU."""
    if scaler.is_enabled():  # fp16: the scaler checks the gradients itself, and lowers its scale when they overflow
        scaler.step(optimizer)
        scaler.update()
    elif grad_norm.device.type == "cpu":
        if torch.isfinite(grad_norm):
            optimizer.step()
    else:
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # at 1, Adam's fused kernel changes nothing
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return () bool on the device: True if no value is NaN or infinite."""
    return torch.isfinite(torch.stack(torch._foreach_norm(list(tensors), math.inf))).all()
