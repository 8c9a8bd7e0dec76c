"""Errors that a user can correct, and notices."""

from __future__ import annotations

import sys
from collections.abc import Sequence

MAX_MESSAGE = 2000  # characters


class UserError(Exception):
    """An error that the user can correct. The message names the cause and the fix, on one line."""

    exit_status = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """Return ``text`` on one line of bounded length, with control characters escaped (file names may contain them)."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return shown if len(shown) <= MAX_MESSAGE else shown[: MAX_MESSAGE - 3] + "..."


def first_few(names: Sequence[str], most: int) -> str:
    """Return the first ``most`` of ``names`` in one line, followed by dots if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def print_notice(text: str) -> None:
    """Print ``text`` as one line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)
