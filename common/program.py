"""Run entry scripts and report their errors.

On bad input, a script exits with status 2 and ONE line on stderr, ``script.py: error: what is wrong; what to do``,
without a traceback. Library code raises :class:`common.errors.UserError` in this case; scripts pass their ``main`` to
:func:`run_script`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common.errors import UserError, one_line

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")  # torch's


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call ``main`` and exit with status 0, or with 2 and one line on stderr for a :class:`UserError`.

    Subclasses of UserError may define another status. File system errors and lack of memory are reported in the same way,
    because they are not bugs in the program.
    """
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain unprintable characters
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by common.interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    is_interrupted = False
    try:
        main()
    except UserError as error:
        _exit_with_error(error, error.exit_status)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
        is_interrupted = True
    except BrokenPipeError:  # `script | head`: the reader closed the pipe, which is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # name too long, no permission, disk full
        _exit_with_error(f"{error.filename or 'a file'}: {error.strerror or error}; choose another path, or free disk space", 2)
    except MemoryError as error:
        _exit_with_error(f"not enough memory {error}; use smaller images, batches or networks", 2)
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        on_gpu = "; for train.py, also try --no-cuda_graphs" if "CUDA" in str(error) else ""
        _exit_with_error(f"not enough memory ({str(error)[:200]}); use smaller images, batches or networks{on_gpu}", 2)
    if is_interrupted:  # outside of the handler, where nothing of main is left: its pools release their semaphores first
        gc.collect()
        _exit_by_interrupt()
    sys.exit(0)


def _open_missing_streams() -> None:
    """Discard output if there is no stdout or stderr (2>&-, or pythonw.exe): progress bars need a stream."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _exit_with_error(reason: object, status: int) -> NoReturn:
    _close_progress_bars()
    try:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(reason)}", file=sys.stderr, flush=True)
    except OSError:  # the terminal is closed, or stderr goes to a full disk: the status still reports the error
        os._exit(status)
    sys.exit(status)


def _exit_by_interrupt() -> NoReturn:
    """Exit by SIGINT without a traceback, so that a calling shell script stops too."""
    _close_progress_bars()
    with contextlib.suppress(OSError):
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    sys.exit(128 + signal.SIGINT)


def _close_progress_bars() -> None:
    """End the line of each progress bar that is still open, so that a message starts on a line of its own."""
    if "tqdm" in sys.modules:
        with contextlib.suppress(OSError):
            for bar in list(sys.modules["tqdm"].tqdm._instances):
                bar.close()


def keep_freed_memory() -> None:
    """Configure glibc, if present, to reuse large freed blocks instead of returning them to the kernel.

    A training step on a CPU repeatedly allocates and frees hundreds of megabytes. Getting them from the kernel each time,
    zeroed page by page, is slow.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
