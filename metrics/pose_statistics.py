"""The spread of poses from noisy predictions, corrected for the noise, and the camera prior that fits it.

A prediction (reading) is modeled as ``offset + slope * pose + noise``. Slope and noise are estimated from images of known
pose (:class:`Calibration`), so the spread of the poses follows from the spread of the readings. Angles are in radians.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

ANGLES = ("yaw", "pitch")
MAD_TO_STDDEV = 1.4826  # of a normal distribution
OUTLIER = 4.0  # robust standard deviations from the median; readings beyond are dropped
MIN_SLOPE = 0.2  # below it, readings hardly depend on the pose
MIN_SHARE = 0.1  # of the readings' variance that the poses must explain, otherwise noise dominates
UNIFORM_KURTOSIS = -1.2  # excess; a normal distribution has 0


@dataclass(frozen=True)
class Calibration:
    """Linear fit of ``num`` readings against the true poses.

    ``slope`` of the line, ``noise``: standard deviation around it, ``error``: root mean square of reading - truth.
    """

    slope: float
    noise: float
    error: float
    num: int


@dataclass(frozen=True)
class Spread:
    """Statistics of one angle.

    ``median`` and the ``robust`` and ``plain`` standard deviations describe the readings. ``stddev`` and ``kurtosis`` (excess)
    describe the poses, with the noise removed; they are None if they cannot be estimated. ``plain``, ``stddev`` and
    ``kurtosis`` exclude ``num_outliers`` readings.
    """

    median: float
    robust: float
    plain: float
    stddev: float | None
    kurtosis: float | None
    num: int
    num_outliers: int
    calibration: Calibration


def calibrate(readings: Tensor, truth: Tensor) -> Calibration:
    """Fit ``readings`` against ``truth``, (N,) each, by least squares. N > 2, and ``truth`` must not be constant."""
    readings, truth = readings.double(), truth.double()
    centered = truth - truth.mean()
    slope = float((centered * readings).sum() / centered.square().sum())
    residuals = readings - readings.mean() - slope * centered
    noise = float((residuals.square().sum() / (len(residuals) - 2)).sqrt())
    return Calibration(slope, noise, float((readings - truth).square().mean().sqrt()), len(truth))


def without_outliers(values: Tensor) -> Tensor:
    """Return the values within OUTLIER robust standard deviations of the median."""
    distance = (values - values.median()).abs()
    return values[distance <= OUTLIER * MAD_TO_STDDEV * distance.median()]


def measure_spread(readings: Tensor, calibration: Calibration, trusted: bool = True) -> Spread:
    """Estimate the spread of poses from readings (N,), N > 2. If not ``trusted``, ``stddev`` and ``kurtosis`` are None."""
    readings = readings.double()
    kept = without_outliers(readings)
    robust = MAD_TO_STDDEV * float((readings - readings.median()).abs().median())
    variance = float(kept.var())
    stddev = kurtosis = None
    of_pose = variance - calibration.noise**2
    if trusted and calibration.slope >= MIN_SLOPE and of_pose > MIN_SHARE * variance:
        stddev = math.sqrt(of_pose) / calibration.slope
        # the fourth cumulants of pose and noise add up, and that of normal noise is 0
        fourth = float((kept - kept.mean()).pow(4).mean()) - 3 * float(kept.var(correction=0)) ** 2
        kurtosis = fourth / of_pose**2
    num_outliers = len(readings) - len(kept)
    return Spread(
        float(readings.median()), robust, math.sqrt(variance), stddev, kurtosis, len(readings), num_outliers, calibration
    )


@dataclass(frozen=True)
class Prior:
    """A curriculum's camera settings. A width that cannot be estimated is None."""

    h_stddev: float | None
    v_stddev: float | None
    sample_dist: str

    def settings(self) -> list[str]:
        """Return the prior as KEY=VALUE arguments of ``--set``."""
        widths = [f"{name}={value:.2g}" for name, value in (("h_stddev", self.h_stddev), ("v_stddev", self.v_stddev)) if value]
        return [*widths, f"sample_dist={self.sample_dist}"]


def fit_prior(yaw: Spread, pitch: Spread) -> Prior | None:
    """Fit a ``gaussian`` or ``uniform`` prior by kurtosis; return None if neither spread can be estimated.

    The settings of ``uniform`` are half widths: sqrt(3) standard deviations. If noise makes up a share 1 - f of the variance,
    the standard error of the kurtosis grows by 1 / f^2, hence the weights.
    """
    clear = [spread for spread in (yaw, pitch) if spread.stddev is not None]
    if not clear:
        return None
    weights = [(spread.stddev * spread.calibration.slope / spread.plain) ** 8 for spread in clear]
    kurtosis = sum(weight * spread.kurtosis for weight, spread in zip(weights, clear, strict=True)) / sum(weights)
    is_uniform = kurtosis < UNIFORM_KURTOSIS / 2
    widths = [None if s.stddev is None else s.stddev * (math.sqrt(3) if is_uniform else 1) for s in (yaw, pitch)]
    return Prior(widths[0], widths[1], "uniform" if is_uniform else "gaussian")


def spread_record(spread: Spread) -> dict[str, Any]:
    """Return all numbers of ``spread``, with angles in radians and in degrees."""
    record = asdict(spread)
    angles = {name: record[name] for name in ("median", "robust", "plain", "stddev")}
    return record | {f"{name}_degrees": None if value is None else math.degrees(value) for name, value in angles.items()}


def near(truth: Tensor, spreads: tuple[float, float], fewest: int) -> Tensor:
    """Return a mask (N,), True where a pose of ``truth`` (N, 2) is within 2.5 standard deviations (``spreads``) of the front.

    If fewer than ``fewest`` poses are, all are True.
    """
    inside = (truth.abs() <= 2.5 * torch.tensor(spreads)).all(dim=1)
    return inside if int(inside.sum()) >= fewest else torch.ones_like(inside)
