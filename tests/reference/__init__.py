"""Numbers recorded from the published implementation, and the generator they belong to (tests/reference/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS

FOLDER = Path(__file__).resolve().parent


def load_outputs() -> dict[str, torch.Tensor]:
    """The recorded arrays by name."""
    with np.load(FOLDER / "outputs.npz", allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def load_meta() -> dict:
    """Names and shapes of the published parameters, in their order: ``gen_params`` and ``disc_params``."""
    return json.loads((FOLDER / "meta.json").read_text())


def load_weights() -> dict[str, torch.Tensor]:
    """The generator's weights under the published names, in the published order."""
    tensors = safetensors.torch.load_file(FOLDER / "generator.safetensors")
    return {name: tensors[name] for name, _ in load_meta()["gen_params"]}


def load_reference_generator() -> ImplicitGenerator3d:
    """The generator that the numbers were recorded from, in eval mode."""
    generator = ImplicitGenerator3d(CURRICULUMS["BFM"])
    generator.load_state_dict(load_weights())
    return generator.eval()


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """|value - expected| / |expected|, Euclidean norms over all elements."""
    return float((value - expected).norm() / expected.norm())
