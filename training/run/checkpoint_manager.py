"""The checkpoint manager: when to save a run, and what to do if saving fails.

A checkpoint that cannot be written does not stop training. The manager prints one line, keeps older files, and retries after
1, 2, 4, 8, 16 and then every 16 minutes, and at every step at which a checkpoint is due. At the end of a run it retries a
few times within ten seconds, and then raises :class:`NotSaved`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from checkpoints.files import latest_checkpoint
from common.errors import UserError
from common.files import WriteError
from training.run.nonfinite import Diverged
from training.run.run_folder import is_milestone, remove_old_checkpoints
from training.run.run_state import RunState

FIRST_RETRY, LAST_RETRY = 60.0, 960.0  # seconds
PAUSES_AT_END = (1.0, 3.0, 6.0)  # seconds; a launcher gives its processes about half a minute to stop


class NotSaved(UserError):
    """The last state of a run could not be written."""

    exit_status = 3


class CheckpointManager:
    """Save ``state`` in ``folder`` every ``interval`` steps, at milestones, and when the run ends. An interval of 0: never."""

    def __init__(
        self, state: RunState, folder: Path, interval: int, milestone_interval: int, num_kept: int, world_size: int
    ) -> None:
        self._state = state
        self._folder = folder
        self._interval, self._milestone_interval, self._num_kept = interval, milestone_interval, num_kept
        self._world_size = world_size
        self._saved_step: int | None = None
        self._retry_at: float | None = None  # by the monotonic clock
        self._retry_after = FIRST_RETRY

    def is_due(self) -> bool:
        """Return whether to save at the current step."""
        step = self._state.step
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            return True
        return bool(self._interval and step % self._interval == 0) or is_milestone(step, self._milestone_interval)

    def save(self, warn: Callable[[str], None]) -> None:
        """Write a checkpoint during the run. Report a failure through ``warn``."""
        state = self._state
        if state.bad_steps.in_a_row:  # the state may be diverging: do not let it replace a good checkpoint
            self._retry_at = time.monotonic()
            return
        bad = state.first_not_finite()
        if bad:
            warn(f"no checkpoint at step {state.step}: {bad} contains non-finite values")
            return
        try:
            self._write()
        except UserError as error:
            minutes = self._retry_after / 60
            warn(f"no checkpoint at step {state.step}: {error}; training continues, next attempt within {minutes:g} min")
            self._retry_at = time.monotonic() + self._retry_after
            self._retry_after = min(2 * self._retry_after, LAST_RETRY)
        else:
            self._retry_at, self._retry_after = None, FIRST_RETRY

    def save_last(self, warn: Callable[[str], None]) -> None:
        """Save the last state of the run. Raises NotSaved, or Diverged if that state is not finite."""
        state = self._state
        bad = state.first_not_finite()
        if bad:
            raise Diverged(
                f"the run ends at step {state.step} without a checkpoint, because {bad} contains non-finite values;"
                f" the last intact checkpoint is {latest_checkpoint(self._folder, warn)}"
            )
        for pause in (*PAUSES_AT_END, None):
            try:
                return self._write()
            except UserError as error:
                if pause is None:
                    what = "only its generator.safetensors" if self._saved_step == state.step else f"step {state.step}"
                    newest = latest_checkpoint(self._folder, warn)
                    raise NotSaved(
                        f"{what} could not be saved: {error}; the newest intact checkpoint is {newest}."
                        " Free some disk space and run the same command again"
                    ) from None
                warn(f"cannot save the last state: {error}; retrying")
                time.sleep(pause)

    def _write(self) -> None:
        """Write the checkpoint, then the less important inference file. Raises UserError."""
        state = self._state
        if self._saved_step != state.step:
            state.save(self._folder, self._world_size)
            self._saved_step = state.step
        state.save_generator(self._folder)
        if not state.bad_steps.in_a_row:
            try:
                remove_old_checkpoints(self._folder, state.step, self._num_kept, self._milestone_interval)
            except WriteError:  # the file cannot be read back: write it again at the next attempt
                self._saved_step = None
                raise

    def forget(self) -> None:
        """Forget what was saved, after a recovery: a checkpoint of the current step may come from an earlier attempt."""
        self._saved_step = self._retry_at = None
