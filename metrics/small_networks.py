"""Shared parts of the small measuring networks: building block, augmentation, training and cache files.

Such a network is trained once, from a fixed seed, and cached in a file named after everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common.files import write_atomically


def conv_block(num_in: int, num_out: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions that keep the image size. ``num_out`` must be a multiple of 8."""
    layers = [nn.Conv2d(num_in, num_out, 3, padding=1), nn.GroupNorm(8, num_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(num_out, num_out, 3, padding=1), nn.GroupNorm(8, num_out), nn.LeakyReLU(0.2))


def random_mask(num: int, probability: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return a mask (num, 1, 1, 1), each entry True with ``probability``."""
    return (torch.rand(num, generator=generator) < probability)[:, None, None, None].to(device)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Make images (B, 3, H, W) in [-1, 1] resemble generated ones: blur some, add noise to some, vary the brightness."""
    num, device = len(images), images.device
    half = F.interpolate(F.avg_pool2d(images, 2), size=images.shape[-2:], mode="bilinear", align_corners=False)
    images = torch.where(random_mask(num, 0.4, generator, device), half, images)
    brightness = 1 + 0.1 * torch.randn(num, 1, 1, 1, generator=generator).to(device)
    is_noisy = random_mask(num, 0.5, generator, device)
    noise = torch.randn(*images.shape, generator=generator).to(device)
    return ((images + 1) * brightness - 1 + 0.05 * is_noisy * noise).clamp(-1, 1)


def train_network(network: nn.Module, batch_loss: Callable[[], Tensor], num_steps: int, learning_rate: float, what: str) -> None:
    """Minimize ``batch_loss`` in place by AdamW with a one-cycle learning rate. ``what`` labels the progress bar."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    with tqdm(range(num_steps), desc=what, unit="step", leave=False) as steps:
        for _ in steps:
            loss = batch_loss()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            steps.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    network.eval()


def cache_path(cache_dir: Path, name: str, depends_on: Any) -> Path:
    """Return the file in ``cache_dir`` of the network ``name``. ``depends_on``: its dependencies, as JSON values."""
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    return cache_dir / f"{name}_{key}.safetensors"


def save_network(path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the network's state atomically. Raises UserError if that fails."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, dict(metadata)))


def load_cached(path: Path, network: nn.Module) -> dict[str, str] | None:
    """Load ``network`` in place from its file and return the metadata; None if the file is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(tensors)
    except Exception:  # whatever is wrong with a cache file, the network is trained again
        return None
    network.eval()
    return metadata
