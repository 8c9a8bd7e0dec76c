"""Folders that this project wrote: recognized where photos are looked for, and kept to one generator each."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import UserError, one_line
from common.files import read_small_text, write_atomically

GENERATOR_RECORD = "generator.json"  # which generator the files beside it come from
RUN_FILES = ("run.json", "log.jsonl")  # of train.py's output folder


def output_folder(folder: Path) -> str | None:
    """What of this project's own ``folder`` holds, in words; None where it holds nothing that tells."""
    if folder.name == "samples" and any((folder.parent / name).is_file() for name in RUN_FILES):
        return "the sample grids of a training run"
    if (folder / GENERATOR_RECORD).is_file():
        return "made by a generator"
    return None


def claim_folder(folder: Path, name: str, digest: str) -> str | None:
    """Record that ``folder`` holds what the generator ``name`` made, whose weights have the SHA-256 ``digest``.

    Returns a note where it holds files of an earlier state of the same generator. Raises UserError where they are another's:
    files are named after seeds alone, and those of two generators could not be told apart.
    """
    before = read_claim(folder)
    note = None
    if before is not None and before["sha256"] != digest:
        if before["generator"] != name:
            raise UserError(
                f"{folder} holds files of the generator {one_line(before['generator'])} ({GENERATOR_RECORD} says so), and {name}"
                " is another; choose another --output_dir, or remove the folder"
            )
        note = f"{folder} holds files of an earlier state of {name}; those that are not written anew now stay"
    if before is None or before["sha256"] != digest:
        write_atomically(folder / GENERATOR_RECORD, json.dumps({"generator": name, "sha256": digest}).encode())
    return note


def read_claim(folder: Path) -> dict[str, str] | None:
    """What :func:`claim_folder` recorded; None where there is nothing, or nothing that can be read."""
    path = folder / GENERATOR_RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(read_small_text(path))
        return {key: str(record[key]) for key in ("generator", "sha256")}
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
