"""Work that kills its process (tests/test_loading_faults.py), in a separate module that is fast to import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

DEADLY = 5


def work(indices: Sequence[int], once: str | None = None) -> list[int]:
    """Double each number; die by signal 9 at DEADLY, or only the first time if ``once`` names a file that records it."""
    if DEADLY in indices and (once is None or not Path(once).exists()):
        if once is not None:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * index for index in indices]
