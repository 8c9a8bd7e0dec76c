"""The browser's choice of latents and truncation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from checkpoints.loading import LoadedGenerator
from generators.styles import geometry_layers, mix_styles
from siren.field import Field
from visualization.generator_scripts import styles_from_seed


@dataclass(frozen=True)
class Look:
    """``appearance_seed``: seed of the appearance, or None for that of ``seed``. ``psi``: truncation."""

    seed: int = 0
    psi: float = 0.7
    appearance_seed: int | None = None


@torch.no_grad()
def field_of(loaded: LoadedGenerator, look: Look) -> Field:
    """Return the field of a look (B = 1)."""
    styles = styles_from_seed(loaded, look.seed, look.psi)
    if look.appearance_seed is not None:
        appearance = styles_from_seed(loaded, look.appearance_seed, look.psi)
        styles = mix_styles(styles, appearance, geometry_layers(styles, loaded.curriculum), loaded.curriculum)
    return loaded.generator.field(styles)
