"""Sparse lattices against dense ones: signs, values near the surface, queried points, thin and small features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from analytic import SphereField
from generators import extraction
from generators.extraction import (
    LatticeSpec,
    Level,
    children_of_cells,
    coarsest_level,
    nodes_of_cells,
    refine,
    surface_cells,
    surface_slabs,
)
from settings.registry import CURRICULUMS
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy,
    fill_occupancy_near_surface,
    occupancy_of,
    value_at_level,
)

BFM = CURRICULUMS["BFM"]


class Balls:
    """The union of spheres, which counts the queried points."""

    batch_size = 1

    def __init__(self, *balls: SphereField) -> None:
        self.balls = balls

    @property
    def num_queried(self) -> int:
        return self.balls[0].num_logit_points

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return torch.stack([ball.occupancy_logits(points) for ball in self.balls]).amax(dim=0)


class Waves:
    """Smooth in space, with many small lumps: sums of sines, as a SIREN's."""

    batch_size = 1

    def occupancy_logits(self, points: Tensor) -> Tensor:
        x, y, z = (points * 150).unbind(dim=-1)
        return 3 * torch.sin(x + 0.3) * torch.sin(y * 1.1) * torch.sin(z * 0.9 + 1) + 20 * (0.1 - points.norm(dim=-1)) - 1


def lattices(field, num: int, cube_size: float = 0.3, level: float = 0.5) -> tuple[np.ndarray, np.ndarray, int]:
    sparse, dense = np.full((2, num, num, num), np.nan, dtype=np.float32)
    queried = fill_occupancy_near_surface(sparse, field, BFM, cube_size, level)
    fill_occupancy(dense, field, BFM, cube_size)
    return sparse, dense, queried


def beside_surface(solid: np.ndarray) -> np.ndarray:
    """True at points with a neighbor along an axis on the other side."""
    beside = np.zeros_like(solid)
    for axis in range(3):
        front, back = (np.moveaxis(array, axis, 0) for array in (beside, solid))
        crossing = back[1:] != back[:-1]
        front[1:] |= crossing
        front[:-1] |= crossing
    return beside


@pytest.mark.parametrize("num", [2, 3, 5, 17, 40, 97])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_signs_are_those_of_the_dense_lattice(num: int, level: float) -> None:
    sparse, dense, _ = lattices(SphereField(0.08, center=(0.01, 0.02, -0.03)), num, level=level)
    assert np.isfinite(sparse).all() and sparse.min() >= 0 and sparse.max() <= 1
    assert ((sparse >= level) == (dense >= level)).all()
    beside = beside_surface(dense >= level)
    assert np.array_equal(sparse[beside], dense[beside]), "next to the surface the values are the field's own"


def test_lumpy_field() -> None:
    sparse, dense, queried = lattices(Waves(), 90)
    assert extract_mesh(dense, MeshSettings()).body_count > 20
    assert ((sparse >= 0.5) != (dense >= 0.5)).sum() <= 90**3 / 100_000
    meshes = [extract_mesh(voxels, MeshSettings()) for voxels in (sparse, dense)]
    assert meshes[0].body_count == meshes[1].body_count and meshes[0].euler_number == meshes[1].euler_number
    assert queried < 90**3 * 0.7, "even where surface is everywhere"


def test_small_floaters_are_found() -> None:
    """Radius 2.5 coarse cells is easy; at radius 0.7, no point of the coarse lattice may be inside."""
    cell = LatticeSpec.of_cube(0.3, 100).spacing * 2
    for radius in (2.5 * cell, 0.7 * cell):
        field = Balls(SphereField(0.06), SphereField(radius, center=(0.1021, -0.0934, 0.1113)))
        sparse, dense, queried = lattices(field, 100)
        assert np.array_equal(sparse >= 0.5, dense >= 0.5)
        assert extract_mesh(sparse, MeshSettings()).body_count == 2
        assert queried < 100**3 / 4


def test_cost_grows_with_the_surface() -> None:
    queried = []
    for num in (64, 127, 256):
        field = SphereField(0.08)
        out = np.empty((num,) * 3, dtype=np.float32)
        queried.append(fill_occupancy_near_surface(out, field, BFM, 0.3))
        assert queried[-1] == field.num_logit_points, "what is reported is what was queried"
    assert queried[2] <= 256**3 / 12
    assert queried[1] <= 4 * queried[0] and queried[2] <= 4 * queried[1]


def test_an_empty_cube_costs_the_coarse_lattice_alone() -> None:
    field = SphereField(-1.0)
    out = np.empty((128,) * 3, dtype=np.float32)
    assert fill_occupancy_near_surface(out, field, BFM, 0.3) == LatticeSpec.of_cube(0.3, 128).num_nodes(4) ** 3
    assert out.max() < 1e-6


def test_progress_counts_every_voxel() -> None:
    seen: list[int] = []
    fill_occupancy_near_surface(np.empty((70,) * 3, dtype=np.float32), SphereField(0.1), BFM, 0.3, progress=seen.append)
    assert sum(seen) == 70**3


@pytest.mark.parametrize("name", ["BFM", "PIGAN_CelebA"])
@pytest.mark.parametrize("clamp_mode", ["relu", "softplus"])
def test_value_at_level_inverts_occupancy(name: str, clamp_mode: str) -> None:
    curriculum = dataclasses.replace(CURRICULUMS[name], clamp_mode=clamp_mode)
    for level in (0.05, 0.5, 0.9):
        value = value_at_level(level, curriculum, 0.01)
        assert float(occupancy_of(torch.tensor([value]), curriculum, 0.01)[0]) == pytest.approx(level, abs=1e-5)


def test_refined_nodes_by_hand() -> None:
    cells = torch.zeros(3, 3, 3, dtype=torch.bool)
    cells[1, 0, 2] = True
    nodes = nodes_of_cells(cells, 7)
    assert nodes[2:5, 0:3, 4:7].all() and int(nodes.sum()) == 27
    children = children_of_cells(cells, 6)
    assert children[2:4, 0:2, 4:6].all() and int(children.sum()) == 8


def test_cells_without_surface_are_interpolated_and_others_queried() -> None:
    spec = LatticeSpec.of_cube(0.3, 65)
    field = SphereField(0.08)

    def query(points: Tensor) -> Tensor:
        return field.occupancy_logits(points.unsqueeze(0))[0]

    coarse = coarsest_level(query, spec, "cpu", max_spacing=0.02)
    assert isinstance(coarse, Level) and coarse.stride == 4 and coarse.values.shape == (17, 17, 17)
    open_cells = surface_cells(coarse)
    fine = refine(coarse, query, spec, open_cells)
    axis = spec.axis(2)
    truth = query(torch.cartesian_prod(axis, axis, axis)).view(33, 33, 33)
    assert torch.equal(fine.values[fine.exact], truth[fine.exact])
    wanted = nodes_of_cells(open_cells, 33)
    assert fine.exact[wanted].all() and fine.exact[::2, ::2, ::2].all()
    assert fine.num_queried == 17**3 + int(fine.exact.sum() - 17**3)
    middle = (coarse.values[0, 0, 0] + coarse.values[1, 0, 0]) / 2
    assert not fine.exact[1, 0, 0] and torch.isclose(fine.values[1, 0, 0], middle)


@pytest.mark.parametrize("max_dense", [0, 10, 20, 130])
@pytest.mark.parametrize("num", [96, 97])
def test_bricks_of_any_depth(max_dense: int, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From four levels of bricks to one; 96 points end inside of the last brick."""
    monkeypatch.setattr(extraction, "MAX_DENSE", max_dense)
    field = Balls(SphereField(0.015, center=(0.001, 0.002, -0.003)), SphereField(0.004, center=(0.021, 0.021, 0.0)))
    sparse, dense, queried = lattices(field, num, cube_size=0.05)
    assert np.array_equal(sparse >= 0.5, dense >= 0.5)
    beside = beside_surface(dense >= 0.5)
    assert np.array_equal(sparse[beside], dense[beside])
    assert queried < num**3 / 5
    assert field.num_queried - num**3 == queried, "each point once"


def test_slabs_cover_the_lattice_in_order() -> None:
    spec, end = LatticeSpec.of_cube(0.3, 90), 0
    field = SphereField(0.1)
    for start, values, _ in surface_slabs(lambda points: field.occupancy_logits(points[None])[0], spec):
        assert start == end and values.shape[1:] == (90, 90)
        end += len(values)
    assert end == 90


def test_reference_generator() -> None:
    """A trained SIREN at 64^3: every sign, and the mesh."""
    from generators.generator import latent_from_seed
    from reference import load_reference_generator

    generator = load_reference_generator()
    with torch.no_grad():
        field = generator.field_of_latents(latent_from_seed(0, generator.curriculum), 0.7)
    sparse, dense, queried = lattices(field, 64)
    assert queried < 64**3 / 5
    assert np.array_equal(sparse >= 0.5, dense >= 0.5)
    settings = MeshSettings(clip_radius=0.12)
    meshes = [extract_mesh(voxels, settings) for voxels in (sparse, dense)]
    assert meshes[0].body_count == meshes[1].body_count and meshes[0].euler_number == meshes[1].euler_number
