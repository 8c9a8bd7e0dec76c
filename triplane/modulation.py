"""Operations between the backbone's convolutions: demodulation, bias, LeakyReLU and the next layer's modulation.

On a CPU, modulation.c computes them in one pass over the image each for forward and backward, where PyTorch needs four and
seven. Plain PyTorch is used on other devices, without a C compiler, and with GOF_NATIVE_TRIPLANE=0.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.native import load_library
from triplane.mapping import LEAKY_SLOPE

SOURCE = Path(__file__).with_name("modulation.c")


def modulate(x: Tensor, demodulation: Tensor, bias: Tensor, style: Tensor) -> Tensor:
    """Return leaky_relu(x demodulation + bias) style. x (B, C, H, W) in channels-last, bias (C,), the others (B, C)."""
    if not _is_compiled_for(x):
        return plain_modulate(x, demodulation, bias, style)
    return _Modulate.apply(x, demodulation, bias, style)


def plain_modulate(x: Tensor, demodulation: Tensor, bias: Tensor, style: Tensor) -> Tensor:
    """Compute :func:`modulate` in plain PyTorch."""
    u = torch.addcmul(bias[:, None, None], x, demodulation[:, :, None, None])
    return F.leaky_relu(u, LEAKY_SLOPE) * style[:, :, None, None]


class _LayerStruct(ctypes.Structure):
    """``Layer`` of modulation.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "demodulation", "bias", "style")),
        *((name, ctypes.c_long) for name in ("num_images", "num_pixels", "num_channels")),
    ]


@functools.cache
def _native() -> ctypes.CDLL | None:
    """Return the compiled functions, or None if they are unavailable."""
    library = None if os.environ.get("GOF_NATIVE_TRIPLANE") == "0" else load_library(SOURCE)
    if library is not None:
        layer, pointer = ctypes.POINTER(_LayerStruct), ctypes.c_void_p
        library.gof_modulate.argtypes = [layer, pointer]
        library.gof_modulate_backward.argtypes = [layer, pointer, pointer, pointer]
        library.gof_modulate.restype = library.gof_modulate_backward.restype = None
    return library


def _is_compiled_for(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling() and _native() is not None


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _struct(x: Tensor, demodulation: Tensor, bias: Tensor, style: Tensor) -> _LayerStruct:
    """Return pointers to the tensors, which must outlive the call."""
    pointers = [tensor.data_ptr() for tensor in (x, demodulation, bias, style)]
    return _LayerStruct(*pointers, x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, demodulation, bias, style):  # type: ignore[override]
        x, vectors = _channels_last(x), [vector.contiguous() for vector in (demodulation, bias, style)]
        ctx.save_for_backward(x, *vectors)
        y = torch.empty_like(x)
        _native().gof_modulate(_struct(x, *vectors), y.data_ptr())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        x, *vectors = ctx.saved_tensors
        grad, grad_x = _channels_last(grad), torch.empty_like(x)
        sums = x.new_empty(3, *x.shape[:2])
        _native().gof_modulate_backward(_struct(x, *vectors), grad.data_ptr(), grad_x.data_ptr(), sums.data_ptr())
        return grad_x, sums[0], sums[1].sum(dim=0), sums[2]
