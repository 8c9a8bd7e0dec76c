"""Training passes through torch.compile give the losses and gradients of the plain ones."""

from __future__ import annotations

import pytest
import torch

import train
from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS
from siren import field
from siren.backends import compiled


@pytest.fixture
def compiled_calls(monkeypatch):
    """Let fields with ``is_compiled`` use compiled plain arithmetic on this CPU, as on a GPU; return a list of their calls."""
    backend = torch.compile(fullgraph=True, dynamic=False, backend="aot_eager")  # quick: graphs, no generated code
    monkeypatch.setattr(compiled, "_compiled", backend)
    monkeypatch.setattr(field, "_in_blocks", lambda *inputs: False)
    calls = []
    query = compiled.logits_and_colors
    monkeypatch.setattr(compiled, "logits_and_colors", lambda *arguments: calls.append(1) or query(*arguments))
    return calls


def losses_and_gradients(generator, z, points, directions):
    generator.zero_grad()
    bound = generator.field_of_latents(z)
    logits, colors = bound.logits_and_colors(points, directions)
    normals = bound.normals(points[:, :40])
    loss = logits.square().mean() + colors.square().mean() + (normals * directions[:, :40]).sum(dim=-1).square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in generator.parameters()]


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "EmbeddingPiGAN256"])
def test_losses_and_gradients(model, compiled_calls):
    torch.manual_seed(0)
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"model={model}", "hidden_dim=32", "latent_dim=16"])
    generator = ImplicitGenerator3d(curriculum)
    z, points = torch.randn(2, 16), (torch.rand(2, 100, 3) - 0.5) * 0.2
    directions = torch.nn.functional.normalize(torch.randn(2, 100, 3), dim=-1)
    loss, gradients = losses_and_gradients(generator, z, points, directions)
    assert not compiled_calls
    generator.siren.is_compiled = True
    compiled_loss, compiled_gradients = losses_and_gradients(generator, z, points, directions)
    assert compiled_calls
    assert torch.allclose(loss, compiled_loss, rtol=1e-5)
    for gradient, expected in zip(compiled_gradients, gradients, strict=True):
        assert float((gradient - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-9


def test_only_where_a_gradient_is_recorded(compiled_calls):
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=32", "latent_dim=16"])
    generator = ImplicitGenerator3d(curriculum)
    generator.siren.is_compiled = True
    points = torch.rand(1, 10, 3)
    with torch.no_grad():
        generator.field_of_latents(torch.randn(1, 16)).logits_and_colors(points, points)
    assert not compiled_calls
    generator.field_of_latents(torch.randn(1, 16)).logits_and_colors(points, points)
    assert compiled_calls


def test_the_command_line_turns_it_on():
    assert train.parse_arguments(["--curriculum", "CelebA", "--output_dir", "x", "--compile"]).compile
    assert not train.parse_arguments(["--curriculum", "CelebA", "--output_dir", "x"]).compile
