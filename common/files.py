"""Files: read only what is one, and write all of it or nothing."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.errors import UserError

MAX_TEXT_BYTES = 1 << 20
UNFINISHED = re.compile(r"\..+\.\d+\.tmp|\.write_test_\d+")  # what a process that was killed while writing leaves behind


class WriteError(UserError):
    """A file could not be written; what was there before is unchanged."""


def require_file(path: str | Path) -> Path:
    """``path``, if it is a file that has an end: no folder, pipe or device. Raises UserError otherwise."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; name the file inside it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or a device; save what comes from it in a file and name that")
    return path


def read_small_text(path: str | Path) -> str:
    """A text file of settings, UTF-8, of at most MAX_TEXT_BYTES, without its byte-order mark. UserError for anything else."""
    path = require_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path} has more than {MAX_TEXT_BYTES} bytes; a file of settings is smaller")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start})") from None


def make_output_dir(path: str | Path) -> Path:
    """Create ``path`` (and parents) and prove that files can be written there. Raises UserError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}; choose another place") from None
    return path


def write_atomically(path: str | Path, data: bytes | memoryview, sync: bool = True) -> None:
    """Write ``data`` to ``path``: all of it, or (WriteError) nothing, with the previous file intact.

    ``sync``: also wait until it is on the disk, so that it survives a power cut; images in great numbers do without.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path} is a folder; name the file to write in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; what was there before is unchanged") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, text: str) -> None:
    """Add a line (or several) to a file: all of it, or (OSError) none."""
    data = (text + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def remove_unfinished(folder: Path) -> list[str]:
    """Remove what killed processes left half-written in ``folder``, and return the names. Only for who writes there alone."""
    unfinished = [path for path in folder.iterdir() if UNFINISHED.fullmatch(path.name)] if folder.is_dir() else []
    for path in unfinished:
        with suppress(OSError):
            path.unlink()
    return [path.name for path in unfinished]


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut. Not every file system offers it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
