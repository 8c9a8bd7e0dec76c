"""Measure extraction: a lattice of occupancies queried only near the surface, compared with dense queries."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Gemm
from benchmarks.networks import CountingField, Network, StraightforwardField
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy,
    fill_occupancy_near_surface,
    grid_coordinates,
    visible_radius,
)

CUBE_SIZE = 0.3
LEVEL = 0.5


@torch.no_grad()
def measure_sparse(network: Network, resolution: int) -> dict[str, Any]:
    """Measure the seconds and points of a lattice in newly allocated memory."""
    gemm = Gemm()
    field, out = CountingField(network.field()), np.empty((resolution,) * 3, dtype=np.float32)
    timed = gemm.around(lambda: fill_occupancy_near_surface(out, field, network.curriculum, CUBE_SIZE))
    return {"resolution": resolution, "seconds": timed.seconds, "work_gflop": timed.work, "num_points": field.num_points}


@torch.no_grad()
def measure_against_dense(network: Network, resolution: int, sheet_step: int) -> dict[str, Any]:
    """Compare the sparse lattice with the dense one, of which only every ``sheet_step``-th sheet is queried (time scaled up).

    ``over_dense``: ratio of their work (measure.Timed). ``sign_mismatches``: out of ``signs_compared``. With ``sheet_step`` 1,
    ``same_topology``: whether the two meshes have the same number of pieces and the same Euler number.
    """
    gemm = Gemm()
    field, sparse = CountingField(network.field()), np.empty((resolution,) * 3, dtype=np.float32)
    timed = gemm.around(lambda: fill_occupancy_near_surface(sparse, field, network.curriculum, CUBE_SIZE))
    if sheet_step == 1:
        dense = np.empty_like(sparse)
        plain = gemm.around(lambda: fill_occupancy(dense, network.field(), network.curriculum, CUBE_SIZE))
        compared = sparse
    else:
        plain = gemm.around(lambda: _sheets(network.field(), resolution, sheet_step))
        dense, compared = plain.value, sparse[sheet_step // 2 :: sheet_step]
    again = gemm.around(lambda: fill_occupancy_near_surface(sparse, field, network.curriculum, CUBE_SIZE))
    share = dense.size / sparse.size
    result = {
        "resolution": resolution,
        "seconds": (timed.seconds + again.seconds) / 2,
        "dense_seconds": plain.seconds / share,
        "dense_share_queried": share,
        "num_points": field.num_points // 2,
        "dense_points": resolution**3,
        "over_dense": (timed.work + again.work) / 2 / (plain.work / share),
        "sign_mismatches": int(((compared >= LEVEL) != (dense >= LEVEL)).sum()),
        "signs_compared": dense.size,
    }
    if sheet_step == 1:
        result |= _compare_meshes(sparse, dense, network)
    return result


def _sheets(field: Any, resolution: int, step: int) -> np.ndarray:
    """Return occupancies (K, N, N) of every ``step``-th sheet of constant x, a few sheets per query as in fill_occupancy."""
    axis = grid_coordinates(CUBE_SIZE, resolution)
    chosen = axis[step // 2 :: step]
    sheets = []
    for part in chosen.split(max(1, (1 << 16) // resolution**2)):
        points = torch.stack(torch.meshgrid(part, axis, axis, indexing="ij"), dim=-1).view(1, -1, 3)
        sheets.append(torch.sigmoid(field.occupancy_logits(points)).view(len(part), resolution, resolution))
    return torch.cat(sheets).numpy()


def _compare_meshes(sparse: np.ndarray, dense: np.ndarray, network: Network) -> dict[str, Any]:
    settings = MeshSettings(CUBE_SIZE, LEVEL, visible_radius(network.curriculum))
    meshes = [extract_mesh(voxels, settings) for voxels in (sparse, dense)]
    if any(mesh is None for mesh in meshes):
        return {"same_topology": all(mesh is None for mesh in meshes)}
    counts = [(mesh.body_count, mesh.euler_number) for mesh in meshes]
    return {"same_topology": counts[0] == counts[1], "pieces": counts[1][0], "euler_number": counts[1][1]}


@torch.no_grad()
def measure_straightforward(network: Network, resolution: int, num_points: int) -> dict[str, Any]:
    """Estimate the seconds of the dense lattice in straightforward PyTorch, from its rate on ``num_points``."""
    gemm, field = Gemm(), StraightforwardField.of_seed(network)
    points = (torch.rand(1, num_points, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * CUBE_SIZE
    field.occupancy_logits(points)
    times = [gemm.around(lambda: field.occupancy_logits(points)) for _ in range(3)]
    share = num_points / resolution**3
    seconds, work = (statistics.median(getattr(timed, name) for timed in times) / share for name in ("seconds", "work"))
    return {"resolution": resolution, "seconds": seconds, "work_gflop": work, "points_queried": num_points}
