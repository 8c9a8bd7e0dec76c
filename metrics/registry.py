"""The image metrics of ``eval_metrics.py --metrics``. To add one, write a function and add it to :data:`METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from metrics import fidelity, perceptual
from metrics.fidelity import FidelitySettings
from metrics.swd import sliced_wasserstein


@dataclass
class Evaluation:
    """The inputs of a metric. ``real`` and ``fake``: (N, 3, H, W) uint8; their counts may differ.

    ``real_features``: perceptual features of ``real`` by image size, filled on demand. Pass them on to reuse them when the
    same real images are scored again.
    """

    real: Tensor
    fake: Tensor
    names: tuple[str, ...]
    seed: int = 0
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extractor: str = "inception-v3-compat"
    weights_file: Path | None = None
    real_features: dict[int, Tensor] = field(default_factory=dict)
    _fake_features: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def fidelity_settings(self) -> FidelitySettings:
        """The settings of torch-fidelity, for the record."""
        return FidelitySettings.for_counts(len(self.real), len(self.fake), self.extractor, self.seed, self.batch_size)

    @cached_property
    def fidelity(self) -> dict[str, float]:
        """torch-fidelity's results for all of ``names`` that it computes, from one pass over the images."""
        wanted = {name for name in self.names if METRICS[name].needs_weights}
        return fidelity.calculate(self.fake, self.real, wanted, self.fidelity_settings, self.weights_file, self.device)

    def features(self, size: int) -> tuple[Tensor, Tensor]:
        """Return perceptual features of the real and the generated images, averaged down to ``size`` px."""
        if size not in self.real_features:
            self.real_features[size] = self._features(self.real, size)
        if size not in self._fake_features:
            self._fake_features[size] = self._features(self.fake, size)
        return self.real_features[size], self._fake_features[size]

    def _features(self, images: Tensor, size: int) -> Tensor:
        return perceptual.features_of(perceptual.averaged_down(images, size), self.device)


@dataclass(frozen=True)
class Metric:
    """A metric. ``compute`` returns named numbers. ``needs_weights``: True if it needs torch-fidelity's feature extractor.
    ``is_perceptual``: True if it needs EfficientNet-Lite0, whose weights come with a package."""

    compute: Callable[[Evaluation], dict[str, float]]
    description: str
    needs_weights: bool = False
    is_perceptual: bool = False

    @property
    def min_images(self) -> int:
        """The number of generated images that it needs."""
        if self.is_perceptual:
            return perceptual.MIN_IMAGES
        return fidelity.MIN_IMAGES if self.needs_weights else 1


def _fid(evaluation: Evaluation) -> dict[str, float]:
    return {"fid": evaluation.fidelity["frechet_inception_distance"]}


def _kid(evaluation: Evaluation) -> dict[str, float]:
    results = evaluation.fidelity
    return {"kid": results["kernel_inception_distance_mean"], "kid_std": results["kernel_inception_distance_std"]}


def _inception_score(evaluation: Evaluation) -> dict[str, float]:
    return {"is": evaluation.fidelity["inception_score_mean"], "is_std": evaluation.fidelity["inception_score_std"]}


def _swd(evaluation: Evaluation) -> dict[str, float]:
    return sliced_wasserstein(evaluation.real, evaluation.fake, evaluation.seed)


def _fd(evaluation: Evaluation) -> dict[str, float]:
    """Compute fd at the images' size, and also at 32 px if the size is a larger multiple of 32."""
    size = evaluation.real.shape[-1]
    results = {}
    for name, at in (("fd", size), (f"fd_{perceptual.SMALL_SIZE}", perceptual.SMALL_SIZE)):
        if name == "fd" or (size > at and size % at == 0):
            real, fake = evaluation.features(at)
            between_halves = perceptual.frechet_distance(*perceptual.halves(real))
            results |= {name: perceptual.frechet_distance(real, fake), f"{name}_real_halves": between_halves}
    return results


def _kd(evaluation: Evaluation) -> dict[str, float]:
    real, fake = evaluation.features(evaluation.real.shape[-1])
    between_halves = perceptual.kernel_distance(*perceptual.halves(real))
    return {"kd": perceptual.kernel_distance(real, fake), "kd_real_halves": between_halves}


def _prc(evaluation: Evaluation) -> dict[str, float]:
    real, fake = evaluation.features(evaluation.real.shape[-1])
    between_halves = perceptual.precision_recall(*perceptual.halves(real))
    scores = perceptual.precision_recall(real, fake)
    return {**scores._asdict(), "recall_real_halves": between_halves.recall}


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid, "Frechet Inception distance; lower is better", needs_weights=True),
    "kid": Metric(_kid, "kernel Inception distance and its deviation over subsets; lower is better", needs_weights=True),
    "is": Metric(_inception_score, "Inception score and its deviation over splits; higher is better", needs_weights=True),
    "swd": Metric(_swd, "sliced Wasserstein distance of image patches, times 1e3; lower is better; needs no weights"),
    "fd": Metric(
        _fd, "Frechet distance of EfficientNet-Lite0's features; lower is better; downloads nothing", is_perceptual=True
    ),
    "kd": Metric(_kd, "kernel distance of the same features; lower is better; downloads nothing", is_perceptual=True),
    "prc": Metric(_prc, "precision and recall of the same features; higher is better; downloads nothing", is_perceptual=True),
}
