"""A curriculum by its name, or from a .json file."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from common.errors import UserError
from common.files import read_small_text
from curriculums import CURRICULUMS
from settings.curriculum import MAX_NAME, Curriculum, _shown


def get_curriculum(name_or_path: str) -> Curriculum:
    """A curriculum by name, or from a .json file: of :meth:`Curriculum.to_dict`, or the run.json of a run.

    Raises UserError for an unknown name, naming the known ones.
    """
    if name_or_path in CURRICULUMS:
        return CURRICULUMS[name_or_path]
    if name_or_path.endswith(".json"):
        try:
            settings = json.loads(read_small_text(name_or_path))
        except (ValueError, RecursionError) as error:
            raise UserError(f"the curriculum file {name_or_path} is no JSON: {error}") from None
        if isinstance(settings, dict) and isinstance(settings.get("curriculum"), dict):
            settings = settings["curriculum"]
        if not isinstance(settings, dict):
            raise UserError(f"the curriculum file {name_or_path} must hold a dictionary of settings")
        try:
            return Curriculum.from_dict(settings, settings.get("name", Path(name_or_path).stem[:MAX_NAME]))
        except UserError as error:
            raise UserError(f"{name_or_path}: {error}") from None
    near = difflib.get_close_matches(name_or_path[:MAX_NAME].lower(), [n.lower() for n in CURRICULUMS], n=1)
    hint = f"; did you mean {next(n for n in CURRICULUMS if n.lower() == near[0])}?" if near else ""
    raise UserError(f"unknown curriculum {_shown(name_or_path)}{hint} (known: {', '.join(CURRICULUMS)}, or a .json file)")
