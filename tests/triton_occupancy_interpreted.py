"""The fused occupancy kernel in Triton's interpreter. tests/test_triton.py runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from generators.generator import ImplicitGenerator3d
from generators.renderer import RenderSettings, render
from settings.registry import CURRICULUMS
from siren.backends import fused
from siren.backends.packed import PackedField

# Relative L2 error of logits against float32; the interpreter rounds to bf16 toward zero, which costs twice as much.
TOLERANCE = {"high": 2e-3, "medium": 5e-2}


@pytest.fixture(autouse=True)
def precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def make_field(width=64, num_layers=3, model="SPATIALSIRENBASELINE", batch=2):
    torch.manual_seed(0)
    overrides = [f"hidden_dim={width}", f"num_layers={num_layers}", "latent_dim=16", f"model={model}"]
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"].with_overrides(overrides))
    with torch.no_grad():  # logits of both signs, large enough to be cut by a sigmoid
        generator.siren.final_layer.weight.mul_(40)
        return generator, generator.field_of_latents(torch.randn(batch, 16))


def plain_logits(field, points):
    torch.set_float32_matmul_precision("highest")
    logits = field.occupancy_logits(points)
    torch.set_float32_matmul_precision("high")
    return logits


def relative_error(value, expected):
    return float((value - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("precision_name", ["high", "medium"])
@pytest.mark.parametrize(("width", "model"), [(64, "SPATIALSIRENBASELINE"), (128, "TALLSIREN"), (256, "SPATIALSIRENBASELINE")])
def test_agrees_with_the_plain_path(width, model, precision_name):
    _, field = make_field(width, 4, model)
    points = (torch.rand(2, 300, 3) - 0.5) * (0.3 if model != "TALLSIREN" else 2)
    expected = plain_logits(field, points)
    torch.set_float32_matmul_precision(precision_name)
    logits = field.occupancy_logits(points)
    assert logits.shape == (2, 300) and logits.dtype == torch.float32
    error = relative_error(logits, expected)
    assert 1e-7 < error < TOLERANCE[precision_name]  # 0 would mean that the kernel was not used
    (packed,) = field._packed.values()
    assert relative_error(logits, fused.emulated_logits(packed, points)) < (1e-3 if precision_name == "high" else 5e-2)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("num_points", [0, 1, 127, 128, 129, 400])
def test_any_number_of_points_and_latents(batch, num_points):
    _, field = make_field(batch=batch)
    points = (torch.rand(batch, num_points, 3) - 0.5) * 0.3
    logits = field.occupancy_logits(points)
    assert logits.shape == (batch, num_points)
    assert torch.allclose(logits, plain_logits(field, points), atol=2e-2)


@torch.no_grad()
def test_points_need_not_be_contiguous_and_each_is_answered_alone():
    _, field = make_field()
    wide = (torch.rand(2, 3, 200) - 0.5) * 0.3
    points = wide.transpose(1, 2)
    logits = field.occupancy_logits(points)
    assert torch.equal(logits, field.occupancy_logits(points.contiguous()))
    order = torch.randperm(200)
    again = field.occupancy_logits(points[:, order])
    assert torch.allclose(logits[:, order], again, atol=2e-3)  # in another row of a block the machine's sums round otherwise


@torch.no_grad()
def test_a_short_field_of_one_hidden_layer():
    _, field = make_field(num_layers=2)
    points = (torch.rand(2, 130, 3) - 0.5) * 0.3
    assert relative_error(field.occupancy_logits(points), plain_logits(field, points)) < 2e-3


@torch.no_grad()
def test_widths_without_a_kernel_and_highest_precision_take_the_plain_path():
    for width, name in ((32, "high"), (64, "highest")):
        _, field = make_field(width)
        torch.set_float32_matmul_precision(name)
        field.occupancy_logits((torch.rand(2, 9, 3) - 0.5) * 0.3)
        assert not field._packed


def test_where_a_gradient_is_recorded_the_plain_path_answers():
    generator, _ = make_field()
    field = generator.field_of_latents(torch.randn(2, 16))
    points = (torch.rand(2, 50, 3) - 0.5) * 0.3
    logits = field.occupancy_logits(points)
    assert logits.requires_grad and not field._packed
    with torch.no_grad():  # as in a training step: coarse queries of a field whose weights want gradients
        fused_logits = field.occupancy_logits(points)
    assert field._packed and not fused_logits.requires_grad
    assert relative_error(fused_logits, logits.detach()) < 2e-3


@torch.no_grad()
def test_a_failed_self_check_falls_back_and_warns_once(monkeypatch):
    _, field = make_field()
    points = (torch.rand(2, 20, 3) - 0.5) * 0.3
    monkeypatch.setattr(fused, "_checked", {})
    monkeypatch.setitem(fused.CHECK_TOLERANCE, torch.float16, 1e-12)
    with pytest.warns(UserWarning, match="fused occupancy kernel on cpu at width 64 is disabled"):
        logits = field.occupancy_logits(points)
    assert not field._packed and torch.equal(logits, plain_logits(field, points))


def test_the_self_check_sees_wrong_weights(monkeypatch):
    correct = fused.emulated_logits
    monkeypatch.setattr(fused, "emulated_logits", lambda packed, x: correct(packed._replace(biases=packed.biases * 1.01), x))
    assert fused._self_check(torch.device("cpu"), 64, torch.float16) > fused.CHECK_TOLERANCE[torch.float16]


@torch.no_grad()
def test_recorded_generator():
    from reference import load_outputs, load_reference_generator
    from siren.mapping import FilmParameters

    outputs = load_outputs()
    field = load_reference_generator().field(FilmParameters(outputs["frequencies"], outputs["phase_shifts"]))
    logits = field.occupancy_logits(outputs["points"])
    assert field._packed
    assert relative_error(logits, outputs["occ_logit"]) < 1e-3


@torch.no_grad()
def test_an_image_through_the_kernel(tiny_rays=16):
    from generators.cameras import CameraPoses, camera_rays

    generator, field = make_field(width=64, num_layers=3, batch=1)
    rays = camera_rays(CameraPoses(torch.tensor([1.5]), torch.tensor([1.6])), tiny_rays, 12)
    settings = replace(RenderSettings.from_curriculum(generator.curriculum), num_coarse=12)
    image = render(field, rays, settings)
    torch.set_float32_matmul_precision("highest")
    plain = render(field, rays, settings)
    assert field._packed and isinstance(next(iter(field._packed.values())), PackedField)
    assert (image.surface.hit_mask == plain.surface.hit_mask).float().mean() > 0.99
    assert float((image.rgb - plain.rgb).square().mean()) < 10 ** (-6.0)  # 60 dB
