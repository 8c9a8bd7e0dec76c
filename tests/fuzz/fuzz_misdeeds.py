"""Deliberate violations: the targets that test the monitor itself."""

from __future__ import annotations

from pathlib import Path


def prepare(sandbox: Path) -> None:
    (sandbox / "input").mkdir(exist_ok=True)


def misdeed(folder: Path, expression: str) -> None:
    exec(compile(expression, __file__, "eval"), {"folder": folder})


TARGETS = {"checkpoint.misdeed": misdeed}
