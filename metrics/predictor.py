"""A small network that predicts an image's geometry (depth, camera-axis normals, mask), trained on ground truth.

A U-Net of about 0.3 million parameters. It is cached in a file named after the set, the seed and the settings, so it is
trained once. A tenth of the set is held out. The error on it is the noise floor of every score.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.shapes import Geometry, compare
from metrics.small_networks import cache_path, conv_block, degrade, load_cached, random_mask, save_network, train_network
from metrics.truth import TruthFiles, TruthSet, read_truth

FORMAT = "gof-geometry-predictor-1"
DEPTH_CENTER, DEPTH_SCALE = 1.0, 0.1  # the object is near t = 1
HELD_OUT_FRACTION = 0.1
MULTIPLE = 16  # the network needs image sides that are multiples of this


@dataclass(frozen=True)
class PredictorSettings:
    """Settings of a predictor's training. They are part of its file's name."""

    seed: int = 0
    num_steps: int = 500
    batch_size: int = 16
    width: int = 16
    learning_rate: float = 3e-3


class GeometryPredictor(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], H a multiple of 16 -> raw (B, 5, H, W): scaled depth, normal x y z, mask logit.

    It works at half resolution with 2 x 2 pixels as channels, which takes a quarter of the computation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.encoder = nn.ModuleList(conv_block(i, o) for i, o in zip([12, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (from below, skip connection), coarse to fine
        self.decoder = nn.ModuleList(conv_block(below + skip, skip) for below, skip in pairs)
        self.head = nn.Conv2d(width, 4 * 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = F.pixel_unshuffle(images, 2), []
        for level, block in enumerate(self.encoder):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 64) -> Geometry:
        """Predict the geometry of images (N, 3, H, W) uint8; the result is on the CPU."""
        device = self.head.weight.device
        height, width = images.shape[-2:]
        raw = []
        for batch in images.split(batch_size):
            raw.append(self(_pad(batch.to(device).float() / 127.5 - 1))[..., :height, :width].cpu())
        out = torch.cat(raw)
        return Geometry(out[:, 0] * DEPTH_SCALE + DEPTH_CENTER, F.normalize(out[:, 1:4], dim=1), out[:, 4] > 0)


def prediction_loss(raw: Tensor, truth: Geometry) -> Tensor:
    """Return mean absolute error of scaled depth + (1 - cosine) of normals, both on the object, + cross entropy of the mask."""
    mask = truth.mask.float()
    num = mask.sum().clamp_min(1)
    depth_loss = ((raw[:, 0] - (truth.depth - DEPTH_CENTER) / DEPTH_SCALE).abs() * mask).sum() / num
    cosine = (F.normalize(raw[:, 1:4], dim=1) * truth.normals).sum(dim=1)
    normal_loss = ((1 - cosine) * mask).sum() / num
    return depth_loss + normal_loss + F.binary_cross_entropy_with_logits(raw[:, 4], mask)


def augment(images: Tensor, truth: Geometry, generator: torch.Generator) -> tuple[Tensor, Geometry]:
    """Mirror half of the images and their geometry left to right, and apply :func:`degrade`. images: (B, 3, H, W) in [-1, 1]."""
    mirror = random_mask(len(images), 0.5, generator, images.device)
    images = torch.where(mirror, images.flip(-1), images)
    signs = torch.tensor([-1.0, 1.0, 1.0], device=images.device)[:, None, None]
    depth = torch.where(mirror[:, 0], truth.depth.flip(-1), truth.depth)
    normals = torch.where(mirror, truth.normals.flip(-1) * signs, truth.normals)
    mask = torch.where(mirror[:, 0], truth.mask.flip(-1), truth.mask)
    return degrade(images, generator), Geometry(depth, normals, mask)


def split_indices(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of training views and of held-out views (at least one)."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    num_held_out = max(1, round(num * HELD_OUT_FRACTION))
    return order[num_held_out:], order[:num_held_out]


def _take(truth: Geometry, index: Tensor, device: torch.device) -> Geometry:
    return Geometry(*(part[index].to(device) for part in truth))


def train_predictor(data: TruthSet, settings: PredictorSettings, device: torch.device) -> GeometryPredictor:
    """Train on the part of ``data`` that is not held out. Deterministic on one machine for the same settings."""
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        predictor = GeometryPredictor(settings.width).to(device, memory_format=torch.channels_last)
    training, _ = split_indices(len(data.images), settings.seed)
    if len(training) == 0:
        training = torch.arange(len(data.images))

    def batch_loss() -> Tensor:
        index = training[torch.randint(len(training), (settings.batch_size,), generator=generator)]
        images = data.images[index].to(device).float() / 127.5 - 1
        images, truth = augment(_pad(images), _pad_truth(_take(data.geometry, index, device)), generator)
        return prediction_loss(predictor(images), truth)

    train_network(predictor, batch_loss, settings.num_steps, settings.learning_rate, "geometry predictor")
    return predictor


def _pad(values: Tensor) -> Tensor:
    """Pad (B, C, H, W) to sides that are multiples of MULTIPLE."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")


def _pad_truth(truth: Geometry) -> Geometry:
    mask = F.pad(truth.mask, (0, -truth.mask.shape[-1] % MULTIPLE, 0, -truth.mask.shape[-2] % MULTIPLE))
    return Geometry(_pad(truth.depth.unsqueeze(1)).squeeze(1), _pad(truth.normals), mask)


def get_predictor(
    files: TruthFiles,
    settings: PredictorSettings,
    cache_dir: Path,
    device: torch.device,
    read: Callable[[], TruthSet] | None = None,
) -> tuple[GeometryPredictor, dict[str, float], Path]:
    """Return the predictor for a set with ground truth, its held-out scores (:func:`compare`) and its file in ``cache_dir``.

    Trains and writes it if the file is missing or damaged. Raises UserError if that fails.
    """
    path = cache_path(cache_dir, "geometry_predictor", [FORMAT, files.fingerprint, asdict(settings)])
    cached = _read(path, settings)
    if cached is not None:
        return cached[0].to(device, memory_format=torch.channels_last), cached[1], path
    data = read() if read else read_truth(files)
    predictor = train_predictor(data, settings, device)
    _, held_out = split_indices(len(data.images), settings.seed)
    truth = _take(data.geometry, held_out, torch.device("cpu"))
    floor = compare(truth, predictor.predict(data.images[held_out]))
    save_network(path, predictor, {"format": FORMAT, "held_out": json.dumps(floor)})
    return predictor, floor, path


def _read(path: Path, settings: PredictorSettings) -> tuple[GeometryPredictor, dict[str, float]] | None:
    predictor = GeometryPredictor(settings.width)
    metadata = load_cached(path, predictor)
    try:
        return None if metadata is None else (predictor, json.loads(metadata["held_out"]))
    except (KeyError, ValueError):
        return None
