"""The recorded numbers of the published implementation, and the generator they belong to (METHOD section 8)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS


def load_outputs(shared_dir: Path) -> dict[str, torch.Tensor]:
    with np.load(shared_dir / "reference" / "reference_outputs.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def load_meta(shared_dir: Path) -> dict:
    return json.loads((shared_dir / "reference" / "reference_meta.json").read_text())


def load_reference_generator(shared_dir: Path) -> ImplicitGenerator3d:
    from checkpoints.loading import load_generator

    path = shared_dir / "reference" / "published_format" / "generator.pth"
    return load_generator(path, CURRICULUMS["BFM"]).generator


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())
