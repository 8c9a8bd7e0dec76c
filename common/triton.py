"""Whether Triton, which compiles GPU kernels, is installed. Importing it takes a while, so this only looks for it."""

from __future__ import annotations

import importlib.util


def has_triton() -> bool:
    """Return whether Triton is installed."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # an import of triton that is blocked
        return False
