"""Command-line parsing shared by all scripts: the parser, argument types, device selection."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from common.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**63 - 1
# PyTorch's name for the precision of matrix products on a GPU; siren/backends/fused.py lists the errors.
PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium"}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help formatter that keeps descriptions verbatim and shows defaults, if any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults shown in ``--help`` and errors on a single line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        surplus = message.partition("unrecognized arguments: ")[2].split()
        if surplus and all(Path(argument).exists() for argument in surplus):
            message = f"{len(surplus)} unexpected names ({surplus[0]}, ...): did the shell expand a pattern? Quote it: '*.jpg'"
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def add_settings_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add --set. It may be repeated; the last value of a setting applies."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help_text)


def int_between(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type: an integer from ``least`` to ``most``."""

    def parse(text: str) -> int:
        value = _number(int, text, "a whole number")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be at least {least} and at most {most}")
        return value

    return parse


positive_int = int_between(1, 10**9)
nonnegative_int = int_between(0, 10**9)
image_side = int_between(1, 8192)


def positive_float(text: str) -> float:
    """Argparse type: a finite number above 0."""
    value = finite_float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be greater than 0")
    return value


def finite_float(text: str) -> float:
    """Argparse type: a finite number."""
    value = _number(float, text, "a number")
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be finite")
    return value


def seed_number(text: str) -> int:
    """Argparse type: a seed, 0 <= seed < 2^63."""
    value = _number(int, text, "a seed (a whole number)")
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"seed {text!r} must be between 0 and {MAX_SEED}")
    return value


def _number(kind: type, text: str, what: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto: the GPU if available")


def resolve_device(name: str) -> torch.device:
    """Return the device named ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises UserError if it is not available."""
    import torch  # takes seconds, which no script should spend before it knows its arguments

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s); use --device cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported; use cpu, cuda, cuda:N or auto")
    return device


def seed_range(start: int, end: int) -> Sequence[int]:
    """Return the seeds ``start <= seed < end``. Raises UserError if the range is empty or negative."""
    if start < 0 or end <= start:
        raise UserError(f"seeds {start} to {end}: --seeds_end must be greater than --seeds_start, and neither may be negative")
    return range(start, end)
