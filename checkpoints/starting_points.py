"""What a new run can start from (``train.py --load_dir``): another run, published files or an inference file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints.files import (
    TRUNCATION_PREFIX,
    check_finite,
    is_safetensors,
    latest_checkpoint,
    load_training_checkpoint,
    read_inference,
)
from checkpoints.loading import resolve_generator_path
from checkpoints.published import WARMED_UP, load_published_training


def load_starting_point(source: Path, notes: list[str]) -> dict[str, Any]:
    """Read networks and, where the source has them, averages and optimizers, under the keys of a training checkpoint.

    source: a folder with this project's checkpoints (the newest is read) or with published files, a checkpoint, an inference
        file, or the name of a generator in ``pretrained/``.
    notes: gets a sentence on what was read and what is missing.
    Raises UserError if ``source`` is none of these.
    """
    if source.is_dir():
        newest = latest_checkpoint(source)
        if newest is None:
            state, missing = load_published_training(source)
            notes += [f"starting from the published files in {source}", *missing]
            return state
        source = newest
    path = resolve_generator_path(source)
    if is_safetensors(path):
        return _load_generator_only(path, notes)
    state = load_training_checkpoint(path)
    notes.append(f"starting from {path} (its step {state['step']})")
    return state


def _load_generator_only(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read the generator of an inference file, in float32. It is averaged already, so the averages start from it, warmed up."""
    content = read_inference(path)
    weights = {name: value.float() for name, value in content.tensors.items() if not name.startswith(TRUNCATION_PREFIX)}
    check_finite(path, weights)
    notes.append(f"starting from the generator {path} (its step {content.step}); the discriminator is new")
    return {"generator": weights, "ema": dict(weights), "ema_num_updates": WARMED_UP}
