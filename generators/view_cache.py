"""Many views of one latent: what they share is asked once.

A view asks the same field at almost the same places as the next one. :func:`build_cache` puts the occupancy logits of the
part of space that given cameras see on a lattice, fine where an error would show (near the surface, in front of it) and
coarse elsewhere. A :class:`CachedField` then answers for the field: from the lattice where that is known to be good
enough, from the field where it is not. Rendering stays the one path of generators/renderer.py; what is asked of the field:

- coarse samples and the steps of root finding: within ``ASK_LEVEL`` logits of the surface and at both ends of the first step
  into a solid, so that roots are the field's own; and where a weight would change with the logit (``ASK_COARSE``);
- composited samples: a few per ray (``num_colors``), spread over the weight that the lattice predicts, and those with which
  the depth of a ray that hits would change (``ASK_SLOPE``). There logit and color are the field's; between them colors are
  interpolated along the ray;
- what the lattice does not know well, unless it is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from generators import volume_rendering
from generators.cameras import CameraPoses, Rays, camera_rays
from generators.extraction import (
    LatticeSpec,
    Level,
    children_of_cells,
    coarsest_level,
    dilate,
    over_corners,
    refine,
    refine_in_slabs,
)
from generators.renderer import RenderSettings, ray_points, render
from siren.field import Field

FINE_SPACING = 0.00125  # world units: about a pixel and a half of a 128 px image of 12 degrees
MAX_NODES = 320  # per axis, whatever the cameras: 131 MB
ALPHA_TOLERANCE = 0.008  # of a cached occupancy, by the cautious bound of extraction.py; what is found is some ten times less
CUBIC_GAIN = 0.25  # error of tricubic over trilinear interpolation: 0.3 at twice the spacing, less at this one
CUBIC_BLOCK = 1 << 15  # points interpolated at a time
ASK_LEVEL = 0.5
ASK_COARSE = 0.014  # of coarse samples: change of their weight with their logit, from which the surface's ray is asked
ASK_SLOPE = 1e-3  # of composited samples: change of the ray's depth with their logit, world units
DIM = 0.1  # transmittance below which a cell may be known ten times less well
UNKNOWN, ROUGH, FAIR, FINE = range(4)  # how well a cell is known
COLORS_TO_TRY = (1, 2, 3, 4, 6, 8, 12, 16, 1000)
NUM_TRIAL_RAYS, TRIAL_PSNR_DB = 1024, 48.0  # 3 dB above what an image has to reach
COARSE_STRIDE = 8  # where the lattice starts
MARCH_STRIDE, MARCH_STEPS = 4, 96  # the lattice in which what cameras see is found, and the steps along a ray
VISIBLE_TRANSMITTANCE = 1e-3


class CachedField:
    """A field of one latent that answers from a lattice where it can. See the module's docstring, and siren.field.Field.

    ``num_asked`` counts the points that the field itself was asked, those of the lattice included. ``trial_psnr_db``: of the
    pixels that were tried out against the field when this was built; infinite before.
    """

    batch_size = 1

    def __init__(self, field: Field, spec: LatticeSpec, values: Tensor, quality: Tensor, num_asked: int, level: float) -> None:
        """``values``: logits (n, n, n) on ``spec``. ``level``: the logit at the surface.

        ``quality``: how well each cell of twice the spacing is known: UNKNOWN; ROUGH, for what is left of a ray below DIM; FAIR;
        or FINE, where all values are the field's own. What lies outside of the lattice is UNKNOWN.
        """
        self._field, self._level, self.num_asked = field, level, num_asked
        self._values, self._quality, self._spec = values, quality, spec
        self.num_colors = COLORS_TO_TRY[-1]
        self.trial_psnr_db = math.inf

    def lookup(self, points: Tensor, cubic: bool = True) -> tuple[Tensor, Tensor]:
        """Interpolated logits and their quality, (N,) each, at points (1, N, 3). ``cubic``: with four points per axis if FINE."""
        logits = _interpolate(self._values, self._spec.low, self._spec.spacing * (self._spec.num - 1), points)[0]
        position = (points[0] - self._spec.low) / self._spec.spacing
        last = self._spec.num - 2.001
        outside = (position < 1).logical_or_(position > last).any(dim=-1)
        position.clamp_(1, last)
        quality = self._quality[tuple((position * 0.5).long().t())].masked_fill_(outside, UNKNOWN)
        if cubic:
            for part in (quality == FINE).nonzero().squeeze(-1).split(CUBIC_BLOCK):
                logits[part] = _interpolate_cubic(self._values, position[part])
        return logits, quality

    def occupancy_logits(self, points: Tensor) -> Tensor:
        logits, quality = self.lookup(points)
        self._ask(logits, ((logits - self._level).abs() <= ASK_LEVEL) | (quality < FAIR), points)
        return logits.unsqueeze(0)

    def _ask(self, logits: Tensor, asked: Tensor, points: Tensor) -> None:
        """Replace ``logits`` (...) where ``asked`` (...) by the field's own; points (1, N, 3)."""
        index = asked.flatten().nonzero().squeeze(-1)
        if len(index):
            self.num_asked += len(index)
            logits.view(-1)[index] = self._field.occupancy_logits(points[:, index])[0]

    def occupancy_logits_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        """origins and unit directions (1, R, 3), rising t (1, R, S) -> (1, R, S), for finding surfaces and where to sample.

        Asked are samples near the level, what is not known before the ray enters a solid, both ends of the step into it, and,
        while some of the ray is left, samples whose weight is in doubt.
        """
        points = ray_points(Rays(origins, directions), t)
        if t.shape[-1] == 1:
            return self.occupancy_logits(points).view(t.shape)
        logits, quality = (part.view(t.shape[1:]) for part in self.lookup(points, cubic=False))
        alphas = torch.sigmoid(logits)
        left = volume_rendering.compute_transmittance(alphas * (quality > UNKNOWN))
        known = _is_enough(quality, left)
        enters = self._enters(logits)
        num_entered = enters.cumsum(dim=1)
        first = enters & (num_entered == 1)
        doubt = torch.where(known, alphas * (1 - alphas) * enters.any(dim=1, keepdim=True), 0.25)
        near = ((logits - self._level).abs() <= ASK_LEVEL) & (left > VISIBLE_TRANSMITTANCE)
        asked = near | first | (~known & (num_entered == 0)) | (left * doubt > ASK_COARSE)
        asked[:, :-1] |= first[:, 1:]
        self._ask(logits, asked, points)
        return logits.unsqueeze(0)

    def _enters(self, logits: Tensor) -> Tensor:
        """(R, S) bool: solid samples behind a free one."""
        solid = logits >= self._level
        return solid & ~torch.cat([torch.ones_like(solid[:, :1]), solid[:, :-1]], dim=1)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self.num_asked += points.shape[1]
        return self._field.logits_and_colors(points, directions)

    def normals(self, points: Tensor) -> Tensor:
        self.num_asked += 2 * points.shape[1]  # a gradient is the work of two logits
        return self._field.normals(points)

    def logits_and_colors_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """origins and unit directions (1, R, 3), rising t (1, R, S) -> (1, R, S) and (1, R, S, 3)."""
        points = ray_points(Rays(origins, directions), t)
        logits, quality = (part.view(t.shape[1:]) for part in self.lookup(points))
        left = volume_rendering.compute_transmittance(torch.sigmoid(logits) * (quality > UNKNOWN))
        self._ask(logits, ~_is_enough(quality, left), points)
        alphas = torch.sigmoid(logits)
        asked = _worth_asking(alphas, self.num_colors)
        asked |= (_depth_slopes(alphas, t[0]) > ASK_SLOPE) & self._enters(logits).any(dim=1, keepdim=True)
        ray, sample = asked.nonzero().unbind(dim=-1)
        self.num_asked += len(ray)
        points = points.view(*t.shape, 3)
        asked_logits, asked_colors = self._field.logits_and_colors(points[:, ray, sample], directions[:, ray])
        logits[ray, sample] = asked_logits[0]
        return logits.unsqueeze(0), _interpolate_along(asked, asked_colors[0], t[0]).unsqueeze(0)


def _is_enough(quality: Tensor, left: Tensor) -> Tensor:
    """Whether a cell's quality is enough for a sample that the share ``left`` of its ray reaches; both (R, S)."""
    return (quality >= FAIR) | ((quality == ROUGH) & (left <= 4 * DIM))


def _worth_asking(alphas: Tensor, num: int) -> Tensor:
    """alphas (R, S) -> (R, S) bool: the samples at the middles of ``num`` equal parts of the ray's weight; at least one.

    Weight that no sample takes counts as the last one's, to which ``last_back`` gives it.
    """
    weights = volume_rendering.add_remainder_to_last(volume_rendering.compute_weights(alphas))
    quantiles = (torch.arange(num, device=alphas.device, dtype=alphas.dtype) + 0.5) / num
    index = torch.searchsorted(weights.cumsum(dim=-1), quantiles.expand(len(alphas), -1).contiguous())
    return torch.zeros_like(alphas, dtype=torch.bool).scatter_(1, index.clamp(max=alphas.shape[1] - 1), True)


def _depth_slopes(alphas: Tensor, t: Tensor) -> Tensor:
    """(R, S): how fast a ray's depth changes with each sample's logit, in absolute value.

    d depth / d alpha_i = transmittance_i (t_i - depth of what lies behind i); d alpha / d logit = alpha (1 - alpha).
    """
    transmittance = volume_rendering.compute_transmittance(alphas)
    weights = volume_rendering.add_remainder_to_last(alphas * transmittance)
    weighted = weights * t
    behind = (weighted.flip(1).cumsum(dim=1).flip(1) - weighted) / (transmittance * (1 - alphas)).clamp_min(1e-9)
    slopes = (transmittance * alphas * (1 - alphas) * (t - behind)).abs()
    slopes[:, -1] = 0  # nothing lies behind the last one, which takes what is left of the ray
    return slopes


def _asked_neighbors(asked: Tensor) -> tuple[Tensor, Tensor]:
    """(R, S) bool -> indices (R, S) of the asked samples before and behind each, itself included; the same one at the ends."""
    last = asked.shape[1] - 1
    sample = torch.arange(last + 1, device=asked.device).expand_as(asked)
    left = torch.where(asked, sample, -1).cummax(dim=1).values
    right = last - torch.where(asked, sample, last + 1).sub(last).neg().flip(1).cummax(dim=1).values.flip(1)
    return torch.where(left < 0, right, left), torch.where(right > last, left, right)


def _interpolate_along(asked: Tensor, colors: Tensor, t: Tensor) -> Tensor:
    """Colors (K, 3) of the asked samples (R, S), row by row -> (R, S, 3): linear in t between them, constant beyond."""
    left, right = _asked_neighbors(asked)
    t_left, t_right = t.gather(1, left), t.gather(1, right)
    fraction = ((t - t_left) / (t_right - t_left).clamp_min(1e-9)).clamp_(0, 1)
    rank = asked.flatten().cumsum(0).sub_(1).view_as(left)
    return torch.lerp(colors[rank.gather(1, left)], colors[rank.gather(1, right)], fraction.unsqueeze(-1))


def _interpolate(values: Tensor, low: float, length: float, points: Tensor) -> Tensor:
    """Trilinear values (1, N) of nodes (n, n, n) that fill a cube; clamped to it. points: (1, N, 3), world."""
    grid = ((points[0] - low) * (2 / length) - 1).flip(-1)
    num = len(grid)
    parts = max(1, min(num, torch.get_num_threads()))  # on a CPU, grid_sample spreads a batch over threads, and only that
    grid = F.pad(grid, (0, 0, 0, -num % parts)).view(parts, 1, 1, -1, 3)
    volume = values.expand(parts, 1, -1, -1, -1)
    return F.grid_sample(volume, grid, padding_mode="border", align_corners=True).view(1, -1)[:, :num]


def _interpolate_cubic(values: Tensor, position: Tensor) -> Tensor:
    """Tricubic (four-point Lagrange) values (K,) at ``position`` (K, 3), in spacings, at least 1 from the borders."""
    num = values.shape[0]
    base = position.floor()
    u = position - base
    weights = torch.stack(
        [u * (u - 1) * (2 - u) / 6, (u + 1) * (u - 1) * (u - 2) / 2, (u + 1) * u * (2 - u) / 2, (u + 1) * u * (u - 1) / 6], dim=-1
    )  # (K, 3, 4)
    steps = torch.arange(-1, 3, device=values.device)
    offsets = ((steps[:, None, None] * num + steps[:, None]) * num + steps).flatten()
    ix, iy, iz = base.long().unbind(dim=-1)
    corners = values.view(-1)[((ix * num + iy) * num + iz).unsqueeze(-1) + offsets].view(-1, 16, 4)
    along_z = (corners @ weights[:, 2].unsqueeze(-1)).view(-1, 4, 4)
    return ((along_z @ weights[:, 1].unsqueeze(-1)).squeeze(-1) * weights[:, 0]).sum(dim=-1)


# -- building ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def build_cache(field: Field, rays: Rays, settings: RenderSettings) -> CachedField:
    """Cache what cameras to come will see of a field of one latent.

    Args:
        field: an occupancy field (``settings.pred_occ``) of one latent.
        rays: (1, R), a coarse image of each camera. Others may be rendered as well: what they see beyond is asked.
        settings: as the views will be rendered.

    How many colors a ray needs is tried out on NUM_TRIAL_RAYS of the rays, against the field itself. Fields that bend within
    less than COARSE_STRIDE spacings may disagree with any number: ``trial_psnr_db`` tells.
    """
    ends = torch.cat([rays.origins + t * rays.directions for t in (settings.t_near, settings.t_far)], dim=1)
    half = float(ends.abs().max()) + 2 * FINE_SPACING
    spec = LatticeSpec.of_cube(2 * half, min(MAX_NODES, int(2 * half / FINE_SPACING) + 2))
    level = math.log(settings.tau / (1 - settings.tau))
    cache = CachedField(field, spec, *_fill_lattice(field, spec, rays, settings), level)
    cache.num_colors, cache.trial_psnr_db = _enough_colors(cache, field, rays, settings)
    return cache


def view_rays(poses: CameraPoses, fov_degrees: Sequence[float], size: int = 64) -> Rays:
    """The rays (1, P size^2) of coarse images from P poses, for :func:`build_cache`."""
    views = [camera_rays(CameraPoses(*(part[i : i + 1] for part in poses)), size, fov) for i, fov in enumerate(fov_degrees)]
    return Rays(*(torch.cat(parts, dim=1) for parts in zip(*views, strict=True)))


def _fill_lattice(field: Field, spec: LatticeSpec, rays: Rays, settings: RenderSettings) -> tuple[Tensor, Tensor, int]:
    """``values``, ``quality`` and ``num_asked`` of :class:`CachedField`."""

    def query(points: Tensor) -> Tensor:
        return field.occupancy_logits(points.unsqueeze(0))[0]

    lattice = coarsest_level(query, spec, rays.origins.device, max_spacing=COARSE_STRIDE * 1.5 * spec.spacing)
    while lattice.stride > MARCH_STRIDE:
        lattice = refine(lattice, query, spec, _cell_errors(lattice) > ALPHA_TOLERANCE, cubic=True)
    seen = _seen_cells(lattice, spec, rays, settings)
    bright = _seen_cells(lattice, spec, rays, settings, DIM)
    unknown, rough = torch.zeros_like(seen), torch.zeros_like(seen)
    while True:
        errors = _cell_errors(lattice)
        wrong, wanted = errors > ALPHA_TOLERANCE, errors > torch.where(bright, ALPHA_TOLERANCE, ALPHA_TOLERANCE / DIM)
        unknown |= wrong & ~seen
        rough |= wrong & ~wanted
        wanted &= seen
        if lattice.stride == 2:
            break
        lattice = refine(lattice, query, spec, wanted, cubic=True)
        num = lattice.values.shape[0] - 1
        seen, bright, unknown, rough = (children_of_cells(cells, num) for cells in (seen, bright, unknown, rough))

    # half the spacing quarters the bound, and all corners being exact, four points per axis do better than two
    still_wrong = errors * (0.25 * CUBIC_GAIN) > ALPHA_TOLERANCE
    fine = wanted & ~still_wrong
    values = lattice.values.new_empty((spec.num,) * 3)
    num_asked = lattice.num_asked
    for start, slab, asked, _ in refine_in_slabs(lattice, query, spec, fine, cubic=True):
        values[start : start + len(slab)] = slab
        num_asked += asked
    quality = torch.full(fine.shape, FAIR, dtype=torch.uint8, device=fine.device)
    for cells, value in ((fine, FINE), (rough, ROUGH), (unknown | (wanted & still_wrong), UNKNOWN)):
        quality.masked_fill_(cells, value)
    return values, quality, num_asked


def _cell_errors(lattice: Level) -> Tensor:
    """By how much interpolating inside of a cell may be off, in occupancy."""
    bound = over_corners(lattice.bound, torch.maximum)
    flattest = (over_corners(lattice.values.abs(), torch.minimum) - bound).clamp_(min=0)
    alpha = torch.sigmoid(-flattest)
    return bound * alpha * (1 - alpha)


def _seen_cells(
    lattice: Level, spec: LatticeSpec, rays: Rays, settings: RenderSettings, transmittance: float = VISIBLE_TRANSMITTANCE
) -> Tensor:
    """True for cells that more than ``transmittance`` of some ray reaches, and their neighbors."""
    num = lattice.values.shape[0]
    spacing = spec.spacing * lattice.stride
    seen = torch.zeros((num - 1,) * 3, dtype=torch.bool, device=lattice.values.device)
    t = torch.linspace(settings.t_near, settings.t_far, MARCH_STEPS, device=lattice.values.device)
    for origins, directions in zip(rays.origins.split(1 << 13, dim=1), rays.directions.split(1 << 13, dim=1), strict=True):
        points = ray_points(Rays(origins, directions), t.expand(1, origins.shape[1], -1))
        logits = _interpolate(lattice.values, spec.low, spacing * (num - 1), points).view(-1, len(t))
        survival = torch.cumprod(1 - torch.sigmoid(logits), dim=-1)
        reached = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=-1) > transmittance
        cell = ((points[0][reached.flatten()] - spec.low) / spacing).long().clamp_(0, num - 2)
        seen[tuple(cell.t())] = True
    return dilate(seen, torch.logical_or)


def _enough_colors(cache: CachedField, field: Field, rays: Rays, settings: RenderSettings) -> tuple[int, float]:
    """The fewest colors per ray that give TRIAL_PSNR_DB on a sample of the rays, else the most; and what they give."""
    stride = max(1, rays.origins.shape[1] // NUM_TRIAL_RAYS)
    trial = Rays(rays.origins[:, ::stride], rays.directions[:, ::stride])
    truth = render(field, trial, settings).rgb
    cache.num_asked += trial.origins.shape[1] * (settings.num_coarse + settings.num_surface + settings.num_fine)
    psnr_db = 0.0
    for num in COLORS_TO_TRY:
        cache.num_colors = num
        error = float((render(cache, trial, settings).rgb - truth).square().mean())
        psnr_db = -10 * math.log10(max(error, 1e-12))
        if psnr_db >= TRIAL_PSNR_DB:
            break
    return cache.num_colors, psnr_db
