"""Measure the points per second of a network's field, relative to the rate of the matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.measure import Gemm, shares_of_gemm
from benchmarks.networks import Network, StraightforwardField, flops_per_point

NUM_POINTS = 1 << 14


@torch.no_grad()
def measure(network: Network, rounds: int) -> dict[str, Any]:
    """Return ``gflops``, ``gemm_share`` and ``million_points_per_s`` (medians) of each query and path, and ``gemm_gflops``."""
    random = torch.Generator().manual_seed(0)
    points = (torch.rand(1, NUM_POINTS, 3, generator=random) - 0.5) * 0.24
    directions = F.normalize(torch.randn(1, NUM_POINTS, 3, generator=random), dim=-1)
    occupancy, color = (NUM_POINTS * flops_per_point(network.curriculum, with_color) for with_color in (False, True))
    calls: dict[str, Any] = {}
    for name, field in (("", network.field()), ("straightforward_", StraightforwardField.of_seed(network))):
        calls[f"{name}occupancy"] = (lambda field=field: field.occupancy_logits(points), occupancy)
        calls[f"{name}color"] = (lambda field=field: field.logits_and_colors(points, directions), color)
    gemm = Gemm()
    result: dict[str, Any] = shares_of_gemm(gemm, calls, rounds)
    for name, (_, flops) in calls.items():
        result[name]["million_points_per_s"] = result[name]["gflops"] / (flops / NUM_POINTS) * 1e3
    return {**result, "num_points": NUM_POINTS, "rounds": rounds, "gemm_gflops": gemm.best}
