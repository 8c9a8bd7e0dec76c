"""The weights a run starts from: their spread, layer by layer. Source: pi-GAN's initialization (docs/method.md)."""

from __future__ import annotations

import math

import pytest
import torch

from discriminators.progressive import ProgressiveEncoderDiscriminator
from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS


def make(model: str, *changes: str) -> ImplicitGenerator3d:
    torch.manual_seed(0)
    return ImplicitGenerator3d(CURRICULUMS["BFM"].with_overrides([f"model={model}", *changes]))


def assert_uniform(weight: torch.Tensor, bound: float) -> None:
    """Uniform in +-bound: the bound is nearly reached, and the deviation is bound / sqrt(3)."""
    weight = weight.detach()
    assert 0.98 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(float(weight.mean())) < 0.1 * bound


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN128", "EmbeddingPiGAN256"])
def test_the_field(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN128": 8, "EmbeddingPiGAN256": 8})
    siren = make(model).siren
    assert_uniform(siren.network[0].layer.weight, 1 / 3)  # for any number of inputs
    for layer in siren.network[1:]:
        assert_uniform(layer.layer.weight, math.sqrt(6 / 256) / 25)
    assert_uniform(siren.color_layer_sine.layer.weight, math.sqrt(6 / 259) / 25)
    assert_uniform(siren.final_layer.weight, math.sqrt(6 / 256) / 25)
    assert_uniform(siren.color_layer_linear[0].weight, math.sqrt(6 / 256) / 25)
    if siren.embedding_grid is not None:
        stddev = {"EmbeddingPiGAN128": 0.01, "EmbeddingPiGAN256": 0.1}[model]
        assert float(siren.embedding_grid.detach().std()) == pytest.approx(stddev, rel=0.05)


def test_the_mapping_network() -> None:
    layers = [layer for layer in make("SPATIALSIRENBASELINE").siren.mapping_network.network if hasattr(layer, "weight")]
    usual = math.sqrt(2 / (1 + 0.2**2) / 256)  # Kaiming, fan in
    deviations = [float(layer.weight.detach().std()) for layer in layers]
    assert deviations == pytest.approx([usual, usual, usual, 0.25 * usual], rel=0.03)


def test_the_grid_models_start_as_rough_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first layer that starts at 1/35 makes a field whose slopes are a twelfth of these."""
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN128": 96, "EmbeddingPiGAN256": 64})
    slopes = {}
    for model in ("SPATIALSIRENBASELINE", "EmbeddingPiGAN128"):
        generator = make(model, "num_layers=4")
        points = (torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.2
        with torch.no_grad():
            gradients = generator.field_of_latents(torch.randn(2, 256)).logits_and_gradients(points)[1]
        slopes[model] = float(gradients.norm(dim=-1).mean())
    assert slopes["EmbeddingPiGAN128"] > 0.5 * slopes["SPATIALSIRENBASELINE"]


def test_the_published_narrow_grid_model_has_a_mapping_of_256(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siren.siren.EMBEDDING_RESOLUTION", {"EmbeddingPiGAN128": 8})
    siren = make("EmbeddingPiGAN128", "hidden_dim=128", "mapping_dim=256").siren
    shapes = {name: tuple(value.shape) for name, value in siren.named_parameters()}
    assert shapes["network.0.layer.weight"] == (128, 35) and shapes["mapping_network.network.0.weight"] == (256, 256)
    assert shapes["mapping_network.network.6.weight"] == (2 * 9 * 128, 256)
    film = siren.mapping_network(torch.zeros(3, 256))
    assert film.frequencies.shape == film.phase_shifts.shape == (3, 9 * 128)


def test_the_discriminator() -> None:
    torch.manual_seed(0)
    model = ProgressiveEncoderDiscriminator(CURRICULUMS["BFM"])
    for block in model.layers:
        for conv in (block.network[0].conv, block.network[2].conv):
            fan_in = conv.in_channels * 9
            assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (1 + 0.2**2) / fan_in), rel=0.05)
