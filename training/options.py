"""Options of a run that are not in its curriculum."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """Options of train.py. None: no limit. An interval of 0: never.

    ``eval_images``: images for fd, SWD, FID and KID; 0: skip them. ``eval_weights``: file with the weights for FID and KID;
    None: the torch cache.
    """

    output_dir: Path
    dataset_path: str
    max_steps: int | None = None
    max_minutes: float | None = None
    num_epochs: int | None = None
    sample_interval: int = 500
    save_interval: int = 1000
    milestone_interval: int = 10_000
    num_kept: int = 3
    max_bad_steps: int = 20
    eval_interval: int = 0
    eval_images: int = 256
    eval_weights: Path | None = None
    log_interval: int = 20
    use_tensorboard: bool = True
    use_cache: bool = True
    use_graphs: bool = True
    started: float = field(default_factory=time.monotonic)
