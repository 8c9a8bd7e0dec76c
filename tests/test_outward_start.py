"""The outward start gives a ball, also in networks for which a plain fit fails."""

from __future__ import annotations

import math

import pytest
import torch

from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS
from training import outward_start
from training.outward_start import Attempt, Ball, ball_hold_loss, draw_points, fit_to_ball

RADIUS = 0.08
BALL = Ball(RADIUS, (1.0, 1.0, 1.0), 0.5)


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    monkeypatch.setattr(outward_start, "NUM_STEPS", 400)
    monkeypatch.setattr(outward_start, "NUM_LATENTS", 16)
    monkeypatch.setattr(outward_start, "NUM_POINTS", 32)


def make_generator(*overrides: str) -> ImplicitGenerator3d:
    torch.manual_seed(0)
    return ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides(list(overrides)))


@torch.no_grad()
def share_right(generator: ImplicitGenerator3d) -> float:
    """Share of points at least a tenth of the radius from the surface that are on the correct side; worst of 6 latents."""
    random = torch.Generator().manual_seed(1)
    z = torch.randn(6, generator.curriculum.latent_dim, generator=random)
    directions = torch.nn.functional.normalize(torch.randn(6, 3000, 3, generator=random), dim=-1)
    distance = torch.rand(6, 3000, generator=random) * 1.4 * RADIUS
    logits = generator.field_of_latents(z).occupancy_logits(directions * distance.unsqueeze(-1))
    right = (logits > 0) == (distance < RADIUS)
    away = (distance - RADIUS).abs() > 0.1 * RADIUS
    return float(torch.stack([r[a].float().mean() for r, a in zip(right, away, strict=True)]).min())


def test_a_narrow_network_becomes_a_ball_with_a_color_for_each_latent():
    generator = make_generator()
    assert fit_to_ball(generator, BALL, seed=0) < outward_start.GOOD_LOSS
    assert share_right(generator) > 0.97
    assert all(p.grad is None for p in generator.parameters())
    random = torch.Generator().manual_seed(2)
    points = (torch.rand(1, 200, 3, generator=random) * 2 - 1) * RADIUS
    with torch.no_grad():
        field = generator.field_of_latents(torch.randn(32, generator.curriculum.latent_dim, generator=random))
        colors = field.logits_and_colors(points.expand(32, -1, -1), torch.tensor([0.0, 0.0, -1.0]).expand(32, 200, 3))[1]
    assert colors.std(dim=0).mean() > 0.06  # a field that ignores the latent has 0.003


def test_a_failed_fit_is_repeated(monkeypatch):
    """As for full-width networks, whose first attempt ends with a constant."""
    monkeypatch.setattr(outward_start, "NUM_STEPS", 250)
    monkeypatch.setattr(outward_start, "ATTEMPTS", (Attempt(1.0, 1e-9), Attempt(0.5, 1e-3)))
    generator = make_generator()
    assert fit_to_ball(generator, BALL, seed=0) < outward_start.GOOD_LOSS
    assert share_right(generator) > 0.97


def test_the_best_of_bad_attempts_is_kept(monkeypatch):
    attempts = (Attempt(1.0, 1e-4), Attempt(1.0, 1e-9))
    monkeypatch.setattr(outward_start, "NUM_STEPS", 30)
    losses = []
    for chosen in (attempts[:1], attempts[1:], attempts):
        monkeypatch.setattr(outward_start, "ATTEMPTS", chosen)
        losses.append(fit_to_ball(make_generator(), BALL, seed=0))
    assert losses[0] != losses[1]
    assert losses[2] == pytest.approx(min(losses[:2]), rel=1e-6)


def test_the_hold_penalizes_only_what_is_missing_of_the_ball():
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.079], [0.1, 0.0, 0.0], [0.0, 0.2, 0.0]]])  # two inside, two outside
    depth = torch.tensor([[6.0, 0.15, -3.0, -6.0]])  # 150 a unit, at most 6
    assert float(ball_hold_loss(depth, points, BALL)) == pytest.approx(0, abs=1e-8)
    assert float(ball_hold_loss(2 * depth, points, BALL)) == 0  # a harder ball is free
    logits = torch.tensor([[1.0, 0.05, 2.0, -9.0]], requires_grad=True)
    loss = ball_hold_loss(logits, points, BALL)
    assert float(loss.detach()) == pytest.approx((5**2 + 0.1**2 + 5**2) / 4, rel=1e-4)
    loss.backward()
    assert logits.grad[0, 0] < 0 and logits.grad[0, 2] > 0 and logits.grad[0, 3] == 0


def test_a_stretched_ball_is_an_ellipsoid():
    ball = Ball(RADIUS, (0.5, 1.2, 1.0), 0.5)
    on_it = torch.tensor([[[0.04, 0.0, 0.0], [0.0, -0.096, 0.0], [0.0, 0.0, 0.08], [0.02, 0.048, 0.08 * 0.5**0.5]]])
    assert torch.allclose(ball.depths(on_it), torch.zeros(1, 4), atol=1e-7)
    assert (ball.logits(0.9 * on_it) > 1).all() and (ball.logits(1.1 * on_it) < -1).all()
    assert float(ball_hold_loss(torch.full((1, 4), 7.0), 0.5 * on_it, ball)) == 0
    assert float(ball_hold_loss(torch.full((1, 4), 7.0), 1.5 * on_it, ball)) == pytest.approx(13**2, rel=1e-4)
    generator = make_generator()
    fit_to_ball(generator, ball, seed=0)
    points = torch.cat([0.8 * on_it, 1.2 * on_it], dim=1).expand(4, -1, -1)
    with torch.no_grad():
        logits = generator.field_of_latents(torch.randn(4, 64)).occupancy_logits(points)
    assert (logits[:, :4] > 0).float().mean() > 0.9 and (logits[:, 4:] < 0).float().mean() > 0.9


def test_the_hold_brings_a_dissolved_field_back():
    generator = make_generator()
    assert share_right(generator) < 0.9
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        points = draw_points(4, 256, generator.curriculum, random)
        logits = generator.field_of_latents(torch.randn(4, 64, generator=random)).occupancy_logits(points)
        optimizer.zero_grad()
        ball_hold_loss(logits, points, BALL).backward()
        optimizer.step()
    assert float(points.abs().max()) <= generator.curriculum.ray_end - 1 + 1e-6
    assert share_right(generator) > 0.95


def test_the_balls_surface_is_where_rays_enter_it():
    on_it = torch.tensor([[[0.0, RADIUS, 0.0], [0.0, 0.0, 0.5]]])
    for tau in (0.5, 0.2, 0.9):
        surface, ball = math.log(tau / (1 - tau)), BALL._replace(tau=tau)
        assert float(ball_hold_loss(torch.tensor([[surface, surface - 6]]), on_it, ball)) == pytest.approx(0, abs=1e-6)
        assert float(ball_hold_loss(torch.tensor([[surface, surface - 4]]), on_it, ball)) == pytest.approx(2**2 / 2, rel=1e-4)
