"""The output folder of a run: who may write there, which checkpoints stay, and whether there is room."""

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
LAUNCHER_GRACE = 10.0  # seconds: a launcher that starts processes anew may do so while the old one is still ending


class FolderLock:
    """Held by the one process that writes into ``folder``; the system drops it when that process ends, however it ends.

    Raises UserError, naming the holder, where another living process has it. A file system without locks is told of through
    ``notice``, and the run goes on.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        path = folder / LOCK_NAME
        self._file = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed in any program this process starts
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from None
        file = os.fdopen(descriptor, "r+")
        patience = time.monotonic() + (LAUNCHER_GRACE if "TORCHELASTIC_RUN_ID" in os.environ else 0)
        while True:
            try:
                if try_lock(file):
                    break
            except OSError as error:
                notice(f"{folder} is on a file system without locks ({error.strerror}): see that no two runs write there")
                break
            if time.monotonic() >= patience:
                holder = _holder(file.read(1000))
                file.close()
                raise UserError(f"{folder} is in use by {holder}; wait for that run, stop it, or choose another --output_dir")
            time.sleep(0.2)
        self._file = file
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {int(found['pid'])} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def clean_up(folder: Path) -> None:
    """Remove what a killed run left half-written. Only under the lock."""
    for place in (folder, folder / "samples"):
        remove_unfinished(place)


def remove_old_checkpoints(folder: Path, step: int, num_kept: int, milestone_interval: int) -> None:
    """Keep the newest ``num_kept`` checkpoints and every milestone; remove the others once that of ``step`` is proved whole.

    Those beyond ``step``, the run's own, stay as they are: it passed them over, because they are damaged or lead nowhere.
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
    """Whether the checkpoint of ``step`` is kept for ever; ``interval`` 0: none is."""
    return interval > 0 and step > 0 and step % interval == 0


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Move checkpoints beyond ``step`` into ``folder``/superseded, so that the next run does not take them up.

    What lies there already stays: a checkpoint of the same step gets a number.
    """
    moved = []
    for newer, path in list_checkpoints(folder):
        if newer > step:
            target = folder / "superseded" / path.name
            try:
                target.parent.mkdir(exist_ok=True)
                numbers = itertools.count(2)
                while target.exists():
                    target = target.with_name(f"{path.stem}.{next(numbers)}.pt")
                path.replace(target)
            except OSError as error:
                raise UserError(f"cannot move {path} to {target}: {error.strerror}; move it away by hand") from None
            moved.append(target)
    return moved


def room_warning(folder: Path, checkpoint_bytes: int, num_kept: int) -> str | None:
    """A line that says so where the disk has less room than the checkpoints to be kept, and one being written, will take."""
    missing = max(1, num_kept + 1 - len(list_checkpoints(folder)))
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    needed = missing * checkpoint_bytes
    if free >= needed:
        return None
    return f"{folder} has {free / 1e6:.0f} MB left, and the checkpoints of this run will take {needed / 1e6:.0f} MB more"


def cut_log(path: Path, last_step: int) -> None:
    """Remove from a log of JSON lines those beyond ``last_step``, which will be written again, and what a crash cut short.

    What happened to the run ("event": it went back) stays, whatever its step.
    """
    if not path.is_file():
        return
    kept = []
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            content = json.loads(line)
            if line.endswith("\n") and (int(content["step"]) <= last_step or "event" in content):
                kept.append(line)
    if kept != lines:
        write_atomically(path, "".join(kept).encode())
