"""The compiled sine against float64, its derivatives, and how to disable it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from siren.backends.sine import _native, biased_sine_into, sine, sine_into, times_cosine_

needs_native = pytest.mark.skipif(_native() is None, reason="no C compiler: torch.sin is used")


def phases() -> torch.Tensor:
    return (torch.rand(64, 257, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 200


@needs_native
def test_values():
    x = phases()
    assert float((sine(x).double() - x.double().sin()).abs().max()) < 2e-7
    assert torch.equal(sine_into(x, torch.empty_like(x)), sine(x))


def test_in_place_forms():
    x, bias = phases(), torch.linspace(-3, 3, 257)
    phase, values = x.clone(), torch.empty_like(x)
    assert torch.allclose(biased_sine_into(phase, bias, values), torch.sin(x + bias), atol=1e-5)
    assert torch.equal(phase, x + bias)
    assert torch.equal(biased_sine_into(x.clone(), bias, phase), values)
    same = x.clone()
    assert torch.equal(biased_sine_into(same, bias, same), values)
    assert torch.allclose(times_cosine_(torch.full_like(x, 2), x), 2 * torch.cos(x), atol=1e-5)


@needs_native
def test_gradient():
    x = phases().requires_grad_(True)
    weights = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((sine(x) * weights).sum(), x)
    assert float((gradient.double() - weights.double() * x.detach().double().cos()).abs().max()) < 1e-6


def test_second_derivative():
    x = (phases() / 20).requires_grad_(True)
    (gradient,) = torch.autograd.grad(sine(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.allclose(second, -torch.sin(x.detach()), atol=1e-5)


def test_other_layouts_and_types():
    x = phases()
    assert torch.allclose(sine(x.t()), torch.sin(x.t()), atol=1e-5)
    assert torch.equal(sine(x.double()), torch.sin(x.double()))
    assert sine(torch.empty(0)).shape == (0,)


@needs_native
def test_can_be_switched_off(repo):
    code = "from siren.backends.sine import _native; print(_native())"
    environment = {"GOF_NATIVE_SINE": "0", "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], cwd=repo, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "None"
