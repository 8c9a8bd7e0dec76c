"""How an entry script runs and ends.

Bad input ends a script with exit status 2 and ONE line on stderr, ``script.py: error: what is wrong; what to do``,
without a traceback. Library code raises :class:`common.errors.UserError` for that; scripts pass their ``main`` to
:func:`run_script`.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    """Call ``main`` and exit: 0, or 2 (a subclass may say another) with one line on stderr for a :class:`UserError`.

    So do errors of the system about files, and a lack of memory: nothing in the program is wrong then.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text that can be printed
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of common.interrupts
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
        _leave(f"not enough memory {error}; ask for less: smaller images, batches or networks", 2)
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        _leave(f"not enough memory ({str(error)[:200]}); ask for less: smaller images, batches or networks", 2)
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
