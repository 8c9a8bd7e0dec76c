"""Decode all images of a source in order, in parallel processes for large sets."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from tqdm import tqdm

from common.errors import print_notice
from common.workers import follow_parent, interrupts_ignored
from loading.files import DatasetSpec, Decoded, ImageSource, decode

MAX_WORKERS = 16
MIN_PARALLEL_IMAGES = 2000  # starting processes takes seconds
BLOCK = 64
CRASHED = Decoded(None, "crashing the decoder: the process that decoded it died; remove it")


def decode_all(source: ImageSource, spec: DatasetSpec, size: int, workers: int | None) -> Iterator[Decoded]:
    """Yield images (size, size, C) uint8 in order and show progress.

    If a worker process dies (out of memory, or an image that crashes the decoder), its images are decoded again one by one.
    Only an image that also crashes its own process is lost.
    """
    num = len(source.names)
    blocks = [range(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK)]
    work = partial(decode_block, source=source, spec=spec, size=size)
    workers = min(workers if workers is not None else (os.cpu_count() or 1), MAX_WORKERS, len(blocks))
    is_worker = multiprocessing.current_process().daemon  # data loader workers cannot start processes
    is_parallel = workers > 1 and num >= MIN_PARALLEL_IMAGES and not is_worker
    with tqdm(total=num, desc=f"decoding to {size} px", unit="image", disable=num < 500) as progress:
        for results in _in_parallel(work, blocks, workers) if is_parallel else map(work, blocks):
            yield from results
            progress.update(len(results))


def decode_block(indices: Sequence[int], source: ImageSource, spec: DatasetSpec, size: int) -> list[Decoded]:
    return [decode(source, index, spec, size) for index in indices]


def _in_parallel(work: partial, blocks: list[range], workers: int) -> Iterator[list[Decoded]]:
    done = 0
    while done < len(blocks):
        pool = _pool(workers)
        try:
            with interrupts_ignored():
                remaining = pool.map(work, blocks[done:])
            for results in remaining:
                yield results
                done += 1
        except BrokenProcessPool:
            print_notice("a decoding process died; decoding its images one by one, then continuing")
            yield _one_by_one(work, blocks[done])
            done += 1
        finally:  # after an interrupt, it waits for the blocks in progress: to terminate the workers can block the pool forever
            pool.shutdown(cancel_futures=True)


def _one_by_one(work: partial, block: range) -> list[Decoded]:
    """Decode each image in a disposable process; an image that crashes it is unreadable."""
    results: list[Decoded] = []
    pool = _pool(1)
    for index in block:
        try:
            with interrupts_ignored():
                future = pool.submit(work, [index])
            results += future.result()
        except BrokenProcessPool:
            results.append(CRASHED)
            pool.shutdown(wait=False)
            pool = _pool(1)
    pool.shutdown(wait=False)
    return results


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent)
