"""Styles -> three feature planes: a small StyleGAN2 synthesis network without noise inputs.

A constant of 4 x 4 texels passes through modulated and demodulated 3 x 3 convolutions. Each resolution adds its planes to the
upsampled planes of the coarser ones. Modulation scales the inputs of a convolution, and demodulation its outputs, so all latents
share the same convolution. Weights are N(0, 1) and scaled at runtime (equalized learning rate). Tensors are channels-last.

The first convolution of each later resolution runs before the upsampling, at a quarter of the cost.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020, as used by EG3D (Chan et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplane.mapping import EqualizedLinear, normal_parameter
from triplane.modulation import modulate

FIRST_SIZE = 4
NUM_PLANES = 3


def upsample(x: Tensor) -> Tensor:
    """Upsample (B, C, H, W) to (B, C, 2H, 2W), bilinearly."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ConvOutput(NamedTuple):
    """Output x (B, C, H, W) of a convolution, with its pending demodulation (B, C) and bias (C,).

    Demodulation, bias and LeakyReLU run in one pass with the modulation of the next layer.
    """

    x: Tensor
    demodulation: Tensor
    bias: Tensor

    def modulated(self, style: Tensor) -> Tensor:
        """Return the input (B, C, H, W) of the next layer, whose style is (B, C)."""
        return modulate(self.x, self.demodulation, self.bias, style)


class ModulatedConv(nn.Module):
    """A modulated and demodulated 3 x 3 convolution, optionally upsampled, followed by a bias and a LeakyReLU."""

    def __init__(self, num_in: int, num_out: int, w_dim: int, is_upsampled: bool = False) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, num_in, bias=1.0)
        self.weight = normal_parameter(num_out, num_in, 3, 3)  # unscaled: demodulation removes any scale
        self.bias = nn.Parameter(torch.zeros(num_out, 1, 1))
        self.is_upsampled = is_upsampled

    def forward(self, before: ConvOutput | Tensor, w: Tensor) -> ConvOutput:
        """Apply the convolution. before: output of the previous layer, or an image (B, num_in, H, W); w: (B, w_dim)."""
        style = self.affine(w)
        squared_norm = style.square() @ self.weight.square().sum(dim=(2, 3)).t()
        demodulation = math.sqrt(2) * (squared_norm + 1e-8).rsqrt()  # the LeakyReLU halves the mean square
        modulated = before.modulated(style) if isinstance(before, ConvOutput) else before * style[:, :, None, None]
        x = F.conv2d(modulated, self.weight, padding=1)
        return ConvOutput(upsample(x) if self.is_upsampled else x, demodulation, self.bias.flatten())


class ToPlanes(nn.Module):
    """A modulated 1 x 1 convolution to the planes' channels, whose output is added to the planes of the coarser resolutions."""

    def __init__(self, num_in: int, num_out: int, w_dim: int, gain: float) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, num_in, bias=1.0)
        self.weight = normal_parameter(num_in, num_out)
        self.bias = nn.Parameter(torch.zeros(num_out))
        self.gain = gain / math.sqrt(num_in)

    def forward(self, before: ConvOutput, w: Tensor, coarser: Tensor | None) -> Tensor:
        """Return planes (B, num_out, H, W).

        before: output of the last convolution, with num_in channels; w: (B, w_dim); coarser: planes (B, num_out, H/2, W/2).
        """
        modulated = before.modulated(self.affine(w) * self.gain).permute(0, 2, 3, 1)
        planes = F.linear(modulated, self.weight.t(), self.bias).permute(0, 3, 1, 2)
        return planes if coarser is None else planes + upsample(coarser)


class Backbone(nn.Module):
    """Synthesis network: styles to planes (B, size, size, 3, plane_channels), indexed [y, x, plane]: XY, XZ, YZ.

    ``channels``: one width for each resolution 4, 8, ..., plane_size. At initialization, the sum of the planes is of order 1.
    """

    def __init__(self, channels: Sequence[int], plane_channels: int, w_dim: int) -> None:
        super().__init__()
        self.start = normal_parameter(1, channels[0], FIRST_SIZE, FIRST_SIZE)
        gain = 1 / math.sqrt(NUM_PLANES * len(channels))
        self.blocks = nn.ModuleList()
        self.to_planes = nn.ModuleList()
        for i, num in enumerate(channels):
            convs = [ModulatedConv(num, num, w_dim)]
            if i:
                convs.insert(0, ModulatedConv(channels[i - 1], num, w_dim, is_upsampled=True))
            self.blocks.append(nn.ModuleList(convs))
            self.to_planes.append(ToPlanes(num, NUM_PLANES * plane_channels, w_dim, gain))

    @staticmethod
    def num_layers(num_resolutions: int) -> int:
        """Return the number of style layers: one per convolution. ToPlanes uses the style of the last convolution."""
        return 2 * num_resolutions - 1

    def forward(self, styles: Tensor) -> Tensor:
        """Map styles (B, num_layers, w_dim) to planes (B, size, size, 3, plane_channels)."""
        x = self.start.expand(len(styles), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        planes, layers = None, iter(styles.unbind(dim=1))
        for convs, to_planes in zip(self.blocks, self.to_planes, strict=True):
            for conv in convs:
                w = next(layers)
                x = conv(x, w)
            planes = to_planes(x, w, planes)
        return planes.permute(0, 2, 3, 1).unflatten(3, (NUM_PLANES, -1))
