"""ResidualDiscriminator: residual blocks without normalization, with an identity path and Fixup initialization.

All images are processed at one base resolution. Larger images enter through an additional pixel-unshuffled stem for each size,
which is added to the stem of the downsampled image and starts at zero. When the image size grows, the outputs therefore do not
change, and nothing has to fade in.

Source: Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024 (R3GAN); Zhang et al., "Fixup initialization", ICLR
2019; docs/method.md.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from discriminators.base import LEAKY_SLOPE, NUM_POSE, Discriminator, DiscriminatorOutput, init_kaiming
from settings.checks import LAST_DISC_SIZE, MAX_DISC_SIZE
from settings.curriculum import Curriculum


class ResidualBlock(nn.Module):
    """Residual block ``x + conv(act(conv(act(x))))``, (B, C, H, W) to the same shape.

    The second convolution starts at 0, so the block starts as the identity. ``num_blocks``: number of blocks in the network, by
    whose square root the first convolution's initial weights are divided (Fixup, section 3).
    """

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        _kaiming(self.conv1, gain=num_blocks**-0.5)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.leaky_relu(x, LEAKY_SLOPE))
        return x + self.conv2(F.leaky_relu(y, LEAKY_SLOPE))


class Stem(nn.Module):
    """Input layer: images (B, 3, H, H), H the base size times a power of two, to (B, width, base, base).

    A 3x3 convolution processes the image averaged down to the base size. ``details[k]`` adds the details at
    base * 2^(k + 1) px: a 1x1 convolution of that image after a pixel unshuffle. It starts at 0.
    """

    def __init__(self, base_size: int, width: int) -> None:
        super().__init__()
        self.base_size = base_size
        self.conv = nn.Conv2d(3, width, kernel_size=3, padding=1)
        _kaiming(self.conv)
        num_levels = int(math.log2(MAX_DISC_SIZE // base_size))
        self.details = nn.ModuleList([nn.Conv2d(3 * 4 ** (k + 1), width, kernel_size=1, bias=False) for k in range(num_levels)])
        for detail in self.details:
            nn.init.zeros_(detail.weight)

    def level(self, size: int) -> int:
        """Return how often ``size`` px must be halved to reach the base size. Raises ValueError for an unsupported size."""
        if size < self.base_size or size > MAX_DISC_SIZE or size & (size - 1):
            raise ValueError(f"no discriminator stem for {size} px; use a power of two from {self.base_size} to {MAX_DISC_SIZE}")
        return int(math.log2(size // self.base_size))

    def forward(self, images: Tensor) -> Tensor:
        detail_features = []
        for k in reversed(range(self.level(images.shape[-1]))):
            detail_features.append(self.details[k](F.pixel_unshuffle(images, 2 ** (k + 1))))
            images = F.avg_pool2d(images, 2)
        return sum(detail_features, self.conv(images))


class ResidualDiscriminator(Discriminator):
    """A stem, a residual block for each of ``disc_widths`` at successively halved resolutions, and two linear layers at 4 px.

    The last width is at 4 px and the first at the base size, so the number of widths determines the base size: four widths
    start at 32 px. The latent is predicted only if the curriculum has a latent loss.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__()
        widths = curriculum.disc_widths
        self.latent_dim = curriculum.latent_dim if curriculum.z_lambda else 0
        self.stem = Stem(curriculum.disc_base_size, widths[0])
        self.blocks = nn.ModuleList([ResidualBlock(width, len(widths)) for width in widths])
        self.transitions = nn.ModuleList([_transition(num_in, num_out) for num_in, num_out in itertools.pairwise(widths)])
        self.basis = nn.Linear(widths[-1] * LAST_DISC_SIZE**2, widths[-1])
        self.final_layer = nn.Linear(widths[-1], 1 + self.latent_dim + NUM_POSE)
        _kaiming(self.basis)
        _init_at_mean_pose(self.final_layer, curriculum)

    def forward(self, images: Tensor, fade_alpha: float | Tensor = 1.0) -> DiscriminatorOutput:
        """Score images (B, 3, H, H) in [-1, 1], H the base size times a power of two, up to 512. ``fade_alpha`` has no effect.

        Raises ValueError for other sizes.
        """
        x = self.stem(images).contiguous(memory_format=torch.channels_last)  # the faster layout on GPUs and CPUs
        x = self.blocks[0](x)
        for transition, block in zip(self.transitions, self.blocks[1:], strict=True):
            x = block(transition(F.avg_pool2d(x, 2)))
        features = F.leaky_relu(self.basis(F.leaky_relu(x, LEAKY_SLOPE).flatten(1)), LEAKY_SLOPE)
        return self.split_outputs(self.final_layer(features))


def _transition(num_in: int, num_out: int) -> nn.Module:
    """Return an orthogonal 1x1 convolution, which preserves norms when it widens, or the identity for equal widths."""
    if num_in == num_out:
        return nn.Identity()
    conv = nn.Conv2d(num_in, num_out, kernel_size=1, bias=False)
    nn.init.orthogonal_(conv.weight)
    return conv


def _kaiming(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    init_kaiming(layer)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(gain)


@torch.no_grad()
def _init_at_mean_pose(layer: nn.Linear, curriculum: Curriculum) -> None:
    """Initialize weights with variance 1 / in_features, for scores of order 1, and poses around the mean of the prior."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)
    layer.bias[-2], layer.bias[-1] = curriculum.v_mean, curriculum.h_mean
