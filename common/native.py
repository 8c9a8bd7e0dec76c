"""Compile C sources for this machine at first use (about a second), cache them per user, and load them with ctypes.

The sources use GCC's vector extensions and OpenMP. They run on PyTorch's own OpenMP runtime, so both share one thread pool.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from common.cache_folder import cache_folder

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
# OpenMP symbols stay unresolved at link time: they resolve to the runtime that PyTorch has loaded.
LINK_FLAGS = ("-Wl,--unresolved-symbols=ignore-all", "-nodefaultlibs")


def load_library(source: Path) -> ctypes.CDLL | None:
    """Load the compiled ``source``, built once per machine and content. Return None if it cannot be compiled or loaded."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or platform.system() != "Linux":
        return None
    try:
        return ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def _built(source: Path, compiler: str) -> Path:
    key = hashlib.sha256(source.read_bytes() + _machine().encode()).hexdigest()[:16]
    path = cache_folder() / f"{source.stem}_{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "built.so"
            command = [compiler, *FLAGS, str(source), "-o", str(built), *LINK_FLAGS]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            os.replace(built, path)
    return path


def _machine() -> str:
    """Return the processor features that a native binary depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())
