"""Dispatch of occupancy queries to the fused GPU kernel (siren/backends/triton_occupancy.py), and its precision.

Precision. The inputs of the hidden layers' products are rounded to ``fp16`` or ``bf16``; sums, biases, phases, the first
layer (whose phases are the largest) and the sine's argument are float32. fp16 suits a SIREN: activations are in [-1, 1],
folded weights are far from its limits, and its significand has the same 11 bits as TF32's at twice the speed. Measured on the
recorded reference generator (benchmarks/precision.py, two latents, 64 px; rounding emulated):

                phase error (rms, max)   logit error (rms)   surface t error (median, 99%)    image PSNR
    fp16        0.0007, 0.025 rad        0.0005              1.2e-6, 1.1e-5                   98 dB
    tf32        the same                 the same            the same                         98 dB
    bf16        0.006, 0.25 rad          0.004               9.5e-6, 8.1e-5                   81 dB

So fp16 is used wherever float32 products may round to TF32, and bf16 wherever the caller accepts it. The choice follows
``torch.set_float32_matmul_precision``: ``highest`` (PyTorch's default) means plain float32 and no kernel, ``high`` means fp16,
and ``medium`` means bf16. GOF_TRITON=0 in the environment disables the kernel. It is also disabled without Triton, for widths
not in WIDTHS, for models with a feature grid, when gradients are recorded, and when its first result disagrees with
:func:`emulated_logits`. The tests run it on a CPU in Triton's interpreter (TRITON_INTERPRET=1, set before the import).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from common.triton import can_check, has_triton, passes_check
from siren.backends.folded import FoldedSiren
from siren.backends.packed import PackedField

WIDTHS = (64, 128, 256)
DTYPES = {"high": torch.float16, "medium": torch.bfloat16}  # by torch.get_float32_matmul_precision()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ENABLED = has_triton() and os.environ.get("GOF_TRITON") != "0"
CHECK_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative; covers a different order of rounding


def kernel_dtype(folded: FoldedSiren, points: Tensor) -> torch.dtype | None:
    """Return the kernel's precision for a query of (B, N, 3) points, or None if the query must take the plain path."""
    width, num_inputs = folded.logit_weight.shape[1], folded.weights[0].shape[1]
    if not ENABLED or torch.is_grad_enabled() or width not in WIDTHS or num_inputs != 3 or len(folded.weights) < 2:
        return None
    if not (points.is_cuda and torch.version.hip is None) and not (INTERPRETED and points.device.type == "cpu"):
        return None
    dtype = DTYPES.get(torch.get_float32_matmul_precision())
    return dtype if dtype is not None and _is_accurate(points.device, width, dtype) else None


def occupancy_logits(packed: PackedField, points: Tensor) -> Tensor:
    """Run the kernel: points (B, N, 3) float32, world coordinates -> logits (B, N) float32."""
    from siren.backends import triton_occupancy  # imports Triton, which takes a while

    return triton_occupancy.occupancy_logits(packed, points)


def emulated_logits(packed: PackedField, points: Tensor) -> Tensor:
    """Emulate the kernel in plain PyTorch: the same rounding, float32 sums. Shapes as in :func:`occupancy_logits`."""
    with torch.autocast(points.device.type, enabled=False):
        x = torch.baddbmm(packed.biases[:, :1].double(), points.double(), packed.first.double()).float().sin()
        for i, weight in enumerate(packed.hidden.unbind(dim=1)):
            x = torch.baddbmm(packed.biases[:, i + 1, None], _rounded(x, weight.dtype), weight.float()).sin_()
        return _rounded(x, packed.hidden.dtype) @ packed.final + packed.final_bias


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


# -- self-check on first use ---------------------------------------------------------------------------------------------

_checked: dict[tuple[torch.device, int, torch.dtype], bool] = {}


def _is_accurate(device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Return whether the kernel compiles here and agrees with the emulation. Tested once, which synchronizes the device."""
    key = (device, width, dtype)
    if key not in _checked:
        if not can_check(device):
            return False
        kernel = f"the fused occupancy kernel on {device} at width {width}"
        _checked[key] = passes_check(kernel, lambda: _self_check(device, width, dtype), CHECK_TOLERANCE[dtype])
    return _checked[key]


def _self_check(device: torch.device, width: int, dtype: torch.dtype) -> float:
    """Return the relative error ||kernel - emulation|| / ||emulation|| on a random SIREN. NaN propagates."""
    random = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random).mul_(2).sub_(1).to(device)

    bound = 30 * (6 / width) ** 0.5 / 25
    packed = PackedField(
        first=uniform(2, 3, width) * 80,
        biases=uniform(2, 3, width) * 3,
        hidden=(uniform(2, 2, width, width) * bound).to(dtype),
        final=uniform(width),
        final_bias=uniform(1),
    )
    points = uniform(2, 333, 3) * 0.12
    expected = emulated_logits(packed, points)
    return float((occupancy_logits(packed, points) - expected).norm() / expected.norm())
