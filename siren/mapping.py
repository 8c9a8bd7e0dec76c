"""z -> FiLM parameters. Source: docs/method.md, "The field and FiLM"; pi-GAN, section 3."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


class FilmParameters(NamedTuple):
    """Frequencies and phase shifts of all FiLM layers in order: (B, num_film_layers * hidden_dim) each.

    The color layer comes last. A layer computes ``sin(gamma * (W x + b) + beta)`` with ``gamma = 15 f + 30`` and
    ``beta`` the phase shift.
    """

    frequencies: Tensor
    phase_shifts: Tensor

    def lerp(self, other: FilmParameters, weight: float) -> FilmParameters:
        """Interpolate linearly: ``self`` at weight 0, ``other`` at weight 1; batch sizes broadcast."""
        return FilmParameters(
            self.frequencies + weight * (other.frequencies - self.frequencies),
            self.phase_shifts + weight * (other.phase_shifts - self.phase_shifts),
        )

    def to(self, device: torch.device | str) -> FilmParameters:
        return FilmParameters(self.frequencies.to(device), self.phase_shifts.to(device))


class MappingNetwork(nn.Module):
    """Three hidden layers of width ``mapping_dim`` with LeakyReLU, then one linear layer to the FiLM parameters.

    ``num_film``: total number of frequencies in all FiLM layers, which equals the number of phase shifts.
    """

    def __init__(self, latent_dim: int, mapping_dim: int, num_film: int) -> None:
        super().__init__()
        widths = [latent_dim, mapping_dim, mapping_dim, mapping_dim]
        layers: list[nn.Module] = []
        for num_in, num_out in itertools.pairwise(widths):
            layers += [nn.Linear(num_in, num_out), nn.LeakyReLU(LEAKY_SLOPE)]
        self.network = nn.Sequential(*layers, nn.Linear(mapping_dim, 2 * num_film))
        for module in self.network:
            if isinstance(module, nn.Linear) and not module.weight.is_meta:  # on meta, normal_ loads torch's compiler: seconds
                nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
        with torch.no_grad():
            self.network[-1].weight.mul_(0.25)

    def forward(self, z: Tensor) -> FilmParameters:
        """Map latents z (B, latent_dim) to FiLM parameters."""
        return FilmParameters(*self.network(z).chunk(2, dim=-1))
