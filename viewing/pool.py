"""Threads that render parts of a frame at the same time on a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

MIN_PART_RAYS = 256  # smaller parts would spend their time in Python


class RenderPool:
    """``num_threads`` threads with one PyTorch thread each.

    PyTorch would split each operation on a block of points, which is too short for that, and run the native sine on one core.
    The threads set PyTorch's number of threads to 1, for MKL in the whole process, until :meth:`close`.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._num_before = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(num_threads, "render", torch.set_num_threads, (1,)) if num_threads > 1 else None

    def map(self, function: Callable[[slice], T], rays: slice) -> list[T]:
        """Apply ``function`` to consecutive parts of ``rays``, in parallel, and return its results in order."""
        num_rays = rays.stop - rays.start
        num_parts = max(1, min(self.num_threads, num_rays // MIN_PART_RAYS))
        bounds = [rays.start + num_rays * i // num_parts for i in range(num_parts + 1)]
        parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        if self._executor is None or num_parts == 1:
            return [function(part) for part in parts]
        return list(self._executor.map(function, parts))

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            torch.set_num_threads(self._num_before)
