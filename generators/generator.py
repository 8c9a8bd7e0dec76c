"""The generator: a latent in, a field out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.curriculum import Curriculum
from siren.field import Field, SirenField
from siren.mapping import FilmParameters
from siren.siren import Siren
from triplane.mapping import TriplaneStyles
from triplane.network import Triplane

NUM_TRUNCATION_LATENTS = 10_000


def latent_from_seed(seed: int, latent_dim: int, z_dist: str = "gaussian") -> Tensor:
    """The latent of a seed, (1, latent_dim), drawn on the CPU so that it is the same whatever the device."""
    generator = torch.Generator().manual_seed(seed)
    return draw_latents(1, latent_dim, z_dist, generator)


def latents_of_first_seeds(num: int, curriculum: Curriculum) -> Tensor:
    """(num, latent_dim): the latents of seeds 0, 1, ..., num - 1."""
    return torch.cat([latent_from_seed(seed, curriculum.latent_dim, curriculum.z_dist) for seed in range(num)])


def draw_latents(num: int, latent_dim: int, z_dist: str, generator: torch.Generator) -> Tensor:
    """(num, latent_dim): standard normal, or uniform in [-1, 1]."""
    if z_dist == "gaussian":
        return torch.randn(num, latent_dim, generator=generator)
    return torch.rand(num, latent_dim, generator=generator) * 2 - 1


Styles = FilmParameters | TriplaneStyles  # what the mapping network makes of latents, by the curriculum's model


class ImplicitGenerator3d(nn.Module):
    """Mapping network and field: ``siren``, with parameter names as in published files (``siren.network.0.layer.weight``, ...),
    or ``triplane``.

    The mapping network of either makes :data:`Styles` of latents, and those a :class:`siren.field.Field`.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        self.curriculum = curriculum
        if curriculum.model == "TRIPLANE":
            self.triplane = Triplane(curriculum)
        else:
            self.siren = Siren(curriculum)
        self.truncation_mean: Styles | None = None

    @property
    def network(self) -> Siren | Triplane:
        """All of the weights, of whichever kind."""
        return self.triplane if self.curriculum.model == "TRIPLANE" else self.siren

    def film(self, z: Tensor, psi: float = 1.0) -> Styles:
        """The styles of z (B, latent_dim), pulled toward their mean over latents: mean + psi * (styles - mean).

        Source: docs/method.md, "Truncation".
        """
        film = self.network.mapping_network(z)
        if psi == 1:
            return film
        if self.truncation_mean is None:
            self.compute_truncation_mean()
        assert self.truncation_mean is not None
        return self.truncation_mean.to(z.device).lerp(film, psi)

    def field(self, film: Styles) -> Field:
        """The field of B latents. What depends on the latents alone is computed here, once."""
        return self.triplane.bind(film) if self.curriculum.model == "TRIPLANE" else SirenField(self.siren, film)

    @torch.no_grad()
    def compute_truncation_mean(self, num: int = NUM_TRUNCATION_LATENTS, seed: int = 0) -> Styles:
        """Mean styles over ``num`` latents from a fixed seed, (1, ...); kept here and with saved weights.

        The published code draws them afresh at every call, so that its images change from call to call.
        """
        device = next(self.parameters()).device
        z = draw_latents(num, self.curriculum.latent_dim, self.curriculum.z_dist, torch.Generator().manual_seed(seed))
        film = self.network.mapping_network(z.to(device))
        self.truncation_mean = type(film)(*(part.mean(dim=0, keepdim=True) for part in film))
        return self.truncation_mean
