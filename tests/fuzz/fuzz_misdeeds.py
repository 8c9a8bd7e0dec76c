"""What no input may bring about, done on purpose: the targets with which the watch itself is tested."""

from __future__ import annotations

from pathlib import Path


def prepare(sandbox: Path) -> None:
    (sandbox / "input").mkdir(exist_ok=True)


def misdeed(folder: Path, expression: str) -> None:
    exec(compile(expression, __file__, "eval"), {"folder": folder})


TARGETS = {"checkpoint.misdeed": misdeed}
