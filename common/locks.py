"""File locks on POSIX systems. The operating system releases a lock when its process ends for any reason."""

from __future__ import annotations

import signal
from typing import IO, Any

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def require_posix(what: str) -> None:
    """Raise UserError if the system lacks the file locks and stop signals that ``what`` requires."""
    if fcntl is None or not hasattr(signal, "SIGHUP"):
        raise UserError(
            f"{what} needs Linux or macOS (file locks and signals); on Windows, use WSL. Rendering, metrics and meshes do not"
        )


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file exclusively. Return False if another process holds the lock or the platform has no such locks.

    Raises OSError if the file system does not support locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
