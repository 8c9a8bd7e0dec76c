"""A small network that sees geometry in an image: depth, camera-axis normals and mask, learned from a set with truth.

A U-Net of about 0.3 million parameters. It is kept in a file whose name hangs on the set, the seed and the settings, so
it is trained once. A tenth of the set is held out; the error there is the noise floor of every score it gives.
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
from metrics.small_networks import chosen, conv_block, degrade, keep_network, kept_path, read_kept, train_network
from metrics.truth import TruthFiles, TruthSet, read_truth

FORMAT = "gof-geometry-predictor-1"
DEPTH_CENTRE, DEPTH_SCALE = 1.0, 0.1  # the object lies around t = 1
HELD_OUT_FRACTION = 0.1
MULTIPLE = 16  # of the images' sides


@dataclass(frozen=True)
class PredictorSettings:
    """How a predictor is trained; part of its file's name."""

    seed: int = 0
    num_steps: int = 500
    batch_size: int = 16
    width: int = 16
    learning_rate: float = 3e-3


class GeometryPredictor(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], H a multiple of 16 -> raw (B, 5, H, W): scaled depth, normal x y z, mask logit.

    It works at half the resolution, 2 x 2 pixels as channels: a quarter of the work, for the sake of a CPU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.encoder = nn.ModuleList(conv_block(i, o) for i, o in zip([12, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (below, beside), from coarse to fine
        self.decoder = nn.ModuleList(conv_block(below + beside, beside) for below, beside in pairs)
        self.head = nn.Conv2d(width, 4 * 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, beside = F.pixel_unshuffle(images, 2), []
        for level, block in enumerate(self.encoder):
            x = block(F.avg_pool2d(x, 2) if level else x)
            beside.append(x)
        for block, skip in zip(self.decoder, beside[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 64) -> Geometry:
        """Geometry that the images (N, 3, H, W) uint8 show, on the CPU."""
        device = self.head.weight.device
        height, width = images.shape[-2:]
        raw = []
        for batch in images.split(batch_size):
            raw.append(self(_pad(batch.to(device).float() / 127.5 - 1))[..., :height, :width].cpu())
        out = torch.cat(raw)
        return Geometry(out[:, 0] * DEPTH_SCALE + DEPTH_CENTRE, F.normalize(out[:, 1:4], dim=1), out[:, 4] > 0)


def prediction_loss(raw: Tensor, truth: Geometry) -> Tensor:
    """Mean absolute scaled depth + (1 - cosine) of normals, both on the object, + cross entropy of the mask."""
    mask = truth.mask.float()
    num = mask.sum().clamp_min(1)
    depth_loss = ((raw[:, 0] - (truth.depth - DEPTH_CENTRE) / DEPTH_SCALE).abs() * mask).sum() / num
    cosine = (F.normalize(raw[:, 1:4], dim=1) * truth.normals).sum(dim=1)
    normal_loss = ((1 - cosine) * mask).sum() / num
    return depth_loss + normal_loss + F.binary_cross_entropy_with_logits(raw[:, 4], mask)


def augment(images: Tensor, truth: Geometry, generator: torch.Generator) -> tuple[Tensor, Geometry]:
    """Left-right mirror, and :func:`degrade`. images: (B, 3, H, W) in [-1, 1]."""
    mirror = chosen(len(images), 0.5, generator, images.device)
    images = torch.where(mirror, images.flip(-1), images)
    signs = torch.tensor([-1.0, 1.0, 1.0], device=images.device)[:, None, None]
    depth = torch.where(mirror[:, 0], truth.depth.flip(-1), truth.depth)
    normals = torch.where(mirror, truth.normals.flip(-1) * signs, truth.normals)
    mask = torch.where(mirror[:, 0], truth.mask.flip(-1), truth.mask)
    return degrade(images, generator), Geometry(depth, normals, mask)


def split_indices(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which views train and which are held out (at least one)."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    num_held_out = max(1, round(num * HELD_OUT_FRACTION))
    return order[num_held_out:], order[:num_held_out]


def _take(truth: Geometry, index: Tensor, device: torch.device) -> Geometry:
    return Geometry(*(part[index].to(device) for part in truth))


def train_predictor(data: TruthSet, settings: PredictorSettings, device: torch.device) -> GeometryPredictor:
    """Train on the part of ``data`` that is not held out. The same on the same machine for the same settings."""
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
    """(B, C, H, W) -> H and W up to the multiple that the network needs."""
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
    """The predictor for a set with truth, its held-out scores (``compare`` with the truth), and its file in ``cache_dir``.

    Read from that file if it is there and whole, else trained and written there. Raises UserError where that fails.
    """
    path = kept_path(cache_dir, "geometry_predictor", [FORMAT, files.fingerprint, asdict(settings)])
    kept = _read(path, settings)
    if kept is not None:
        return kept[0].to(device, memory_format=torch.channels_last), kept[1], path
    data = read() if read else read_truth(files)
    predictor = train_predictor(data, settings, device)
    _, held_out = split_indices(len(data.images), settings.seed)
    truth = _take(data.geometry, held_out, torch.device("cpu"))
    floor = compare(truth, predictor.predict(data.images[held_out]))
    keep_network(path, predictor, {"format": FORMAT, "held_out": json.dumps(floor)})
    return predictor, floor, path


def _read(path: Path, settings: PredictorSettings) -> tuple[GeometryPredictor, dict[str, float]] | None:
    predictor = GeometryPredictor(settings.width)
    metadata = read_kept(path, predictor)
    try:
        return None if metadata is None else (predictor, json.loads(metadata["held_out"]))
    except (KeyError, ValueError):
        return None
