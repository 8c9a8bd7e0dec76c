"""Latent and direction files, written by invert.py and tools/directions.py and read by every script that takes a seed.

- Latent file, ``NAME.safetensors``: the styles of one latent (``styles.PART``), the generator's weights if they were tuned to
  a photo (``weights.NAME``), and in the metadata the pose and crop of the photo, the generator's name and the SHA-256 of its
  weights. Styles are valid only for the generator they were made with, so loading rejects any other.
- Direction file, ``NAME.safetensors``: ``directions`` (K, D), ``sigma`` (K,) and ``mean`` (1, D) of generators/styles.py, with
  the generator's name and SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.files import check_finite, read_safetensors, tensor_digest, write_safetensors
from checkpoints.safe_pickle import printable
from common.errors import UserError
from common.files import require_file
from generators.generator import ImplicitGenerator3d, Styles

LATENT_FORMAT = "gof-latent-1"
DIRECTIONS_FORMAT = "gof-directions-1"
STYLES_PREFIX, WEIGHTS_PREFIX = "styles.", "weights."
PHOTO_KEYS = ("pitch", "yaw", "shift_x", "shift_y", "roll", "log_scale")


@dataclass(frozen=True)
class GeneratorName:
    """Identity of a generator. ``name``: its file name without extension. ``digest``: SHA-256 of its weights in float32,
    independent of the file format."""

    name: str
    digest: str

    @classmethod
    def of(cls, generator: ImplicitGenerator3d, path: str | Path) -> GeneratorName:
        state = {name: value.detach().float().cpu() for name, value in generator.state_dict().items()}
        return cls(Path(path).name.removesuffix(".safetensors"), tensor_digest(state))

    def __str__(self) -> str:
        return f"{printable(self.name)} ({self.digest[:12]})"


@dataclass(frozen=True)
class Latent:
    """Contents of a latent file. ``styles``: a NamedTuple of tensors (1, ...). ``photo``: a number for each of PHOTO_KEYS, in
    radians and half images, as in inversion/camera.py. ``psnr_db``: PSNR of the photo's reconstruction. ``weights``: tuned
    parameters by name, or None."""

    styles: Styles
    photo: Mapping[str, float]
    generator: GeneratorName
    psnr_db: float
    weights: Mapping[str, Tensor] | None = None


def save_latent(path: str | Path, latent: Latent) -> None:
    """Write a latent file. Raises UserError if a value is not finite or the file cannot be written."""
    tensors = {STYLES_PREFIX + name: part for name, part in latent.styles._asdict().items()}
    tensors |= {WEIGHTS_PREFIX + name: value for name, value in (latent.weights or {}).items()}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    check_finite(path, tensors)
    metadata = {
        "format": LATENT_FORMAT,
        "generator": latent.generator.name,
        "generator_sha256": latent.generator.digest,
        "photo": json.dumps({key: float(latent.photo[key]) for key in PHOTO_KEYS}),
        "psnr_db": repr(float(latent.psnr_db)),
    }
    write_safetensors(path, tensors, metadata)


def load_latent(path: str | Path, generator: ImplicitGenerator3d, name: GeneratorName) -> Latent:
    """Load a latent onto the generator's device. Raises UserError for other files and for latents of another generator."""
    path = require_file(path)
    tensors, metadata = read_safetensors(path, LATENT_FORMAT, ("generator", "generator_sha256", "photo", "psnr_db"))
    made_for = GeneratorName(metadata["generator"], metadata["generator_sha256"])
    _check_generator(path, "latent", made_for, name)
    check_finite(path, tensors)
    try:
        found = json.loads(metadata["photo"])
        photo = {key: float(found[key]) for key in PHOTO_KEYS}
        psnr_db = float(metadata["psnr_db"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: its metadata is damaged") from None
    device = generator.device
    expected = _styles_like(generator)
    parts = _parts(path, tensors, STYLES_PREFIX, expected._asdict())
    if len(parts) != len(expected):
        raise UserError(f"{path} lacks the styles {', '.join(sorted(set(expected._fields) - set(parts)))}")
    weights = _parts(path, tensors, WEIGHTS_PREFIX, generator.state_dict())
    styles = type(expected)(*(parts[field].to(device) for field in expected._fields))
    tuned = {key: value.to(device) for key, value in weights.items()}
    return Latent(styles, photo, made_for, psnr_db, tuned or None)


@torch.no_grad()
def _styles_like(generator: ImplicitGenerator3d) -> Styles:
    """Compute styles of one latent, as a template for the NamedTuple type and its shapes."""
    return generator.styles(torch.zeros(1, generator.curriculum.latent_dim, device=generator.device))


def _check_generator(path: Path, what: str, made_for: GeneratorName, name: GeneratorName) -> None:
    if made_for.digest != name.digest:
        raise UserError(f"{path} is a {what} of the generator {made_for}, not of {name}; pass the generator it was made with")


def _parts(path: Path, tensors: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors under ``prefix``, keyed without it, and check their shapes against ``expected``."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, value in found.items():
        if name not in expected or value.shape != expected[name].shape or not value.is_floating_point():
            raise UserError(f"{path}: its {printable(prefix + name)} does not fit the generator; the file is damaged")
    return {name: value.float() for name, value in found.items()}


@dataclass(frozen=True)
class Directions:
    """Contents of a direction file. ``directions`` (K, D), unit length; ``sigma`` (K,), standard deviations; ``mean`` (1, D).
    See generators/styles.py."""

    directions: Tensor
    sigma: Tensor
    mean: Tensor
    generator: GeneratorName


def save_directions(path: str | Path, directions: Directions, report: Mapping[str, Any]) -> None:
    """Write a direction file. ``report``: measurements of the directions, as plain containers."""
    tensors = {name: getattr(directions, name).detach().float().cpu().contiguous() for name in ("directions", "sigma", "mean")}
    check_finite(path, tensors)
    metadata = {
        "format": DIRECTIONS_FORMAT,
        "generator": directions.generator.name,
        "generator_sha256": directions.generator.digest,
        "report": json.dumps(report, sort_keys=True),
    }
    write_safetensors(path, tensors, metadata)


def load_directions(path: str | Path, generator: ImplicitGenerator3d, name: GeneratorName) -> Directions:
    """Load directions onto the generator's device. Raises UserError for other files and for directions of another generator."""
    path = require_file(path)
    tensors, metadata = read_safetensors(path, DIRECTIONS_FORMAT, ("generator", "generator_sha256"))
    made_for = GeneratorName(metadata["generator"], metadata["generator_sha256"])
    _check_generator(path, "set of directions", made_for, name)
    check_finite(path, tensors)
    width = sum(part.numel() for part in _styles_like(generator))
    num = len(tensors["sigma"]) if "sigma" in tensors else 0
    shapes = {"directions": (num, width), "sigma": (num,), "mean": (1, width)}
    if not num or any(key not in tensors or tuple(tensors[key].shape) != shape for key, shape in shapes.items()):
        raise UserError(f"{path}: its directions do not fit the generator; the file is damaged")
    device = generator.device
    parts = {key: tensors[key].float().to(device) for key in shapes}
    return Directions(parts["directions"], parts["sigma"], parts["mean"], made_for)
