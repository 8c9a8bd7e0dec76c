"""Lookup and decoder on a CPU, in C: lookup.c computes both in one pass and saves no activations for the backward pass."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from common.native import load_library
from triplane.decoder import DecoderWeights
from triplane.plain_lookup import Planes

SOURCE = Path(__file__).with_name("lookup.c")
CHANNELS = (16, 32)
MAX_HIDDEN = 128


class _FieldStruct(ctypes.Structure):
    """``Field`` of lookup.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("points", "planes", "frame")),
        *((name, ctypes.c_void_p) for name in DecoderWeights._fields),
        *((name, ctypes.c_long) for name in ("num_latents", "num_points", "size", "channels", "hidden", "is_product")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None without a C compiler or with GOF_NATIVE_TRIPLANE=0."""
    found = None if os.environ.get("GOF_NATIVE_TRIPLANE") == "0" else load_library(SOURCE)
    if found is not None:
        field, pointer = ctypes.POINTER(_FieldStruct), ctypes.c_void_p
        found.gof_triplane_forward.argtypes = [field, pointer, pointer]
        found.gof_triplane_backward.argtypes = [field, *[pointer] * 5]
        found.gof_triplane_forward.restype = found.gof_triplane_backward.restype = None
    return found


def can_run(planes: Planes) -> bool:
    """Return whether lookup.c can process these float32 tensors."""
    hidden_dim, num_channels = planes.decoder.hidden_weight.shape
    fits = num_channels in CHANNELS and hidden_dim <= MAX_HIDDEN and hidden_dim % 4 == 0
    return planes.texels.device.type == "cpu" and fits and library() is not None


def forward(planes: Planes, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
    """Compute ``plain_lookup.query`` for contiguous tensors, without recording gradients."""
    logits = points.new_empty(points.shape[:2])
    colors = torch.empty_like(points) if with_colors else None
    struct = _struct(planes, points)
    library().gof_triplane_forward(struct, logits.data_ptr(), None if colors is None else colors.data_ptr())
    return logits, colors


def backward(
    planes: Planes, points: Tensor, colors: Tensor | None, grad_logits: Tensor | None, grad_colors: Tensor | None
) -> tuple[Tensor, DecoderWeights]:
    """Return the gradients of texels and decoder. ``colors``: the output of :func:`forward`, needed with ``grad_colors``."""
    grad_texels = torch.zeros_like(planes.texels)
    grad_weights = points.new_zeros(len(points), planes.decoder.num_weights)
    library().gof_triplane_backward(
        _struct(planes, points),
        *(None if tensor is None else tensor.data_ptr() for tensor in (colors, grad_logits, grad_colors)),
        grad_texels.data_ptr(),
        grad_weights.data_ptr(),
    )
    return grad_texels, planes.decoder.shaped(grad_weights.sum(dim=0))


def _struct(planes: Planes, points: Tensor) -> _FieldStruct:
    """Return pointers to the contiguous tensors, which must outlive the call."""
    pointers = [tensor.data_ptr() for tensor in (points, planes.texels, planes.frame.values, *planes.decoder)]
    hidden_dim, num_channels = planes.decoder.hidden_weight.shape
    return _FieldStruct(*pointers, *points.shape[:2], planes.texels.shape[1], num_channels, hidden_dim, planes.is_product)
