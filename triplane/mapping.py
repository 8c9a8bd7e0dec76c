"""z -> styles (StyleGAN, section 2): one vector w per latent, repeated for every layer of the backbone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.2
MAPPING_RATE = 0.1  # relative to the other layers, times mapping_lr_factor; StyleGAN uses 0.01, for longer runs


class TriplaneStyles(NamedTuple):
    """Styles of B latents: (B, num_layers, w_dim), the w of each backbone layer, coarse to fine."""

    styles: Tensor

    def lerp(self, other: TriplaneStyles, weight: float) -> TriplaneStyles:
        """Interpolate linearly: ``self`` at weight 0, ``other`` at weight 1; batch sizes broadcast."""
        return TriplaneStyles(self.styles + weight * (other.styles - self.styles))

    def to(self, device: torch.device | str) -> TriplaneStyles:
        return TriplaneStyles(self.styles.to(device))

    def mix(self, other: TriplaneStyles, num_layers: int) -> TriplaneStyles:
        """Combine the first ``num_layers`` layers of ``self`` with the others of ``other``; batch sizes broadcast."""
        is_own = torch.arange(self.styles.shape[1], device=self.styles.device) < num_layers
        return TriplaneStyles(torch.where(is_own[:, None], self.styles, other.styles))


def normal_parameter(*shape: int, stddev: float = 1.0) -> nn.Parameter:
    """Return a parameter from N(0, stddev^2); uninitialized on meta, where drawing would load torch's compiler for seconds."""
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else values.normal_(std=stddev))


class EqualizedLinear(nn.Module):
    """A linear layer with weights N(0, 1) / ``rate`` that are scaled at runtime (equalized learning rate).

    With Adam, all layers learn at the same relative speed, times ``rate``. Source: Karras et al.,
    "Progressive growing of GANs", section 4.1.
    """

    def __init__(self, num_in: int, num_out: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = normal_parameter(num_out, num_in, stddev=1 / rate)
        self.bias = nn.Parameter(torch.full((num_out,), bias / rate))
        self.gain, self.rate = rate / math.sqrt(num_in), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class TriplaneMapping(nn.Module):
    """Normalization of z to unit mean square, then two linear layers with LeakyReLU."""

    def __init__(self, latent_dim: int, w_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.hidden = EqualizedLinear(latent_dim, w_dim, rate=MAPPING_RATE)
        self.output = EqualizedLinear(w_dim, w_dim, rate=MAPPING_RATE)

    def forward(self, z: Tensor) -> TriplaneStyles:
        """Map latents z (B, latent_dim) to styles."""
        w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in (self.hidden, self.output):
            w = F.leaky_relu(layer(w), LEAKY_SLOPE) * math.sqrt(2)
        return TriplaneStyles(w.unsqueeze(1).expand(-1, self.num_layers, -1))
