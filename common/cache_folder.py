"""The folder of everything that the project caches: decoded images, compiled sources, small trained networks."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path


def cache_folder() -> Path:
    """Return $GOF_CACHE, or the folder gof in the user's cache folder. It may not exist yet.

    A user without a home folder (a container with a numeric user ID) gets a folder in the system's temporary one.
    """
    named = os.environ.get("GOF_CACHE")
    if named:
        return _expanded(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return _expanded(base) / "gof"
    home = _expanded("~")
    if home.is_absolute():
        return home / ".cache" / "gof"
    return _own_temporary_folder()


@lru_cache(maxsize=1)
def _own_temporary_folder() -> Path:
    """Return a folder in the temporary one that only this user can write: compiled code is loaded from it."""
    if not hasattr(os, "getuid"):  # Windows: temporary folders are the user's own
        return Path(tempfile.gettempdir()) / "gof_cache"
    folder = Path(tempfile.gettempdir()) / f"gof_{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
        if stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="gof_"))


def _expanded(text: str) -> Path:
    """Expand a leading ~, which shells leave within quotes. Unlike Path.expanduser, keep it if there is no home folder."""
    return Path(os.path.expanduser(text))
