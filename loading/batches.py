"""An endless stream of training batches. Its position is a single number, the count of images seen.

Each epoch is shuffled anew, and each image is flipped with probability 1/2. Selection, order and flips are a pure function
of (seed, position). A run therefore resumes bit for bit from ``images_seen`` alone, and any number of processes together
read the same images as one process with the whole batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NUM_AHEAD = 4  # batches that are read before they are needed


class Gatherable(Protocol):
    """Interface of a stream's source, such as :class:`dataset.ImageDataset`."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 at indices (B,)."""
        ...


def epoch_order(num: int, epoch: int, seed: int) -> Tensor:
    """Return the order (num,) int64 in which epoch ``epoch`` reads ``num`` images."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 0]).permutation(num))


def _epoch_flips(num: int, epoch: int, seed: int) -> Tensor:
    """Return flips (num,) bool, one per position in the epoch."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 1]).integers(0, 2, num, dtype=np.int8).astype(bool))


def batch_at(
    dataset_len: int, images_seen: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the batch after ``images_seen`` images: indices (B,) int64 and flips (B,) bool.

    ``batch_size`` and the result are per process; ``images_seen`` is the total of all ``world_size`` processes. A global
    batch of batch_size * world_size is split into consecutive parts, one per rank.
    """
    if dataset_len < 1 or batch_size < 1 or images_seen < 0 or not 0 <= rank < world_size:
        raise ValueError(f"no batch of {batch_size} at {images_seen} from {dataset_len} images for rank {rank}/{world_size}")
    return _slice_of_stream(dataset_len, images_seen + rank * batch_size, batch_size, seed, {})


def _slice_of_stream(
    num: int, start: int, count: int, seed: int, epochs: dict[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return positions ``start`` to ``start + count`` of the stream; ``epochs`` caches the shuffles in use."""
    indices, flips = [], []
    while count > 0:
        epoch, offset = divmod(start, num)
        if epoch not in epochs:
            for old in [e for e in epochs if e < epoch - 1]:
                del epochs[old]
            epochs[epoch] = (epoch_order(num, epoch, seed), _epoch_flips(num, epoch, seed))
        take = min(count, num - offset)
        indices.append(epochs[epoch][0][offset : offset + take])
        flips.append(epochs[epoch][1][offset : offset + take])
        start, count = start + take, count - take
    return torch.cat(indices), torch.cat(flips)


class BatchStream(Iterator[Tensor]):
    """Endless batches (B, C, H, W) float32 in [-1, 1] on ``device``, starting at position ``images_seen``.

    A background thread reads NUM_AHEAD batches ahead (and pins memory for a GPU). ``next`` raises the thread's exception.
    ``images_seen`` is the position after the last batch returned; store it in checkpoints. ``close`` stops the thread.
    """

    def __init__(
        self,
        dataset: Gatherable,
        batch_size: int,
        images_seen: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        flip: bool = True,
    ) -> None:
        # raises on invalid arguments here rather than in the thread
        batch_at(len(dataset), images_seen, batch_size, seed, rank, world_size)
        self.images_seen = images_seen
        self._dataset, self._batch_size, self._seed, self._flip = dataset, batch_size, seed, flip
        self._device, self._rank, self._total = torch.device(device), rank, batch_size * world_size
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}
        self._thread = ThreadPoolExecutor(1, "BatchStream")
        positions = range(images_seen, images_seen + NUM_AHEAD * self._total, self._total)
        self._ahead = deque(self._thread.submit(self._read, position) for position in positions)

    def _read(self, position: int) -> Tensor:
        """Read this process's part (B, C, H, W) uint8 of the batch at ``position``."""
        start = position + self._rank * self._batch_size
        indices, flips = _slice_of_stream(len(self._dataset), start, self._batch_size, self._seed, self._epochs)
        images = self._dataset.gather(indices)
        if self._flip:
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        images = images.contiguous()
        return images.pin_memory() if self._device.type == "cuda" else images

    def __next__(self) -> Tensor:
        if not self._ahead:
            raise RuntimeError("this BatchStream is closed")
        images = self._ahead[0].result()  # a failed batch stays the next one
        self._ahead.popleft()
        self._ahead.append(self._thread.submit(self._read, self.images_seen + NUM_AHEAD * self._total))
        self.images_seen += self._total
        return images.to(self._device, non_blocking=True).float().div_(127.5).sub_(1)

    def close(self) -> None:
        """Stop the thread and drop the batches read ahead."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
