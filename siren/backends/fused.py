"""Which occupancy queries go to the fused GPU kernel (siren/backends/triton_occupancy.py), and in which precision.

Precision. The inputs of the hidden layers' products are rounded to ``fp16`` or ``bf16``; sums, biases, phases, the first
layer (whose phases are the largest) and the sine's argument are float32. fp16 suits a SIREN: activations lie in [-1, 1],
folded weights are far from its limits, and its significand has the 11 bits of TF32 at twice TF32's rate. Measured on the
recorded reference generator (benchmarks/precision.py, two latents, 64 px; rounding emulated):

                phase error (rms, max)   logit error (rms)   t of the surface (median, 99%)   PSNR of the image
    fp16        0.0007, 0.025 rad        0.0005              1.2e-6, 1.1e-5                   98 dB
    tf32        the same                 the same            the same                         98 dB
    bf16        0.006, 0.25 rad          0.004               9.5e-6, 8.1e-5                   81 dB

So fp16 goes where float32 products may round to TF32, and bf16 where the caller accepts it: the choice follows
``torch.set_float32_matmul_precision``. ``highest`` (PyTorch's default): plain float32, no kernel; ``high``: fp16;
``medium``: bf16. GOF_TRITON=0 in the environment turns the kernel off. It also stays off without Triton, for widths other
than WIDTHS, for models with a feature grid, where a gradient is recorded, and where its first result disagrees with
:func:`emulated_logits`. Triton's interpreter (TRITON_INTERPRET=1, set before the import) runs it on a CPU, for the tests.
"""

from __future__ import annotations

import importlib.util
import os
import warnings

import torch
from torch import Tensor

from siren.backends.folded import FoldedSiren
from siren.backends.packed import PackedField


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # a module that is blocked
        return False


WIDTHS = (64, 128, 256)
DTYPES = {"high": torch.float16, "medium": torch.bfloat16}  # by torch.get_float32_matmul_precision()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ENABLED = _has_triton() and os.environ.get("GOF_TRITON") != "0"
CHECK_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative: what rounding at other places changes


def kernel_dtype(folded: FoldedSiren, points: Tensor) -> torch.dtype | None:
    """The kernel's precision for a query of (B, N, 3) points; None where the plain path is to be taken."""
    width, num_inputs = folded.logit_weight.shape[1], folded.weights[0].shape[1]
    if not ENABLED or torch.is_grad_enabled() or width not in WIDTHS or num_inputs != 3 or len(folded.weights) < 2:
        return None
    if not (points.is_cuda and torch.version.hip is None) and not (INTERPRETED and points.device.type == "cpu"):
        return None
    dtype = DTYPES.get(torch.get_float32_matmul_precision())
    return dtype if dtype is not None and _is_right(points.device, width, dtype) else None


def occupancy_logits(packed: PackedField, points: Tensor) -> Tensor:
    """points (B, N, 3) float32, world coordinates -> logits (B, N) float32, by the kernel."""
    from siren.backends import triton_occupancy  # imports Triton, which takes a while

    return triton_occupancy.occupancy_logits(packed, points)


def emulated_logits(packed: PackedField, points: Tensor) -> Tensor:
    """What the kernel computes, in plain PyTorch: the same roundings, float32 sums. Shapes as above."""
    with torch.autocast(points.device.type, enabled=False):
        x = torch.baddbmm(packed.biases[:, :1].double(), points.double(), packed.first.double()).float().sin()
        for i, weight in enumerate(packed.hidden.unbind(dim=1)):
            x = torch.baddbmm(packed.biases[:, i + 1, None], _rounded(x, weight.dtype), weight.float()).sin_()
        return _rounded(x, packed.hidden.dtype) @ packed.final + packed.final_bias


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


# -- the first result of a process ---------------------------------------------------------------------------------------

_checked: dict[tuple[torch.device, int, torch.dtype], bool] = {}


def _is_right(device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Whether the kernel compiles here and agrees with the emulation; tried once. Waits for the device that once."""
    key = (device, width, dtype)
    if key not in _checked:
        if torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            return False
        try:
            error = _self_check(device, width, dtype)
            _checked[key] = error < CHECK_TOLERANCE[dtype]
            reason = f"its first result is off by {error:.1e}"
        except Exception as failure:  # whatever the compiler or the driver raises, the plain path still works
            _checked[key] = False
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
        if not _checked[key]:
            warnings.warn(f"the fused occupancy kernel is not used on {device} at width {width}: {reason}", stacklevel=2)
    return _checked[key]


def _self_check(device: torch.device, width: int, dtype: torch.dtype) -> float:
    """Relative error ||kernel - emulation|| / ||emulation|| on a random SIREN; NaN is passed on."""
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
