"""Source of the generator: a file, or the folder of a run in training."""

from __future__ import annotations

from pathlib import Path

import torch

from checkpoints.files import list_checkpoints
from checkpoints.loading import LoadedGenerator
from common.errors import UserError
from visualization.generator_scripts import load_with_notes

INFERENCE_NAME = "generator.safetensors"


class RunFolder:
    """Newest generator of a run's folder. A file that cannot be read, such as a partly written one, is retried later."""

    def __init__(self, path: Path, curriculum: str | None, device: torch.device, precision: str) -> None:
        self.problem: str | None = None  # why the newest file could not be read
        self._path, self._curriculum, self._device, self._precision = path, curriculum, device, precision
        self._seen: tuple[object, ...] | None = None

    def poll(self) -> LoadedGenerator | None:
        """Return the newest generator if it changed since the last call and can be read, else None."""
        try:
            path = newest_generator(self._path)
            if path is None:
                return None
            state = path.stat()
            signature = (path, state.st_mtime_ns, state.st_size, state.st_ino)
            if signature == self._seen:
                return None
            self._seen = signature
            loaded = load_with_notes(path, self._curriculum, self._device, precision=self._precision)
        except (UserError, OSError) as error:  # OSError: deleted in between
            self.problem = str(error)
            return None
        self.problem = None
        return loaded


def newest_generator(folder: Path) -> Path | None:
    """Path of the run's inference file, else of its checkpoint with the highest step; None if there is neither."""
    if (folder / INFERENCE_NAME).is_file():
        return folder / INFERENCE_NAME
    found = list_checkpoints(folder)
    return found[0][1] if found else None
