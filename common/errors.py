"""Errors that a user can correct."""

from __future__ import annotations

MAX_MESSAGE = 2000  # characters


class UserError(Exception):
    """Something the user can put right. The message names the culprit and the remedy, in one line."""

    exit_status = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """``text`` on one line of bounded length, with control characters (a file's name may hold any) made visible."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return shown if len(shown) <= MAX_MESSAGE else shown[: MAX_MESSAGE - 3] + "..."
