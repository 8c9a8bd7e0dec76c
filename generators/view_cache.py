"""A cache that shares field queries between many views of one latent.

Adjacent views query the same field at almost the same points. :func:`build_cache` samples the occupancy logits of the space that
given cameras see on a lattice, which is fine where errors would be visible (near and in front of the surface) and coarse
elsewhere. A :class:`CachedField` then replaces the field: it interpolates on the lattice where that is accurate enough, and
queries the field elsewhere. Rendering still uses the single path of generators/renderer.py. The field itself is queried at:

- coarse samples and root-finding steps within ``QUERY_LEVEL`` logits of the surface, and both ends of the first step into a
  solid, so that roots are exact; also where a weight is sensitive to the logit (``QUERY_COARSE``);
- a few composited samples per ray (``num_colors``), spread over the weight that the lattice predicts, and those to which the
  depth of a ray that hits is sensitive (``QUERY_SLOPE``). Logits and colors are exact there. In between, colors are interpolated
  along the ray;
- visible points that the lattice does not represent accurately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.psnr import psnr_db
from fields.interface import Field
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

FINE_SPACING = 0.00125  # world units: about a pixel and a half of a 128 px image of 12 degrees
MAX_NODES = 320  # per axis, for any cameras: 131 MB
ALPHA_TOLERANCE = 0.008  # of cached occupancy, by the conservative bound of extraction.py; actual errors are about a tenth
CUBIC_GAIN = 0.25  # ratio of tricubic to trilinear error: 0.3 at twice the spacing, less at this one
CUBIC_BLOCK = 1 << 15  # points interpolated at a time
QUERY_LEVEL = 0.5
QUERY_COARSE = 0.014  # least sensitivity of a coarse sample's weight to its logit that triggers a query
QUERY_SLOPE = 1e-3  # least sensitivity of a ray's depth to a composited sample's logit that triggers a query, world units
DIM = 0.1  # transmittance below which a cell may be ten times less accurate
UNKNOWN, ROUGH, FAIR, FINE = range(4)  # accuracy of a cell
COLORS_TO_TRY = (1, 2, 3, 4, 6, 8, 12, 16, 1000)
NUM_TRIAL_RAYS, TRIAL_PSNR_DB = 1024, 48.0  # 3 dB above the requirement for an image
COARSE_STRIDE = 8  # initial stride of the lattice
MARCH_STRIDE, MARCH_STEPS = 4, 96  # lattice in which visible cells are found, and steps along each ray
VISIBLE_TRANSMITTANCE = 1e-3


class CachedField:
    """A field of one latent that interpolates on a lattice where possible. See the module's docstring and fields.interface.Field.

    ``num_queried``: number of queries of the field itself, including those of the lattice. ``trial_psnr_db``: PSNR of the pixels
    that were compared with the field when the cache was built; infinite before that.
    """

    batch_size = 1

    def __init__(self, field: Field, spec: LatticeSpec, values: Tensor, quality: Tensor, num_queried: int, level: float) -> None:
        """``values``: logits (n, n, n) on ``spec``. ``level``: the logit at the surface.

        ``quality``: accuracy of each cell of twice the spacing: UNKNOWN; ROUGH, sufficient for a transmittance below DIM; FAIR;
        or FINE, where all values are exact. Points outside the lattice are UNKNOWN.
        """
        self._field, self._level, self.num_queried = field, level, num_queried
        self._values, self._quality, self._spec = values, quality, spec
        self.num_colors = COLORS_TO_TRY[-1]
        self.trial_psnr_db = math.inf

    def lookup(self, points: Tensor, cubic: bool = True) -> tuple[Tensor, Tensor]:
        """Return interpolated logits and their quality, (N,) each, at points (1, N, 3). ``cubic``: tricubic values where FINE."""
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
        self._query_field(logits, ((logits - self._level).abs() <= QUERY_LEVEL) | (quality < FAIR), points)
        return logits.unsqueeze(0)

    def _query_field(self, logits: Tensor, queried: Tensor, points: Tensor) -> None:
        """Replace ``logits`` (...) where ``queried`` (...) by exact ones, in place; points (1, N, 3)."""
        index = queried.flatten().nonzero().squeeze(-1)
        if len(index):
            self.num_queried += len(index)
            logits.view(-1)[index] = self._field.occupancy_logits(points[:, index])[0]

    def occupancy_logits_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        """Return logits (1, R, S) at increasing t (1, R, S) on rays (1, R, 3), for root finding and sampling.

        Queries the field at samples near the level, inaccurate samples before the ray enters a solid, both ends of the step into
        it, and samples whose weight is uncertain while the transmittance is not negligible.
        """
        points = ray_points(Rays(origins, directions), t)
        if t.shape[-1] == 1:
            return self.occupancy_logits(points).view(t.shape)
        logits, quality = (part.view(t.shape[1:]) for part in self.lookup(points, cubic=False))
        alphas = torch.sigmoid(logits)
        transmittance = volume_rendering.compute_transmittance(alphas * (quality > UNKNOWN))
        known = _is_sufficient(quality, transmittance)
        enters = self._enters(logits)
        num_entered = enters.cumsum(dim=1)
        first = enters & (num_entered == 1)
        uncertainty = torch.where(known, alphas * (1 - alphas) * enters.any(dim=1, keepdim=True), 0.25)
        near = ((logits - self._level).abs() <= QUERY_LEVEL) & (transmittance > VISIBLE_TRANSMITTANCE)
        queried = near | first | (~known & (num_entered == 0)) | (transmittance * uncertainty > QUERY_COARSE)
        queried[:, :-1] |= first[:, 1:]
        self._query_field(logits, queried, points)
        return logits.unsqueeze(0)

    def _enters(self, logits: Tensor) -> Tensor:
        """Return a mask (R, S) of solid samples that follow a free one."""
        solid = logits >= self._level
        return solid & ~torch.cat([torch.ones_like(solid[:, :1]), solid[:, :-1]], dim=1)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self.num_queried += points.shape[1]
        return self._field.logits_and_colors(points, directions)

    def normals(self, points: Tensor) -> Tensor:
        self.num_queried += 2 * points.shape[1]  # a gradient costs as much as two logits
        return self._field.normals(points)

    def logits_and_colors_on_rays(self, origins: Tensor, directions: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (1, R, S) and colors (1, R, S, 3) at increasing t (1, R, S) on rays (1, R, 3)."""
        points = ray_points(Rays(origins, directions), t)
        logits, quality = (part.view(t.shape[1:]) for part in self.lookup(points))
        transmittance = volume_rendering.compute_transmittance(torch.sigmoid(logits) * (quality > UNKNOWN))
        self._query_field(logits, ~_is_sufficient(quality, transmittance), points)
        alphas = torch.sigmoid(logits)
        queried = _samples_to_query(alphas, self.num_colors)
        queried |= (_depth_slopes(alphas, t[0]) > QUERY_SLOPE) & self._enters(logits).any(dim=1, keepdim=True)
        ray, sample = queried.nonzero().unbind(dim=-1)
        self.num_queried += len(ray)
        points = points.view(*t.shape, 3)
        queried_logits, queried_colors = self._field.logits_and_colors(points[:, ray, sample], directions[:, ray])
        logits[ray, sample] = queried_logits[0]
        return logits.unsqueeze(0), _interpolate_along(queried, queried_colors[0], t[0]).unsqueeze(0)


def _is_sufficient(quality: Tensor, transmittance: Tensor) -> Tensor:
    """Return where the quality of a sample's cell suffices for its transmittance; all (R, S)."""
    return (quality >= FAIR) | ((quality == ROUGH) & (transmittance <= 4 * DIM))


def _samples_to_query(alphas: Tensor, num: int) -> Tensor:
    """Return a mask (R, S) of the samples at the midpoints of ``num`` equal parts of each ray's weight; at least one per ray.

    The remaining weight counts toward the last sample, as with ``last_back``.
    """
    weights = volume_rendering.add_remainder_to_last(volume_rendering.compute_weights(alphas))
    quantiles = (torch.arange(num, device=alphas.device, dtype=alphas.dtype) + 0.5) / num
    index = torch.searchsorted(weights.cumsum(dim=-1), quantiles.expand(len(alphas), -1).contiguous())
    return torch.zeros_like(alphas, dtype=torch.bool).scatter_(1, index.clamp(max=alphas.shape[1] - 1), True)


def _depth_slopes(alphas: Tensor, t: Tensor) -> Tensor:
    """Return |d depth / d logit| of each sample, (R, S).

    d depth / d alpha_i = transmittance_i (t_i - depth of the samples behind i); d alpha / d logit = alpha (1 - alpha).
    """
    transmittance = volume_rendering.compute_transmittance(alphas)
    weights = volume_rendering.add_remainder_to_last(alphas * transmittance)
    weighted = weights * t
    behind = (weighted.flip(1).cumsum(dim=1).flip(1) - weighted) / (transmittance * (1 - alphas)).clamp_min(1e-9)
    slopes = (transmittance * alphas * (1 - alphas) * (t - behind)).abs()
    slopes[:, -1] = 0  # no sample is behind the last one, which takes the remaining weight
    return slopes


def _queried_neighbors(queried: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices (R, S) of the nearest queried samples before and after each, itself included; equal beyond the ends."""
    last = queried.shape[1] - 1
    sample = torch.arange(last + 1, device=queried.device).expand_as(queried)
    left = torch.where(queried, sample, -1).cummax(dim=1).values
    right = last - torch.where(queried, sample, last + 1).sub(last).neg().flip(1).cummax(dim=1).values.flip(1)
    return torch.where(left < 0, right, left), torch.where(right > last, left, right)


def _interpolate_along(queried: Tensor, colors: Tensor, t: Tensor) -> Tensor:
    """Interpolate colors (K, 3) of the queried samples (R, S), row by row, to (R, S, 3): linear in t, constant beyond."""
    left, right = _queried_neighbors(queried)
    t_left, t_right = t.gather(1, left), t.gather(1, right)
    fraction = ((t - t_left) / (t_right - t_left).clamp_min(1e-9)).clamp_(0, 1)
    rank = queried.flatten().cumsum(0).sub_(1).view_as(left)
    return torch.lerp(colors[rank.gather(1, left)], colors[rank.gather(1, right)], fraction.unsqueeze(-1))


def _interpolate(values: Tensor, low: float, length: float, points: Tensor) -> Tensor:
    """Interpolate nodes (n, n, n) of a cube trilinearly -> (1, N). points: (1, N, 3), world, clamped to the cube."""
    grid = ((points[0] - low) * (2 / length) - 1).flip(-1)
    num = len(grid)
    parts = max(1, min(num, torch.get_num_threads()))  # on a CPU, grid_sample only parallelizes over the batch
    grid = F.pad(grid, (0, 0, 0, -num % parts)).view(parts, 1, 1, -1, 3)
    volume = values.expand(parts, 1, -1, -1, -1)
    return F.grid_sample(volume, grid, padding_mode="border", align_corners=True).view(1, -1)[:, :num]


def _interpolate_cubic(values: Tensor, position: Tensor) -> Tensor:
    """Interpolate tricubically (four-point Lagrange) -> (K,). ``position`` (K, 3), in spacings, at least 1 from the borders."""
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


# -- construction --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def build_cache(field: Field, rays: Rays, settings: RenderSettings) -> CachedField:
    """Build a cache of the space of a field of one latent that given cameras see.

    Args:
        field: an occupancy field (``settings.pred_occ``) of one latent.
        rays: (1, R), a coarse image of each camera. Other rays can be rendered too. They query the field outside that space.
        settings: render settings of the views.

    The number of colors per ray is chosen by comparing NUM_TRIAL_RAYS of the rays with the field itself. Fields that curve within
    less than COARSE_STRIDE spacings may not reach the target with any number. ``trial_psnr_db`` reports the result.
    """
    ends = torch.cat([rays.origins + t * rays.directions for t in (settings.t_near, settings.t_far)], dim=1)
    half = float(ends.abs().max()) + 2 * FINE_SPACING
    spec = LatticeSpec.of_cube(2 * half, min(MAX_NODES, int(2 * half / FINE_SPACING) + 2))
    level = math.log(settings.tau / (1 - settings.tau))
    cache = CachedField(field, spec, *_fill_lattice(field, spec, rays, settings), level)
    cache.num_colors, cache.trial_psnr_db = _choose_num_colors(cache, field, rays, settings)
    return cache


def view_rays(poses: CameraPoses, fov_degrees: Sequence[float], size: int = 64) -> Rays:
    """Return the rays (1, P size^2) of coarse images from P poses, for :func:`build_cache`."""
    views = [camera_rays(CameraPoses(*(part[i : i + 1] for part in poses)), size, fov) for i, fov in enumerate(fov_degrees)]
    return Rays(*(torch.cat(parts, dim=1) for parts in zip(*views, strict=True)))


def _fill_lattice(field: Field, spec: LatticeSpec, rays: Rays, settings: RenderSettings) -> tuple[Tensor, Tensor, int]:
    """Return ``values``, ``quality`` and ``num_queried`` of a :class:`CachedField`."""

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

    # Half the spacing quarters the bound. All corners are exact, so cubic interpolation reduces the error further.
    still_wrong = errors * (0.25 * CUBIC_GAIN) > ALPHA_TOLERANCE
    fine = wanted & ~still_wrong
    values = lattice.values.new_empty((spec.num,) * 3)
    num_queried = lattice.num_queried
    for start, slab, count, _ in refine_in_slabs(lattice, query, spec, fine, cubic=True):
        values[start : start + len(slab)] = slab
        num_queried += count
    quality = torch.full(fine.shape, FAIR, dtype=torch.uint8, device=fine.device)
    for cells, value in ((fine, FINE), (rough, ROUGH), (unknown | (wanted & still_wrong), UNKNOWN)):
        quality.masked_fill_(cells, value)
    return values, quality, num_queried


def _cell_errors(lattice: Level) -> Tensor:
    """Return the bound on the interpolation error inside each cell, in occupancy."""
    bound = over_corners(lattice.bound, torch.maximum)
    flattest = (over_corners(lattice.values.abs(), torch.minimum) - bound).clamp_(min=0)
    alpha = torch.sigmoid(-flattest)
    return bound * alpha * (1 - alpha)


def _seen_cells(
    lattice: Level, spec: LatticeSpec, rays: Rays, settings: RenderSettings, transmittance: float = VISIBLE_TRANSMITTANCE
) -> Tensor:
    """Return a mask of cells that some ray reaches with more than ``transmittance``, and their neighbors."""
    num = lattice.values.shape[0]
    spacing = spec.spacing * lattice.stride
    seen = torch.zeros((num - 1,) * 3, dtype=torch.bool, device=lattice.values.device)
    t = torch.linspace(settings.t_near, settings.t_far, MARCH_STEPS, device=lattice.values.device)
    for part in rays.split(1 << 13):
        points = ray_points(part, t.expand(1, part.origins.shape[1], -1))
        logits = _interpolate(lattice.values, spec.low, spacing * (num - 1), points).view(-1, len(t))
        survival = torch.cumprod(1 - torch.sigmoid(logits), dim=-1)
        reached = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=-1) > transmittance
        cell = ((points[0][reached.flatten()] - spec.low) / spacing).long().clamp_(0, num - 2)
        seen[tuple(cell.t())] = True
    return dilate(seen, torch.logical_or)


def _choose_num_colors(cache: CachedField, field: Field, rays: Rays, settings: RenderSettings) -> tuple[int, float]:
    """Return the fewest colors per ray that reach TRIAL_PSNR_DB on a subset of the rays, else the most, and their PSNR."""
    stride = max(1, rays.origins.shape[1] // NUM_TRIAL_RAYS)
    trial = Rays(rays.origins[:, ::stride], rays.directions[:, ::stride])
    truth = render(field, trial, settings).rgb
    cache.num_queried += trial.origins.shape[1] * (settings.num_coarse + settings.num_surface + settings.num_fine)
    reached = 0.0
    for num in COLORS_TO_TRY:
        cache.num_colors = num
        reached = psnr_db(float((render(cache, trial, settings).rgb - truth).square().mean()), peak=1)
        if reached >= TRIAL_PSNR_DB:
            break
    return cache.num_colors, reached
