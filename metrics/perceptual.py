"""Distances between image sets from pooled features of EfficientNet-Lite0 (metrics/efficientnet.py), 1280 per image.

``fd`` and ``kd`` correspond to FID and KID, which use Inception features. They are not comparable with a paper's FID.
Precision and recall separate quality from variety. Source: Heusel et al., NeurIPS 2017; Binkowski et al., "Demystifying MMD
GANs", ICLR 2018; Kynkaanniemi et al., "Improved precision and recall metric", NeurIPS 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from metrics.efficientnet import load_efficientnet

BATCH_SIZE = 32
NUM_NEIGHBORS = 3  # k of Kynkaanniemi et al.
MIN_IMAGES = 2 * (NUM_NEIGHBORS + 1)  # of each kind: half of the real images are an image and its neighbors
SMALL_SIZE = 32  # pixels, of the second evaluation, which sees shapes and colors but no detail


@torch.no_grad()
def features_of(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return features (N, 1280) of uint8 images (N, 3, H, W), as float64 on the CPU."""
    network = load_efficientnet(device)
    return torch.cat([network(batch.to(device)).cpu().double() for batch in images.split(BATCH_SIZE)])


def averaged_down(images: Tensor, size: int) -> Tensor:
    """Average uint8 images (N, 3, H, H) down to ``size`` px. H must be a multiple of ``size``."""
    return F.avg_pool2d(images.float(), images.shape[-1] // size).round().to(torch.uint8)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), with covariances A of ``a`` (N, D) and B of ``b`` (M, D), float64.

    With centered rows X and Y, scaled by the root of their degrees of freedom, the trace of the matrix root is the sum of
    the singular values of X Y^T. With fewer images than features, this avoids the D x D matrix.
    """
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    variances = x.square().sum() + y.square().sum()
    x, y = (torch.linalg.qr(m, mode="r").R if len(m) > m.shape[1] else m for m in (x, y))
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_a - mean_b).square().sum() + variances - 2 * root)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared MMD of ``a`` (N, D) and ``b`` (M, D) with the kernel (x . y / D + 1)^3.

    Uses the full sets, while KID averages over random subsets. The expectation is the same, without randomness.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    return float(mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean())


class PrecisionRecall(NamedTuple):
    """``precision``: share of generated images in the real manifold; ``recall``: share of real images in the generated one."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, num_neighbors: int = NUM_NEIGHBORS) -> PrecisionRecall:
    """Return precision and recall of features ``real`` (N, D) and ``fake`` (M, D).

    A set's manifold is the union of balls around its points, each with the distance to the point's ``num_neighbors``-th
    nearest neighbor in the set as its radius.
    """

    def share_within(points: Tensor, centers: Tensor) -> float:
        radii = torch.cdist(centers, centers).kthvalue(num_neighbors + 1, dim=1).values  # the nearest is the point itself
        return float((torch.cdist(points, centers) <= radii).any(dim=1).double().mean())

    return PrecisionRecall(share_within(fake, real), share_within(real, fake))


def halves(features: Tensor) -> tuple[Tensor, Tensor]:
    """Split the real features into two halves, to score them against each other. Raises UserError for too few images."""
    if len(features) < MIN_IMAGES:
        raise UserError(f"{len(features)} real image(s) are too few for fd, kd and prc; use at least {MIN_IMAGES}")
    half = len(features) // 2
    return features[:half], features[half : 2 * half]
