"""A small network that predicts an image's pose, trained on built-in heads over a wide range of poses.

It is applied to photos. In training, the heads are therefore augmented with random backgrounds, colors, scales and offsets.
A tenth of the heads is held out, and the predictions for them are stored with the network as a measure of its error. The
network is cached in a file named after its settings, so it is trained once. Poses are (yaw, pitch) relative to the front,
in radians (generators/cameras.py).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from generators.cameras import CameraPoses
from heads.parameters import sample_heads
from heads.render import render_heads
from metrics.small_networks import cache_path, conv_block, degrade, load_cached, random_mask, save_network, train_network

FORMAT = "gof-pose-readout-1"
INPUT_SIZE = 32  # pixels
RENDER_SIZE = 40  # pixels, more than INPUT_SIZE because of ZOOM
MAX_YAW, MAX_PITCH = 1.2, 0.6  # of the training poses
ZOOM = (0.85, 2.0)
SHIFT, ROLL = 0.12, 0.15  # fraction of half the image; radians
HELD_OUT_FRACTION = 0.1
HELD_OUT_DRAWS = 3  # augmented versions of each held-out head
HEADS_SEED = 0x905E  # of a set that no generator is trained on
BLOCK = 64


@dataclass(frozen=True)
class ReadoutSettings:
    """Settings of the network's training. They are part of its file's name."""

    seed: int = 0
    num_heads: int = 3000
    num_steps: int = 1500
    batch_size: int = 64
    width: int = 16
    learning_rate: float = 3e-3

    @property
    def num_held_out(self) -> int:
        return max(3, round(self.num_heads * HELD_OUT_FRACTION))


class PoseReadout(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] -> (B, 2), yaw and pitch divided by MAX_YAW and MAX_PITCH.

    ``held_out``: (N, 6), true yaw and pitch of held-out images, the predicted ones, and the mirror disagreement.
    """

    def __init__(self, settings: ReadoutSettings) -> None:
        super().__init__()
        width = settings.width
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.ModuleList(conv_block(i, o) for i, o in zip([12, *widths], widths, strict=False))
        self.head = nn.Sequential(nn.Linear(4 * widths[-1], 64), nn.LeakyReLU(0.2), nn.Linear(64, 2))
        self.register_buffer("held_out", torch.zeros(settings.num_held_out * HELD_OUT_DRAWS, 6))

    def forward(self, images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images, 2)  # a quarter of the computation
        for level, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if level else x)
        return self.head(x.flatten(1))

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """Predict poses of images (N, 3, 32, 32) in [-1, 1].

        Returns poses (N, 2), the means of the predictions for an image and its mirror image, and the differences of the
        two predictions (N, 2), on the CPU.
        """
        scale = images.new_tensor([MAX_YAW, MAX_PITCH])
        turned = images.new_tensor([-1.0, 1.0])
        device = next(self.parameters()).device
        plain, mirrored = [], []
        for batch in images.split(batch_size):
            batch = batch.to(device)
            plain.append(self(batch).cpu())
            mirrored.append(self(batch.flip(-1)).cpu() * turned)
        one, other = torch.cat(plain) * scale, torch.cat(mirrored) * scale
        return (one + other) / 2, one - other


@dataclass(frozen=True)
class PosedHeads:
    """``images`` (N, 3, H, H) uint8 on black, ``masks`` (N, H, H) bool, ``poses`` (N, 2)."""

    images: Tensor
    masks: Tensor
    poses: Tensor


def render_posed_heads(settings: ReadoutSettings) -> PosedHeads:
    """Render the built-in heads for training: uniformly distributed poses, a different head for each."""
    generator = torch.Generator().manual_seed(settings.seed)
    poses = (torch.rand(settings.num_heads, 2, generator=generator) * 2 - 1) * torch.tensor([MAX_YAW, MAX_PITCH])
    images, masks = [], []
    with tqdm(total=settings.num_heads, desc="heads for pose training", unit="head", leave=False) as progress:
        for start in range(0, settings.num_heads, BLOCK):
            some = poses[start : start + BLOCK] + math.pi / 2
            heads = sample_heads(range(start, start + len(some)), HEADS_SEED + settings.seed)
            rendered = render_heads(heads, CameraPoses(some[:, 1], some[:, 0]), RENDER_SIZE)
            images.append(((rendered.images + 1) * 127.5).round().to(torch.uint8))
            masks.append(rendered.mask)
            progress.update(len(some))
    return PosedHeads(torch.cat(images), torch.cat(masks), poses)


def smooth_noise(num: int, num_channels: int, coarse_size: int, generator: torch.Generator) -> Tensor:
    """Return noise (num, num_channels, 32, 32): standard normal on a ``coarse_size`` square grid, interpolated bilinearly."""
    coarse = torch.randn(num, num_channels, coarse_size, coarse_size, generator=generator)
    return F.interpolate(coarse, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=True)


def backgrounds(num: int, generator: torch.Generator) -> Tensor:
    """Return backgrounds (num, 3, 32, 32) in [0, 1]: a quarter of them black, the others with smooth or detailed colors."""
    strength = torch.rand(num, 2, 1, 1, 1, generator=generator) * torch.tensor([0.3, 0.2])[:, None, None, None]
    image = torch.rand(num, 3, 1, 1, generator=generator) + 0.3 * smooth_noise(num, 3, 2, generator)
    for i, coarse_size in enumerate((5, 12)):
        image = image + strength[:, i] * smooth_noise(num, 3, coarse_size, generator)
    return image.clamp(0, 1) * ~random_mask(num, 0.25, generator, torch.device("cpu"))


def vary(heads: PosedHeads, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augment the heads to resemble photos; return images (B, 3, 32, 32) in [-1, 1] and poses (B, 2), on the CPU.

    Half are mirrored. Scale, offset, roll, colors (some gray), lighting and background vary, and :func:`degrade` is applied.
    """
    num = len(heads.poses)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, generator=generator)

    mirror = torch.where(torch.rand(num, generator=generator) < 0.5, -1.0, 1.0)
    scale = 1 / between(*(math.log(zoom) for zoom in ZOOM)).exp()
    roll = between(-ROLL, ROLL)
    row_x = torch.stack([scale * mirror * roll.cos(), -scale * mirror * roll.sin(), between(-SHIFT, SHIFT)], dim=1)
    row_y = torch.stack([scale * roll.sin(), scale * roll.cos(), between(-SHIFT, SHIFT)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [num, 4, INPUT_SIZE, INPUT_SIZE], align_corners=False)
    layers = torch.cat([heads.images.float() / 255, heads.masks.unsqueeze(1).float()], dim=1)
    layers = F.grid_sample(layers, grid, align_corners=False)
    colors, mask = layers[:, :3], layers[:, 3:]
    mixing = torch.eye(3) + 0.15 * torch.randn(num, 3, 3, generator=generator)
    mixing = torch.where(random_mask(num, 0.15, generator, mixing.device)[..., 0], 1 / 3, mixing)
    light = between(0.7, 1.3)[:, None, None, None] + between(0, 0.4)[:, None, None, None] * smooth_noise(num, 1, 4, generator)
    colors = torch.einsum("bij,bjhw->bihw", mixing, colors) * light.clamp_min(0.2)
    image = colors.clamp(0, 1) * (mask > 0) + backgrounds(num, generator) * (1 - mask)
    return degrade(image.clamp(0, 1) * 2 - 1, generator), torch.stack([heads.poses[:, 0] * mirror, heads.poses[:, 1]], dim=1)


def _take(heads: PosedHeads, index: Tensor) -> PosedHeads:
    return PosedHeads(heads.images[index], heads.masks[index], heads.poses[index])


def train_readout(heads: PosedHeads, settings: ReadoutSettings, device: torch.device) -> PoseReadout:
    """Train on all but the last ``num_held_out`` heads, then predict the poses of those."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        readout = PoseReadout(settings).to(device)
    num_training = len(heads.poses) - settings.num_held_out
    scale = torch.tensor([MAX_YAW, MAX_PITCH])

    def batch_loss() -> Tensor:
        index = torch.randint(num_training, (settings.batch_size,), generator=generator)
        images, poses = vary(_take(heads, index), generator)
        return F.smooth_l1_loss(readout(images.to(device)), (poses / scale).to(device), beta=0.1)

    train_network(readout, batch_loss, settings.num_steps, settings.learning_rate, "pose read-out")
    held_out = _take(heads, torch.arange(num_training, len(heads.poses)).repeat(HELD_OUT_DRAWS))
    images, poses = vary(held_out, generator)
    readout.held_out.copy_(torch.cat([poses, *readout.read(images)], dim=1))
    return readout


def get_pose_readout(settings: ReadoutSettings, cache_dir: Path, device: torch.device) -> tuple[PoseReadout, Path]:
    """Return the network and its file in ``cache_dir``. Train and write it if the file is missing or damaged.

    Raises UserError if the file cannot be written.
    """
    path = cache_path(cache_dir, "pose_readout", [FORMAT, asdict(settings)])
    readout = PoseReadout(settings)
    if load_cached(path, readout) is not None:
        return readout.to(device), path
    readout = train_readout(render_posed_heads(settings), settings, device)
    save_network(path, readout, {"format": FORMAT})
    return readout, path
