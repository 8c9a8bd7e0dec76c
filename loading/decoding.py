"""Every image of a source, decoded in order, by several processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from tqdm import tqdm

from loading.files import DatasetSpec, Decoded, ImageSource, decode

MAX_WORKERS = 16
PAYS_FROM = 2000  # images; starting processes takes seconds
BLOCK = 64
DEADLY = Decoded(None, "deadly: the process that decoded it died; remove it")


def decode_all(source: ImageSource, spec: DatasetSpec, size: int, workers: int | None) -> Iterator[Decoded]:
    """Images (size, size, 3) uint8 in order, with progress shown.

    A worker process that dies (killed for memory, or by an image that crashes a decoder) costs time but no image, but for
    one that kills a process of its own as well.
    """
    num = len(source.names)
    blocks = [range(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK)]
    work = partial(decode_block, source=source, spec=spec, size=size)
    workers = min(workers if workers is not None else (os.cpu_count() or 1), MAX_WORKERS, len(blocks))
    is_worker = multiprocessing.current_process().daemon  # a loader's workers may start no processes
    pays = workers > 1 and num >= PAYS_FROM and not is_worker
    with tqdm(total=num, desc=f"decoding to {size} px", unit="image", disable=num < 500) as progress:
        for results in _in_parallel(work, blocks, workers) if pays else map(work, blocks):
            yield from results
            progress.update(len(results))


def decode_block(indices: Sequence[int], source: ImageSource, spec: DatasetSpec, size: int) -> list[Decoded]:
    return [decode(source, index, spec, size) for index in indices]


def _in_parallel(work: partial, blocks: list[range], workers: int) -> Iterator[list[Decoded]]:
    done = 0
    while done < len(blocks):
        pool = _pool(workers)
        try:
            for results in pool.map(work, blocks[done:]):
                yield results
                done += 1
        except BrokenProcessPool:
            print("notice: a process that decodes images died; decoding some one by one, then going on", file=sys.stderr)
            yield _one_by_one(work, blocks[done])
            done += 1
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_by_one(work: partial, block: range) -> list[Decoded]:
    """Each image in a process that may die of it; an image that kills its process is unreadable."""
    results: list[Decoded] = []
    pool = _pool(1)
    for index in block:
        try:
            results += pool.submit(work, [index]).result()
        except BrokenProcessPool:
            results.append(DEADLY)
            pool.shutdown(wait=False)
            pool = _pool(1)
    pool.shutdown(wait=False)
    return results


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
