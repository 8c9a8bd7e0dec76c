"""Logits and colors at points, from planes and decoder, in plain PyTorch.

A point x in world coordinates has plane coordinates u = matrix x, which range over [-1, 1] from the center of the first texel to
that of the last. Points outside take the border's values. The features of a point combine the bilinear values of the planes XY,
XZ and YZ: their sum ("sum"), or prod(1 + value) - 1 ("product", equal to first order). Then

    logit = clamp(center (1 - |u / axes|), -limit, limit) + decoder_0(features),    color = sigmoid(decoder_123(features)).

The first term is a ball or ellipsoid: 0 on its surface, and ``center``, before the clamp, at its center.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from triplane.decoder import DecoderWeights, decode

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # world axes of each plane's x and y


class Frame(NamedTuple):
    """Placement of the planes, and the ball.

    values (14,): the row-major 3 x 3 matrix from world to plane coordinates, then of the ball the reciprocals of the three
    semi-axes, the logit at the center before the clamp, and the limit.
    """

    values: Tensor

    @classmethod
    def of(cls, matrix: Tensor, axes: Tensor, center: Tensor, limit: float) -> Frame:
        """Combine the matrix (3, 3) and the ball's semi-axes (3,) in plane coordinates, logit () at the center, and limit."""
        return cls(torch.cat([matrix.flatten(), 1 / axes, center.view(1), center.new_full((1,), limit)]))

    @property
    def matrix(self) -> Tensor:
        """Matrix from world to plane coordinates, (3, 3)."""
        return self.values[:9].view(3, 3)

    def ball_logits(self, coordinates: Tensor) -> Tensor:
        """Return the ball's logits (B, N) at plane coordinates (B, N, 3)."""
        center, limit = self.values[12:].unbind()
        return (center * (1 - (coordinates * self.values[9:12]).norm(dim=-1))).clamp(-limit, limit)


class Planes(NamedTuple):
    """All that defines a field on tri-planes.

    ``texels`` (B, size, size, 3, C), indexed [y, x, plane]; ``is_product``: features are multiplied instead of summed.
    """

    texels: Tensor
    decoder: DecoderWeights
    frame: Frame
    is_product: bool

    @classmethod
    def of(cls, leaves: Sequence[Tensor], frame: Frame, is_product: bool) -> Planes:
        """Put together the tensors of :attr:`leaves`, the frame and the kind of reduction."""
        return cls(leaves[0], DecoderWeights(*leaves[1:]), frame, is_product)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that get gradients in training: texels and the decoder's weights."""
        return [self.texels, *self.decoder]


def query(planes: Planes, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, N), and colors (B, N, 3) or None, at points (B, N, 3). Planes, decoder and points get gradients."""
    coordinates = points @ planes.frame.matrix.t()
    found = features(planes, coordinates)
    decoder = planes.decoder
    if not with_colors:
        decoder = DecoderWeights(*decoder[:2], decoder.output_weight[:1], decoder.output_bias[:1])
    outputs = decode(decoder, found)
    logits = outputs[..., 0] + planes.frame.ball_logits(coordinates)
    return logits, torch.sigmoid(outputs[..., 1:]) if with_colors else None


def features(planes: Planes, coordinates: Tensor) -> Tensor:
    """Return features (B, N, C) at plane coordinates (B, N, 3)."""
    values = []
    for plane, (x, y) in enumerate(PLANE_AXES):
        texels = planes.texels[:, :, :, plane].permute(0, 3, 1, 2)
        grid = coordinates[..., x : y + 1 : y - x].unsqueeze(1)  # a slice: a list of indices would synchronize with a GPU
        value = F.grid_sample(texels, grid, mode="bilinear", padding_mode="border", align_corners=True)
        values.append(value.squeeze(2).transpose(1, 2))
    first, second, third = values
    return (1 + first) * (1 + second) * (1 + third) - 1 if planes.is_product else first + second + third
