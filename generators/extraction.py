"""Sampling of a field on a regular lattice near its surface only. The cost grows with the surface, not the volume.

The search is coarse to fine: the stride s of the lattice is halved until s = 1. At each level, a criterion on the corner values
marks the cells that may contain the surface as *open*. Only the new points of open cells are queried. All other points take the
trilinear value of the coarser level, which has the right sign and an approximate magnitude.

The criterion is based on curvature. The error of trilinear interpolation in a cell of side s is at most
s^2/8 (|f_xx| + |f_yy| + |f_zz|), which second differences on the lattice estimate. Each node takes the largest estimate in its
3 x 3 x 3 neighborhood. A cell whose corners agree in sign, and differ from the level by more than this bound, contains no
surface, however thin, provided that the coarse lattice resolves the curvature. COARSE_SPACING is chosen so that it does. Solids
much thinner than that can be missed, as with any lattice. Measured error rates:

- The recorded reference generator and generators halfway through training, at psi 0.7: no sign in 256^3 differs from the dense
  lattice.
- At psi 1, where fields are rougher: of six seeds of the reference generator, two had wrong signs (5 and 2 of 64^3), and one
  lost 2 of 15 small pieces at 128^3. extract_shapes.py --dense misses none. Seeds 0 to 11 of three generators (the included
  heads, a SIREN for cats, tri-planes halfway through training), 128^3: no wrong sign, and the same pieces.
- Small balls next to a larger one (logit = 200 times the signed distance, 30 random positions each): missed 5 of radius 0.002,
  1 of 0.003 and none of 0.004 to 0.006.
- A shell 0.001 thick: 156 wrong signs of 128^3.

Notation: n nodes per axis at some stride; arrays (n, n, n) are indexed [ix, iy, iz].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

COARSE_SPACING = 0.01  # world units; heads are about 0.2 across, and their fields curve over distances of at least 0.02
MAX_DENSE = 130  # nodes per axis up to which a lattice is stored densely
AXES = (-3, -2, -1)
SLAB_VALUES = 1 << 20  # fine values computed at a time; bounds the memory beyond that of the next coarser level

Query = Callable[[Tensor], Tensor]
"""points (K, 3), world coordinates -> values (K,)."""


@dataclass(frozen=True)
class LatticeSpec:
    """A cubic lattice: ``num`` points per axis; index i is at ``low + i spacing`` on all three axes."""

    low: float
    spacing: float
    num: int

    @classmethod
    def of_cube(cls, cube_size: float, num: int) -> LatticeSpec:
        """Return the lattice of a cube centered at the origin, faces included; num >= 2."""
        return cls(-cube_size / 2, cube_size / (num - 1), num)

    def num_nodes(self, stride: int) -> int:
        """Return the nodes per axis of a coarser lattice that covers all points. Its last node may be outside the cube."""
        return -(-(self.num - 1) // stride) + 1

    def axis(self, stride: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the coordinates (num_nodes,) of every ``stride``-th point, computed in float64 and rounded once."""
        i = torch.arange(self.num_nodes(stride), dtype=torch.float64) * stride
        return (self.low + i * self.spacing).float().to(device)

    def coarsest_stride(self, max_spacing: float = COARSE_SPACING) -> int:
        """Return the largest power of two with spacing <= ``max_spacing`` and at least 4 nodes per axis; at least 1."""
        stride = 1
        while 2 * stride * self.spacing <= max_spacing and self.num_nodes(2 * stride) >= 4:
            stride *= 2
        return stride


class Level(NamedTuple):
    """A lattice of one stride. All arrays are (n, n, n).

    ``exact``: True where the field was queried. ``bound``: estimated interpolation error in the adjacent cells. ``num_queried``:
    number of points queried so far, including this level.
    """

    stride: int
    values: Tensor
    exact: Tensor
    bound: Tensor
    num_queried: int


def surface_cells(lattice: Level, level: float = 0.0) -> Tensor:
    """Return a mask (n-1, n-1, n-1) of the cells that may cross ``level``: corners on both sides, or within the error bound."""
    return _surface_cells(lattice.values, lattice.bound, level)


def _surface_cells(values: Tensor, bound: Tensor, level: float) -> Tensor:
    distance = values - level
    solid = distance >= 0
    straddles = over_corners(solid, torch.logical_or) & ~over_corners(solid, torch.logical_and)
    return straddles | (over_corners(distance.abs_(), torch.minimum) <= over_corners(bound, torch.maximum))


@torch.no_grad()
def coarsest_level(query: Query, spec: LatticeSpec, device: torch.device | str, max_spacing: float = COARSE_SPACING) -> Level:
    """Query every node of the coarsest lattice."""
    stride = spec.coarsest_stride(max_spacing)
    axis = spec.axis(stride, device)
    values = query(torch.cartesian_prod(axis, axis, axis)).view((len(axis),) * 3)
    return Level(stride, values, torch.ones_like(values, dtype=torch.bool), dilate(_curvature(values)), values.numel())


@torch.no_grad()
def refine(level: Level, query: Query, spec: LatticeSpec, open_cells: Tensor, cubic: bool = False) -> Level:
    """Halve the stride of a lattice. ``cubic``: interpolate other new points from four points per axis instead of two."""
    stride = level.stride // 2
    num = spec.num_nodes(stride)
    values = level.values.new_empty((num,) * 3)
    exact = torch.empty_like(values, dtype=torch.bool)
    num_queried = level.num_queried
    for start, slab, count, known in refine_in_slabs(level, query, spec, open_cells, cubic=cubic):
        values[start : start + len(slab)] = slab
        exact[start : start + len(slab)] = known
        num_queried += count
    # Second differences are valid only if all of their points were queried. Elsewhere, use a quarter of the coarser bound.
    inherited = _upsample(level.bound, num) / 4
    measured = dilate(~exact, torch.logical_or).logical_not_()
    bound = torch.where(measured, dilate(_curvature(values)), inherited)
    return Level(stride, values, exact, bound, num_queried)


@torch.no_grad()
def refine_in_slabs(
    level: Level, query: Query, spec: LatticeSpec, open_cells: Tensor, cubic: bool = False
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Halve the stride of a lattice in slabs of ix, querying the new points of open cells.

    Yields (first ix, values (k, n, n), number of points queried, exact (k, n, n)).
    """
    stride = level.stride // 2
    axis = spec.axis(stride, level.values.device)
    num = len(axis)
    num_cells = max(1, SLAB_VALUES // (2 * num * num))
    for first in range(0, level.values.shape[0] - 1, num_cells):
        last = min(first + num_cells, level.values.shape[0] - 1)  # parents first..last; the next slab starts at last
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
        if len(index):
            ix, iy, iz = index.unbind(dim=-1)
            values[ix, iy, iz] = query(torch.stack([axis[ix + start], axis[iy], axis[iz]], dim=-1))
            exact[ix, iy, iz] = True
        yield start, values, len(index), exact


# -- surface cells only ----------------------------------------------------------------------------------------------------


class Bricks(NamedTuple):
    """Refinement of K cells of a lattice of stride ``parent_stride``: n^3 nodes each, at stride ``stride``.

    ``cells`` (K, 3): cell indices, in increasing order. ``values``, ``exact``, ``bound``: (K, n, n, n), as in :class:`Level`.
    """

    parent_stride: int
    stride: int
    cells: Tensor
    values: Tensor
    exact: Tensor
    bound: Tensor
    num_queried: int

    @classmethod
    def of_cells(cls, lattice: Level, cells: Tensor) -> Bricks:
        """Return the cells marked in ``cells`` (n-1, n-1, n-1), with their corners."""
        values, exact, bound = (
            nodes.unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1)[cells]
            for nodes in (lattice.values, lattice.exact, lattice.bound)
        )
        return cls(lattice.stride, lattice.stride, cells.nonzero(), values, exact, bound, lattice.num_queried)

    def refined(self, query: Query, spec: LatticeSpec, level: float) -> Bricks:
        """Halve the stride. Queries new nodes of cells that may cross ``level``; at stride 1, only nodes close to it."""
        stride, size = self.stride // 2, 2 * self.values.shape[-1] - 1
        values = _upsample(self.values, size)
        exact = torch.zeros_like(values, dtype=torch.bool)
        exact[:, ::2, ::2, ::2] = self.exact
        wanted = nodes_of_cells(_surface_cells(self.values, self.bound, level), size) & ~exact
        if stride == 1:
            reach = dilate(_steepest_step(self.values)) / 2 + self.bound
            wanted &= (values - level).abs() <= _nearest(reach, size)
        bound = _upsample(self.bound, size) / 4
        num_queried = self._query_nodes(values, wanted, stride, query, spec)
        exact |= wanted
        if stride > 1:
            measured = dilate(~exact, torch.logical_or).logical_not_()
            bound = torch.where(measured, dilate(_curvature(values)), bound)
        return Bricks(self.parent_stride, stride, self.cells, values, exact, bound, self.num_queried + num_queried)

    def _query_nodes(self, values: Tensor, wanted: Tensor, stride: int, query: Query, spec: LatticeSpec) -> int:
        """Query wanted values in place, each node of the lattice of ``stride`` once. Returns the number of points."""
        num = spec.num_nodes(stride)
        brick, *local = wanted.nonzero().unbind(dim=-1)
        scale = self.parent_stride // stride
        ix, iy, iz = (self.cells[brick, axis] * scale + local[axis] for axis in range(3))
        outside = (ix >= num) | (iy >= num) | (iz >= num)  # the coarser lattice's last nodes may be outside the cube
        index, place = torch.unique((ix * num + iy).mul_(num).add_(iz).masked_fill_(outside, -1), return_inverse=True)
        if not len(index):
            return 0
        axis = spec.axis(stride, values.device)
        points = torch.stack([axis[index // num**2], axis[index // num % num], axis[index % num]], dim=-1)
        first = int(index[0] < 0)
        queried = torch.cat([points.new_zeros(first), query(points[first:])])
        wanted[brick[outside], local[0][outside], local[1][outside], local[2][outside]] = False
        values[wanted] = queried[place[~outside]]
        return len(index) - first


@torch.no_grad()
def surface_slabs(
    query: Query, spec: LatticeSpec, level: float = 0.0, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor, int]]:
    """Sample the full lattice ``spec`` in slabs of increasing ix, with the correct sign relative to ``level`` everywhere.

    Points next to the surface hold exact field values (all but 1 in 1000, as measured). The others are interpolated. Lattices of
    up to MAX_DENSE nodes per axis are stored densely. Finer ones store only the cells that the surface crosses.
    Yields (first ix, values (k, num, num), number of points queried since the last slab).
    """
    lattice = coarsest_level(query, spec, device)
    while lattice.stride > 2 and spec.num_nodes(lattice.stride // 2) <= MAX_DENSE:
        lattice = refine(lattice, query, spec, surface_cells(lattice, level))
    if lattice.stride == 1:
        yield 0, lattice.values, lattice.num_queried
        return
    bricks = Bricks.of_cells(lattice, surface_cells(lattice, level))
    while bricks.stride > 1:
        bricks = bricks.refined(query, spec, level)
    count = bricks.num_queried
    for start, values in _filled_slabs(lattice, bricks, spec):
        yield start, values, count
        count = 0


def _filled_slabs(lattice: Level, bricks: Bricks, spec: LatticeSpec) -> Iterator[tuple[int, Tensor]]:
    """Yield slabs of ``lattice.stride`` planes: trilinear values, overwritten by those of the bricks."""
    stride, num_coarse = lattice.stride, lattice.values.shape[0]
    num = (num_coarse - 1) * stride + 1  # nodes outside the cube are removed at the end
    position = torch.arange(num, device=lattice.values.device)
    fraction = (position % stride).to(lattice.values.dtype) / stride
    hat = torch.zeros(num, num_coarse + 1, dtype=lattice.values.dtype, device=lattice.values.device)
    hat[position, position // stride] = 1 - fraction
    hat[position, position // stride + 1] += fraction
    hat = hat[:, :num_coarse].contiguous()
    steps = torch.arange(stride + 1, device=position.device)
    offsets = (steps[:, None, None] * num + steps[:, None]) * num + steps  # (stride + 1)^3
    layers = torch.searchsorted(bricks.cells[:, 0].contiguous(), torch.arange(num_coarse + 1, device=position.device)).tolist()
    origins = (bricks.cells[:, 1] * num + bricks.cells[:, 2]) * stride
    above = hat @ lattice.values[0] @ hat.t()
    for first in range(num_coarse - 1):
        below, above = above, hat @ lattice.values[first + 1] @ hat.t()
        is_last = first == num_coarse - 2
        slab = torch.lerp(below, above, (steps[: stride + is_last, None, None] / stride).to(below.dtype))
        parts = [(slice(layers[first], layers[first + 1]), slice(0, stride + is_last))]
        if first:
            parts.append((slice(layers[first - 1], layers[first]), slice(stride, stride + 1)))
        for which_exact in (False, True):  # a node queried in one brick may be interpolated in an adjacent one
            for which, planes in parts:
                index = origins[which, None, None, None] + offsets[: planes.stop - planes.start]
                values, exact = bricks.values[which, planes], bricks.exact[which, planes]
                if which_exact:
                    slab.view(-1)[index[exact]] = values[exact]
                else:
                    slab.view(-1)[index.flatten()] = values.flatten()
        start = first * stride
        yield start, slab[: spec.num - start, : spec.num, : spec.num]


# -- arrays over nodes and cells -----------------------------------------------------------------------------------------


def over_corners(nodes: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Reduce each cell's eight corners with ``combine``: nodes (..., n, n, n) -> cells (..., n-1, n-1, n-1)."""
    for dim in AXES:
        size = nodes.shape[dim]
        nodes = combine(nodes.narrow(dim, 0, size - 1), nodes.narrow(dim, 1, size - 1))
    return nodes


def dilate(nodes: Tensor, combine: Callable[..., Tensor] = torch.maximum) -> Tensor:
    """Reduce each node and its 26 neighbors with ``combine``."""
    for dim in AXES:
        size = nodes.shape[dim]
        wide = nodes.clone()
        for a, b in ((0, 1), (1, 0)):
            part = wide.narrow(dim, a, size - 1)
            combine(part, nodes.narrow(dim, b, size - 1), out=part)
        nodes = wide
    return nodes


def _curvature(nodes: Tensor) -> Tensor:
    """Return the bound on the trilinear error: sum over axes |f(i-1) - 2 f(i) + f(i+1)| / 8. End nodes copy their neighbor."""
    total = torch.zeros_like(nodes)
    for dim in AXES:
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
    """Return the largest change from each node to the next along any axis; 0 for the last nodes."""
    largest = torch.zeros_like(nodes)
    for dim in AXES:
        size = nodes.shape[dim]
        step = (nodes.narrow(dim, 1, size - 1) - nodes.narrow(dim, 0, size - 1)).abs_()
        part = largest.narrow(dim, 0, size - 1)
        torch.maximum(part, step, out=part)
    return largest


def _upsample(nodes: Tensor, num: int, cubic: bool = False) -> Tensor:
    """Insert a node between neighbors along each axis, linearly from two or cubically from four; cut to ``num`` nodes."""
    for dim in reversed(AXES):
        size = nodes.shape[dim]
        fine = nodes.new_empty(_with_size(nodes, dim, 2 * size - 1))
        _every_second(fine, dim, 0).copy_(nodes)
        between = _every_second(fine, dim, 1)
        torch.add(nodes.narrow(dim, 0, size - 1), nodes.narrow(dim, 1, size - 1), out=between).mul_(0.5)
        if cubic and size > 3:
            outer = nodes.narrow(dim, 0, size - 3) + nodes.narrow(dim, 3, size - 3)
            between.narrow(dim, 1, size - 3).mul_(1.125).sub_(outer, alpha=1 / 16)
        nodes = fine if dim == AXES[0] else fine.narrow(dim, 0, min(num, 2 * size - 1))
    return nodes.narrow(AXES[0], 0, min(num, nodes.shape[AXES[0]]))


def nodes_of_cells(cells: Tensor, num: int) -> Tensor:
    """Mark the finer nodes inside and on the faces of marked cells: (..., a, b, c) -> (..., 2a+1, num, num)."""
    for dim in reversed(AXES):
        size = cells.shape[dim]
        fine = cells.new_zeros(_with_size(cells, dim, 2 * size + 1))
        _every_second(fine, dim, 1).copy_(cells)
        _every_second(fine.narrow(dim, 0, 2 * size), dim, 0).logical_or_(cells)
        _every_second(fine.narrow(dim, 1, 2 * size), dim, 1).logical_or_(cells)
        cells = fine if dim == AXES[0] else fine.narrow(dim, 0, min(num, 2 * size + 1))
    return cells


def children_of_cells(cells: Tensor, num: int) -> Tensor:
    """Copy each cell's mark to its children of half the side: (n, n, n) -> (num, num, num), num <= 2n."""
    for dim in AXES:
        cells = cells.repeat_interleave(2, dim=dim).narrow(dim, 0, num)
    return cells


def _nearest(nodes: Tensor, size: int) -> Tensor:
    """Upsample (K, n, n, n) to (K, size, size, size): each new node copies the node before it along each axis."""
    index = torch.arange(size, device=nodes.device) // 2
    return nodes[:, index[:, None, None], index[:, None], index]


def _every_second(nodes: Tensor, dim: int, first: int) -> Tensor:
    return nodes[(..., slice(first, None, 2), *(slice(None),) * (-1 - dim))]


def _with_size(nodes: Tensor, dim: int, size: int) -> list[int]:
    """Return the shape of ``nodes`` with ``size`` along ``dim``."""
    shape = list(nodes.shape)
    shape[dim] = size
    return shape
