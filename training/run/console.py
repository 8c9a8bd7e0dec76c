"""Console output that never stops a run: the terminal may close, or stdout may be a file on a full disk.

TensorBoard's writer threads fail when the disk is full. Their tracebacks are suppressed.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO


class SteadyStream:
    """A text stream that drops text it cannot write."""

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
    """Keep print and progress bars from raising in this context, and suppress tracebacks of OSErrors in threads."""
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
