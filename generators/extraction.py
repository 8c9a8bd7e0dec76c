"""A field on a regular lattice, asked only where its surface can be: the cost grows with the surface, not the volume.

Coarse to fine. A lattice of stride s is halved until s = 1. At each level a cell is *open* where the criterion says that
the field, known at its corners, may do something of interest inside; only the new points of open cells are asked. All
other points take the trilinear value of the coarser level: right in sign, approximate in size.

What may happen inside a cell follows from curvature. Trilinear interpolation in a cell of side s is off by at most
s^2/8 (|f_xx| + |f_yy| + |f_zz|), which second differences of the lattice estimate; each node takes the largest estimate
of its 27 neighbours. So a cell whose corners agree in sign and lie further from the level than this bound holds no
surface, however thin, as far as the coarse lattice can see the curvature at all. COARSE_SPACING is what makes it see it:
features of solids much thinner than that can be missed, and are, as with any lattice, a matter of measured rates: on the
recorded reference generator and on generators halfway through training no sign in 256^3 differs from the dense lattice.

Notation: n nodes per axis at some stride; arrays (n, n, n) are indexed [ix, iy, iz].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

COARSE_SPACING = 0.01  # world units; heads are about 0.2 across and their fields bend over 0.02 or more
SLAB_VALUES = 1 << 20  # fine values made at a time: the working memory beyond the next coarser level

Query = Callable[[Tensor], Tensor]
"""points (K, 3), world coordinates -> values (K,)."""


@dataclass(frozen=True)
class LatticeSpec:
    """``num`` points per axis; index i lies at ``low + i spacing``, the same on the three axes."""

    low: float
    spacing: float
    num: int

    @classmethod
    def of_cube(cls, cube_size: float, num: int) -> LatticeSpec:
        """A cube around the origin with both faces sampled, num >= 2."""
        return cls(-cube_size / 2, cube_size / (num - 1), num)

    def num_nodes(self, stride: int) -> int:
        """Nodes of the coarser lattice: as many as cover all points, so its last node may lie beyond the cube."""
        return -(-(self.num - 1) // stride) + 1

    def axis(self, stride: int, device: torch.device | str = "cpu") -> Tensor:
        """Coordinates (num_nodes,) of every ``stride``-th point, computed in float64 and rounded once."""
        i = torch.arange(self.num_nodes(stride), dtype=torch.float64) * stride
        return (self.low + i * self.spacing).float().to(device)

    def coarsest_stride(self, max_spacing: float = COARSE_SPACING) -> int:
        """The largest power of two whose spacing does not exceed ``max_spacing``, at least 1, with 4 nodes per axis."""
        stride = 1
        while 2 * stride * self.spacing <= max_spacing and self.num_nodes(2 * stride) >= 4:
            stride *= 2
        return stride


class Level(NamedTuple):
    """One lattice. ``exact``: True where the field was asked. ``bound``: estimated error of interpolating the cells around.

    All are (n, n, n); ``num_asked`` counts the points asked so far, this level's included.
    """

    stride: int
    values: Tensor
    exact: Tensor
    bound: Tensor
    num_asked: int


def surface_cells(lattice: Level, level: float = 0.0) -> Tensor:
    """(n-1, n-1, n-1), True where the field may pass ``level``: corners on both sides of it, or nearer than the error bound."""
    distance = lattice.values - level
    solid = distance >= 0
    straddles = over_corners(solid, torch.logical_or) & ~over_corners(solid, torch.logical_and)
    return straddles | (over_corners(distance.abs(), torch.minimum) <= over_corners(lattice.bound, torch.maximum))


@torch.no_grad()
def coarsest_level(query: Query, spec: LatticeSpec, device: torch.device | str, max_spacing: float = COARSE_SPACING) -> Level:
    """Every node of the coarsest lattice, asked."""
    stride = spec.coarsest_stride(max_spacing)
    axis = spec.axis(stride, device)
    values = query(torch.cartesian_prod(axis, axis, axis)).view((len(axis),) * 3)
    return Level(stride, values, torch.ones_like(values, dtype=torch.bool), dilate(_curvature(values)), values.numel())


@torch.no_grad()
def refine(level: Level, query: Query, spec: LatticeSpec, open_cells: Tensor, cubic: bool = False) -> Level:
    """The lattice of half the stride. ``cubic``: new points that are not asked are interpolated from four per axis, not two."""
    stride = level.stride // 2
    num = spec.num_nodes(stride)
    values = level.values.new_empty((num,) * 3)
    exact = torch.empty_like(values, dtype=torch.bool)
    num_asked = level.num_asked
    for start, slab, asked, known in refine_in_slabs(level, query, spec, open_cells, cubic=cubic):
        values[start : start + len(slab)] = slab
        exact[start : start + len(slab)] = known
        num_asked += asked
    # Second differences mean something where all of their points were asked; elsewhere a quarter of the coarser ones.
    inherited = _upsample(level.bound, num) / 4
    measured = dilate(~exact, torch.logical_or).logical_not_()
    bound = torch.where(measured, dilate(_curvature(values)), inherited)
    return Level(stride, values, exact, bound, num_asked)


@torch.no_grad()
def refine_in_slabs(
    level: Level, query: Query, spec: LatticeSpec, open_cells: Tensor, near: float | None = None, cubic: bool = False
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Walk the lattice of half the stride in slabs of ix, asking the new points of open cells.

    ``near``: of these, ask only points within about one spacing of where the interpolated field passes this level. That is
    for the last level, on which no curvature has to be measured.
    Yields (first ix, values (k, n, n), number of points asked, exact (k, n, n)).
    """
    stride = level.stride // 2
    axis = spec.axis(stride, level.values.device)
    num = len(axis)
    reach = None if near is None else dilate(_steepest_step(level.values)) / 2 + level.bound
    num_cells = max(1, SLAB_VALUES // (2 * num * num))
    for first in range(0, level.values.shape[0] - 1, num_cells):
        last = min(first + num_cells, level.values.shape[0] - 1)  # parents first..last; the next slab begins with last
        start, end = 2 * first, min(2 * last, num) if last < level.values.shape[0] - 1 else num
        low = max(0, first - 1) if cubic else first
        parents = level.values[low : last + 2 if cubic else last + 1]
        values = _upsample(parents, num, cubic)[2 * (first - low) :][: end - start]
        exact = torch.zeros_like(values, dtype=torch.bool)
        parents = level.exact[first : last + 1]
        exact[::2, ::2, ::2] = parents[: (end - start + 1) // 2, : (num + 1) // 2, : (num + 1) // 2]
        below = open_cells[first - 1 : first] if first else torch.zeros_like(open_cells[:1])
        wanted = nodes_of_cells(torch.cat([below, open_cells[first:last]]), num)[2 : 2 + end - start] & ~exact
        index = wanted.nonzero()
        if reach is not None and near is not None:
            ix, iy, iz = (index // 2).unbind(dim=-1)
            close = (values[tuple(index.t())] - near).abs() <= reach[ix + first, iy, iz]
            index = index[close]
        if len(index):
            ix, iy, iz = index.unbind(dim=-1)
            values[ix, iy, iz] = query(torch.stack([axis[ix + start], axis[iy], axis[iz]], dim=-1))
            exact[ix, iy, iz] = True
        yield start, values, len(index), exact


@torch.no_grad()
def surface_slabs(
    query: Query, spec: LatticeSpec, level: float = 0.0, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor, int]]:
    """The whole lattice ``spec``, in slabs of rising ix, right in sign about ``level`` everywhere.

    Points next to the surface hold the field's own values (all but 1 in 1000, as measured), the others interpolated ones.
    Yields (first ix, values (k, num, num), number of points asked since the last slab).
    Memory: about 20 bytes per node of the lattice of stride 2.
    """
    lattice = coarsest_level(query, spec, device)
    while lattice.stride > 2:
        lattice = refine(lattice, query, spec, surface_cells(lattice, level))
    if lattice.stride == 1:
        yield 0, lattice.values, lattice.num_asked
        return
    before = lattice.num_asked
    for start, values, asked, _ in refine_in_slabs(lattice, query, spec, surface_cells(lattice, level), near=level):
        yield start, values, asked + before
        before = 0


# -- arrays over nodes and cells -----------------------------------------------------------------------------------------


def over_corners(nodes: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(n, n, n) at nodes -> (n-1, n-1, n-1): ``combine`` over each cell's eight corners."""
    for dim in range(3):
        size = nodes.shape[dim]
        nodes = combine(nodes.narrow(dim, 0, size - 1), nodes.narrow(dim, 1, size - 1))
    return nodes


def dilate(nodes: Tensor, combine: Callable[..., Tensor] = torch.maximum) -> Tensor:
    """``combine`` over each node and its 26 neighbours."""
    for dim in range(3):
        size = nodes.shape[dim]
        wide = nodes.clone()
        for a, b in ((0, 1), (1, 0)):
            part = wide.narrow(dim, a, size - 1)
            combine(part, nodes.narrow(dim, b, size - 1), out=part)
        nodes = wide
    return nodes


def _curvature(nodes: Tensor) -> Tensor:
    """sum over axes |f(i-1) - 2 f(i) + f(i+1)| / 8, the bound on trilinear interpolation's error; ends copy their neighbour."""
    total = torch.zeros_like(nodes)
    for dim in range(3):
        size = nodes.shape[dim]
        if size < 3:
            continue
        inner = nodes.narrow(dim, 1, size - 2)
        second = (nodes.narrow(dim, 0, size - 2) + nodes.narrow(dim, 2, size - 2)).sub_(inner, alpha=2).abs_()
        total.narrow(dim, 1, size - 2).add_(second)
        total.narrow(dim, 0, 1).add_(second.narrow(dim, 0, 1))
        total.narrow(dim, size - 1, 1).add_(second.narrow(dim, size - 3, 1))
    return total.div_(8)


def _steepest_step(nodes: Tensor) -> Tensor:
    """The largest change from each node to its next along an axis; 0 from the last ones."""
    largest = torch.zeros_like(nodes)
    for dim in range(3):
        size = nodes.shape[dim]
        step = (nodes.narrow(dim, 1, size - 1) - nodes.narrow(dim, 0, size - 1)).abs_()
        part = largest.narrow(dim, 0, size - 1)
        torch.maximum(part, step, out=part)
    return largest


def _upsample(nodes: Tensor, num: int, cubic: bool = False) -> Tensor:
    """One new node between any two, cut to ``num`` along iy and iz: the mean of two, or the cubic through four, per axis."""
    for dim in (2, 1, 0):
        size = nodes.shape[dim]
        fine = nodes.new_empty([2 * size - 1 if d == dim else length for d, length in enumerate(nodes.shape)])
        _every_second(fine, dim, 0).copy_(nodes)
        between = _every_second(fine, dim, 1)
        torch.add(nodes.narrow(dim, 0, size - 1), nodes.narrow(dim, 1, size - 1), out=between).mul_(0.5)
        if cubic and size > 3:
            outer = nodes.narrow(dim, 0, size - 3) + nodes.narrow(dim, 3, size - 3)
            between.narrow(dim, 1, size - 3).mul_(1.125).sub_(outer, alpha=1 / 16)
        nodes = fine if dim == 0 else fine.narrow(dim, 0, min(num, 2 * size - 1))
    return nodes.narrow(0, 0, min(num, nodes.shape[0]))


def nodes_of_cells(cells: Tensor, num: int) -> Tensor:
    """True at the finer nodes inside and on the faces of marked cells: (a, b, c) -> (2a+1, num, num)."""
    for dim in (2, 1, 0):
        size = cells.shape[dim]
        fine = cells.new_zeros([2 * size + 1 if d == dim else length for d, length in enumerate(cells.shape)])
        _every_second(fine, dim, 1).copy_(cells)
        _every_second(fine.narrow(dim, 0, 2 * size), dim, 0).logical_or_(cells)
        _every_second(fine.narrow(dim, 1, 2 * size), dim, 1).logical_or_(cells)
        cells = fine if dim == 0 else fine.narrow(dim, 0, min(num, 2 * size + 1))
    return cells


def children_of_cells(cells: Tensor, num: int) -> Tensor:
    """Cells of half the side take their parent's mark: (n, n, n) -> (num, num, num), num <= 2n."""
    for dim in range(3):
        cells = cells.repeat_interleave(2, dim=dim).narrow(dim, 0, num)
    return cells


def _every_second(nodes: Tensor, dim: int, first: int) -> Tensor:
    return nodes[tuple(slice(first, None, 2) if d == dim else slice(None) for d in range(3))]
