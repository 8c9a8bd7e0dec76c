"""The browser's choice of object: a seed or a latent file, its truncation, and the appearance of another seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from checkpoints.loading import LoadedGenerator
from fields.interface import Field
from generators.styles import geometry_layers
from visualization.generator_scripts import Subject, bind_field, mix_subjects, styles_from_seed


@dataclass(frozen=True)
class Look:
    """``latent``: label of the latent file that replaces the seed, or None. ``psi``: truncation of seeds.

    ``appearance_seed``: seed of the appearance, or None for that of the object.
    """

    seed: int = 0
    psi: float = 0.7
    appearance_seed: int | None = None
    latent: str | None = None


def subject_of(loaded: LoadedGenerator, look: Look, latents: Mapping[str, Subject]) -> Subject:
    """Return the styles and weights of a look. ``latents``: the latent files by label."""
    own = latents.get(look.latent) if look.latent is not None else None
    subject = own or _of_seed(loaded, look.seed, look.psi)
    if look.appearance_seed is None:
        return subject
    appearance = _of_seed(loaded, look.appearance_seed, look.psi)
    return mix_subjects(loaded, subject, appearance, geometry_layers(subject.styles, loaded.curriculum))


@torch.no_grad()
def field_of(loaded: LoadedGenerator, look: Look, latents: Mapping[str, Subject] | None = None) -> Field:
    """Return the field of a look (B = 1)."""
    return bind_field(loaded, subject_of(loaded, look, latents or {}))


def _of_seed(loaded: LoadedGenerator, seed: int, psi: float) -> Subject:
    return Subject(str(seed), styles_from_seed(loaded, seed, psi))
