"""An independent implementation of docs/method.md: cameras, field, rendering and losses, one ray at a time, in float64.

It uses no code of the project, except for the discriminator, which is tested by recorded outputs (tests/test_reference.py).
Random numbers are inputs. Gradients are by automatic differentiation. It is slow, and meant to be read next to the text.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

WORLD_UP = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


class OracleField:
    """The SIREN of latents z (B, latent_dim): SPATIALSIRENBASELINE, a box of side 0.24 mapped to [-1, 1]."""

    def __init__(self, generator: torch.nn.Module, z: Tensor) -> None:
        self._weights = {name: parameter.double() for name, parameter in generator.named_parameters()}
        self._num_layers = generator.curriculum.num_layers
        self._width = generator.curriculum.hidden_dim
        x = z.double()
        for place in (0, 2, 4):
            x = torch.nn.functional.leaky_relu(self._linear(f"siren.mapping_network.network.{place}", x), 0.2)
        film = self._linear("siren.mapping_network.network.6", x)
        half = film.shape[1] // 2
        self._gammas, self._betas = 15 * film[:, :half] + 30, film[:, half:]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _film(self, name: str, layer: int, x: Tensor) -> Tensor:
        part = slice(layer * self._width, (layer + 1) * self._width)
        return torch.sin(self._gammas[:, None, part] * self._linear(f"{name}.layer", x) + self._betas[:, None, part])

    def _features(self, points: Tensor) -> Tensor:
        x = points.double() * 2 / 0.24
        for layer in range(self._num_layers):
            x = self._film(f"siren.network.{layer}", layer, x)
        return x

    def logits(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, N)."""
        return self._linear("siren.final_layer", self._features(points))[..., 0]

    def colors(self, points: Tensor, directions: Tensor) -> Tensor:
        """(B, N, 3) each -> (B, N, 3) in [0, 1]."""
        x = torch.cat([directions.double(), self._features(points)], dim=-1)
        x = self._film("siren.color_layer_sine", self._num_layers, x)
        return torch.sigmoid(self._linear("siren.color_layer_linear.0", x))

    def normals(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> -gradient, unit."""
        points = points.detach().double().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.logits(points).sum(), points, create_graph=True)
        return -slope / slope.norm(dim=-1, keepdim=True)


def rays_of(pitch: float, yaw: float, size: int, fov_degrees: float) -> tuple[Tensor, Tensor]:
    """The camera's position (3,) and unit directions (size * size, 3), row by row from the top left."""
    position = torch.tensor(
        [math.sin(pitch) * math.cos(yaw), math.cos(pitch), math.sin(pitch) * math.sin(yaw)], dtype=torch.float64
    )
    forward = -position / position.norm()
    left = torch.linalg.cross(WORLD_UP, forward)
    left = left / left.norm()
    up = torch.linalg.cross(forward, left)
    half_width = math.tan(math.radians(fov_degrees) / 2)
    directions = []
    for row in range(size):
        for column in range(size):
            x, y = -1 + 2 * column / (size - 1), 1 - 2 * row / (size - 1)
            direction = forward - left * x * half_width + up * y * half_width
            directions.append(direction / direction.norm())
    return position, torch.stack(directions)


class Rendered(NamedTuple):
    """``images`` (B, 3, size, size) in [-1, 1]; ``alphas`` (B, R, S); ``roots`` (B, R), NaN without a surface."""

    images: Tensor
    alphas: Tensor
    roots: Tensor
    origins: Tensor
    directions: Tensor


class OracleRenderer:
    """Renders a field from poses. ``c``: the curriculum, ``delta``: the interval's half width, ``noise``: the random numbers."""

    def __init__(self, field: OracleField, c, delta: float, noise, density_noise: float = 0.0) -> None:
        self.field, self.c, self.delta, self.noise, self.density_noise = field, c, delta, noise, density_noise

    def render(self, pitches: Tensor, yaws: Tensor, size: int) -> Rendered:
        cameras = [rays_of(float(p), float(y), size, self.c.fov) for p, y in zip(pitches, yaws, strict=True)]
        origins = torch.stack([position.expand(size * size, 3) for position, _ in cameras])
        directions = torch.stack([direction for _, direction in cameras])
        if self.c.surface_sample:
            t, roots = self._surface_aware_samples(origins, directions)
        else:
            t, roots = self._radiance_samples(origins, directions)
        logits, colors = self._query(origins, directions, t)
        alphas = self._alphas(logits, t, self._part("density"))
        weights = weights_of(alphas)
        if self.c.last_back:
            rest = 1 - weights.sum(dim=-1)
            weights = torch.cat([weights[..., :-1], (weights[..., -1] + rest).unsqueeze(-1)], dim=-1)
        rgb = (weights.unsqueeze(-1) * colors).sum(dim=-2)
        if self.c.white_back:
            rgb = rgb + (1 - weights.sum(dim=-1, keepdim=True))
        images = (2 * rgb - 1).transpose(1, 2).reshape(len(rgb), 3, size, size)
        return Rendered(images, alphas, roots, origins, directions)

    def _part(self, name: str) -> Tensor | None:
        return None if self.noise is None else getattr(self.noise, name)

    def _query(self, origins: Tensor, directions: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
        along = directions.unsqueeze(2).expand(points.shape)
        batch, shape = len(points), t.shape
        flat = points.reshape(batch, -1, 3)
        return self.field.logits(flat).view(shape), self.field.colors(flat, along.reshape(batch, -1, 3)).view(*shape, 3)

    def _alphas(self, logits: Tensor, t: Tensor, normal: Tensor | None) -> Tensor:
        if self.c.pred_occ:
            return torch.sigmoid(logits)
        if normal is not None:
            logits = logits + self.density_noise * normal.double()
        density = torch.nn.functional.softplus(logits) if self.c.clamp_mode == "softplus" else torch.relu(logits)
        deltas = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], 1e10)], dim=-1)
        return 1 - torch.exp(-deltas * density)

    def _coarse(self, origins: Tensor) -> Tensor:
        t = torch.linspace(self.c.ray_start, self.c.ray_end, self.c.num_steps_coarse, dtype=torch.float64)
        return t.expand(*origins.shape[:2], len(t)).clone()

    @torch.no_grad()
    def _surface_aware_samples(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        c, coarse = self.c, self._coarse(origins)
        logits = self._query(origins, directions, coarse)[0]
        weights = weights_of(torch.sigmoid(logits))
        level = math.log(c.tau / (1 - c.tau))
        roots, samples = self._roots(origins, directions, coarse, logits - level, level), []
        for image, ray in ((b, r) for b in range(len(origins)) for r in range(origins.shape[1])):
            root = None if bool(roots[image, ray].isnan()) else float(roots[image, ray])
            own = self._around(root, self._of_ray("surface_jitter", image, ray))
            places, shares = coarse[image, ray].tolist(), weights[image, ray].tolist()
            own += fine_samples(places, shares, c.num_steps_fine, self._of_ray("importance", image, ray))
            samples.append(sorted(own))
        return torch.tensor(samples, dtype=torch.float64).view(*origins.shape[:2], -1), roots

    def _of_ray(self, name: str, image: int, ray: int) -> list[float] | None:
        values = self._part(name)
        return None if values is None else values[image, ray].tolist()

    def _roots(self, origins: Tensor, directions: Tensor, t: Tensor, values: Tensor, level: float) -> Tensor:
        """The first crossing from free to solid of rays whose first sample is free; a secant that stays in its bracket."""
        low, high, at_low, at_high = (torch.full(t.shape[:2], math.nan, dtype=torch.float64) for _ in range(4))
        for image, ray in ((b, r) for b in range(t.shape[0]) for r in range(t.shape[1])):
            along = values[image, ray].tolist()
            place = next((i for i in range(len(along) - 1) if along[i] < 0 <= along[i + 1]), None)
            if place is not None and along[0] < 0:
                low[image, ray], high[image, ray] = t[image, ray, place], t[image, ray, place + 1]
                at_low[image, ray], at_high[image, ray] = along[place], along[place + 1]
        for _ in range(self.c.n_secant_steps):
            middle = low - at_low * (high - low) / (at_high - at_low)
            value = self.field.logits(origins + middle.unsqueeze(-1) * directions) - level
            is_free = value < 0
            low, at_low = torch.where(is_free, middle, low), torch.where(is_free, value, at_low)
            high, at_high = torch.where(is_free, high, middle), torch.where(is_free, at_high, value)
        return low - at_low * (high - low) / (at_high - at_low)

    def _around(self, root: float | None, uniform: list[float] | None) -> list[float]:
        """Evenly spaced in [root - Delta, root + Delta], moved inside the ray; without a root over the whole ray."""
        near, far, num = self.c.ray_start, self.c.ray_end, self.c.num_steps_surface
        low, high = near, far
        if root is not None:
            low, high = root - self.delta, root + self.delta
            if low < near:
                low, high = near, near + 2 * self.delta
            elif high > far:
                low, high = far - 2 * self.delta, far
        spacing = (high - low) / (num - 1)
        shifts = [0.5] * num if uniform is None else uniform
        return [low + i * spacing + (shift - 0.5) * spacing for i, shift in enumerate(shifts)]

    def _radiance_samples(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        c, t = self.c, self._coarse(origins)
        jitter = self._part("coarse_jitter")
        if jitter is not None:
            t = t + (jitter.double() - 0.5) * (c.ray_end - c.ray_start) / (c.num_steps_coarse - 1)
        with torch.no_grad():
            alphas = self._alphas(self._query(origins, directions, t)[0], t, self._part("coarse_density"))
            weights = weights_of(alphas)
        fine = [
            fine_samples(t[b, r].tolist(), weights[b, r].tolist(), c.num_steps_fine, self._of_ray("importance", b, r))
            for b in range(t.shape[0])
            for r in range(t.shape[1])
        ]
        fine_t = torch.tensor(fine, dtype=torch.float64).view(*t.shape[:2], -1)
        return torch.cat([t, fine_t], dim=-1).sort(dim=-1).values, torch.full(t.shape[:2], math.nan, dtype=torch.float64)


def weights_of(alphas: Tensor) -> Tensor:
    """alpha_i times the product of (1 - alpha_j + 1e-10) over the samples in front of it."""
    columns, reached = [], torch.ones_like(alphas[..., 0])
    for i in range(alphas.shape[-1]):
        columns.append(alphas[..., i] * reached)
        reached = reached * (1 - alphas[..., i] + 1e-10)
    return torch.stack(columns, dim=-1)


def fine_samples(t: list[float], weights: list[float], num: int, uniform: list[float] | None) -> list[float]:
    """Inverse of the distribution function that the inner weights, plus 1e-5, define between the midpoints of t."""
    edges = [(a + b) / 2 for a, b in itertools.pairwise(t)]
    shares = [weight + 1e-5 for weight in weights[1:-1]]
    total, cumulated = sum(shares), [0.0]
    for share in shares:
        cumulated.append(cumulated[-1] + share / total)
    drawn = []
    for place in range(num):
        u = (place + 0.5) / num if uniform is None else uniform[place]
        cell = next(i for i in range(len(shares)) if u < cumulated[i + 1] or i == len(shares) - 1)
        fraction = (u - cumulated[cell]) / (cumulated[cell + 1] - cumulated[cell])
        drawn.append(edges[cell] + min(max(fraction, 0.0), 1.0) * (edges[cell + 1] - edges[cell]))
    return drawn


class Weights(NamedTuple):
    """The settings at a step."""

    delta: float
    fade: float
    topk: float
    opacity_prior: float
    density_noise: float
    ball_hold: float


def weights_at(c, step: int) -> Weights:
    """Compute by the formulas; the fade-in starts at the last change of image size."""
    stages = [stage for stage in c.stages if stage.start_step <= step]
    since = next(s.start_step for i, s in enumerate(stages) if all(later.img_size == s.img_size for later in stages[i:]))
    start = c.opacprior_lambda_init
    held = c.ball_hold_lambda * max(0.0, 1 - step / c.ball_hold_steps) if c.ball_hold_steps else 0.0
    return Weights(
        delta=max(c.interval_min, c.interval_max * math.exp(-c.decay_beta * step)),
        fade=min(1.0, (step - since) / c.fade_steps),
        topk=max(0.99 ** (step / c.topk_interval), c.topk_v),
        opacity_prior=min(10 * start, start * math.exp(c.opacprior_growth_rate * step)) if c.with_opacprior else 0.0,
        density_noise=0.0 if c.pred_occ else max(0.0, 1 - step / 5000),
        ball_hold=max(c.ball_hold_floor, held) if c.init_ball_radius else 0.0,
    )


def generator_terms(rendered: Rendered, field: OracleField, D, c, step: int, inputs, real: Tensor) -> dict[str, Tensor]:
    """G's weighted losses; ``total`` is their sum."""
    at = weights_at(c, step)
    judged = D(rendered.images.float(), at.fade)
    best = judged.score.detach().argsort(descending=True)[: math.ceil(at.topk * len(judged.score))]
    scores = judged.score
    if c.gan_loss == "relativistic":
        scores = scores - D(real, at.fade).score.detach()
    terms = {"gan": torch.log1p(torch.exp(-scores[best])).mean()}
    terms["pose"] = c.pos_lambda * (
        ((judged.pose[:, 0] - inputs.poses.pitch) ** 2).mean() / 2 + ((judged.pose[:, 1] - inputs.poses.yaw) ** 2).mean() / 2
    )
    terms["latent"] = c.z_lambda * ((judged.latent - inputs.z) ** 2).mean()
    a = rendered.alphas
    if at.opacity_prior:
        terms["opacity_prior"] = at.opacity_prior * (torch.log(0.1 + a) + torch.log(1.1 - a) + 2.20727).mean()
    if c.with_normal_loss and c.normal_lambda:
        terms["normal"] = c.normal_lambda * _normal_term(rendered, field, c, inputs.neighbors.double())
    if at.ball_hold:
        terms["ball_hold"] = at.ball_hold * _ball_term(field, c, inputs.ball_points.double())
    terms["total"] = torch.stack([term.double() for term in terms.values()]).sum()
    return terms


def _normal_term(rendered: Rendered, field: OracleField, c, neighbors: Tensor) -> Tensor:
    """Mean squared difference of the components of two unit normals: over an image's hits, then over images."""
    hits = ~rendered.roots.isnan()
    points = rendered.origins + rendered.roots.nan_to_num(1.0).unsqueeze(-1) * rendered.directions
    differences = ((field.normals(points) - field.normals(points + c.h_sample * neighbors)) ** 2).mean(dim=-1)
    per_image = [row[hit].mean() if hit.any() else row.sum() * 0 for row, hit in zip(differences, hits, strict=True)]
    return torch.stack(per_image).mean()


def _ball_term(field: OracleField, c, points: Tensor) -> Tensor:
    """The deficit relative to a ball of 150 logits per unit, limited to 6 from the logit of the surface."""
    outside = (points / points.new_tensor(c.init_ball_stretch)).norm(dim=-1) - c.init_ball_radius
    target = (-150 * outside).clamp(-6, 6) + math.log(c.tau / (1 - c.tau))
    logits = field.logits(points)
    missing = torch.where(outside > 0, logits - target, target - logits)
    return torch.relu(missing).square().mean()


def discriminator_terms(images: Tensor, D, c, step: int, inputs, real: Tensor) -> dict[str, Tensor]:
    """D's weighted losses on generated ``images`` and ``real`` ones; ``total`` is their sum."""
    at = weights_at(c, step)
    real, images = real.detach().requires_grad_(True), images.detach().float().requires_grad_(True)
    judged_real, judged = D(real, at.fade), D(images, at.fade)
    if c.gan_loss == "relativistic":
        terms = {"gan": torch.log1p(torch.exp(judged.score - judged_real.score)).mean()}
    else:
        terms = {"gan": torch.log1p(torch.exp(judged.score)).mean() + torch.log1p(torch.exp(-judged_real.score)).mean()}
    is_due = (step + 1) % c.r1_interval == 0
    for name, weight, score, x in (
        ("r1", c.r1_lambda, judged_real.score, real),
        ("r2", c.r2_lambda, judged.score, images),
    ):
        if weight and is_due:
            (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            terms[name] = 0.5 * weight * c.r1_interval * (slope**2).sum(dim=(1, 2, 3)).mean()
    terms["pose"] = c.pos_lambda * (
        ((judged.pose[:, 0] - inputs.poses.pitch) ** 2).mean() / 2 + ((judged.pose[:, 1] - inputs.poses.yaw) ** 2).mean() / 2
    )
    terms["latent"] = c.z_lambda * ((judged.latent - inputs.z) ** 2).mean()
    terms["total"] = torch.stack([term.double() for term in terms.values()]).sum()
    return terms
