"""Output folders of this project: recognize them among photos, and reserve each for one generator."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError, one_line
from common.files import read_json, write_json

GENERATOR_RECORD = "generator.json"  # names the generator that made the other files in the folder
RUN_FILES = ("run.json", "log.jsonl")  # of train.py's output folder


def output_folder(folder: Path) -> str | None:
    """Describe ``folder`` if it is an output folder of this project; otherwise return None."""
    if folder.name == "samples" and any((folder.parent / name).is_file() for name in RUN_FILES):
        return "the sample grids of a training run"
    if (folder / GENERATOR_RECORD).is_file():
        return "made by a generator"
    return None


def claim_folder(folder: Path, name: str, digest: str) -> str | None:
    """Record that ``folder`` holds output of the generator ``name``, whose weights have the SHA-256 ``digest``.

    Returns a note if the folder holds files from an earlier state of the same generator. Raises UserError if they are from
    another generator: file names contain only seeds, so files of two generators would be indistinguishable.
    """
    before = read_claim(folder)
    note = None
    if before is not None and before["sha256"] != digest:
        if before["generator"] != name:
            raise UserError(
                f"{folder} holds files of the generator {one_line(before['generator'])} (see {GENERATOR_RECORD}), not of {name};"
                " choose another --output_dir, or remove the folder"
            )
        note = f"{folder} holds files from an earlier state of {name}; files that are not overwritten are kept"
    if before is None or before["sha256"] != digest:
        write_json(folder / GENERATOR_RECORD, {"generator": name, "sha256": digest})
    return note


def read_claim(folder: Path) -> dict[str, str] | None:
    """Return the record written by :func:`claim_folder`; None if it is missing or unreadable."""
    path = folder / GENERATOR_RECORD
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        return {key: str(record[key]) for key in ("generator", "sha256")}
    except (UserError, KeyError):
        return None
