"""Whether GPU kernels written in Triton can be used: is it installed, and do their first results agree with PyTorch?"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch


def has_triton() -> bool:
    """Return whether Triton is installed. Importing it takes a while, so this only looks for it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # an import of triton that is blocked
        return False


def can_check(device: torch.device) -> bool:
    """Return whether a kernel can be compared with PyTorch now: not under torch.compile or while a CUDA graph is captured."""
    is_capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return not (is_capturing or torch.compiler.is_compiling())


def passes_check(kernel: str, relative_error: Callable[[], float], tolerance: float) -> bool:
    """Return whether ``relative_error()`` is below ``tolerance``. If not, or if it fails, warn that ``kernel`` is disabled."""
    try:
        error = relative_error()
        reason = f"its first result has a relative error of {error:.1e}"
        if error < tolerance:
            return True
    except Exception as failure:  # plain PyTorch works whatever the compiler or the driver raises
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    warnings.warn(f"{kernel} is disabled: {reason}", stacklevel=4)
    return False
