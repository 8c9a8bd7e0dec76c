"""The folder of everything that the project caches: decoded images, compiled sources, small trained networks."""

from __future__ import annotations

import os
import tempfile
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
    return Path(tempfile.gettempdir()) / f"gof_{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def _expanded(text: str) -> Path:
    """Expand a leading ~, which shells leave within quotes. Unlike Path.expanduser, keep it if there is no home folder."""
    return Path(os.path.expanduser(text))
