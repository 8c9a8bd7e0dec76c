"""FiLM folded into the weights of a SIREN, and the field's arithmetic on them in plain PyTorch.

    sin(gamma * (W x + b) + beta) = sin((gamma W) x + (gamma b + beta)),

so a layer is one matrix product and one sine. The functions here run on any device, are differentiable any number of times,
and serve as the reference in the tests of siren/backends/blocked.py. B latents, N points each, C input channels, H hidden units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siren.backends.sine import sine
from siren.mapping import FilmParameters


class FoldedSiren(NamedTuple):
    """Weights of a SIREN for B latents: ``phase = x @ weight + bias`` in each layer, then the two heads."""

    weights: tuple[Tensor, ...]  # (B, C, H), then (B, H, H) each
    biases: tuple[Tensor, ...]  # (B, H) each
    logit_weight: Tensor  # (1, H)
    logit_bias: Tensor  # (1,)
    color_weight: Tensor  # (B, H, H), for the features
    direction_weight: Tensor  # (B, 3, H), for the view direction, in the same layer
    color_bias: Tensor  # (B, H)
    rgb_weight: Tensor  # (3, H)
    rgb_bias: Tensor  # (3,)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        return [*self.weights, *self.biases, *self[2:]]

    @classmethod
    def from_tensors(cls, tensors: list[Tensor] | tuple[Tensor, ...]) -> FoldedSiren:
        num_layers = (len(tensors) - 7) // 2
        return cls(tuple(tensors[:num_layers]), tuple(tensors[num_layers : 2 * num_layers]), *tensors[2 * num_layers :])


def fold(
    layers: list[nn.Linear], color: nn.Linear, logit: nn.Linear, rgb: nn.Linear, film: FilmParameters, point_scale: float
) -> FoldedSiren:
    """Fold FiLM and the scale of the input points, ``point_scale``, into the weights."""
    hidden_dim = logit.in_features
    shape = (film.frequencies.shape[0], len(layers) + 1, hidden_dim)
    gamma = film.frequencies.float().reshape(shape) * 15 + 30
    beta = film.phase_shifts.float().reshape(shape)
    weights = [layer.weight.t().unsqueeze(0) * gamma[:, i].unsqueeze(1) for i, layer in enumerate([*layers, color])]
    biases = [torch.addcmul(beta[:, i], gamma[:, i], layer.bias) for i, layer in enumerate([*layers, color])]
    if point_scale != 1:
        weights[0] = weights[0] * point_scale
    direction_weight, color_weight = weights.pop().split([3, hidden_dim], dim=1)
    color_bias = biases.pop()
    heads = (logit.weight, logit.bias, color_weight, direction_weight, color_bias, rgb.weight, rgb.bias)
    return FoldedSiren(tuple(weights), tuple(biases), *heads)


def in_two_parts(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Expand x (B, N, C) and weight (B, C, H), float32, to (B, N, 4C) and (B, 4C, H), whose product has 20 exact bits under TF32.

    Each input is split into its first 11 bits, which TF32 keeps, and the remainder. One product then sums the four partial
    products.
    """
    x_high, weight_high = ((tensor.detach().view(torch.int32) & -0x2000).view(torch.float32) for tensor in (x, weight))
    x_low, weight_low = x - x_high, weight - weight_high
    return torch.cat([x_high, x_low] * 2, dim=2), torch.cat([weight_high] * 2 + [weight_low] * 2, dim=1)


def _products(folded: FoldedSiren, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the first layer's input and all weights. Its inputs are coordinates, for which TF32's 11 bits are too few."""
    if x.device.type == "cpu":
        return x, folded.weights
    x, first = in_two_parts(x, folded.weights[0])
    return x, (first, *folded.weights[1:])


def phases(folded: FoldedSiren, x: Tensor) -> list[Tensor]:
    """Return the phases of all layers, (B, N, H) each, for x (B, N, C)."""
    x, weights = _products(folded, x)
    found = []
    for weight, bias in zip(weights, folded.biases, strict=True):
        found.append(torch.baddbmm(bias.unsqueeze(1), x, weight))
        x = sine(found[-1])
    return found


def features(folded: FoldedSiren, x: Tensor) -> Tensor:
    """Map x (B, N, C) to features (B, N, H)."""
    x, weights = _products(folded, x)
    for weight, bias in zip(weights, folded.biases, strict=True):
        x = sine(torch.baddbmm(bias.unsqueeze(1), x, weight))
    return x


def logits(folded: FoldedSiren, hidden: Tensor) -> Tensor:
    """Map features (B, N, H) to logits (B, N)."""
    return F.linear(hidden, folded.logit_weight, folded.logit_bias).squeeze(-1)


def colors(folded: FoldedSiren, hidden: Tensor, directions: Tensor) -> Tensor:
    """Map features (B, N, H) and unit directions (B, N, 3) to colors (B, N, 3) in [0, 1]."""
    phase = torch.baddbmm(folded.color_bias.unsqueeze(1), hidden, folded.color_weight)
    phase = torch.baddbmm(phase, directions, folded.direction_weight)
    return torch.sigmoid(F.linear(sine(phase), folded.rgb_weight, folded.rgb_bias))


def logits_and_gradients(folded: FoldedSiren, x: Tensor) -> tuple[Tensor, Tensor]:
    """Map x (B, N, C) to logits (B, N) and d logit / d x (B, N, C), by an explicit chain rule.

    One forward and one transposed pass cost as much as two occupancy queries and need no second autograd graph.
    """
    found = phases(folded, x)
    gradient = folded.logit_weight.expand(x.shape[0], x.shape[1], -1)
    for phase, weight in zip(reversed(found), reversed(folded.weights), strict=True):
        gradient = torch.bmm(gradient * sine(phase + math.pi / 2), weight.transpose(1, 2))
    return logits(folded, sine(found[-1])), gradient
