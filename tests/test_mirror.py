"""Mirroring in depth: exact in the field, and its own inverse."""

from __future__ import annotations

import math

import pytest
import torch

from discriminators.progressive import ProgressiveEncoderDiscriminator
from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS
from training.mirror import mirror_field, mirror_pose_readout

FLIP_Z = torch.tensor([1.0, 1.0, -1.0])


@torch.no_grad()
@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN256"])
def test_field_is_mirrored_for_every_latent(model, monkeypatch):
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN256": 8})
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides([f"model={model}", "hidden_dim=12"]))
    z, points = torch.randn(3, 64), (torch.rand(3, 30, 3) - 0.5) * 0.2
    directions = torch.nn.functional.normalize(torch.randn(3, 30, 3), dim=-1)
    logits, colors = generator.field(generator.film(z)).logits_and_colors(points * FLIP_Z, directions * FLIP_Z)
    before, _ = generator.field(generator.film(z)).logits_and_colors(points, directions)
    mirror_field(generator)
    mirrored_logits, mirrored_colors = generator.field(generator.film(z)).logits_and_colors(points, directions)
    assert not torch.allclose(before, mirrored_logits, atol=1e-4)
    assert torch.allclose(logits, mirrored_logits, atol=1e-5) and torch.allclose(colors, mirrored_colors, atol=1e-5)


@torch.no_grad()
def test_pose_is_read_about_the_front():
    torch.manual_seed(0)
    discriminator = ProgressiveEncoderDiscriminator(CURRICULUMS["SYNTH_TINY"])
    images = torch.randn(2, 3, 16, 16)
    before = discriminator(images)
    mirror_pose_readout(discriminator, CURRICULUMS["SYNTH_TINY"])
    after = discriminator(images)
    assert torch.allclose(after.pose, math.pi - before.pose, atol=1e-5)
    assert torch.equal(after.score, before.score)
