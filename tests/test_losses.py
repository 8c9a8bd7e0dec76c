"""Losses: values by hand, gradients by finite differences, and independence of how the batch is split."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from discriminators.progressive import ProgressiveEncoderDiscriminator
from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d
from settings import schedules
from settings.registry import CURRICULUMS
from siren.field import trilinear_sample
from training import losses


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(True)


def test_gan_losses_by_hand():
    zero = torch.zeros(3)
    assert float(losses.generator_gan_loss(zero, torch.ones(3))) == pytest.approx(math.log(2))
    assert float(losses.discriminator_gan_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(losses.generator_gan_loss(torch.tensor([-100.0, 100.0]), torch.ones(2))) == pytest.approx(50)
    assert float(losses.relativistic_pairing_loss(zero, zero)) == pytest.approx(math.log(2))
    real, fake = torch.tensor([7.0, -50.0]), torch.tensor([7.0, 50.0])
    assert float(losses.relativistic_pairing_loss(real, fake)) == pytest.approx((math.log(2) + 100) / 2)
    assert float(losses.relativistic_pairing_loss(fake, real, torch.tensor([2.0, 0.0]))) == pytest.approx(math.log(2))


def test_opacity_prior_is_zero_at_both_ends_and_highest_between():
    ends = losses.opacity_prior_loss(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert float(ends) == pytest.approx(0, abs=1e-4)
    assert float(losses.opacity_prior_loss(torch.tensor([0.5]))) == pytest.approx(2 * math.log(0.6) + 2.20727)


def test_normal_loss_compares_two_points_on_hits_only():
    a = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1.0], [0, 0, 1]]])
    b = torch.tensor([[[0.0, 1, 0], [0, 1, 0]], [[0, 0, -1.0], [0, 0, 1]]])
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    assert float(losses.normal_smoothness_loss(a, b, everywhere)) == pytest.approx(((2 / 3) / 2 + (4 / 3) / 2) / 2)
    first_of_one = torch.tensor([[True, False], [True, True]])  # a mean over an image's hits, then over images
    assert float(losses.normal_smoothness_loss(a, b, first_of_one)) == pytest.approx((2 / 3 + (4 / 3) / 2) / 2)
    second_only = torch.tensor([[False, True], [False, False]])
    assert float(losses.normal_smoothness_loss(a, b, second_only)) == 0


def test_topk_keeps_the_best_and_their_mean_weight_is_one():
    weights = losses.topk_image_weights(torch.tensor([3.0, -1.0, 2.0, 0.0]), 0.51)
    assert torch.allclose(weights, torch.tensor([4 / 3, 0, 4 / 3, 4 / 3]))  # ceil(0.51 * 4) = 3
    assert losses.topk_image_weights(torch.tensor([3.0, -1.0]), 1.0).tolist() == [1, 1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: losses.generator_gan_loss(x, torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)),
        lambda x: losses.discriminator_gan_loss(x, x.flip(0)),
        lambda x: losses.relativistic_pairing_loss(x, 2 * x.flip(0), torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)),
        lambda x: losses.opacity_prior_loss(torch.sigmoid(x)),
        lambda x: losses.latent_loss(x[:, None], torch.zeros(4, 1, dtype=torch.float64)),
        lambda x: losses.pose_loss(x.view(2, 2), CameraPoses(torch.ones(2).double(), torch.zeros(2).double())),
    ],
)
def test_gradients_by_finite_differences(function):
    assert gradcheck(function, (doubles(4),))


def test_gradient_of_r1_by_finite_differences():
    """R1 differentiates a gradient: checked on the real discriminator, in double precision."""
    small = CURRICULUMS["SYNTH_TINY"].with_overrides(["disc_channels=(2,2,2,2,2,2,3,3,3)", "latent_dim=4"])
    torch.manual_seed(0)
    model = ProgressiveEncoderDiscriminator(small).double()
    images = doubles(2, 3, 8, 8)
    weight = model.layers[6].network[0].conv.weight

    def value():
        x = images.detach().requires_grad_(True)
        features = model.layers[7](model.layers[6](model.fromRGB[6](x)))
        return losses.zero_centered_penalty_loss(model.final_layer(features).flatten(1)[:, 0], x)

    (gradient,) = torch.autograd.grad(value(), weight)
    for index in [(0, 0, 1, 1), (2, 3, 0, 2), (1, 4, 1, 0)]:
        step = 1e-5
        with torch.no_grad():
            weight[index] += step
        above = float(value().detach())
        with torch.no_grad():
            weight[index] -= 2 * step
        below = float(value().detach())
        with torch.no_grad():
            weight[index] += step
        assert float(gradient[index]) == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN256"])
def test_normals_are_the_fields_gradient(model, monkeypatch):
    """The explicit chain rule and its gradient, against automatic differentiation and finite differences."""
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN256": 8})
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"model={model}", "hidden_dim=12", "num_layers=3", "latent_dim=5"])
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(curriculum)
    field = generator.field_of_latents(torch.randn(2, 5))
    points = ((torch.rand(2, 20, 3) - 0.5) * 0.2).requires_grad_(True)
    logits, gradients = field.logits_and_gradients(points)
    (expected,) = torch.autograd.grad(field.occupancy_logits(points).sum(), points)
    assert torch.allclose(gradients, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert torch.allclose(logits, field.occupancy_logits(points), atol=1e-5)
    h = 2e-4
    for axis in range(3):
        offset = torch.zeros(3)
        offset[axis] = h
        with torch.no_grad():
            slope = (field.occupancy_logits(points + offset) - field.occupancy_logits(points - offset)) / (2 * h)
        scale = float(expected.abs().max())
        assert float((slope - gradients[..., axis]).detach().abs().median()) < 0.02 * scale
    weight = generator.siren.network[1].layer.weight
    (second,) = torch.autograd.grad(gradients.square().sum(), weight, retain_graph=True)
    generic = torch.autograd.grad(field.occupancy_logits(points).sum(), points, create_graph=True)[0]
    (expected_second,) = torch.autograd.grad(generic.square().sum(), weight)
    assert torch.allclose(second, expected_second, rtol=1e-3, atol=1e-3 * float(expected_second.abs().max()))


def test_trilinear_sampling_against_grid_sample():
    grid = torch.randn(4, 6, 6, 6)
    coordinates = torch.rand(2, 50, 3) * 2.4 - 1.2
    expected = torch.nn.functional.grid_sample(
        grid[None].expand(2, -1, -1, -1, -1), coordinates[:, :, None, None], align_corners=True
    )[..., 0, 0].transpose(1, 2)
    assert torch.allclose(trilinear_sample(grid, coordinates), expected, atol=1e-5)


def test_schedules():
    bfm = CURRICULUMS["BFM"]
    assert schedules.interval_at(bfm, 0) == 0.12
    assert schedules.interval_at(bfm, 10**6) == 0.02
    assert schedules.interval_at(bfm, 10_000) == pytest.approx(0.12 * math.exp(-0.3))
    assert schedules.opacity_prior_weight_at(bfm, 0) == 0.1
    assert schedules.opacity_prior_weight_at(bfm, 10**7) == pytest.approx(1.0)
    assert schedules.topk_fraction_at(bfm, 0) == 1 and schedules.topk_fraction_at(bfm, 10**6) == 0.6
    assert schedules.fade_alpha_at(bfm, 10_000) == 0 and schedules.fade_alpha_at(bfm, 15_000) == 0.5
    assert schedules.fade_alpha_at(bfm, 59_999) == 1
    calmer = bfm.with_overrides(["img_size=64"])  # stages that differ in their rates alone: nothing new to fade in
    assert [schedules.fade_alpha_at(calmer, step) for step in (0, 5_000, 10_000, 60_000)] == [0, 0.5, 1, 1]
    assert schedules.density_noise_at(bfm, 0) == 0
    assert schedules.density_noise_at(CURRICULUMS["PIGAN_CelebA"], 2500) == 0.5
    held = CURRICULUMS["SYNTH_TINY"].with_overrides(["init_ball_radius=0.08", "ball_hold_steps=100", "ball_hold_lambda=0.2"])
    assert [schedules.ball_hold_weight_at(held, step) for step in (0, 50, 100, 101)] == [0.2, 0.1, 0, 0]
    floor = held.with_overrides(["ball_hold_floor=0.05"])
    assert [schedules.ball_hold_weight_at(floor, step) for step in (0, 50, 90, 1000)] == [0.2, 0.1, 0.05, 0.05]
    assert schedules.ball_hold_weight_at(floor.with_overrides(["init_ball_radius=0"]), 0) == 0  # nothing to hold to
    lazy = CURRICULUMS["SYNTH_TINY"].with_overrides(["r1_lambda=0.5", "r1_interval=4"])
    assert [schedules.penalty_weights_at(lazy, step).r1 for step in range(8)] == [0, 0, 0, 2, 0, 0, 0, 2]
    assert schedules.penalty_weights_at(lazy.with_overrides(["r2_lambda=0.25"]), 3) == (2, 1)
    assert schedules.penalty_weights_at(bfm, 0) == schedules.penalty_weights_at(bfm, 1) == (1, 0)
    assert schedules.ema_decay_at(0.999, 0) == 0.1 and schedules.ema_decay_at(0.999, 10**6) == 0.999


def test_learning_rates():
    tiny = CURRICULUMS["SYNTH_TINY"].with_overrides(["gen_lr=4e-4", "disc_lr=8e-4"])
    assert [schedules.learning_rates_at(tiny, step) for step in (0, 19_999)] == [(4e-4, 8e-4)] * 2
    changing = tiny.with_overrides(["lr_warmup_steps=100", "lr_decay=cosine"])
    rates = [schedules.learning_rates_at(changing, step).gen_lr for step in range(changing.end_step)]
    assert rates[0] == pytest.approx(4e-6) and rates[49] == pytest.approx(2e-4, rel=1e-4)
    assert rates[10_000] == pytest.approx(2e-4) and rates[-1] == pytest.approx(0, abs=1e-10)
    assert schedules.learning_rates_at(changing, changing.end_step + 5).disc_lr == pytest.approx(0)
