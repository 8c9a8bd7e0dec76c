"""The sine of a SIREN, in native code on CPUs.

On a CPU, PyTorch's float32 sine takes as long as the matrix product before it (hidden width 64) or a third of it (256).
sine.c is a faster replacement, which common/native.py compiles for this machine on first use. torch.sin is used on GPUs,
without a C compiler, and with GOF_NATIVE_SINE=0.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from common.native import load_library

SOURCE = Path(__file__).with_name("sine.c")


class _Native:
    """Functions of the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, count = ctypes.c_void_p, ctypes.c_long
        self.sine, self.backward = library.gof_sine, library.gof_sine_backward
        self.sine.argtypes, self.sine.restype = [pointer, pointer, count], None
        self.backward.argtypes, self.backward.restype = [pointer, pointer, pointer, count], None
        self.biased_sine = library.gof_biased_sine
        self.biased_sine.argtypes, self.biased_sine.restype = [pointer, pointer, pointer, count, count], None


@functools.cache
def _native() -> _Native | None:
    """Return the compiled functions, or None if they are unavailable or inaccurate."""
    library = None if os.environ.get("GOF_NATIVE_SINE") == "0" else load_library(SOURCE)
    if library is None:
        return None
    native = _Native(library)
    return native if _is_accurate(native) else None


def _is_accurate(native: _Native) -> bool:
    x = torch.linspace(-200, 200, 70_001)
    y, slope, ones = torch.empty_like(x), torch.empty_like(x), torch.ones_like(x)
    native.sine(x.data_ptr(), y.data_ptr(), x.numel())
    native.backward(ones.data_ptr(), x.data_ptr(), slope.data_ptr(), x.numel())
    exact = x.double()
    return bool((y - exact.sin()).abs().max() < 1e-5) and bool((slope - exact.cos()).abs().max() < 1e-5)


def _uses_native(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # torch.compile fuses torch.sin with the operations around it
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() and _native() is not None


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _native().sine(x.data_ptr(), y.data_ptr(), x.numel())
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not grad.is_contiguous() or grad.dtype != torch.float32:  # a second derivative
            return grad * torch.cos(x)
        out = torch.empty_like(grad)
        _native().backward(grad.data_ptr(), x.data_ptr(), out.data_ptr(), x.numel())
        return out


def sine(x: Tensor) -> Tensor:
    """Return sin(x) for any shape, twice differentiable. |error| < 2e-7 for |x| < 200, the range of a SIREN's phases."""
    if not _uses_native(x):
        return torch.sin(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Sine.apply(x)
    y = torch.empty_like(x)
    _native().sine(x.data_ptr(), y.data_ptr(), x.numel())
    return y


def sine_into(x: Tensor, out: Tensor) -> Tensor:
    """Write sin(x) to ``out``, which may be x itself, without recording gradients. Both are contiguous, of the same shape."""
    if not (_uses_native(x) and _uses_native(out)):
        return torch.sin(x, out=out)
    _native().sine(x.data_ptr(), out.data_ptr(), x.numel())
    return out


def biased_sine_into(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Compute x += bias and out = sin(x) in one pass, without recording gradients. x, out: (n, H); bias: (H,); contiguous.

    ``out`` may be x. Otherwise x holds the phase afterwards.
    """
    if not (_uses_native(x) and _uses_native(out) and _uses_native(bias)):
        return torch.sin(x.add_(bias), out=out)
    _native().biased_sine(x.data_ptr(), bias.data_ptr(), out.data_ptr(), *x.shape)
    return out


def times_cosine_(values: Tensor, x: Tensor) -> Tensor:
    """Multiply ``values`` by cos(x) in place, without recording gradients. Both are contiguous, of the same shape."""
    if not (_uses_native(x) and _uses_native(values)):
        return values.mul_(torch.cos(x))
    _native().backward(values.data_ptr(), x.data_ptr(), values.data_ptr(), x.numel())
    return values
