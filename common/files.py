"""Read regular files with one-line errors, and write files atomically."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError
from common.locks import try_lock

MAX_TEXT_BYTES = 1 << 20
UNFINISHED = re.compile(r"\..+\.\d+\.tmp|\.write_test_\d+|\.unfinished_.+\.(npy|json)")  # the last: in older caches


class WriteError(UserError):
    """A file could not be written; an existing file is unchanged."""


def require_file(path: str | Path) -> Path:
    """Return ``path`` if it is a regular file: no folder, pipe or device. Raises UserError otherwise."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder; pass a file inside it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or a device; save its data to a file and pass that file")
    return path


def read_head(path: str | Path, num_bytes: int) -> bytes:
    """Read the first ``num_bytes`` of a regular file, or all of a shorter one. Raises UserError."""
    try:
        with require_file(path).open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_small_text(path: str | Path) -> str:
    """Read a UTF-8 settings file of at most MAX_TEXT_BYTES, without its byte-order mark. Raises UserError otherwise."""
    data = read_head(path, MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path} has more than {MAX_TEXT_BYTES} bytes, the limit for a settings file; pass the right file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a small JSON file that holds a dictionary. Raises UserError."""
    try:
        content = json.loads(read_small_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); pass the right file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a dictionary; pass the right file")
    return content


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` atomically as JSON. Raises WriteError."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def make_output_dir(path: str | Path) -> Path:
    """Create ``path`` (and parents) and verify that files can be written there. Raises UserError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}; choose another folder") from None
    return path


def write_atomically(path: str | Path, data: bytes | memoryview, sync: bool = True) -> None:
    """Write ``data`` to ``path`` atomically. On failure, raise WriteError and leave the previous file intact.

    ``sync``: also wait until the data is on disk, so that it survives a power failure. Disable it for large numbers of images.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path} is a folder; pass the name of a file to write in it")
    try:
        with atomic_file(path, sync) as file:
            file.write(data)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; an existing file is unchanged") from None


@contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the context ends without an error. ``sync``: see write_atomically.

    It is locked until then, which shows :func:`remove_unfinished` that its writer is alive. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.randbelow(10**9)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with suppress(OSError):  # a file system without locks
                try_lock(file)
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, text: str) -> None:
    """Append one or more lines to a file. On failure, raise OSError and append nothing."""
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
    """Encode named arrays as a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def remove_unfinished(folder: Path) -> list[str]:
    """Remove partial files of killed processes from ``folder``, those whose lock is free, and return their names."""
    removed = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if UNFINISHED.fullmatch(path.name):
            with suppress(OSError), path.open("r+b") as file:  # writable: NFS needs it to lock
                if try_lock(file):
                    path.unlink()
                    removed.append(path.name)
    return removed


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power failure, if the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
