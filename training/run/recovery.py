"""Recovery from steps that are not finite: back to a checkpoint with other random draws, a few times; then a diagnosis."""

from __future__ import annotations

import itertools
from pathlib import Path

from checkpoints.files import whole_checkpoints
from distributed.processes import Processes
from settings.schedules import learning_rates_at
from training.run.console import tell
from training.run.nonfinite import BadSteps, Diverged
from training.run.run_state import RunState

MAX_RECOVERIES = 3  # without getting well past the failure in between


class Recovery:
    """Return ``state`` to a checkpoint in ``folder``. ``past_after``: steps beyond a failure that reset the count."""

    def __init__(self, state: RunState, folder: Path, processes: Processes, past_after: int) -> None:
        self._state, self._folder, self._processes, self._past_after = state, folder, processes, past_after
        self._count, self._place = 0, 0

    def note_good_step(self) -> None:
        if self._state.step > self._place + self._past_after:
            self._count = 0

    def go_back(self, bad: BadSteps) -> Path:
        """Resume from the newest whole checkpoint; each further time from an older one, since the newest may be affected.

        The retry draws other random numbers: they follow from the seed and ``state.attempt``, which is saved, so the run is
        still reproducible. Raises Diverged, with the diagnosis, without a checkpoint or after MAX_RECOVERIES.
        """
        state, attempt = self._state, self._state.attempt + 1
        self._count, self._place = self._count + 1, state.step
        found = itertools.islice(whole_checkpoints(self._folder, tell), self._count) if self._processes.is_main else ()
        paths = [str(path) for path in found] or [""]
        newest, target = self._processes.text_of_main(f"{paths[0]}\n{paths[-1]}").split("\n")
        what = self.diagnosis(bad)
        if not target:
            raise Diverged(
                f"{what}; there is no checkpoint to go back to. Lower the learning rates: --set gen_lr=... disc_lr=..."
            )
        if self._count > MAX_RECOVERIES:
            stage = state.curriculum.stage_at(state.step)
            raise Diverged(
                f"the run diverged: {what}, also after going back {MAX_RECOVERIES} times with other random numbers; the newest"
                f" whole checkpoint is {newest}. Start a run from it, or an earlier one, with lower rates: --load_dir {newest}"
                f" --set_step STEP --output_dir NEW --set gen_lr={stage.gen_lr / 2:g} disc_lr={stage.disc_lr / 2:g}"
            )
        self._processes.all_or_none(lambda: state.resume(Path(target), self._processes.world_size))
        state.attempt, state.bad_steps = attempt, BadSteps(skipped=bad.skipped)
        return Path(target)

    def diagnosis(self, bad: BadSteps) -> str:
        """Name the term that failed first, its step, and the learning rates there."""
        curriculum = self._state.curriculum
        rates = learning_rates_at(curriculum, bad.first_step)
        size = curriculum.stage_at(bad.first_step).img_size
        return (
            f"{bad.first_term} was the first to be not finite, at step {bad.first_step} ({size} px,"
            f" gen_lr {rates.gen_lr:g}, disc_lr {rates.disc_lr:g}), and {bad.in_a_row} steps in a row could not be taken"
        )
