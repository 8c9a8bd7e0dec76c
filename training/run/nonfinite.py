"""What keeps a number that is not finite out of the weights, the averages and the checkpoints.

A step whose gradient is not finite is left out: its optimizer does not move. How many were, how many in a row, and which
term was the first to go is counted on the device, so that a GPU is not waited for; the trainer looks when it logs. Gradients
are averaged over processes before they are looked at, so all processes leave out the same steps.
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
    """The numbers of a run are beyond repair; its last checkpoint is whole."""

    exit_status = 4


@dataclass(frozen=True)
class BadSteps:
    """``skipped``: steps of the whole run in which an optimizer did not move, ``in_a_row``: the last of them without a good
    one between; ``first_step`` and ``first_term``: where the present (or last) row began, and the term that went first."""

    skipped: int = 0
    in_a_row: int = 0
    first_step: int = 0
    first_term: str = ""


class Guard:
    """Counts bad steps on ``device``, going on from ``known``."""

    def __init__(self, device: torch.device, known: BadSteps) -> None:
        # skipped, in a row, first step of the row, place of the term that went first
        start = [known.skipped, known.in_a_row, known.first_step, -1]
        self._counts = torch.tensor(start, dtype=torch.int64, device=device)
        self._names: list[str] = []
        self._known_term = known.first_term

    def watch(self, step: int, terms: dict[str, Tensor]) -> None:
        """Note whether this step was a bad one. ``terms``: its scalars in the order in which they were computed.

        A term that has come to its end (G/ball_hold) keeps its place, which the counts may hold. Those that come later (a
        lazy D/r1 and D/r2) have the last places; they still go before the gradients, which follow from them.
        """
        self._names += [name for name in terms if name not in self._names]
        ended = torch.zeros((), device=self._counts.device)
        is_bad = ~torch.isfinite(torch.stack([terms.get(name, ended).float() for name in self._names]))
        # one by one: a list of places would be copied to the GPU, and waited for
        rank = torch.stack([bad * (1 if name in GRADIENT_NORMS else 2) for name, bad in zip(self._names, is_bad, strict=True)])
        first = rank.argmax()  # of equal values, the first
        skipped = torch.stack([is_bad[self._names.index(name)] for name in GRADIENT_NORMS]).any()
        old_skipped, old_row, old_step, old_term = self._counts.unbind()
        starts = skipped & (old_row == 0)
        row = torch.where(skipped, old_row + 1, 0)
        first_step, first_term = torch.where(starts, step, old_step), torch.where(starts, first, old_term)
        self._counts = torch.stack([old_skipped + skipped, row, first_step, first_term])

    def look(self) -> BadSteps:
        """The counts. This waits for the device."""
        skipped, in_a_row, first_step, place = self._counts.tolist()
        return BadSteps(skipped, in_a_row, first_step, self._names[place] if place >= 0 else self._known_term)


def nan_unless_finite(loss: Tensor) -> Tensor:
    """``loss``; where it is not finite, one whose whole gradient is NaN, which makes every process leave the step out."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def step_if_finite(optimizer: torch.optim.Adam, scaler: torch.amp.GradScaler, grad_norm: Tensor) -> None:
    """Move ``optimizer`` where the norm () of its unscaled gradient is finite; on a GPU without waiting for the norm."""
    if scaler.is_enabled():  # fp16: it has looked at the gradients itself, and lowers its scale where they overflow
        scaler.step(optimizer)
        scaler.update()
    elif grad_norm.device.type == "cpu":
        if torch.isfinite(grad_norm):
            optimizer.step()
    else:
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # Adam's fused kernel leaves everything as it is at 1
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no value is NaN or infinite: () bool, on the device."""
    return torch.isfinite(torch.stack(torch._foreach_norm(list(tensors), math.inf))).all()
