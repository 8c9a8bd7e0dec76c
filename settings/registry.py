"""A curriculum by its name in :mod:`curriculums`, or from a .json file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import curriculums
from common.errors import UserError
from common.files import read_small_text
from settings.checks import shown
from settings.curriculum import MAX_NAME, Curriculum, is_stage_key


class _Registry(Mapping[str, Curriculum]):
    """The curricula of :mod:`curriculums` by name. One is validated when it is looked up, so a mistake in it stops no other."""

    def __getitem__(self, name: str) -> Curriculum:
        return Curriculum.from_dict(_dictionaries()[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(_dictionaries())

    def __len__(self) -> int:
        return len(_dictionaries())


CURRICULUMS = _Registry()


def _dictionaries() -> dict[str, dict[Any, Any]]:
    """The module's dictionaries with stages."""
    names = vars(curriculums).items()
    return {name: value for name, value in names if isinstance(value, dict) and any(map(is_stage_key, value))}


def get_curriculum(name_or_path: str) -> Curriculum:
    """A curriculum by name, or from a .json file: of :meth:`Curriculum.to_dict`, or the run.json of a run.

    Raises UserError for an unknown name, naming the known ones.
    """
    if name_or_path in CURRICULUMS:
        return CURRICULUMS[name_or_path]
    if name_or_path.endswith(".json"):
        return _from_file(name_or_path)
    near = difflib.get_close_matches(name_or_path[:MAX_NAME].lower(), [n.lower() for n in CURRICULUMS], n=1)
    hint = f"; did you mean {next(n for n in CURRICULUMS if n.lower() == near[0])}?" if near else ""
    raise UserError(f"unknown curriculum {shown(name_or_path)}{hint} (known: {', '.join(CURRICULUMS)}, or a .json file)")


def _from_file(path: str) -> Curriculum:
    try:
        settings = json.loads(read_small_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the curriculum file {path} is no JSON: {error}") from None
    if isinstance(settings, dict) and isinstance(settings.get("curriculum"), dict):
        settings = settings["curriculum"]
    if not isinstance(settings, dict):
        raise UserError(f"the curriculum file {path} must hold a dictionary of settings")
    try:
        return Curriculum.from_dict(settings, settings.get("name", Path(path).stem[:MAX_NAME]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
