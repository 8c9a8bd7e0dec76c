"""Work for processes that die of it (tests/test_loading_faults.py); apart, so that they can import it quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

DEADLY = 5


def work(indices: Sequence[int], once: str | None = None) -> list[int]:
    """Twice each number; dies by signal 9 at DEADLY, only the first time where ``once`` names a file to remember it by."""
    if DEADLY in indices and (once is None or not Path(once).exists()):
        if once is not None:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * index for index in indices]
