"""Latents and directions in files: what invert.py and tools/directions.py write, and every script that takes a seed reads.

- Latent file, ``NAME.safetensors``: the styles of one latent (``styles.PART``), the generator's weights where they were tuned
  to a photo (``weights.NAME``), and in the metadata the pose and crop of the photo, the generator's name and the SHA-256 of
  its weights. Styles mean nothing to another generator, so one is refused.
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
    """``name``: what users call it. ``digest``: SHA-256 of its weights in float32, whatever file they came from."""

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
    """``styles``: a NamedTuple of tensors (1, ...). ``photo``: PHOTO_KEYS to numbers, radians and half images, as in
    inversion/camera.py. ``weights``: tuned parameters by name, or None. ``psnr_db``: of the photo's reconstruction."""

    styles: Styles
    photo: Mapping[str, float]
    generator: GeneratorName
    psnr_db: float
    weights: Mapping[str, Tensor] | None = None


def save_latent(path: str | Path, latent: Latent) -> None:
    """Write a latent file. Raises UserError where a number is not finite or the file cannot be written."""
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
    """The latent of a file, on the generator's device. Raises UserError for another file, or another generator's latent."""
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
    device = next(generator.parameters()).device
    expected = _styles_like(generator)
    parts = _parts(path, tensors, STYLES_PREFIX, expected._asdict())
    if len(parts) != len(expected):
        raise UserError(f"{path} lacks {', '.join(sorted(set(expected._fields) - set(parts)))} among its styles")
    weights = _parts(path, tensors, WEIGHTS_PREFIX, generator.state_dict())
    styles = type(expected)(*(parts[field].to(device) for field in expected._fields))
    tuned = {key: value.to(device) for key, value in weights.items()}
    return Latent(styles, photo, made_for, psnr_db, tuned or None)


@torch.no_grad()
def _styles_like(generator: ImplicitGenerator3d) -> Styles:
    """A NamedTuple with the shapes of the generator's styles for one latent."""
    return generator.film(torch.zeros(1, generator.curriculum.latent_dim, device=next(generator.parameters()).device))


def _check_generator(path: Path, what: str, made_for: GeneratorName, name: GeneratorName) -> None:
    if made_for.digest != name.digest:
        raise UserError(f"{path} is a {what} of the generator {made_for}, not of {name}; name the generator it was made with")


def _parts(path: Path, tensors: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix`` by the rest of their names, each of the shape that ``expected`` has there."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, value in found.items():
        if name not in expected or value.shape != expected[name].shape or not value.is_floating_point():
            raise UserError(f"{path}: its {printable(prefix + name)} does not fit the generator; the file is damaged")
    return {name: value.float() for name, value in found.items()}


@dataclass(frozen=True)
class Directions:
    """``directions`` (K, D), unit length; ``sigma`` (K,), standard deviations; ``mean`` (1, D). See generators/styles.py."""

    directions: Tensor
    sigma: Tensor
    mean: Tensor
    generator: GeneratorName


def save_directions(path: str | Path, directions: Directions, report: Mapping[str, Any]) -> None:
    """Write a direction file; ``report``: plain containers, what was measured of the directions."""
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
    """The directions of a file, on the generator's device. Raises UserError for another file, or another generator's."""
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
    device = next(generator.parameters()).device
    parts = {key: tensors[key].float().to(device) for key in shapes}
    return Directions(parts["directions"], parts["sigma"], parts["mean"], made_for)
