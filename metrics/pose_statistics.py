"""How far images turn, from noisy readings of their poses: spread without the noise, and the prior that fits.

A reading is taken to be ``offset + slope * pose + noise``. Slope and noise are known from images whose pose is known
(:class:`Calibration`), so the spread of the poses follows from the spread of the readings. Angles are radians.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

ANGLES = ("yaw", "pitch")
MAD_TO_STDDEV = 1.4826  # of a normal distribution
OUTLIER = 4.0  # robust standard deviations; beyond them a reading says nothing about the rest
MIN_SLOPE = 0.2  # below it a reading hardly follows the pose
MIN_SHARE = 0.1  # of the readings' variance that must be the pose's, else it drowns in the noise
UNIFORM_KURTOSIS = -1.2  # excess; a normal distribution has 0


@dataclass(frozen=True)
class Calibration:
    """How ``num`` readings follow the truth: ``slope`` of the line, ``noise`` (standard deviation) around it, and ``error``, the
    root mean square of reading - truth."""

    slope: float
    noise: float
    error: float
    num: int


@dataclass(frozen=True)
class Spread:
    """Of one angle. ``median``, ``robust`` and ``plain`` standard deviations are of the readings; ``stddev`` is of the poses,
    the noise taken away, None where it cannot be told; ``kurtosis``: excess, likewise; ``num_outliers`` are left out of all."""

    median: float
    robust: float
    plain: float
    stddev: float | None
    kurtosis: float | None
    num: int
    num_outliers: int
    calibration: Calibration


def calibrate(readings: Tensor, truth: Tensor) -> Calibration:
    """The line through ``readings`` over ``truth``, (N,) each, by least squares. N > 2, and not all of the truth the same."""
    readings, truth = readings.double(), truth.double()
    centerd = truth - truth.mean()
    slope = float((centerd * readings).sum() / centerd.square().sum())
    rest = readings - readings.mean() - slope * centerd
    noise = float((rest.square().sum() / (len(rest) - 2)).sqrt())
    return Calibration(slope, noise, float((readings - truth).square().mean().sqrt()), len(truth))


def without_outliers(values: Tensor) -> Tensor:
    """Those within OUTLIER robust standard deviations of the median."""
    distance = (values - values.median()).abs()
    return values[distance <= OUTLIER * MAD_TO_STDDEV * distance.median()]


def measure_spread(readings: Tensor, calibration: Calibration, trusted: bool = True) -> Spread:
    """readings: (N,), N > 2. Where they are not ``trusted``, nothing is said of the poses."""
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
    """A curriculum's camera settings. Those that cannot be told are None."""

    h_stddev: float | None
    v_stddev: float | None
    sample_dist: str

    def settings(self) -> list[str]:
        """As ``--set`` takes them."""
        widths = [f"{name}={value:.2g}" for name, value in (("h_stddev", self.h_stddev), ("v_stddev", self.v_stddev)) if value]
        return [*widths, f"sample_dist={self.sample_dist}"]


def fit_prior(yaw: Spread, pitch: Spread) -> Prior | None:
    """``gaussian``, or ``uniform``, whose settings are half widths: sqrt(3) standard deviations. None where nothing can be told.

    The kurtosis decides. Noise that is a share 1 - f of the variance spreads its estimate by 1 / f^2, hence the weights.
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
    """All numbers of ``spread``, in radians and, where they are angles, in degrees."""
    record = asdict(spread)
    angles = {name: record[name] for name in ("median", "robust", "plain", "stddev")}
    return record | {f"{name}_degrees": None if value is None else math.degrees(value) for name, value in angles.items()}


def near(truth: Tensor, spreads: tuple[float, float], fewest: int) -> Tensor:
    """(N,) bool: which of the poses ``truth`` (N, 2) lie within 2.5 of both ``spreads`` (standard deviations) of the front;
    all, where ``fewest`` do not."""
    inside = (truth.abs() <= 2.5 * torch.tensor(spreads)).all(dim=1)
    return inside if int(inside.sum()) >= fewest else torch.ones_like(inside)
