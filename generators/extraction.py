"""A field on a regular lattice, asked only where its surface can be: the cost grows with the surface, not the volume.

Coarse to fine. A lattice of stride s is halved until s = 1. At each level a cell is *open* where the criterion says that
the field, known at its corners, may do something of interest inside; only the new points of open cells are asked. All
other points take the trilinear value of the coarser level: right in sign, approximate in size.

What may happen inside a cell follows from curvature. Trilinear interpolation in a cell of side s is off by at most
s^2/8 (|f_xx| + |f_yy| + |f_zz|), which second differences of the lattice estimate; each node takes the largest estimate
of its 27 neighbors. So a cell whose corners agree in sign and lie further from the level than this bound holds no
surface, however thin, as far as the coarse lattice can see the curvature at all. COARSE_SPACING is what makes it see it:
features of solids much thinner than that can be missed, and are, as with any lattice, a matter of measured rates: on the
recorded reference generator and on generators halfway through training, at psi 0.7, no sign in 256^3 differs from the dense
lattice. At psi 1 fields are rougher: of six seeds of the reference generator two had wrong signs, 5 and 2 of 64^3, and one lost
2 of 15 small pieces at 128^3 (extract_shapes.py --dense misses none). Of
balls beside a larger one (logit 200 times the signed distance; 30 random places each) it missed 5 of radius 0.002, 1 of 0.003
and none of 0.004 to 0.006; of a shell 0.001 thick, 156 signs of 128^3.

Notation: n nodes per axis at some stride; arrays (n, n, n) are indexed [ix, iy, iz].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

COARSE_SPACING = 0.01  # world units; heads are about 0.2 across and their fields bend over 0.02 or more
MAX_DENSE = 130  # nodes per axis up to which a lattice is kept whole
AXES = (-3, -2, -1)
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
    return _surface_cells(lattice.values, lattice.bound, level)


def _surface_cells(values: Tensor, bound: Tensor, level: float) -> Tensor:
    distance = values - level
    solid = distance >= 0
    straddles = over_corners(solid, torch.logical_or) & ~over_corners(solid, torch.logical_and)
    return straddles | (over_corners(distance.abs_(), torch.minimum) <= over_corners(bound, torch.maximum))


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
    level: Level, query: Query, spec: LatticeSpec, open_cells: Tensor, cubic: bool = False
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Walk the lattice of half the stride in slabs of ix, asking the new points of open cells.

    Yields (first ix, values (k, n, n), number of points asked, exact (k, n, n)).
    """
    stride = level.stride // 2
    axis = spec.axis(stride, level.values.device)
    num = len(axis)
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
        if len(index):
            ix, iy, iz = index.unbind(dim=-1)
            values[ix, iy, iz] = query(torch.stack([axis[ix + start], axis[iy], axis[iz]], dim=-1))
            exact[ix, iy, iz] = True
        yield start, values, len(index), exact


# -- the surface alone -----------------------------------------------------------------------------------------------------


class Bricks(NamedTuple):
    """What refinement makes of K cells of a lattice of stride ``parent_stride``: n^3 nodes each, at stride ``stride``.

    ``cells`` (K, 3): their indices, rising. ``values``, ``exact``, ``bound``: (K, n, n, n), as in :class:`Level`.
    """

    parent_stride: int
    stride: int
    cells: Tensor
    values: Tensor
    exact: Tensor
    bound: Tensor
    num_asked: int

    @classmethod
    def of_cells(cls, lattice: Level, cells: Tensor) -> Bricks:
        """The cells marked in ``cells`` (n-1, n-1, n-1), with their corners."""
        values, exact, bound = (
            nodes.unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1)[cells]
            for nodes in (lattice.values, lattice.exact, lattice.bound)
        )
        return cls(lattice.stride, lattice.stride, cells.nonzero(), values, exact, bound, lattice.num_asked)

    def refined(self, query: Query, spec: LatticeSpec, level: float) -> Bricks:
        """Half the stride; asked are new nodes of cells that may pass ``level``, of the last lattice only those next to it."""
        stride, size = self.stride // 2, 2 * self.values.shape[-1] - 1
        values = _upsample(self.values, size)
        exact = torch.zeros_like(values, dtype=torch.bool)
        exact[:, ::2, ::2, ::2] = self.exact
        wanted = nodes_of_cells(_surface_cells(self.values, self.bound, level), size) & ~exact
        if stride == 1:
            reach = dilate(_steepest_step(self.values)) / 2 + self.bound
            wanted &= (values - level).abs() <= _nearest(reach, size)
        bound = _upsample(self.bound, size) / 4
        num_asked = self._ask(values, wanted, stride, query, spec)
        exact |= wanted
        if stride > 1:
            measured = dilate(~exact, torch.logical_or).logical_not_()
            bound = torch.where(measured, dilate(_curvature(values)), bound)
        return Bricks(self.parent_stride, stride, self.cells, values, exact, bound, self.num_asked + num_asked)

    def _ask(self, values: Tensor, wanted: Tensor, stride: int, query: Query, spec: LatticeSpec) -> int:
        """Replace wanted values, asking for each node of the lattice of ``stride`` once. Returns how many points that is."""
        num = spec.num_nodes(stride)
        brick, *local = wanted.nonzero().unbind(dim=-1)
        scale = self.parent_stride // stride
        ix, iy, iz = (self.cells[brick, axis] * scale + local[axis] for axis in range(3))
        outside = (ix >= num) | (iy >= num) | (iz >= num)  # the coarser lattice's last nodes lie beyond the cube
        index, place = torch.unique((ix * num + iy).mul_(num).add_(iz).masked_fill_(outside, -1), return_inverse=True)
        if not len(index):
            return 0
        axis = spec.axis(stride, values.device)
        points = torch.stack([axis[index // num**2], axis[index // num % num], axis[index % num]], dim=-1)
        first = int(index[0] < 0)
        asked = torch.cat([points.new_zeros(first), query(points[first:])])
        wanted[brick[outside], local[0][outside], local[1][outside], local[2][outside]] = False
        values[wanted] = asked[place[~outside]]
        return len(index) - first


@torch.no_grad()
def surface_slabs(
    query: Query, spec: LatticeSpec, level: float = 0.0, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Tensor, int]]:
    """The whole lattice ``spec``, in slabs of rising ix, right in sign about ``level`` everywhere.

    Points next to the surface hold the field's own values (all but 1 in 1000, as measured), the others interpolated ones.
    Lattices of up to MAX_DENSE nodes per axis are kept whole; of finer ones, the cells that the surface passes.
    Yields (first ix, values (k, num, num), number of points asked since the last slab).
    """
    lattice = coarsest_level(query, spec, device)
    while lattice.stride > 2 and spec.num_nodes(lattice.stride // 2) <= MAX_DENSE:
        lattice = refine(lattice, query, spec, surface_cells(lattice, level))
    if lattice.stride == 1:
        yield 0, lattice.values, lattice.num_asked
        return
    bricks = Bricks.of_cells(lattice, surface_cells(lattice, level))
    while bricks.stride > 1:
        bricks = bricks.refined(query, spec, level)
    asked = bricks.num_asked
    for start, values in _filled_slabs(lattice, bricks, spec):
        yield start, values, asked
        asked = 0


def _filled_slabs(lattice: Level, bricks: Bricks, spec: LatticeSpec) -> Iterator[tuple[int, Tensor]]:
    """Slabs of ``lattice.stride`` planes: trilinear, and what the bricks know in its place."""
    stride, num_coarse = lattice.stride, lattice.values.shape[0]
    num = (num_coarse - 1) * stride + 1  # nodes that lie beyond the cube are cut at the end
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
        for which_exact in (False, True):  # what was asked for in one brick may be interpolated in the next
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
    """(..., n, n, n) at nodes -> (..., n-1, n-1, n-1): ``combine`` over each cell's eight corners."""
    for dim in AXES:
        size = nodes.shape[dim]
        nodes = combine(nodes.narrow(dim, 0, size - 1), nodes.narrow(dim, 1, size - 1))
    return nodes


def dilate(nodes: Tensor, combine: Callable[..., Tensor] = torch.maximum) -> Tensor:
    """``combine`` over each node and its 26 neighbors."""
    for dim in AXES:
        size = nodes.shape[dim]
        wide = nodes.clone()
        for a, b in ((0, 1), (1, 0)):
            part = wide.narrow(dim, a, size - 1)
            combine(part, nodes.narrow(dim, b, size - 1), out=part)
        nodes = wide
    return nodes


def _curvature(nodes: Tensor) -> Tensor:
    """sum over axes |f(i-1) - 2 f(i) + f(i+1)| / 8, the bound on trilinear interpolation's error; ends copy their neighbor."""
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
    """The largest change from each node to its next along an axis; 0 from the last ones."""
    largest = torch.zeros_like(nodes)
    for dim in AXES:
        size = nodes.shape[dim]
        step = (nodes.narrow(dim, 1, size - 1) - nodes.narrow(dim, 0, size - 1)).abs_()
        part = largest.narrow(dim, 0, size - 1)
        torch.maximum(part, step, out=part)
    return largest


def _upsample(nodes: Tensor, num: int, cubic: bool = False) -> Tensor:
    """One new node between any two, cut to ``num`` along iy and iz: the mean of two, or the cubic through four, per axis."""
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
    """True at the finer nodes inside and on the faces of marked cells: (..., a, b, c) -> (..., 2a+1, num, num)."""
    for dim in reversed(AXES):
        size = cells.shape[dim]
        fine = cells.new_zeros(_with_size(cells, dim, 2 * size + 1))
        _every_second(fine, dim, 1).copy_(cells)
        _every_second(fine.narrow(dim, 0, 2 * size), dim, 0).logical_or_(cells)
        _every_second(fine.narrow(dim, 1, 2 * size), dim, 1).logical_or_(cells)
        cells = fine if dim == AXES[0] else fine.narrow(dim, 0, min(num, 2 * size + 1))
    return cells


def children_of_cells(cells: Tensor, num: int) -> Tensor:
    """Cells of half the side take their parent's mark: (n, n, n) -> (num, num, num), num <= 2n."""
    for dim in AXES:
        cells = cells.repeat_interleave(2, dim=dim).narrow(dim, 0, num)
    return cells


def _nearest(nodes: Tensor, size: int) -> Tensor:
    """(K, n, n, n) -> (K, size, size, size): each new node takes the value of the one before it, per axis."""
    index = torch.arange(size, device=nodes.device) // 2
    return nodes[:, index[:, None, None], index[:, None], index]


def _every_second(nodes: Tensor, dim: int, first: int) -> Tensor:
    return nodes[(..., slice(first, None, 2), *(slice(None),) * (-1 - dim))]


def _with_size(nodes: Tensor, dim: int, size: int) -> list[int]:
    """The shape of ``nodes`` with another size along ``dim``."""
    shape = list(nodes.shape)
    shape[dim] = size
    return shape
