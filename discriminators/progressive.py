"""ProgressiveEncoderDiscriminator, under the published parameter names.

Source: docs/method.md, "The discriminator"; pi-GAN, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from discriminators.base import LEAKY_SLOPE, NUM_POSE, Discriminator, DiscriminatorOutput, init_kaiming
from settings.checks import MAX_DISC_SIZE
from settings.curriculum import Curriculum


class CoordConv(nn.Module):
    """A 3x3 convolution with two extra input channels: pixel coordinates in [-1, 1]."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in + 2, num_out, kernel_size=3, padding=1)
        init_kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype).view(1, 1, -1, 1)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).view(1, 1, 1, -1)
        shape = (batch, 1, height, width)
        return self.conv(torch.cat([x, rows.expand(shape), columns.expand(shape)], dim=1))


class ResidualCoordConvBlock(nn.Module):
    """Two CoordConvs with a skip connection, then average pooling by 2. A 1x1 convolution adapts the skip to a new width."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            CoordConv(num_in, num_out), nn.LeakyReLU(LEAKY_SLOPE), CoordConv(num_out, num_out), nn.LeakyReLU(LEAKY_SLOPE)
        )
        self.proj = nn.Conv2d(num_in, num_out, kernel_size=1) if num_in != num_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.network(x), 2)
        skip = F.avg_pool2d(x, 2)
        if self.proj is not None:
            skip = self.proj(skip)
        return (y + skip) / math.sqrt(2)


class FromRGB(nn.Module):
    """Input layer for one image size: (B, 3, H, H) to (B, num_out, H, H)."""

    def __init__(self, num_out: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, num_out, kernel_size=1), nn.LeakyReLU(LEAKY_SLOPE))

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)


class ProgressiveEncoderDiscriminator(Discriminator):
    """Eight residual blocks. An image enters at the block of its size (512 px: block 0, ..., 4 px: block 7)."""

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        channels = curriculum.disc_channels
        self.latent_dim = curriculum.latent_dim
        self.layers = nn.ModuleList([ResidualCoordConvBlock(channels[i], channels[i + 1]) for i in range(len(channels) - 1)])
        self.fromRGB = nn.ModuleList([FromRGB(num) for num in channels])
        self.final_layer = nn.Conv2d(channels[-1], 1 + self.latent_dim + NUM_POSE, kernel_size=2)

    def forward(self, images: Tensor, fade_alpha: float | Tensor = 1.0) -> DiscriminatorOutput:
        """Score images (B, 3, H, H) in [-1, 1], H a power of two from 4 to 512.

        ``fade_alpha`` below 1 blends with the image at half the size (nearest neighbor), which enters at the next block.
        """
        start = entry_block(images.shape[-1])
        x = self.fromRGB[start](images)
        x = self.layers[start](x)
        if isinstance(fade_alpha, Tensor) or fade_alpha < 1:
            halved = F.interpolate(images, scale_factor=0.5, mode="nearest")
            x = fade_alpha * x + (1 - fade_alpha) * self.fromRGB[start + 1](halved)
        for layer in self.layers[start + 1 :]:
            x = layer(x)
        return self.split_outputs(self.final_layer(x).flatten(1))


def entry_block(size: int) -> int:
    """Return the index of the block where an image of ``size`` px enters. Raises ValueError for a size without one."""
    if size < 4 or size > MAX_DISC_SIZE or size & (size - 1):
        raise ValueError(f"no discriminator block for {size} px; use a power of two from 4 to {MAX_DISC_SIZE}")
    return int(math.log2(MAX_DISC_SIZE // size))
