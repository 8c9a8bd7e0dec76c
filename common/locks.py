"""What only POSIX systems have: locks on files, which the system drops when their holder ends, however it ends."""

from __future__ import annotations

import signal
from typing import IO, Any

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def require_posix(what: str) -> None:
    """Raise UserError where the system lacks what ``what`` relies on: locks on files, and the signals that stop a run."""
    if fcntl is None or not hasattr(signal, "SIGHUP"):
        raise UserError(
            f"{what} needs Linux or macOS (file locks and signals); on Windows, use WSL. Rendering, scores and meshes do not"
        )


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process alone; False where another one holds it, or this platform has no such locks.

    Raises OSError where the file's file system has none.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
