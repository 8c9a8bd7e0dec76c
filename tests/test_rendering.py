"""Samplers, root finding and compositing against closed forms, brute force and hand computation."""

from __future__ import annotations

import math

import pytest
import torch

from analytic import SphereField
from generators import samplers, volume_rendering
from generators.cameras import Rays, camera_rays
from generators.renderer import RenderSettings, draw_noise, render
from generators.root_finding import find_surface
from generators.views import ViewSettings, make_pose, render_view
from settings.registry import CURRICULUMS

RADIUS = 0.08
BASE = RenderSettings(t_near=0.88, t_far=1.12, num_coarse=12, num_surface=8, num_fine=4, interval=0.02, num_root_steps=8)


def frontal_rays(size=16, dtype=torch.float32) -> Rays:
    rays = camera_rays(make_pose(math.pi / 2, math.pi / 2), size, fov_degrees=12)
    return Rays(rays.origins.to(dtype), rays.directions.to(dtype))


def sphere_entry(rays: Rays, radius: float):
    """Distance at which unit rays enter the ball at the origin, and whether they do."""
    along = (rays.origins * rays.directions).sum(-1)
    discriminant = along**2 - (rays.origins.square().sum(-1) - radius**2)
    return -along - discriminant.clamp_min(0).sqrt(), discriminant > 0


@pytest.mark.parametrize("method", ["secant", "bisection"])
def test_roots_of_a_sphere(method):
    rays = frontal_rays(dtype=torch.float64)
    field = SphereField(RADIUS, dtype=torch.float64)
    expected, hits = sphere_entry(rays, RADIUS)
    steps = 8 if method == "secant" else 16
    t_coarse = torch.linspace(0.88, 1.12, 40, dtype=torch.float64).expand(1, 256, 40)

    def level(t):
        points = rays.origins[:, :, None] + t[..., None] * rays.directions[:, :, None]
        return field.occupancy_logits(points.flatten(1, 2)).view(t.shape)

    surface = find_surface(t_coarse, level(t_coarse), lambda t: level(t[..., None])[..., 0], num_steps=steps, method=method)
    assert (surface.hit_mask & ~hits).sum() == 0
    assert (surface.hit_mask != hits).float().mean() < 0.06  # a graze shorter than the coarse spacing may be missed
    assert int(surface.hit_mask.sum()) > 50
    assert float((surface.t - expected)[surface.hit_mask].abs().max()) < 1e-5
    assert (surface.t[~surface.hit_mask] == 1.12).all()


def test_only_the_first_entry_from_outside_counts():
    t = torch.arange(6.0).expand(4, 1, 6).contiguous()
    levels = torch.tensor(
        [[-1, -1, 1, -1, 1, 1], [1, 1, -1, -1, 1, 1], [-1, -1, -1, -1, -1, -1], [-3, 1, 1, 1, 1, 1]], dtype=torch.float32
    )[:, None]
    surface = find_surface(t, levels, lambda t_ray: torch.zeros_like(t_ray) - 1e-9, num_steps=0)
    assert surface.hit_mask[:, 0].tolist() == [True, False, False, True]
    assert surface.t[:, 0].tolist() == [1.5, 5.0, 5.0, 0.75]


def test_intervals_keep_their_length_inside_the_ray():
    t = torch.tensor([[0.5, 0.05, 0.97, 0.3]])
    hit = torch.tensor([[True, True, True, False]])
    low, high = samplers.surface_interval(t, hit, 0.1, 0.0, 1.0)
    assert torch.allclose(low, torch.tensor([[0.4, 0.0, 0.8, 0.0]]))
    assert torch.allclose(high, torch.tensor([[0.6, 0.2, 1.0, 1.0]]))
    low, high = samplers.surface_interval(t, hit, 0.7, 0.0, 1.0)  # longer than the ray
    assert (low == 0).all() and (high == 1).all()


def test_surface_samples_and_jitter():
    low, high = torch.tensor([[0.2]]), torch.tensor([[0.6]])
    assert torch.allclose(samplers.surface_samples(low, high, 5), torch.tensor([[[0.2, 0.3, 0.4, 0.5, 0.6]]]))
    ends = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0]).view(1, 1, 5)
    moved = samplers.surface_samples(low, high, 5, ends)
    assert torch.allclose(moved, torch.tensor([[[0.15, 0.35, 0.4, 0.45, 0.65]]]))


def test_importance_samples_follow_the_weights():
    """Against the distribution function computed by brute force."""
    t = torch.linspace(0, 1, 9).expand(1, 1, 9)
    weights = torch.tensor([0.0, 1, 5, 2, 0, 0, 3, 1, 0]).view(1, 1, 9)
    uniform = (torch.arange(20_000) + 0.5).view(1, 1, -1) / 20_000
    drawn = samplers.importance_samples(t, weights, 20_000, uniform)[0, 0]
    middles = ((t[0, 0, 1:] + t[0, 0, :-1]) / 2).tolist()
    inner = weights[0, 0, 1:-1]
    for i, expected in enumerate((inner / inner.sum()).tolist()):
        share = ((drawn >= middles[i]) & (drawn < middles[i + 1])).float().mean()
        assert float(share) == pytest.approx(expected, abs=2e-3)
    even = samplers.importance_samples(t, weights, 5)[0, 0]
    assert (even[1:] > even[:-1]).all()


def test_compositing_by_hand():
    alphas = torch.tensor([[[0.5, 0.25, 1.0]]])
    weights = volume_rendering.compute_weights(alphas)
    assert torch.allclose(weights, torch.tensor([[[0.5, 0.125, 0.375]]]))
    colors = torch.tensor([[[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]]])
    assert torch.allclose(volume_rendering.composite_colors(weights, colors), torch.tensor([[[0.5, 0.125, 0.375]]]))
    t = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert float(volume_rendering.composite_depth(weights, t)) == pytest.approx((0.5 + 0.25 + 1.125) / 1.00001)
    thin = volume_rendering.compute_weights(alphas * torch.tensor([1, 1, 0.0]))
    assert torch.allclose(volume_rendering.add_remainder_to_last(thin), torch.tensor([[[0.5, 0.125, 0.375]]]))
    assert torch.allclose(volume_rendering.composite_colors(thin, colors, white_back=True), torch.tensor([[[0.875, 0.5, 0.375]]]))


def test_gradient_of_the_transmittance():
    """Twice by finite differences; where a sample is solid, that of torch.cumprod."""
    alphas = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(0.9).requires_grad_(True)
    assert torch.autograd.gradcheck(volume_rendering.compute_transmittance, alphas)
    assert torch.autograd.gradgradcheck(volume_rendering.compute_transmittance, alphas)
    solid = torch.tensor([0.3, 1.0, 0.2, 1.0, 0.5], requires_grad=True)
    plain = torch.cumprod(torch.cat([torch.ones(1), 1 - solid[:-1] + 1e-10]), dim=0)
    grads = [
        torch.autograd.grad((t * torch.arange(1.0, 6)).sum(), solid)[0]
        for t in (plain, volume_rendering.compute_transmittance(solid))
    ]
    assert torch.equal(*grads) and float(grads[0].abs().min()) == 0


def test_weights_against_a_loop():
    alphas = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = volume_rendering.compute_weights(alphas)
    for b in range(2):
        for r in range(3):
            transmittance = 1.0
            for s in range(7):
                alpha = float(alphas[b, r, s])
                assert float(weights[b, r, s]) == pytest.approx(alpha * transmittance, abs=1e-9)
                transmittance *= 1 - alpha
    assert (weights.sum(-1) <= 1 + 1e-9).all()


@pytest.mark.parametrize("clamp_mode", ["relu", "softplus"])
def test_occupancy_and_radiance_agree_where_they_must(clamp_mode):
    """With alpha = 1 - exp(-delta * density) as occupancy, both paths give the same weights."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(2, 5, 9, generator=generator).sort(dim=-1).values
    densities = torch.randn(2, 5, 9, generator=generator) * 5
    alphas = volume_rendering.alphas_from_densities(densities, t, clamp_mode)
    clamp = torch.nn.functional.softplus if clamp_mode == "softplus" else torch.relu
    deltas = torch.cat([t.diff(dim=-1), torch.full((2, 5, 1), 1e10)], dim=-1)
    optical_depth = clamp(densities.double()) * deltas
    before = torch.cat([torch.zeros(2, 5, 1), optical_depth.cumsum(dim=-1)[..., :-1]], dim=-1)
    expected = torch.exp(-before) * (1 - torch.exp(-optical_depth))  # the volume-rendering integral's own form
    from_logits = volume_rendering.alphas_from_logits(torch.logit(alphas.double().clamp(0, 1 - 1e-15)).float())
    assert torch.allclose(volume_rendering.compute_weights(alphas), expected.float(), atol=1e-5)
    assert torch.allclose(volume_rendering.compute_weights(from_logits), expected.float(), atol=1e-5)


def test_render_of_a_sphere():
    rays = frontal_rays(size=32)
    output = render(SphereField(RADIUS, sharpness=4000), rays, BASE)
    expected, _ = sphere_entry(rays, RADIUS)
    hit = output.surface.hit_mask
    assert float((output.surface.t - expected)[hit].abs().max()) < 1e-4
    assert float((output.depth - expected)[hit].abs().max()) < 0.02
    assert (output.t[..., 1:] >= output.t[..., :-1]).all()
    assert output.t.shape[-1] == BASE.num_surface + BASE.num_fine
    assert float(output.weights.sum(-1)[hit].min()) > 0.99
    clear_of_it = sphere_entry(rays, RADIUS + 0.002)[1].logical_not()
    assert float(output.weights.sum(-1)[clear_of_it].max()) < 0.01


def test_coarse_queries_of_surface_sampling_do_no_color_work():
    field = SphereField(RADIUS)
    render(field, frontal_rays(size=8), BASE)
    composited = 64 * (BASE.num_surface + BASE.num_fine)
    assert field.num_color_points == composited
    assert field.num_logit_points == 64 * (BASE.num_coarse + BASE.num_root_steps) + composited


def test_noise_moves_samples_and_splits_like_the_batch():
    rays = Rays(*(part.expand(4, -1, -1) for part in frontal_rays(size=8)))
    field = SphereField(RADIUS, batch_size=4)
    noise = draw_noise(4, 64, BASE, torch.device("cpu"), torch.Generator().manual_seed(0))
    whole = render(field, rays, BASE, noise)
    assert not torch.equal(whole.t, render(field, rays, BASE).t)
    field.batch_size = 2
    part = render(field, Rays(rays.origins[2:], rays.directions[2:]), BASE, noise.part(slice(2, None)))
    assert torch.equal(whole.rgb[2:], part.rgb)


def test_radiance_mode_composites_coarse_and_fine():
    pigan = RenderSettings.from_curriculum(CURRICULUMS["PIGAN_CelebA"])
    field = SphereField(RADIUS, sharpness=1e5)
    output = render(field, frontal_rays(size=8), pigan)
    assert output.t.shape[-1] == pigan.num_coarse + pigan.num_fine
    assert not output.surface.hit_mask.any()
    assert float(output.weights.sum(-1).max()) == pytest.approx(1, abs=1e-4)


def test_view_of_a_sphere():
    view = render_view(
        SphereField(RADIUS, sharpness=2000), make_pose(math.pi / 2, math.pi / 2), CURRICULUMS["BFM"], ViewSettings(image_size=32)
    )
    assert view.image.shape == view.normals.shape == (3, 32, 32)
    assert view.hit_mask.dtype == torch.bool and 0.3 < view.hit_mask.float().mean() < 0.7
    assert torch.allclose(view.normals.norm(dim=0), view.hit_mask.float(), atol=1e-4)
    assert float(view.normals[2, 16, 16]) > 0.99  # toward the camera
    assert float(view.surface_depth[16, 16]) == pytest.approx(1 - RADIUS, abs=1e-3)


def test_a_field_without_a_surface_renders():
    view = render_view(SphereField(-1.0), make_pose(1.5, 1.5), CURRICULUMS["BFM"], ViewSettings(image_size=8))
    assert not view.hit_mask.any() and torch.isfinite(view.image).all() and (view.normals == 0).all()


@pytest.mark.parametrize(("white", "value"), [(False, -1.0), (True, 1.0)])
def test_views_of_an_empty_field_show_the_background_that_training_shows(white, value):
    curriculum = CURRICULUMS["CelebA"].with_overrides([f"white_back={white}", "eval_last_back=False"])
    empty = SphereField(-1.0)
    training = render(empty, frontal_rays(8), RenderSettings.from_curriculum(curriculum)).rgb * 2 - 1
    view = render_view(empty, make_pose(math.pi / 2, math.pi / 2), curriculum, ViewSettings(8))
    assert torch.allclose(view.image, torch.full((3, 8, 8), value), atol=1e-4)
    assert torch.allclose(training, torch.full_like(training, value), atol=1e-4)
    by_default = CURRICULUMS["CelebA"].with_overrides(["white_back=True"])
    assert torch.allclose(
        render_view(empty, make_pose(1.5, 1.5), by_default, ViewSettings(8)).image, torch.ones(3, 8, 8), atol=1e-4
    )


def test_the_remaining_weight_of_a_ray_counts_as_far():
    """A faint cloud: the published depth is that of the cloud, however faint; for display, most of the ray passes it."""
    t, alphas = torch.tensor([[[0.9, 1.0, 1.1]]]), torch.tensor([[[0.02, 0.0, 0.0]]])
    weights = volume_rendering.compute_weights(alphas)
    assert float(volume_rendering.composite_depth(weights, t)) == pytest.approx(0.9, rel=1e-3)
    assert float(volume_rendering.composite_depth_over(weights, t, 1.12)) == pytest.approx(0.02 * 0.9 + 0.98 * 1.12)
    view = render_view(SphereField(-0.02), make_pose(1.5, 1.5), CURRICULUMS["SYNTH"], ViewSettings(8))  # eval_last_back off
    assert (not view.hit_mask.any() and view.depth.std() > 1e-3) or view.depth.mean() < 1.11
    assert view.depth_over_far.min() > 1.1


def test_straight_ahead_is_the_mean_direction_of_view():
    class Directed(SphereField):
        def logits_and_colors(self, points, directions):
            return self.occupancy_logits(points), (directions + 1) / 2

    curriculum = CURRICULUMS["CelebA"].with_overrides(["h_mean=0.3", "v_mean=1.2", "hollow_check_interval=0"])
    settings = ViewSettings(9, lock_view_dependence=True)
    for yaw, pitch in ((0.3, 1.2), (0.8, 1.4)):
        view = render_view(Directed(0.08), make_pose(yaw, pitch), curriculum, settings)
        ahead = torch.tensor([math.sin(1.2) * math.cos(0.3), math.cos(1.2), math.sin(1.2) * math.sin(0.3)])
        assert torch.allclose(view.surface_image[:, 4, 4], -ahead, atol=1e-5)
    usual = render_view(Directed(0.08), make_pose(1.8, 1.4), CURRICULUMS["CelebA"], settings)
    assert torch.allclose(usual.surface_image[:, 4, 4], torch.tensor([0.0, 0.0, -1.0]), atol=1e-6)


def test_the_forms_for_a_gpu_are_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    values, colors = torch.rand(2, 5, 7, generator=random), torch.rand(2, 5, 7, 3, generator=random)
    for operation in (torch.cumsum, torch.cumprod):
        scanned = volume_rendering.scan_by_columns(operation, values)
        assert torch.allclose(scanned, operation(values, dim=-1)) and scanned.is_contiguous()
    expected = torch.einsum("brs,brsc->brc", values, colors)
    assert torch.allclose(volume_rendering.weighted_sum(values, colors), expected)
