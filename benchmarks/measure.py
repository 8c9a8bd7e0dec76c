"""Measure times relative to the rate of the matrix product, and the peak memory of each item.

The speed of a shared machine varies over time, so times measured at different moments are not compared directly. The rate of
the matrix product (GEMM) is measured before and after each measurement. Ratios are formed per round, and the median is
reported. The GEMM rate is the best over GEMM_SHAPES, for torch.mm in float32.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.context
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

# (rows, inner, columns): from the product of one layer and one block to a square product that fills the caches.
GEMM_SHAPES = ((2048, 256, 256), (8192, 256, 256), (1024, 1024, 1024))
ROOT = Path(__file__).resolve().parent.parent
WINDOW_S = 0.1  # duration of repeated calls, of which the fastest counts


class Timed(NamedTuple):
    """The result of a call, its duration, and the mean of the GEMM rates immediately before and after it."""

    value: Any
    seconds: float
    gemm_gflops: float

    @property
    def work(self) -> float:
        """The GFLOP that GEMM could do in this time: seconds times the GEMM rate. It varies less than the time itself."""
        return self.seconds * self.gemm_gflops


class Gemm:
    """Measures the rate of the float32 matrix product in this process."""

    def __init__(self) -> None:
        self._operands = [(torch.rand(m, k), torch.rand(k, n), torch.empty(m, n)) for m, k, n in GEMM_SHAPES]
        self.rates: list[float] = []
        self.gflops()  # warm-up
        self.rates.clear()

    def gflops(self, window_s: float = WINDOW_S) -> float:
        """Measure the best rate over all shapes, GFLOP/s."""
        rates = []
        for a, b, out in self._operands:
            flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
            rates.append(best_rate(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), flops, window_s / len(self._operands)))
        self.rates.append(max(rates))
        return self.rates[-1]

    def around(self, call: Callable[[], Any]) -> Timed:
        """Time ``call``, and measure the GEMM rate before and after it."""
        before = self.gflops()
        started = time.perf_counter()
        value = call()
        seconds = time.perf_counter() - started
        return Timed(value, seconds, (before + self.gflops()) / 2)

    @property
    def best(self) -> float:
        return max(self.rates)


def best_rate(call: Callable[[], Any], flops: float, window_s: float) -> float:
    """Return the best GFLOP/s of repeated calls during about ``window_s`` seconds, with at least two calls."""
    best, count, end = float("inf"), 0, time.perf_counter() + window_s
    while count < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        count += 1
    return flops / best / 1e9


def shares_of_gemm(gemm: Gemm, calls: dict[str, tuple[Callable[[], Any], float]], rounds: int) -> dict[str, dict[str, float]]:
    """For each named (call, FLOP), return the median rate over ``rounds`` and the median of its ratio to the GEMM rate."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    shares: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for _ in range(rounds):
        for name, (call, flops) in calls.items():
            timed = gemm.around(lambda call=call, flops=flops: best_rate(call, flops, WINDOW_S))
            rates[name].append(timed.value)
            shares[name].append(timed.value / timed.gemm_gflops)
    return {name: {"gflops": statistics.median(rates[name]), "gemm_share": statistics.median(shares[name])} for name in calls}


# -- memory --------------------------------------------------------------------------------------------------------------


def peak_mb() -> float:
    """Return the peak resident memory of this process, MiB (ru_maxrss)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def in_child(call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run ``call(*arguments)`` in a new process and return its result, with the ``peak_mb`` and ``wall_s`` of that process.

    Raises RuntimeError if the process fails; its traceback is on stderr.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, call, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{call.__module__}.{call.__name__} failed (exit status {process.exitcode})") from None
    process.join()
    return result


@functools.cache
def _context() -> multiprocessing.context.BaseContext:
    """Return a context whose processes are forked from a server that has imported all modules, or ``spawn`` if not available.

    A forked process does not repeat the imports, and since the server has computed nothing, it has no threads whose locks
    the process could inherit.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.items"])
    search = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([search] if search else [])])  # for the server
    return context


def _send_result(sender: Any, call: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    started = time.perf_counter()
    result = call(*arguments)
    sender.send({**result, "peak_mb": peak_mb(), "wall_s": time.perf_counter() - started})
