"""Lookup of a curriculum by its name in :mod:`curriculums`, or from a .json file."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import curriculums
from common.errors import UserError
from common.files import read_json
from settings.checks import ineffective_settings, shown
from settings.curriculum import MAX_NAME, Curriculum
from settings.published import stage_step


class _Registry(Mapping[str, Curriculum]):
    """The curricula of :mod:`curriculums` by name. Each is validated on access, so an invalid one does not affect the others."""

    def __getitem__(self, name: str) -> Curriculum:
        return _from_module(name, [])

    def __iter__(self) -> Iterator[str]:
        return iter(_dictionaries())

    def __len__(self) -> int:
        return len(_dictionaries())


CURRICULUMS = _Registry()


def _dictionaries() -> dict[str, dict[Any, Any]]:
    """Return the module's dictionaries that have stages."""
    dictionaries = {name: value for name, value in vars(curriculums).items() if isinstance(value, dict)}
    return {name: value for name, value in dictionaries.items() if any(stage_step(key) is not None for key in value)}


def _from_module(name: str, notes: list[str]) -> Curriculum:
    settings = _dictionaries()[name]
    curriculum = Curriculum.from_dict(settings, name, notes)
    ineffective = next(ineffective_settings(curriculum, _own_keys(settings)), None)
    if ineffective:
        raise UserError(f"curriculum {name}: {ineffective}")
    return curriculum


def _own_keys(settings: Mapping[Any, Any]) -> list[str]:
    """Return the keys of settings whose values differ from those in ``COMMON``."""
    return [key for key, value in settings.items() if key in curriculums.COMMON and _as_tuple(value) != curriculums.COMMON[key]]


def _as_tuple(value: Any) -> Any:
    """Convert a list to a tuple: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def get_curriculum(name_or_path: str) -> Curriculum:
    """Return a curriculum by name, or from a .json file.

    The file may hold the output of :meth:`Curriculum.to_dict`, the run.json of a run, or a published dictionary. Notes about its
    keys are printed to stderr. Raises UserError for an unknown name, listing the known ones.
    """
    notes: list[str] = []
    if name_or_path in _dictionaries():
        curriculum = _from_module(name_or_path, notes)
    elif name_or_path.endswith(".json"):
        curriculum = _from_file(name_or_path, notes)
    else:
        raise _unknown(name_or_path)
    for note in notes:
        print(f"note: curriculum {name_or_path}: {note}", file=sys.stderr)
    return curriculum


def _unknown(name_or_path: str) -> UserError:
    near = difflib.get_close_matches(name_or_path[:MAX_NAME].lower(), [n.lower() for n in CURRICULUMS], n=1)
    hint = f"; did you mean {next(n for n in CURRICULUMS if n.lower() == near[0])}?" if near else ""
    return UserError(f"unknown curriculum {shown(name_or_path)}{hint} (known: {', '.join(CURRICULUMS)}, or a .json file)")


def _from_file(path: str, notes: list[str]) -> Curriculum:
    settings = read_json(path)
    if isinstance(settings.get("curriculum"), dict):
        settings = settings["curriculum"]
    try:
        curriculum = Curriculum.from_dict(settings, settings.get("name", Path(path).stem[:MAX_NAME]), notes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    notes += ineffective_settings(curriculum, _own_keys(settings))
    return curriculum
