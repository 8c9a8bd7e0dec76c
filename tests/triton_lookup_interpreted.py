"""The lookup kernels in Triton's interpreter. tests/test_triton.py runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from test_triplane import draw_case, to_float32
from triplane import gpu_lookup, lookup, native_lookup, plain_lookup, triton_lookup
from triplane.plain_lookup import Frame

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """The interpreter is slow: use few points, and yet several blocks for each program of the backward kernel."""
    monkeypatch.setattr(gpu_lookup, "CHECK_POINTS", 49)
    monkeypatch.setattr(triton_lookup, "MIN_PROGRAMS", 3)


def weighted_sum(outputs, outputs_with_gradient):
    """A loss that depends on the logits, the colors, or both."""
    logits, colors = outputs
    pattern = torch.arange(logits.numel(), dtype=logits.dtype).view_as(logits).sin()
    parts = {"logits": (logits * pattern).sum(), "colors": 0 if colors is None else (colors * pattern.unsqueeze(-1)).sum()}
    return sum(parts.values()) if outputs_with_gradient == "both" else parts[outputs_with_gradient]


@pytest.mark.parametrize("outputs_with_gradient", ["both", "logits", "colors"])
@pytest.mark.parametrize("is_product", [False, True])
@pytest.mark.parametrize(("num_channels", "hidden_dim", "num"), [(16, 32, 100), (32, 16, 1), (32, 64, 33)])
def test_results_and_gradients_are_those_of_pytorch(num_channels, hidden_dim, num, is_product, outputs_with_gradient):
    exact_planes, points = draw_case(num_channels, hidden_dim, num, is_product)
    with_colors = outputs_with_gradient != "logits"
    exact_leaves = [tensor.requires_grad_(True) for tensor in exact_planes.leaves]
    exact = plain_lookup.query(exact_planes, points, with_colors)
    planes = to_float32(exact_planes)
    outputs = lookup.fused_query(triton_lookup, planes, points.float(), with_colors)
    for a, b in zip(exact, outputs, strict=True):
        assert a is None if b is None else float((a - b).abs().max().detach()) < 1e-4
    gradients = [
        torch.autograd.grad(weighted_sum(found, outputs_with_gradient), given)
        for found, given in ((exact, exact_leaves), (outputs, planes.leaves))
    ]
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).abs().max()) < 2e-5 * float(a.abs().max()) + 1e-12


@torch.no_grad()
def test_no_points():
    planes, points = draw_case(16, 16, num=0)
    planes, points = to_float32(planes), points.float()
    logits, colors = triton_lookup.forward(planes, points, True)
    assert logits.shape == (3, 0) and colors.shape == (3, 0, 3)
    grad_texels, grad_decoder = triton_lookup.backward(planes, points, colors, logits, None)
    assert all(not gradient.any() for gradient in (grad_texels, *grad_decoder))


@torch.no_grad()
def test_points_that_are_not_finite_read_nothing_outside_the_planes():
    """The texels lie between NaN, which would be seen in the logits."""
    planes, points = draw_case(16, 16, num=5)
    planes, points = to_float32(planes), points.float()
    surrounded = torch.full((5, *planes.texels.shape[1:]), torch.nan)
    surrounded[1:4] = planes.texels
    points[:, 0], points[:, 1], points[:, 2], points[:, 3] = torch.nan, torch.inf, -torch.inf, 1e30
    logits, colors = triton_lookup.forward(planes._replace(texels=surrounded[1:4]), points, True)
    assert logits.isfinite().all() and colors.isfinite().all()


def test_when_the_kernels_are_used(monkeypatch):
    planes, points = draw_case(16, 16, num=4)
    planes, points = to_float32(planes), points.float()
    assert lookup.implementation_for(planes, points) is not triton_lookup  # C comes first on a CPU
    monkeypatch.setattr(native_lookup, "can_run", lambda planes: False)
    for is_product in (False, True):
        assert lookup.implementation_for(planes._replace(is_product=is_product), points) is triton_lookup
    assert lookup.implementation_for(planes._replace(texels=planes.texels.double()), points) is plain_lookup
    assert lookup.implementation_for(planes, points.clone().requires_grad_(True)) is plain_lookup
    assert lookup.implementation_for(to_float32(draw_case(16, 12)[0]), points) is plain_lookup
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert lookup.implementation_for(planes, points) is plain_lookup


def test_a_failed_self_check_disables_the_kernels_and_warns(monkeypatch):
    monkeypatch.setattr(gpu_lookup, "_checked", {})
    monkeypatch.setattr(gpu_lookup, "CHECK_TOLERANCE", 1e-12)
    with pytest.warns(UserWarning, match="fused tri-plane lookup on cpu is disabled"):
        assert not gpu_lookup.can_run(to_float32(draw_case(16, 16)[0]))


@pytest.mark.parametrize("wrong", ["forward", "backward"])
def test_the_self_check_sees_wrong_results(monkeypatch, wrong):
    """It passes in any mode of the caller, and fails if a kernel reads a slightly different frame."""
    correct = getattr(triton_lookup, wrong)

    def shifted(planes, *rest):
        return correct(planes._replace(frame=Frame(planes.frame.values * 1.05)), *rest)

    with torch.inference_mode(), torch.device("meta"):
        assert gpu_lookup.self_check(CPU, 16, 16, is_product=wrong == "backward") < 1e-5
    monkeypatch.setattr(triton_lookup, wrong, shifted)
    assert gpu_lookup.self_check(CPU, 16, 16, is_product=False) > gpu_lookup.CHECK_TOLERANCE
