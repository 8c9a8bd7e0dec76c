"""The lookup kernels in Triton's interpreter. tests/test_triton.py runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from test_triplane import draw_case
from triplane import gpu_lookup, lookup, native_lookup, plain_lookup, triton_lookup
from triplane.decoder import DecoderWeights
from triplane.plain_lookup import Frame

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fewer_rounds(monkeypatch):
    """The interpreter is slow: two blocks of 32 points per program, so that 100 points still take two programs."""
    monkeypatch.setattr(triton_lookup, "ROUNDS", 2)


def small(case):
    """The case in float32."""
    planes, decoder, frame, points = case
    return planes.float(), DecoderWeights(*(weight.float() for weight in decoder)), Frame(frame.values.float()), points.float()


@pytest.mark.parametrize("given", ["both", "logits", "colors"])
@pytest.mark.parametrize("is_product", [False, True])
@pytest.mark.parametrize(("num_channels", "hidden_dim"), [(16, 32), (32, 16)])
def test_results_and_gradients_are_those_of_pytorch(num_channels, hidden_dim, is_product, given):
    """``given``: outputs that have a gradient."""
    case = draw_case(num_channels, hidden_dim, num=100)
    planes, decoder, frame, points = case
    with_colors = given != "logits"
    exact_leaves = [tensor.requires_grad_(True) for tensor in (planes, *decoder)]
    exact = plain_lookup.query(planes, decoder, frame, is_product, points, with_colors)
    leaves = [tensor.detach().float().requires_grad_(True) for tensor in exact_leaves]
    inputs = (leaves[0], DecoderWeights(*leaves[1:]), Frame(frame.values.float()), is_product, points.float(), with_colors)
    outputs = lookup.fused_query(triton_lookup, *inputs)
    losses = []
    for logits, colors in (exact, outputs):
        pattern = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits).sin()
        parts = {"logits": (logits * pattern).sum(), "colors": 0 if colors is None else (colors * pattern.unsqueeze(-1)).sum()}
        losses.append(parts["logits"] + parts["colors"] if given == "both" else parts[given])
    for a, b in zip(exact, outputs, strict=True):
        assert a is None if b is None else float((a - b).abs().max().detach()) < 1e-4
    for a, b in zip(*(torch.autograd.grad(*pair) for pair in zip(losses, (exact_leaves, leaves), strict=True)), strict=True):
        assert float((a - b).abs().max() / a.abs().max()) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("num", [0, 1, 31, 32, 65])
def test_any_number_of_points(num):
    planes, decoder, frame, points = small(draw_case(16, 16, num=num))
    logits, colors = triton_lookup.forward(planes, decoder, frame, False, points, True)
    expected = plain_lookup.query(planes, decoder, frame, False, points, True)
    assert logits.shape == (3, num) and colors.shape == (3, num, 3)
    assert torch.allclose(logits, expected[0], atol=1e-4) and torch.allclose(colors, expected[1], atol=1e-5)
    gradients = triton_lookup.backward(planes, decoder, frame, False, points, colors, torch.ones_like(logits), None)
    assert num or all(float(gradient.abs().sum()) == 0 for gradient in (gradients[0], *gradients[1]))


@torch.no_grad()
def test_points_that_are_not_finite_stay_within_the_planes():
    planes, decoder, frame, points = small(draw_case(16, 16, num=4))
    points[:, 0], points[:, 1], points[:, 2] = torch.nan, torch.inf, -torch.inf
    logits, _ = triton_lookup.forward(planes, decoder, frame, False, points, True)
    expected = plain_lookup.query(planes, decoder, frame, False, points, False)[0]
    assert torch.allclose(logits[:, 3], expected[:, 3], atol=1e-4)


def test_when_the_kernels_are_used(monkeypatch):
    planes, decoder, _, points = small(draw_case(16, 16, num=4))
    assert lookup.implementation_for(planes, decoder, points) is not triton_lookup  # C comes first on a CPU
    monkeypatch.setattr(native_lookup, "can_run", lambda planes, decoder: False)
    assert lookup.implementation_for(planes, decoder, points) is triton_lookup
    assert lookup.implementation_for(planes.double(), decoder, points) is plain_lookup
    assert lookup.implementation_for(planes, decoder, points.clone().requires_grad_(True)) is plain_lookup
    assert lookup.implementation_for(planes, small(draw_case(16, 12))[1], points) is plain_lookup
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert lookup.implementation_for(planes, decoder, points) is plain_lookup


def test_a_failed_self_check_disables_the_kernels_and_warns(monkeypatch):
    monkeypatch.setattr(gpu_lookup, "_checked", {})
    monkeypatch.setattr(gpu_lookup, "CHECK_TOLERANCE", 1e-12)
    planes, decoder, _, _ = small(draw_case(16, 16, num=4))
    with pytest.warns(UserWarning, match="fused tri-plane lookup is disabled"):
        assert not gpu_lookup.can_run(planes, decoder)


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_the_self_check_sees_wrong_results(monkeypatch, wrong):
    correct = getattr(triton_lookup, wrong)

    def shifted(planes, decoder, frame, *rest, **options):
        return correct(planes, decoder, Frame(frame.values * 1.05), *rest, **options)

    assert gpu_lookup.self_check(CPU, 16, 16) < 1e-5
    monkeypatch.setattr(triton_lookup, wrong, shifted)
    assert gpu_lookup.self_check(CPU, 16, 16) > gpu_lookup.CHECK_TOLERANCE
