"""Shared parts of the metric scripts: arguments, loading, the JSON file and the printed table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from checkpoints.loading import LoadedGenerator
from common.arguments import image_side, int_between, resolve_device
from common.files import make_output_dir, write_json
from generators.renderer import RenderSettings
from visualization.generator_scripts import add_loading_arguments, load_with_notes, note_ignored_options


def add_common_arguments(
    parser: argparse.ArgumentParser, *, psi: float, image_size: int | None, output_json: str, batches: bool = True
) -> None:
    """Add :func:`add_loading_arguments`, --image_size (unless None), --batch_size (if ``batches``) and --output_json."""
    add_loading_arguments(parser, psi)
    if image_size is not None:
        parser.add_argument("--image_size", type=image_side, default=image_size, help="side of an image in pixels")
    if batches:
        parser.add_argument(
            "--batch_size", type=int_between(1, 1 << 16), default=8, help="images per batch; affects only speed and memory"
        )
    parser.add_argument("--output_json", default=output_json, help="file for the results and their protocol")


def load(args: argparse.Namespace) -> LoadedGenerator:
    """Load the generator of :func:`add_common_arguments`, with float32 matrix products on every device. Raises UserError."""
    device = resolve_device(args.device)
    make_output_dir(Path(args.output_json).parent)  # first: fail before any work if the score cannot be written
    note_ignored_options(args)
    return load_with_notes(args.path, args.curriculum, device, precision="float32")


def model_record(args: argparse.Namespace, loaded: LoadedGenerator) -> dict[str, Any]:
    """Return a record of the evaluated generator."""
    record = {"path": str(args.path), "curriculum": loaded.curriculum.name, "step": loaded.step, "notes": loaded.notes}
    return record | {"settings": loaded.curriculum.to_dict()}


def rendering_record(settings: RenderSettings) -> dict[str, Any]:
    """Return the rendering settings of scored images, which are never jittered."""
    return {**asdict(settings), "jitter": False}


def write_scores(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write ``results`` with the date and torch's version. Raises UserError if that fails."""
    stamp = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "torch": torch.__version__}
    write_json(path, {**results, "environment": {**stamp, **results.get("environment", {})}})


def print_table(title: str, rows: Mapping[str, float | int | str | None], deviations: Mapping[str, float] | None = None) -> None:
    """Print ``title`` and one aligned line per named number, with its deviation if that is not 0."""
    print(title)
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        deviation = (deviations or {}).get(name)
        print(f"  {name:<{width}}  {text}" + (f" ± {deviation:.3g}" if deviation else ""))
