"""Whether the Triton kernels of triton_lookup.py can look up points on a GPU.

They need 16 or 32 channels and 16, 32 or 64 hidden units. They are disabled without Triton, with GOF_TRITON=0 in the
environment, with ``train.py --deterministic`` (the order in which they add gradients of texels varies), and if their first
results disagree with plain PyTorch in float64.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from common.triton import can_check, has_triton, passes_check
from triplane import plain_lookup
from triplane.decoder import DecoderWeights
from triplane.plain_lookup import Frame, Planes

CHANNELS = (16, 32)  # powers of two, as Triton requires; larger ones need more registers than a thread of an H100 has
HIDDEN = (16, 32, 64)
ENABLED = has_triton() and os.environ.get("GOF_TRITON") != "0"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on a CPU, for tests
CHECK_TOLERANCE = 1e-4  # relative, compared with float64
CHECK_POINTS = 70_001  # of two latents: enough for programs of several blocks, the last one incomplete

_checked: dict[tuple[torch.device, int, int, bool], bool] = {}


def kernels() -> ModuleType:
    """Return triton_lookup.py. It is imported at its first use, because importing Triton takes a while."""
    return importlib.import_module("triplane.triton_lookup")


def can_run(planes: Planes) -> bool:
    """Return whether the kernels can process these float32 tensors."""
    hidden_dim, num_channels = planes.decoder.hidden_weight.shape
    on_gpu = planes.texels.is_cuda and torch.version.hip is None
    if not ENABLED or not (on_gpu or INTERPRETED) or torch.are_deterministic_algorithms_enabled():
        return False
    fits = num_channels in CHANNELS and hidden_dim in HIDDEN
    return fits and _is_accurate(planes.texels.device, num_channels, hidden_dim, planes.is_product)


def _is_accurate(device: torch.device, num_channels: int, hidden_dim: int, is_product: bool) -> bool:
    """Return whether the kernels compile here and agree with plain PyTorch. Tested once, which synchronizes the device."""
    key = (device, num_channels, hidden_dim, is_product)
    if key not in _checked:
        if not can_check(device):
            return False
        kernel = f"the fused tri-plane lookup on {device}"
        _checked[key] = passes_check(kernel, lambda: self_check(device, num_channels, hidden_dim, is_product), CHECK_TOLERANCE)
    return _checked[key]


class _Case(NamedTuple):
    """Random inputs of a query, and gradients of its outputs."""

    planes: Planes
    points: Tensor
    grad_logits: Tensor
    grad_colors: Tensor


def self_check(device: torch.device, num_channels: int, hidden_dim: int, is_product: bool) -> float:
    """Return the largest relative error of the kernels' outputs and gradients on random inputs. NaN propagates.

    Covers every kernel that training and rendering use: with and without colors, and gradients of either output or both.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        case = _random_case(device, num_channels, hidden_dim, is_product)
        errors = [
            _largest_error(case, with_colors=False, grad_logits=case.grad_logits, grad_colors=None),
            _largest_error(case, with_colors=True, grad_logits=case.grad_logits, grad_colors=None),
            _largest_error(case, with_colors=True, grad_logits=None, grad_colors=case.grad_colors),
            _largest_error(case, with_colors=True, grad_logits=case.grad_logits, grad_colors=case.grad_colors),
        ]
        return float(torch.stack(errors).max())


def _random_case(device: torch.device, num_channels: int, hidden_dim: int, is_product: bool) -> _Case:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device="cpu", dtype=torch.float32).to(device)

    decoder = DecoderWeights(
        normal(hidden_dim, num_channels) / num_channels**0.5,
        normal(hidden_dim),
        normal(4, hidden_dim) / hidden_dim**0.5,
        normal(4),
    )
    matrix_and_ball = [5.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0, 2.0, 1.5, 2.5, 7.5, 6.0]
    frame = Frame(torch.tensor(matrix_and_ball, device=device, dtype=torch.float32))
    planes = Planes(normal(2, 9, 9, 3, num_channels), decoder, frame, is_product)
    return _Case(planes, 0.1 * normal(2, CHECK_POINTS, 3), normal(2, CHECK_POINTS), normal(2, CHECK_POINTS, 3))


def _largest_error(case: _Case, with_colors: bool, grad_logits: Tensor | None, grad_colors: Tensor | None) -> Tensor:
    """Return the largest relative error of outputs and gradients, compared with plain PyTorch in float64."""
    outputs = kernels().forward(case.planes, case.points, with_colors)
    grad_texels, grad_decoder = kernels().backward(case.planes, case.points, outputs[1], grad_logits, grad_colors)
    leaves = [tensor.double().requires_grad_(True) for tensor in case.planes.leaves]
    exact_planes = Planes.of(leaves, Frame(case.planes.frame.values.double()), case.planes.is_product)
    exact = plain_lookup.query(exact_planes, case.points.double(), with_colors)
    used = [(a, b.double()) for a, b in zip(exact, (grad_logits, grad_colors), strict=True) if b is not None]
    gradients = torch.autograd.grad([a for a, _ in used], leaves, [b for _, b in used])
    pairs = [(a, b) for a, b in zip(outputs, exact, strict=True) if b is not None]
    pairs += zip((grad_texels, *grad_decoder), gradients, strict=True)
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).detach().max()
