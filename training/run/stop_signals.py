"""Signals that stop a run. After the first, the run saves a checkpoint and ends. The second kills the process."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

# SIGUSR1: sent by Slurm before the time limit; SIGHUP: the terminal closed
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))  # Windows lacks the last two
LAUNCHER_ECHO = 2.0  # seconds within which torchrun forwards a signal that its processes have already received


class StopSignals:
    """A context in which ``number`` is the stop signal that was received, or None."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._time = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup: the run outlives its terminal
        handled = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored]
        self._previous = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ and now - self._time < LAUNCHER_ECHO:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number, self._time = number, now
