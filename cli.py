"""What every entry script shares: one-line errors, common arguments, the device.

Bad input ends a script with exit status 2 and ONE line on stderr, ``script.py: error: what is wrong; what to do``,
without a traceback. Library code raises :class:`UserError` for that; scripts pass their ``main`` to :func:`run`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

MAX_TEXT_BYTES = 1 << 20
MAX_MESSAGE = 2000  # characters
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")  # torch's


class UserError(Exception):
    """Something the user can put right. The message names the culprit and the remedy, in one line."""

    exit_status = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """``text`` on one line of bounded length, with control characters (a file's name may hold any) made visible."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return shown if len(shown) <= MAX_MESSAGE else shown[: MAX_MESSAGE - 3] + "..."


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; defaults where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults shown in ``--help`` and errors on a single line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and exit: 0, or 2 (a subclass may say another) with one line on stderr for a :class:`UserError`.

    So do errors of the system about files, and a lack of memory: nothing in the program is wrong then.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text that can be printed
    try:
        main()
    except UserError as error:
        _leave(error, error.exit_status)
    except KeyboardInterrupt:
        _leave_by_interrupt()
    except BrokenPipeError:  # `script | head`: the reader left, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a name too long, a folder one may not enter, a disk that is full
        _leave(f"{error.filename or 'a file'}: {error.strerror or error}; name another, or make room", 2)
    except MemoryError as error:
        _leave(f"not enough memory {error}; ask for less: smaller pictures, batches or networks", 2)
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        _leave(f"not enough memory ({str(error)[:200]}); ask for less: smaller pictures, batches or networks", 2)
    sys.exit(0)


def _leave(reason: object, status: int) -> NoReturn:
    try:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(reason)}", file=sys.stderr, flush=True)
    except OSError:  # the terminal closed, or stderr goes to a full disk: the status still says it
        os._exit(status)
    sys.exit(status)


def _leave_by_interrupt() -> NoReturn:
    """As Ctrl-C ends a program that does not heed it, so that a shell's script stops too; without the traceback."""
    with contextlib.suppress(OSError):
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    sys.exit(128 + signal.SIGINT)


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
    """A text file of settings, UTF-8, of at most MAX_TEXT_BYTES. Raises UserError for anything else."""
    path = require_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(f"{path} has more than {MAX_TEXT_BYTES} bytes; a file of settings is smaller")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start})") from None


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto: the GPU if there is one")


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that exists. Raises UserError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine shows {torch.cuda.device_count()} GPU(s); use --device cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported; use cpu, cuda, cuda:N or auto")
    return device


def keep_freed_memory() -> None:
    """Ask glibc to reuse large freed blocks instead of handing them back, where it is the C library.

    A training step on a CPU frees and takes hundreds of megabytes again and again; getting them from the kernel anew,
    zeroed page by page, is time lost.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def make_output_dir(path: str | Path) -> Path:
    """Create ``path`` (and parents) and prove that files can be written there. Raises UserError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the output folder {path}: {error.strerror}; choose another with --output_dir") from None
    return path


def seed_range(start: int, end: int) -> Sequence[int]:
    """Seeds ``start <= seed < end``. Raises UserError where that is empty or negative."""
    if start < 0 or end <= start:
        raise UserError(f"seeds {start} to {end}: --seeds_end must be greater than --seeds_start, and neither may be negative")
    return range(start, end)
