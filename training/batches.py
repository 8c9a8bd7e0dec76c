"""The real images of one stage, from where a run stands."""

from __future__ import annotations

import socket
import time

from torch import Tensor

from common.errors import UserError
from dataset import ImageDataset, Split, spec_over
from distributed.collectives import all_or_none, text_of_main
from distributed.processes import Processes
from loading.batches import BatchStream
from settings.curriculum import Stage
from training.run.console import tell
from training.run.run_state import RunState

RESTART_PAUSES = (0.0, 2.0, 10.0)  # seconds before the reader is started again, the first, second and third time in a row


class StageBatches:
    """Batches (B, 3, H, W) in [-1, 1] at the stage's size. Raises UserError where the images can't be read.

    ``is_under_way``: the run has read its images before, and goes on with what there is, however many are gone.
    """

    def __init__(
        self, path: str, preset: str, use_cache: bool, stage: Stage, state: RunState, processes: Processes, is_under_way: bool
    ) -> None:
        self.stage = stage
        self.stream: BatchStream | None = None
        self._state, self._processes = state, processes

        def read() -> None:
            limit = {"max_unreadable": 1.0} if is_under_way else {}
            split = Split("train", state.curriculum.num_holdout)
            spec = spec_over(preset, state.curriculum)
            self.dataset = ImageDataset(path, stage.img_size, spec, "default" if use_cache else None, split=split, **limit)

        # One process of each machine decodes the images, the others read its cache.
        all_or_none(processes, lambda: read() if processes.is_first_on_machine else None)
        all_or_none(processes, lambda: None if processes.is_first_on_machine else read())
        self._agree_on_number(path)
        self._tell_of_changes(path)
        self.restart()

    def _agree_on_number(self, path: str) -> None:
        """The order of the images, and when an epoch ends, follow from their number: it must be the same for all."""
        own, main = len(self.dataset), int(text_of_main(self._processes, str(len(self.dataset))))

        def compare() -> None:
            if own != main:
                where = f"rank {self._processes.rank} on {socket.gethostname()}"
                raise UserError(f"{path} holds {own} images for {where}, {main} for rank 0; let all see the same files")

        all_or_none(self._processes, compare)

    def _tell_of_changes(self, path: str) -> None:
        names, state = self.dataset.unreadable_names, self._state
        if self._processes.is_main:
            if names:
                first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                tell(f"{len(names)} images in {path} cannot be read and are left out: {first}")
            if state.num_images not in (None, len(self.dataset)):
                tell(
                    f"{path} has {len(self.dataset)} images, it had {state.num_images} when this run last looked:"
                    " from here on they come in another order"
                )
        state.num_images = len(self.dataset)

    def restart(self) -> None:
        """Read from where the run stands."""
        self.close()
        self.stream = BatchStream(
            self.dataset,
            self.stage.batch_size,
            self._state.images_seen,
            self._state.seed,
            self._processes.device,
            rank=self._processes.rank,
            world_size=self._processes.world_size,
        )

    def next(self) -> Tensor:
        """The batch at the run's place. A reader that fails is started again there a few times; then UserError."""
        where = self.dataset.source.path
        for pause in RESTART_PAUSES:
            try:
                return next(self.stream)
            except Exception as error:  # whatever ended the reader
                tell(f"reading images from {where} failed ({type(error).__name__}: {error}); starting the reader again")
                time.sleep(pause)
                self.restart()
        try:
            return next(self.stream)
        except Exception as error:
            raise UserError(f"images from {where} cannot be read any more ({type(error).__name__}: {error})") from error

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
