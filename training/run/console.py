"""Console output that never stops a run: the terminal may close, or stdout may be a file on a full disk.

TensorBoard writes in threads of its own, which die when the disk is full; no traceback is printed for them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO


class SteadyStream:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """A context in which print and progress bars never raise, and threads that die of an OSError print no traceback."""
    previous = threading.excepthook

    def hook(what: threading.ExceptHookArgs) -> None:
        if not isinstance(what.exc_value, OSError):
            previous(what)

    threading.excepthook = hook
    try:
        with contextlib.redirect_stdout(SteadyStream(sys.stdout)), contextlib.redirect_stderr(SteadyStream(sys.stderr)):
            yield
    finally:
        threading.excepthook = previous


def tell(text: str) -> None:
    """Print one line on stderr."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)
