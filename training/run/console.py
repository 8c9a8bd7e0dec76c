"""Words for the user that cannot end a run: a terminal that closed or a log file on a full disk is no reason to stop.

Nor is a full disk a reason for a page of traceback: TensorBoard writes in threads of its own, which end with it.
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
    """Within it, print and progress bars never raise, and a thread that a disk ended leaves it to its caller to say so."""
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
    """One line on stderr."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)
