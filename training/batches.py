"""Batches of real images for one stage, continuing from the images the run has seen."""

from __future__ import annotations

import socket
import time

import numpy as np
from torch import Tensor

from common.errors import UserError, first_few, print_notice
from dataset import MAX_UNREADABLE, ImageDataset, Split, training_spec
from distributed.processes import Processes
from loading.batches import BatchStream
from settings.curriculum import Stage
from training.options import RunOptions
from training.run.run_state import RunState

NUM_CHECKED = 100  # images checked for transparency
RESTART_PAUSES = (0.0, 2.0, 10.0)  # seconds before the first, second and third restart of the reader in a row


class StageBatches:
    """Batches (B, C, H, W) in [-1, 1] at the stage's size. C: 3, or 4 with opacity if the background is random.

    Raises UserError if the images cannot be read, or have no transparency although the background is random.

    ``is_under_way``: the run has already read its images, and continues with those that are still readable.
    """

    def __init__(
        self, options: RunOptions, stage: Stage, state: RunState, processes: Processes, is_under_way: bool = False
    ) -> None:
        self.stage = stage
        self.stream: BatchStream | None = None
        self._state, self._processes = state, processes
        path = options.dataset_path

        def read(is_reading: bool) -> None:
            if is_reading:
                most = 1.0 if is_under_way else MAX_UNREADABLE
                split = Split("train", state.curriculum.num_holdout)
                spec = training_spec(state.curriculum)
                cache_dir = "default" if options.use_cache else None
                self.dataset = ImageDataset(path, stage.img_size, spec, cache_dir, max_unreadable=most, split=split)

        # One process per machine decodes the images; the others read its cache.
        processes.all_or_none(lambda: read(processes.is_first_on_machine))
        processes.all_or_none(lambda: read(not processes.is_first_on_machine))
        if state.curriculum.random_back:
            processes.all_or_none(lambda: self._check_transparency(path))
        num_on_main = int(processes.broadcast_text(str(len(self.dataset))))
        processes.all_or_none(lambda: self._check_num_images(path, num_on_main))
        if processes.is_main:
            self._report_images(path)
        state.num_images = len(self.dataset)
        self.restart()

    def _check_num_images(self, path: str, num_on_main: int) -> None:
        """Check that all processes see the same number of images, which sets their order and the length of an epoch."""
        if len(self.dataset) != num_on_main:
            where = f"rank {self._processes.rank} on {socket.gethostname()}"
            raise UserError(
                f"{path} has {len(self.dataset)} images for {where}, but {num_on_main} for rank 0;"
                " make the same files available to all processes"
            )

    def _check_transparency(self, path: str) -> None:
        """Check that one of the first NUM_CHECKED images has a transparent pixel."""
        num = min(len(self.dataset), NUM_CHECKED)
        if (self.dataset.pixels[np.arange(num)][..., 3] == 255).all():
            raise UserError(
                f"random_back needs images with transparent backgrounds, but the first {num} in {path} are opaque; use others"
                " (draw heads of an earlier version again), or add --set random_back=False"
            )

    def _report_images(self, path: str) -> None:
        names, num, before = self.dataset.unreadable_names, len(self.dataset), self._state.num_images
        if names:
            reason = next(iter(self.dataset.unreadable.values()))
            print_notice(f"skipping {len(names)} unreadable images in {path}: {first_few(names, 3)}; the first is {reason}")
        for note in self.dataset.notes():
            print_notice(f"{path}: {note}")
        num_holdout = self._state.curriculum.num_holdout
        if before is None and num_holdout:
            print_notice(f"training on {num} images in {path}; {num_holdout} others are held out for scores (num_holdout)")
        if before not in (None, num):
            print_notice(f"{path} has {num} images, but had {before} when this run last read it: their order changes")

    def restart(self) -> None:
        """Start reading at the run's next image."""
        self.close()
        self.stream = BatchStream(
            self.dataset,
            self.stage.batch_size,
            self._state.images_seen,
            self._state.seed,
            self._processes.device,
            rank=self._processes.rank,
            world_size=self._processes.world_size,
            flip=self._state.curriculum.horizontal_flip,
        )

    def next(self) -> Tensor:
        """Return the run's next batch. Restart a failing reader a few times, then raise UserError."""
        path = self.dataset.source.path
        for pause in (*RESTART_PAUSES, None):
            try:
                return next(self.stream)
            except Exception as error:  # the reader may raise anything
                why = f"({type(error).__name__}: {error})"
                if pause is None:
                    raise UserError(f"images from {path} can no longer be read {why}") from error
            print_notice(f"reading images from {path} failed {why}; restarting the reader")
            time.sleep(pause)
            self.restart()

    def close(self) -> None:
        """Stop the reader."""
        if self.stream is not None:
            self.stream.close()
