"""The real images of one stage, from where a run stands."""

from __future__ import annotations

from cli import UserError
from curriculums import Stage
from dataset import ImageDataset
from loading.batches import BatchStream
from training.distributed import Processes
from training.run_state import RunState


class StageBatches:
    """``stream`` of batches (B, 3, H, W) in [-1, 1] at the stage's size. Raises UserError where the images can't be read."""

    def __init__(self, path: str, preset: str, use_cache: bool, stage: Stage, state: RunState, processes: Processes) -> None:
        cache_dir = "default" if use_cache else None
        dataset, failure = None, None
        if processes.is_main:  # it decodes the images once, the others read its cache
            try:
                dataset = ImageDataset(path, stage.img_size, preset, cache_dir=cache_dir)
            except UserError as error:
                failure = error
        if processes.any(failure is not None):
            raise failure or UserError(f"the main process cannot read {path}; it says why")
        self.stage = stage
        self.dataset = dataset or ImageDataset(path, stage.img_size, preset, cache_dir=cache_dir)
        self.stream = BatchStream(
            self.dataset,
            stage.batch_size,
            state.images_seen,
            state.seed,
            processes.device,
            rank=processes.rank,
            world_size=processes.world_size,
        )
