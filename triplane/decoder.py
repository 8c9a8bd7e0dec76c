"""Decoder with one hidden layer: features of a point -> occupancy logit and color."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from triplane.mapping import LEAKY_SLOPE, normal_parameter

NUM_OUTPUTS = 4  # logit, red, green, blue


class DecoderWeights(NamedTuple):
    """Scaled weights: hidden_weight (H, C), hidden_bias (H,), output_weight (4, H), output_bias (4,).

    The first output is the logit.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor

    @property
    def num_weights(self) -> int:
        """Number of all weights together."""
        return sum(weight.numel() for weight in self)

    def shaped(self, values: Tensor) -> DecoderWeights:
        """Return ``values`` (num_weights,) in the shapes of these weights."""
        parts = values.split([weight.numel() for weight in self])
        return DecoderWeights(*(part.view(weight.shape) for part, weight in zip(parts, self, strict=True)))


def activation(x: Tensor) -> Tensor:
    """Apply a leaky ReLU whose corner is a parabola on [-1, 1].

    Its slope is continuous, so it adds no creases to the surface, and it needs no exponential.
    """
    bend = x.clamp(-1, 1) + 1
    return LEAKY_SLOPE * x + (1 - LEAKY_SLOPE) * (0.25 * bend.square() + torch.relu(x - 1))


def decode(weights: DecoderWeights, features: Tensor) -> Tensor:
    """Map features (..., C) to (..., 4): the logit without the ball's logit, and colors before the sigmoid."""
    hidden = activation(features @ weights.hidden_weight.t() + weights.hidden_bias)
    return hidden @ weights.output_weight.t() + weights.output_bias


class Decoder(nn.Module):
    """The decoder's parameters at unit scale (equalized learning rate). Initially, the logit is constant."""

    def __init__(self, num_channels: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_weight = normal_parameter(hidden_dim, num_channels)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_dim))
        self.output_weight = normal_parameter(NUM_OUTPUTS, hidden_dim)
        with torch.no_grad():
            self.output_weight[0] = 0
        self.output_bias = nn.Parameter(torch.zeros(NUM_OUTPUTS))

    def weights(self) -> DecoderWeights:
        hidden_dim, num_channels = self.hidden_weight.shape
        return DecoderWeights(
            self.hidden_weight / math.sqrt(num_channels),
            self.hidden_bias,
            self.output_weight / math.sqrt(hidden_dim),
            self.output_bias,
        )
