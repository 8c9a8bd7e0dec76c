"""The image metrics that ``eval_metrics.py --metrics`` offers. Adding one is a function and an entry in :data:`METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from metrics.fidelity import FidelitySettings, calculate
from metrics.swd import sliced_wasserstein


@dataclass
class Evaluation:
    """What a metric is computed from. ``real`` and ``fake``: (N, 3, H, W) uint8, their counts may differ."""

    real: Tensor
    fake: Tensor
    names: tuple[str, ...]
    seed: int = 0
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    extractor: str = "inception-v3-compat"
    weights_file: Path | None = None

    @property
    def fidelity_settings(self) -> FidelitySettings:
        """How torch-fidelity is called, for the record."""
        return FidelitySettings.for_counts(len(self.real), len(self.fake), self.extractor, self.seed, self.batch_size)

    @cached_property
    def fidelity(self) -> dict[str, float]:
        """torch-fidelity's results for all of ``names`` that it knows: one pass over the images serves them all."""
        wanted = {name for name in self.names if METRICS[name].needs_weights}
        return calculate(self.fake, self.real, wanted, self.fidelity_settings, self.weights_file, self.device)


@dataclass(frozen=True)
class Metric:
    """``compute`` returns named numbers; ``needs_weights``: True where a pretrained feature extractor is asked."""

    compute: Callable[[Evaluation], dict[str, float]]
    description: str
    needs_weights: bool = False


def _fid(evaluation: Evaluation) -> dict[str, float]:
    return {"fid": evaluation.fidelity["frechet_inception_distance"]}


def _kid(evaluation: Evaluation) -> dict[str, float]:
    results = evaluation.fidelity
    return {"kid": results["kernel_inception_distance_mean"], "kid_std": results["kernel_inception_distance_std"]}


def _inception_score(evaluation: Evaluation) -> dict[str, float]:
    return {"is": evaluation.fidelity["inception_score_mean"], "is_std": evaluation.fidelity["inception_score_std"]}


def _swd(evaluation: Evaluation) -> dict[str, float]:
    return sliced_wasserstein(evaluation.real, evaluation.fake, evaluation.seed)


METRICS: dict[str, Metric] = {
    "fid": Metric(_fid, "Frechet Inception distance; lower is better", needs_weights=True),
    "kid": Metric(_kid, "kernel Inception distance and its deviation over subsets; lower is better", needs_weights=True),
    "is": Metric(_inception_score, "Inception score and its deviation over splits; higher is better", needs_weights=True),
    "swd": Metric(_swd, "sliced Wasserstein distance of image patches, times 1e3; lower is better; needs no weights"),
}
