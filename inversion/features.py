"""Feature maps of images for the loss: from EfficientNet-Lite0 if it is installed, or from the generator's discriminator.

Images (B, 3, S, S) in [0, 1]. Pixel errors prefer a blurred mean to edges one pixel off. Early layers of a trained
network tolerate small shifts and respond to edges and textures as people do.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.files import checked_training, is_training
from checkpoints.loading import LoadedGenerator, resolve_generator_path
from checkpoints.torch_files import ZIP_START, read_torch_file
from common.errors import UserError
from discriminators.base import Discriminator
from discriminators.build import build_discriminator
from discriminators.progressive import ProgressiveEncoderDiscriminator, entry_block
from discriminators.residual import ResidualDiscriminator
from inversion.losses import Features
from metrics.efficientnet import PIXEL_MEAN, PIXEL_SCALE, STAGES, EfficientNetLite0, is_installed, load_efficientnet

NUM_STAGES = 4  # of EfficientNet, down to 1/16 of the input's side


def open_features(path: str | Path, loaded: LoadedGenerator, device: torch.device) -> tuple[Features | None, str]:
    """Return the feature network for the loss, or None if none is available, and a description of its source."""
    if is_installed():
        network = load_efficientnet(device)
        return lambda images: efficientnet_maps(network, images), "EfficientNet-Lite0"
    discriminator = _discriminator_of(resolve_generator_path(path), loaded)
    if discriminator is None:
        return None, "image gradients"
    discriminator.to(device).eval().requires_grad_(False)
    size = loaded.curriculum.stage_at(loaded.step or 0).img_size
    return lambda images: discriminator_maps(discriminator, reduced(images, size)), "the discriminator"


def reduced(images: Tensor, size: int) -> Tensor:
    """Average larger images to ``size`` pixels, the largest size that the discriminator was trained on."""
    return F.adaptive_avg_pool2d(images, size) if images.shape[-1] > size else images


def efficientnet_maps(network: EfficientNetLite0, images: Tensor) -> list[Tensor]:
    """Return the maps after the stem and the first NUM_STAGES stages."""
    x = F.relu6(network.bn0(network.conv_stem((images * 255 - PIXEL_MEAN) / PIXEL_SCALE)))
    maps = [x]
    ends = list(itertools.accumulate(stage[0] for stage in STAGES))[:NUM_STAGES]
    for i, block in enumerate(network.blocks[: ends[-1]]):
        x = block(x)
        if i + 1 in ends:
            maps.append(x)
    return maps


def discriminator_maps(discriminator: Discriminator, images: Tensor) -> list[Tensor]:
    """Return the maps after each block that images of this size pass through."""
    images = images * 2 - 1
    maps = []
    if isinstance(discriminator, ResidualDiscriminator):
        base_size = discriminator.stem.base_size
        if images.shape[-1] < base_size:
            images = F.interpolate(images, (base_size, base_size), mode="bilinear", align_corners=False)
        maps.append(discriminator.blocks[0](discriminator.stem(images)))
        for transition, block in zip(discriminator.transitions, discriminator.blocks[1:], strict=True):
            maps.append(block(transition(F.avg_pool2d(maps[-1], 2))))
        return maps
    assert isinstance(discriminator, ProgressiveEncoderDiscriminator)
    start = entry_block(images.shape[-1])
    x = discriminator.fromRGB[start](images)
    for layer in discriminator.layers[start:]:
        x = layer(x)
        maps.append(x)
    return maps


def _discriminator_of(path: Path, loaded: LoadedGenerator) -> Discriminator | None:
    """Load a training checkpoint's discriminator; None for other files. Raises UserError if it does not fit the curriculum."""
    with path.open("rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return None
    content = read_torch_file(path)
    if not is_training(content):
        return None
    with torch.random.fork_rng(devices=[]):
        discriminator = build_discriminator(loaded.curriculum)
    try:
        discriminator.load_state_dict(checked_training(path, content)["discriminator"])
    except RuntimeError:  # torch lists every parameter that is missing or has another shape
        raise UserError(f"{path}: its discriminator is not that of curriculum {loaded.curriculum.name}") from None
    return discriminator
