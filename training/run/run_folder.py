"""The output folder of a run: its lock, the checkpoints to keep, and disk space."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints.files import damage_in, list_checkpoints
from common.errors import UserError
from common.files import WriteError, remove_unfinished, write_atomically
from common.locks import try_lock

LOCK_NAME = ".lock"
LAUNCHER_GRACE = 10.0  # seconds; a launcher may restart a process before the old one has exited


class FolderLock:
    """The lock of the only process that writes in ``folder``. The system releases it when that process ends.

    Raises UserError, naming the holder, if another process has the lock. If the file system has no locks, ``notice`` gets a
    message and the run continues.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        path = folder / LOCK_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inherited by subprocesses
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from None
        self._file = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
        patience = time.monotonic() + (LAUNCHER_GRACE if "TORCHELASTIC_RUN_ID" in os.environ else 0)
        while not self._take(folder, notice):
            if time.monotonic() >= patience:
                holder = self._file.read(1000) or "another process"
                self.release()
                raise UserError(f"{folder} is in use by {holder}; wait for that run, stop it, or choose another --output_dir")
            time.sleep(0.2)
        with contextlib.suppress(OSError):  # on a full disk the lock still holds
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def _take(self, folder: Path, notice: Callable[[str], None]) -> bool:
        try:
            return try_lock(self._file)
        except OSError as error:
            notice(f"{folder} is on a file system without locks ({error.strerror}); make sure that no other run writes there")
            return True

    def release(self) -> None:
        """Release the lock."""
        self._file.close()


def clean_up(folder: Path) -> None:
    """Remove unfinished files of a killed run. The caller must hold the lock."""
    for place in (folder, folder / "samples"):
        remove_unfinished(place)


def remove_old_checkpoints(folder: Path, step: int, num_kept: int, milestone_interval: int) -> None:
    """Keep the newest ``num_kept`` checkpoints and all milestones. Remove the others if the one of ``step`` is intact.

    Checkpoints after ``step`` are left alone: the run skipped them, because they are damaged or diverged. Raises WriteError
    if the checkpoint of ``step`` is damaged.
    """
    found = [(of_step, path) for of_step, path in list_checkpoints(folder) if of_step <= step]
    old = [path for of_step, path in found[num_kept:] if not is_milestone(of_step, milestone_interval)]
    if not old:
        return
    damage = damage_in(found[0][1])
    if damage:
        raise WriteError(f"{found[0][1]} cannot be read back as it was written ({damage}); older checkpoints are left alone")
    for path in old:
        with contextlib.suppress(OSError):
            path.unlink()


def is_milestone(step: int, interval: int) -> bool:
    """Return whether the checkpoint of ``step`` is never deleted. ``interval`` 0: no milestones."""
    return interval > 0 and step > 0 and step % interval == 0


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Move checkpoints after ``step`` to ``folder``/superseded, so that the next run does not resume from them.

    Existing files there are not overwritten: another checkpoint of the same step gets a number. Returns the new paths. Raises
    UserError if a file cannot be moved.
    """
    moved = []
    for path in [path for newer, path in list_checkpoints(folder) if newer > step]:
        target = folder / "superseded" / path.name
        try:
            target.parent.mkdir(exist_ok=True)
            numbers = itertools.count(2)
            while target.exists():
                target = target.with_name(f"{path.stem}.{next(numbers)}.pt")
            moved.append(path.replace(target))
        except OSError as error:
            raise UserError(f"cannot move {path} to {target}: {error.strerror}; move it away by hand") from None
    return moved


def disk_space_warning(folder: Path, checkpoint_bytes: int, num_kept: int) -> str | None:
    """Return a warning if the disk has too little space for ``num_kept`` checkpoints and one being written, else None."""
    needed = max(1, num_kept + 1 - len(list_checkpoints(folder))) * checkpoint_bytes
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < needed:
            return f"{folder} has {free / 1e6:.0f} MB free, but the checkpoints of this run need {needed / 1e6:.0f} MB more"
    return None


def truncate_log(path: Path, last_step: int) -> None:
    """Remove lines after ``last_step``, which the run will write again, and incomplete lines from a JSON-lines log.

    Keep events of any step.
    """
    if not path.is_file():
        return
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            content = json.loads(line)
            if line.endswith("\n") and (int(content["step"]) <= last_step or "event" in content):
                kept.append(line)
    if kept != lines:
        write_atomically(path, "".join(kept).encode())
