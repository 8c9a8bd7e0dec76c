"""Styles of any generator as vectors, and their distribution over latents.

Styles are the output of a mapping network: a NamedTuple of tensors (B, ...) that depends on the curriculum's model.
B batch, D numbers per latent in all parts combined, K principal directions.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from generators.generator import NUM_TRUNCATION_LATENTS, ImplicitGenerator3d, Styles, draw_latents
from settings.curriculum import Curriculum
from siren.mapping import FilmParameters
from triplane.mapping import TriplaneStyles

MIN_VARIANCE_SHARE = 1e-8  # of the largest component; anything smaller is rounding error


def flatten_styles(styles: Styles) -> Tensor:
    """Concatenate all parts of a NamedTuple of tensors (B, ...) into (B, D)."""
    return torch.cat([part.flatten(1) for part in styles], dim=1)


def unflatten_styles(vectors: Tensor, like: Styles) -> Styles:
    """Invert :func:`flatten_styles`: vectors (B, D) become a NamedTuple with the shapes of ``like`` (1, ...)."""
    parts = vectors.split([math.prod(part.shape[1:]) for part in like], dim=1)
    return type(like)(*(part.unflatten(1, template.shape[1:]) for part, template in zip(parts, like, strict=True)))


class StyleDistribution(NamedTuple):
    """Principal components of the styles. Source: GANSpace, section 3.

    ``mean`` (1, D); orthonormal ``directions`` (K, D), sorted by decreasing standard deviation ``sigma`` (K,); ``spread`` (D,),
    the standard deviation of each number; ``like``, the mean as the generator's NamedTuple.
    """

    mean: Tensor
    directions: Tensor
    sigma: Tensor
    spread: Tensor
    like: Styles

    def coordinates(self, styles: Styles) -> Tensor:
        """Return the coordinates (B, K) of styles along the directions, in standard deviations."""
        return (flatten_styles(styles) - self.mean) @ self.directions.t() / self.sigma

    def styles(self, coordinates: Tensor, offsets: Tensor | None = None) -> Styles:
        """Return the styles of coordinates (B, K). ``offsets`` (B, D), in units of ``spread``, are added to the flat styles."""
        vectors = self.mean + (coordinates * self.sigma) @ self.directions
        if offsets is not None:
            vectors = vectors + offsets * self.spread
        return unflatten_styles(vectors, self.like)


@torch.no_grad()
def style_distribution(
    generator: ImplicitGenerator3d, num: int = NUM_TRUNCATION_LATENTS, seed: int = 0, max_directions: int = 512
) -> StyleDistribution:
    """Measure the distribution of the styles of ``num`` latents drawn from ``seed``, on the generator's device.

    Finds at most ``max_directions``. A mapping network's styles span no more dimensions than its last hidden layer is wide.
    """
    device = generator.device
    curriculum = generator.curriculum
    latents = draw_latents(num, curriculum, torch.Generator().manual_seed(seed))
    like, vectors = None, []
    for part in latents.split(1000):
        styles = generator.styles(part.to(device))
        vectors.append(flatten_styles(styles).cpu())
        like = type(styles)(*(part[:1] for part in styles)) if like is None else like
    assert like is not None
    matrix = torch.cat(vectors).double()
    mean = matrix.mean(dim=0, keepdim=True)
    centered = matrix - mean
    directions, variances = _principal_directions(centered, max_directions)
    spread = centered.square().mean(dim=0).sqrt()
    mean, directions, sigma, spread = (t.float().to(device) for t in (mean, directions, variances.sqrt(), spread))
    return StyleDistribution(mean, directions, sigma, spread, unflatten_styles(mean, like))


def _principal_directions(centered: Tensor, max_directions: int) -> tuple[Tensor, Tensor]:
    """Return principal directions (K, D) and variances (K,) of centered vectors (N, D), in decreasing order.

    The sign of each direction makes its largest entry positive. Wide vectors are first projected onto a random basis with twice
    as many directions (Halko et al., 2011). This is exact if their rank is no larger, as with a linear last layer.
    """
    num, width = centered.shape
    basis = None
    if width > 2 * max_directions:
        random = torch.Generator().manual_seed(0)
        sketch = torch.randn(width, 2 * max_directions, generator=random, dtype=centered.dtype)
        basis = torch.linalg.qr(centered.t() @ (centered @ sketch)).Q  # (D, 2 K)
        centered = centered @ basis
    variances, vectors = torch.linalg.eigh(centered.t() @ centered / max(num - 1, 1))
    order = variances.argsort(descending=True)[:max_directions]
    variances, vectors = variances[order], vectors[:, order]
    known = variances > MIN_VARIANCE_SHARE * variances[0]
    variances, directions = variances[known], (vectors if basis is None else basis @ vectors)[:, known].t()
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return directions * largest.sign(), variances


def num_style_layers(styles: Styles, curriculum: Curriculum) -> int:
    """Return the number of layers that styles control. A SIREN's are its FiLM layers, with the color layer last."""
    return styles.styles.shape[1] if isinstance(styles, TriplaneStyles) else curriculum.num_layers + 1


def geometry_layers(styles: Styles, curriculum: Curriculum) -> int:
    """Return the number of layers that mixing takes from the geometry by default: half."""
    return num_style_layers(styles, curriculum) // 2


def style_layer_of(name: str, curriculum: Curriculum) -> int:
    """Return the index of the style layer that modulates a parameter; 0 for a parameter that no style modulates."""
    if match := re.search(r"siren\.network\.(\d+)\.", name):
        return int(match[1])
    if "siren.color_layer" in name:
        return curriculum.num_layers
    if match := re.search(r"backbone\.blocks\.(\d+)\.(\d+)\.", name):  # one convolution in the first block, then two
        return max(2 * int(match[1]) - 1, 0) + int(match[2])
    if match := re.search(r"backbone\.to_planes\.(\d+)\.", name):  # the style of the block's last convolution
        return 2 * int(match[1])
    return 0


def mix_styles(geometry: Styles, appearance: Styles, split: int, curriculum: Curriculum) -> Styles:
    """Combine the first ``split`` layers of ``geometry`` with the others of ``appearance``. Source: StyleGAN, section 3.1.

    For a SIREN with all layers but the color layer from ``geometry``, the occupancy is bit-identical to that of ``geometry``.
    """
    if isinstance(geometry, TriplaneStyles):
        return geometry.mix(appearance, split)
    width = split * curriculum.hidden_dim
    pairs = zip(geometry, appearance, strict=True)
    return FilmParameters(*(torch.cat([a[:, :width], b[:, width:]], dim=1) for a, b in pairs))


def with_weights(generator: ImplicitGenerator3d, weights: Mapping[str, Tensor]) -> ImplicitGenerator3d:
    """Return a copy of the generator whose parameters named in ``weights`` have these values."""
    copied = copy.deepcopy(generator)
    copied.load_state_dict(dict(weights), strict=False)
    return copied
