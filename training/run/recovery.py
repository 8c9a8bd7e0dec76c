"""The way out when a run's numbers go bad: back to a checkpoint, with other random draws, a few times; then a diagnosis."""

from __future__ import annotations

import itertools
from pathlib import Path

from checkpoints.files import whole_checkpoints
from distributed.collectives import text_of_main
from distributed.processes import Processes
from settings.curriculum import Curriculum
from settings.schedules import learning_rates_at
from training.run.console import tell
from training.run.nonfinite import BadSteps, Diverged

MAX_SETBACKS = 3  # without getting well past the place in between


class Setbacks:
    """Counts how often a run was sent back, and says where to. ``past_after``: steps beyond the place that end the count."""

    def __init__(self, curriculum: Curriculum, folder: Path, processes: Processes, past_after: int) -> None:
        self._curriculum, self._folder, self._processes, self._past_after = curriculum, folder, processes, past_after
        self._count, self._place = 0, 0

    def note_good_step(self, step: int) -> None:
        if step > self._place + self._past_after:
            self._count = 0

    def where_to(self, bad: BadSteps, step: int) -> Path:
        """The newest whole checkpoint; when that was tried, the one before it, for a checkpoint may be sick already.

        Raises Diverged, with the diagnosis, where there is none or MAX_SETBACKS were in vain.
        """
        self._count, self._place = self._count + 1, step
        found: list[Path] = []
        if self._processes.is_main:
            found = list(itertools.islice(whole_checkpoints(self._folder, tell), self._count))
        chosen = f"{found[0]}\n{found[-1]}" if found else "\n"
        newest, target = text_of_main(self._processes, chosen).split("\n")
        what = self.diagnosis(bad)
        if not target:
            raise Diverged(
                f"{what}; there is no checkpoint to go back to. Lower the learning rates: --set gen_lr=... disc_lr=..."
            )
        if self._count > MAX_SETBACKS:
            stage = self._curriculum.stage_at(step)
            raise Diverged(
                f"the run diverged: {what}, also after going back {MAX_SETBACKS} times with other random numbers; the newest"
                f" whole checkpoint is {newest}. Start a run from it, or an earlier one, with lower rates: --load_dir {newest}"
                f" --set_step STEP --output_dir NEW --set gen_lr={stage.gen_lr / 2:g} disc_lr={stage.disc_lr / 2:g}"
            )
        return Path(target)

    def diagnosis(self, bad: BadSteps) -> str:
        """Which term went first, where, at which rates."""
        rates = learning_rates_at(self._curriculum, bad.first_step)
        size = self._curriculum.stage_at(bad.first_step).img_size
        settings = f"{size} px, gen_lr {rates.gen_lr:g}, disc_lr {rates.disc_lr:g}"
        return (
            f"{bad.first_term} was the first to be not finite, at step {bad.first_step} ({settings}),"
            f" and {bad.in_a_row} steps in a row could not be taken"
        )
