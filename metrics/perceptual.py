"""Distances of image sets by the features of EfficientNet-Lite0 (metrics/efficientnet.py), pooled to 1280 numbers an image.

``fd`` and ``kd`` are to these features what FID and KID are to Inception's, so no number here compares with a paper's FID.
Precision and recall tell quality from variety. Source: Heusel et al., NeurIPS 2017; Binkowski et al., "Demystifying MMD
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
MIN_IMAGES = 2 * (NUM_NEIGHBORS + 1)  # so that each half of the real images has that many neighbors
SMALL_SIZE = 32  # pixels, of the second look, which sees shapes and colors and no detail


@torch.no_grad()
def features_of(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Features (N, 1280), float64 on the CPU, of uint8 images (N, 3, H, W)."""
    network = load_efficientnet().to(device)
    return torch.cat([network(batch.to(device)).cpu().double() for batch in images.split(BATCH_SIZE)])


def averaged_down(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, 3, H, H), each ``H / size`` pixels square averaged to one; H a multiple of ``size``."""
    return F.avg_pool2d(images.float(), images.shape[-1] // size).round().to(torch.uint8)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances of ``a`` (N, D) and ``b`` (M, D), float64.

    With centered rows X and Y, the trace of the root is the sum of the singular values of X Y^T over their degrees of freedom:
    no D x D matrix has to be formed where there are fewer images than features.
    """
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    x, y = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    variances = x.square().sum() + y.square().sum()
    x, y = (torch.linalg.qr(m, mode="r").R if len(m) > m.shape[1] else m for m in (x, y))
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_a - mean_b).square().sum() + variances - 2 * root)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of ``a`` (N, D) and ``b`` (M, D) for the kernel (x . y / D + 1)^3, unbiased.

    Of the whole sets, where KID averages subsets: the same in expectation, and nothing is drawn.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    return float(mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean())


class PrecisionRecall(NamedTuple):
    """``precision``: share of generated images within the real ones' manifold; ``recall``: of real ones within theirs."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, num_neighbors: int = NUM_NEIGHBORS) -> PrecisionRecall:
    """Of features (N, D) and (M, D). A set's manifold: the balls around its points that reach their ``num_neighbors``-th
    nearest neighbor in the set."""

    def share_within(points: Tensor, centers: Tensor) -> float:
        radii = torch.cdist(centers, centers).kthvalue(num_neighbors + 1, dim=1).values  # the nearest is the point itself
        return float((torch.cdist(points, centers) <= radii).any(dim=1).double().mean())

    return PrecisionRecall(share_within(fake, real), share_within(real, fake))


def halves(features: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of the real images' features, for the scale of a score. Raises UserError for too few images."""
    if len(features) < MIN_IMAGES:
        raise UserError(f"{len(features)} real images are too few for fd, kd and prc; use at least {MIN_IMAGES}")
    half = len(features) // 2
    return features[:half], features[half : 2 * half]
