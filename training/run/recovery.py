"""Recovery from non-finite steps: retry from a checkpoint with different random draws, then give up with a diagnosis."""

from __future__ import annotations

import itertools
from pathlib import Path

from checkpoints.files import intact_checkpoints
from common.errors import print_notice
from distributed.processes import Processes
from settings.schedules import learning_rates_at
from training.run.nonfinite import BadSteps, Diverged
from training.run.run_state import RunState

MAX_RECOVERIES = 3  # without enough good steps in between


class Recovery:
    """Restore ``state`` from a checkpoint in ``folder``. ``reset_after``: steps beyond a failure that reset the count."""

    def __init__(self, state: RunState, folder: Path, processes: Processes, reset_after: int) -> None:
        self._state, self._folder, self._processes, self._reset_after = state, folder, processes, reset_after
        self._count, self._failed_step = 0, 0

    def note_good_step(self) -> None:
        """Reset the count of recoveries if the run is far enough beyond the last failure."""
        if self._state.step > self._failed_step + self._reset_after:
            self._count = 0

    def go_back(self, bad: BadSteps) -> Path:
        """Resume from the newest intact checkpoint. Each further retry takes an older one, as the newest may be affected.

        The retry draws different random numbers, derived from the seed and ``state.attempt``. Both are saved, so the run
        stays reproducible. Raises Diverged, with the diagnosis, without a checkpoint or after MAX_RECOVERIES.
        """
        state, attempt = self._state, self._state.attempt + 1
        self._count, self._failed_step = self._count + 1, state.step
        found = itertools.islice(intact_checkpoints(self._folder, print_notice), self._count) if self._processes.is_main else ()
        paths = [str(path) for path in found] or [""]
        newest, target = self._processes.broadcast_text(f"{paths[0]}\n{paths[-1]}").split("\n")
        diagnosis = self.diagnosis(bad)
        if not target:
            raise Diverged(
                f"{diagnosis}; there is no checkpoint to go back to. Lower the learning rates: --set gen_lr=... disc_lr=..."
            )
        if self._count > MAX_RECOVERIES:
            stage = state.curriculum.stage_at(state.step)
            raise Diverged(
                f"the run diverged: {diagnosis}, even after going back {MAX_RECOVERIES} times with different random numbers; the"
                f" newest intact checkpoint is {newest}. Start a run from it or an earlier one with lower rates: --load_dir"
                f" {newest} --set_step STEP --output_dir NEW --set gen_lr={stage.gen_lr / 2:g} disc_lr={stage.disc_lr / 2:g}"
            )
        self._processes.all_or_none(lambda: state.resume(Path(target), self._processes.world_size))
        state.attempt, state.bad_steps = attempt, BadSteps(skipped=bad.skipped)
        return Path(target)

    def diagnosis(self, bad: BadSteps) -> str:
        """Name the term that failed first, the step, and the learning rates at that step."""
        curriculum = self._state.curriculum
        rates = learning_rates_at(curriculum, bad.first_step)
        size = curriculum.stage_at(bad.first_step).img_size
        return (
            f"{bad.first_term} was the first term to become non-finite, at step {bad.first_step} ({size} px,"
            f" gen_lr {rates.gen_lr:g}, disc_lr {rates.disc_lr:g}), and {bad.in_a_row} consecutive steps were skipped"
        )
