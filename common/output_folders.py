"""Folders that this project wrote: recognized where photos are looked for, and kept to one generator each."""

from __future__ import annotations

from pathlib import Path

GENERATOR_RECORD = "generator.json"
RUN_FILES = ("run.json", "log.jsonl")  # of train.py's output folder


def output_folder(folder: Path) -> str | None:
    """What of this project's own ``folder`` holds, in words; None where it holds nothing that tells."""
    if folder.name == "samples" and any((folder.parent / name).is_file() for name in RUN_FILES):
        return "the sample grids of a training run"
    if (folder / GENERATOR_RECORD).is_file():
        return "made by a generator"
    return None
