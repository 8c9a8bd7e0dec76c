"""The generator, which maps a latent to a field."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fields.interface import Field
from settings.curriculum import Curriculum
from siren.mapping import FilmParameters
from siren.siren import Siren
from triplane.mapping import TriplaneStyles
from triplane.network import Triplane

NUM_TRUNCATION_LATENTS = 10_000


def latent_from_seed(seed: int, curriculum: Curriculum) -> Tensor:
    """Return the latent of a seed, (1, latent_dim). It is drawn on the CPU, so it does not depend on the device."""
    return draw_latents(1, curriculum, torch.Generator().manual_seed(seed))


def latents_of_first_seeds(num: int, curriculum: Curriculum) -> Tensor:
    """Return the latents of seeds 0, 1, ..., num - 1: (num, latent_dim)."""
    return torch.cat([latent_from_seed(seed, curriculum) for seed in range(num)])


def draw_latents(num: int, curriculum: Curriculum, random: torch.Generator) -> Tensor:
    """Sample latents (num, latent_dim): standard normal if ``z_dist`` is ``gaussian``, else uniform in [-1, 1]."""
    if curriculum.z_dist == "gaussian":
        return torch.randn(num, curriculum.latent_dim, generator=random)
    return torch.rand(num, curriculum.latent_dim, generator=random) * 2 - 1


Styles = FilmParameters | TriplaneStyles  # output of the mapping network, depending on the curriculum's model


class ImplicitGenerator3d(nn.Module):
    """A mapping network and a field.

    The mapping network turns latents into :data:`Styles`, and the styles define a :class:`fields.interface.Field`. The weights
    are in ``siren``, under the names of published files (``siren.network.0.layer.weight``, ...), or in ``triplane``.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        self.curriculum = curriculum
        if curriculum.is_siren:
            self.siren = Siren(curriculum)
        else:
            self.triplane = Triplane(curriculum)
        self.truncation_mean: Styles | None = None

    @property
    def network(self) -> Siren | Triplane:
        """The module that holds all weights: ``siren`` or ``triplane``."""
        return self.siren if self.curriculum.is_siren else self.triplane

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def styles(self, z: Tensor, psi: float = 1.0) -> Styles:
        """Return the styles of z (B, latent_dim), truncated toward their mean over latents: mean + psi * (styles - mean).

        Source: docs/method.md, "Truncation".
        """
        styles = self.network.mapping_network(z)
        if psi == 1:
            return styles
        if self.truncation_mean is None:
            self.compute_truncation_mean()
        assert self.truncation_mean is not None
        return self.truncation_mean.to(z.device).lerp(styles, psi)

    def field(self, styles: Styles) -> Field:
        """Return the field of B latents. Everything that does not depend on points is computed here, once."""
        return self.network.bind(styles)

    def field_of_latents(self, z: Tensor, psi: float = 1.0) -> Field:
        """Return the field of latents z (B, latent_dim), truncated with ``psi``."""
        return self.field(self.styles(z, psi))

    @torch.no_grad()
    def compute_truncation_mean(self, num: int = NUM_TRUNCATION_LATENTS, seed: int = 0) -> Styles:
        """Compute the mean styles (1, ...) over ``num`` latents from a fixed seed, and store them in ``truncation_mean``.

        Checkpoints save the mean too. The published code draws new latents on every call, so its images vary between calls.
        """
        z = draw_latents(num, self.curriculum, torch.Generator().manual_seed(seed))
        styles = self.network.mapping_network(z.to(self.device))
        self.truncation_mean = type(styles)(*(part.mean(dim=0, keepdim=True) for part in styles))
        return self.truncation_mean
