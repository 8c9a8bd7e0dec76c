"""Mirroring in depth: exact in the field, and its own inverse."""

from __future__ import annotations

import math

import pytest
import torch

from common.errors import UserError
from discriminators.progressive import ProgressiveEncoderDiscriminator
from generators.cameras import camera_to_world
from generators.generator import ImplicitGenerator3d
from generators.views import make_pose
from settings.registry import CURRICULUMS
from training.mirror import mirror_field, mirror_moments, mirror_pose_readout, mirror_readout_moments, reflection

FLIP_Z = torch.tensor([1.0, 1.0, -1.0])


@torch.no_grad()
@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN256"])
def test_field_is_mirrored_for_every_latent(model, monkeypatch):
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN256": 8})
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides([f"model={model}", "hidden_dim=12"]))
    z, points = torch.randn(3, 64), (torch.rand(3, 30, 3) - 0.5) * 0.2
    directions = torch.nn.functional.normalize(torch.randn(3, 30, 3), dim=-1)
    logits, colors = generator.field_of_latents(z).logits_and_colors(points * FLIP_Z, directions * FLIP_Z)
    before, _ = generator.field_of_latents(z).logits_and_colors(points, directions)
    mirror_field(generator)
    mirrored_logits, mirrored_colors = generator.field_of_latents(z).logits_and_colors(points, directions)
    assert not torch.allclose(before, mirrored_logits, atol=1e-4)
    assert torch.allclose(logits, mirrored_logits, atol=1e-5) and torch.allclose(colors, mirrored_colors, atol=1e-5)


@torch.no_grad()
def test_the_predicted_pose_is_mirrored_about_the_front():
    torch.manual_seed(0)
    discriminator = ProgressiveEncoderDiscriminator(CURRICULUMS["SYNTH_TINY"])
    images = torch.randn(2, 3, 16, 16)
    before = discriminator(images)
    mirror_pose_readout(discriminator, CURRICULUMS["SYNTH_TINY"])
    after = discriminator(images)
    assert torch.allclose(after.pose, math.pi - before.pose, atol=1e-5)
    assert torch.equal(after.score, before.score)


def test_nothing_is_mirrored_where_mirrored_cameras_are_rolled():
    for changes in (["v_mean=1.2"], ["v_mean=0.785398", "h_mean=0.0"]):
        generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides([*changes, "hollow_check_interval=0"]))
        with pytest.raises(UserError, match="only if v_mean is pi/2"):
            mirror_field(generator)


@torch.no_grad()
@pytest.mark.parametrize("h_mean", [math.pi / 2, 0.4])
def test_the_mirrored_pose_sees_the_mirrored_object(h_mean):
    """Far away, through a narrow lens: the silhouette of three balls, from poses off the front."""
    curriculum = CURRICULUMS["SYNTH"].with_overrides([f"h_mean={h_mean}", "hollow_check_interval=0"])
    matrix = reflection(curriculum).float()
    centers = torch.tensor([[0.02, 0.03, 0.04], [-0.05, 0.01, -0.03], [0.03, -0.06, 0.0]])
    for d_pitch, d_yaw in ((0.2, -0.4), (-0.1, 0.7)):
        masks = []
        for sign, places in ((1, centers), (-1, centers @ matrix.T)):
            position = camera_to_world(make_pose(h_mean + sign * d_yaw, math.pi / 2 + sign * d_pitch))[0]
            axes, grid = position[:3, :2], torch.linspace(-0.1, 0.1, 60)
            pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
            masks.append(((pixels.unsqueeze(2) - places @ axes).norm(dim=-1) < 0.03).any(dim=-1))
        assert torch.equal(*masks) and 0 < int(masks[0].sum()) < 3600


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "EmbeddingPiGAN256"])
@pytest.mark.parametrize("invert", [False, True])
def test_adam_continues_as_if_it_had_trained_the_mirrored_field(model, invert, monkeypatch):
    """Two steps and then mirroring give the same weights as a step, mirroring, and a step on mirrored points."""
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN256": 4})
    changes = [f"model={model}", "hidden_dim=8", "num_layers=2", "latent_dim=4", "betas=(0.6,0.9)", "tau=0.7"]
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(changes)
    z, points = torch.randn(2, 4), (torch.rand(2, 50, 3) - 0.5) * 0.2
    directions = torch.nn.functional.normalize(torch.randn(2, 50, 3), dim=-1)
    level = 2 * math.log(0.7 / 0.3)

    def make():
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(curriculum)
        return generator, torch.optim.Adam(generator.parameters(), lr=1e-3, betas=curriculum.betas)

    def step(generator, optimizer, mirrored):
        flip = FLIP_Z if mirrored else torch.ones(3)
        field = generator.field_of_latents(z)
        logits, colors = field.logits_and_colors(points * flip, directions * flip)
        if mirrored and invert:
            logits = level - logits
        optimizer.zero_grad()
        (logits.square().mean() + (colors - 0.9).square().mean()).backward()
        optimizer.step()

    plain, plain_optimizer = make()
    step(plain, plain_optimizer, False)
    step(plain, plain_optimizer, False)
    mirror_field(plain, invert)
    turned, turned_optimizer = make()
    step(turned, turned_optimizer, False)
    mirror_field(turned, invert)
    mirror_moments(turned, turned_optimizer, invert)
    step(turned, turned_optimizer, True)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter, turned.get_parameter(name), atol=2e-5), name


def test_adams_moments_of_the_pose_output_are_mirrored():
    torch.manual_seed(0)
    curriculum = CURRICULUMS["SYNTH_TINY"]
    discriminator = ProgressiveEncoderDiscriminator(curriculum)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.6, 0.9))
    discriminator(torch.randn(2, 3, 16, 16)).pose.sum().backward()
    optimizer.step()
    before = optimizer.state[discriminator.final_layer.weight]["exp_avg"].clone()
    mirror_readout_moments(discriminator, optimizer)
    after = optimizer.state[discriminator.final_layer.weight]["exp_avg"]
    assert torch.equal(after[-2:], -before[-2:]) and torch.equal(after[:-2], before[:-2]) and before[-2:].abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("tau", [0.5, 0.8])
def test_inversion_swaps_solid_and_free_at_tau(tau):
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"tau={tau}", "hidden_dim=12"])
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(curriculum)
    generator.siren.final_layer.weight.mul_(60)
    z, points = torch.randn(2, 64), (torch.rand(2, 200, 3) - 0.5) * 0.2
    before = generator.field_of_latents(z).occupancy_logits(points * FLIP_Z)
    mirror_field(generator, invert=True)
    after = generator.field_of_latents(z).occupancy_logits(points)
    level = math.log(tau / (1 - tau))
    assert torch.allclose(after - level, level - before, atol=1e-3)
    assert 0.02 < float((before > level).float().mean()) < 0.98


@torch.no_grad()
def test_each_predicted_angle_is_mirrored_about_its_own_mean():
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(["h_mean=0.4", "hollow_check_interval=0"])
    torch.manual_seed(0)
    discriminator = ProgressiveEncoderDiscriminator(curriculum)
    images = torch.randn(2, 3, 16, 16)
    before = discriminator(images).pose
    mirror_pose_readout(discriminator, curriculum)
    after = discriminator(images).pose
    assert torch.allclose(after[:, 0], math.pi - before[:, 0], atol=1e-5)  # pitch
    assert torch.allclose(after[:, 1], 0.8 - before[:, 1], atol=1e-5)  # yaw
