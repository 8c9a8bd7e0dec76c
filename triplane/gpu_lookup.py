"""Whether the Triton kernels of triton_lookup.py can look up points on a GPU.

They are disabled without Triton, with GOF_TRITON=0 in the environment, with ``train.py --deterministic`` (the order in which
they add gradients of texels varies), and when their first results disagree with plain PyTorch in float64.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from common.native import has_triton
from triplane import plain_lookup
from triplane.decoder import DecoderWeights
from triplane.plain_lookup import Frame

CHANNELS = (16, 32)  # wider kernels need more registers than a thread of an H100 has
HIDDEN = (16, 32, 64)
ENABLED = has_triton() and os.environ.get("GOF_TRITON") != "0"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on a CPU, for tests
CHECK_TOLERANCE = 1e-4  # relative, compared with float64
CHECK_POINTS = 301

_checked: dict[tuple[torch.device, int, int], bool] = {}


def kernels() -> ModuleType:
    """Return triton_lookup.py, imported at its first use, because importing Triton takes a while."""
    return importlib.import_module("triplane.triton_lookup")


def can_run(planes: Tensor, decoder: DecoderWeights) -> bool:
    """Return whether the kernels can process these float32 tensors."""
    hidden_dim, num_channels = decoder.hidden_weight.shape
    on_gpu = planes.is_cuda and torch.version.hip is None
    if not ENABLED or not (on_gpu or INTERPRETED) or torch.are_deterministic_algorithms_enabled():
        return False
    return num_channels in CHANNELS and hidden_dim in HIDDEN and _is_accurate(planes.device, num_channels, hidden_dim)


def _is_accurate(device: torch.device, num_channels: int, hidden_dim: int) -> bool:
    """Return whether the kernels compile here and agree with plain PyTorch. Tested once, which synchronizes the device."""
    key = (device, num_channels, hidden_dim)
    if key not in _checked:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        try:
            error = self_check(device, num_channels, hidden_dim)
            _checked[key] = error < CHECK_TOLERANCE
            reason = f"its first result has a relative error of {error:.1e}"
        except Exception as failure:  # the plain path works whatever the compiler or the driver raises
            _checked[key] = False
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        if not _checked[key]:
            warnings.warn(f"the fused tri-plane lookup is disabled on {device}: {reason}", stacklevel=2)
    return _checked[key]


def self_check(device: torch.device, num_channels: int, hidden_dim: int) -> float:
    """Return the largest relative error of the kernels' outputs and gradients on random inputs. NaN propagates."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    planes, points = normal(2, 9, 9, 3, num_channels), 0.1 * normal(2, CHECK_POINTS, 3)
    decoder = DecoderWeights(
        normal(hidden_dim, num_channels) / num_channels**0.5,
        normal(hidden_dim),
        normal(4, hidden_dim) / hidden_dim**0.5,
        normal(4),
    )
    frame = Frame(torch.cat([5 * torch.eye(3).flatten(), torch.tensor([0.1, 75.0, 6.0])]).to(device))
    grad_logits, grad_colors = normal(2, CHECK_POINTS), normal(2, CHECK_POINTS, 3)
    logits, colors = kernels().forward(planes, decoder, frame, False, points, with_colors=True)
    grad_planes, grad_decoder = kernels().backward(planes, decoder, frame, False, points, colors, grad_logits, grad_colors)
    with torch.enable_grad():
        leaves = [tensor.double().requires_grad_(True) for tensor in (planes, *decoder)]
        exact_decoder, exact_frame = DecoderWeights(*leaves[1:]), Frame(frame.values.double())
        outputs = plain_lookup.query(leaves[0], exact_decoder, exact_frame, False, points.double(), with_colors=True)
        gradients = torch.autograd.grad(outputs, leaves, (grad_logits.double(), grad_colors.double()))
    found = (logits, colors, grad_planes, *grad_decoder)
    errors = [(a - b).norm() / b.norm() for a, b in zip(found, (*outputs, *gradients), strict=True)]
    return float(torch.stack(errors).detach().max())
