"""An endless stream of training batches. Its position is a single number, the count of images seen.

Each epoch is shuffled anew, and each image is flipped with probability 1/2. Selection, order and flips are a pure function
of (seed, position). A run therefore resumes bit for bit from ``images_seen`` alone, and any number of processes together
read the same images as one process with the whole batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Gatherable(Protocol):
    """Interface of a stream's source, such as :class:`dataset.ImageDataset`."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """Return images (B, 3, H, W) uint8 at indices (B,)."""
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
    """Endless batches (B, 3, H, W) float32 in [-1, 1] on ``device``, starting at position ``images_seen``.

    A background thread prefetches batches (and pins memory for a GPU). ``next`` raises the thread's exception, or
    RuntimeError if the thread ended without one.
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
        num_ahead: int = 4,
    ) -> None:
        batch_at(
            len(dataset), images_seen, batch_size, seed, rank, world_size
        )  # raises on invalid arguments here rather than in the thread
        self.images_seen = images_seen
        self._dataset, self._batch_size, self._seed, self._flip = dataset, batch_size, seed, flip
        self._device, self._rank, self._world_size = torch.device(device), rank, world_size
        self._queue: queue.Queue[Tensor | BaseException] = queue.Queue(maxsize=num_ahead)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._prefetch, args=(images_seen,), name="BatchStream", daemon=True)
        self._thread.start()

    def _prefetch(self, position: int) -> None:
        epochs: dict[int, tuple[Tensor, Tensor]] = {}
        try:
            while not self._closed.is_set():
                start = position + self._rank * self._batch_size
                indices, flips = _slice_of_stream(len(self._dataset), start, self._batch_size, self._seed, epochs)
                images = self._dataset.gather(indices)
                if self._flip:
                    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
                images = images.contiguous()
                self._put(images.pin_memory() if self._device.type == "cuda" else images)
                position += self._batch_size * self._world_size
        except BaseException as error:  # raised again by next()
            self._put(error)

    def _put(self, item: Tensor | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Tensor:
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            raise RuntimeError("this BatchStream is closed")
        item = self._take()
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self.images_seen += self._batch_size * self._world_size
        return item.to(self._device, non_blocking=True).float().div_(127.5).sub_(1)

    def _take(self) -> Tensor | BaseException:
        while True:
            is_alive = self._thread.is_alive()
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if not is_alive:
                    raise RuntimeError("the thread that reads images ended") from None

    def close(self) -> None:
        """Stop the thread and drop prefetched batches."""
        self._closed.set()
        while not self._queue.empty():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        self._thread.join(timeout=5)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
