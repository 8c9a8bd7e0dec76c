"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math


def psnr_db(mean_squared_error: float, peak: float) -> float:
    """Return the PSNR in decibels. ``peak``: the range of the values, 2 for images in [-1, 1]. At most 120 dB for a peak of 1."""
    return 10 * math.log10(peak**2 / max(mean_squared_error, 1e-12))
