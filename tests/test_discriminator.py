"""The progressive discriminator: recorded numbers, entry sizes, fade-in."""

from __future__ import annotations

import math

import pytest
import torch

from discriminators.progressive import ProgressiveEncoderDiscriminator, entry_block
from reference import load_meta, load_outputs, relative_error
from settings.registry import CURRICULUMS


@pytest.fixture(scope="module")
def discriminator():
    """A discriminator filled as for the recorded outputs (tests/reference/README.md)."""
    model = ProgressiveEncoderDiscriminator(CURRICULUMS["BFM"])
    own = dict(model.named_parameters())
    with torch.no_grad():
        for k, (name, shape) in enumerate(load_meta()["disc_params"]):
            if name.startswith("freq_phase_layer"):  # a head that the published runs never use
                continue
            scale = 1.5 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
            values = torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + k) * scale
            own.pop(name).copy_(values.reshape(shape))
    assert not own
    return model


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("fade_alpha", [0.3, 1.0])
def test_recorded_outputs(discriminator, size, fade_alpha):
    count = 2 * 3 * size * size
    images = torch.sin(0.013 * torch.arange(count, dtype=torch.float64)).float().reshape(2, 3, size, size)
    output = discriminator(images, fade_alpha)
    joined = torch.cat([output.score[:, None], output.latent, output.pose], dim=1)
    assert relative_error(joined, load_outputs()[f"disc_{size}_{fade_alpha}"]) < 1e-4


@pytest.mark.parametrize("size", [4, 8, 32, 512])
def test_every_power_of_two_enters(size):
    model = ProgressiveEncoderDiscriminator(CURRICULUMS["SYNTH_TINY"])
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for fade_alpha in (0.0, 0.5, 1.0):
        output = model(images, fade_alpha)
        assert output.score.shape == (2,) and output.pose.shape == (2, 2)
        assert output.latent.shape == (2, CURRICULUMS["SYNTH_TINY"].latent_dim)


def test_fade_starts_at_the_smaller_stage():
    """At alpha 0 the new block has no effect: the output is that of the next block for the halved image."""
    model = ProgressiveEncoderDiscriminator(CURRICULUMS["SYNTH_TINY"])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images, 0.0).score, model(images[:, :, ::2, ::2].contiguous(), 1.0).score)


@pytest.mark.parametrize("size", [2, 48, 1024])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"{size} px"):
        entry_block(size)
