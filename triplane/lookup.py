"""Logits and colors at points, from planes and decoder.

A point x in world coordinates has plane coordinates u = matrix x, which range over [-1, 1] from the center of the first texel to
that of the last. Points outside take the border's values. The features of a point combine the bilinear values of the planes XY,
XZ and YZ: their sum ("sum"), or prod(1 + value) - 1 ("product", equal to first order). Then

    logit = clamp(slope (radius - |x|), -limit, limit) + decoder_0(features),    color = sigmoid(decoder_123(features)).

On a CPU, lookup.c computes this in one pass and saves no activations for the backward pass. It has gradients for planes and
decoder, but not for points. Plain PyTorch is used on other devices, for other than 16 or 32 channels, for more than 128 hidden
units, for other dtypes than float32, if points need a gradient, under torch.compile, without a C compiler, and with
GOF_NATIVE_TRIPLANE=0.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.native import load_library
from triplane.decoder import DecoderWeights, decode

SOURCE = Path(__file__).with_name("lookup.c")
PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # world axes of each plane's x and y
NATIVE_CHANNELS = (16, 32)
MAX_NATIVE_HIDDEN = 128


class Frame(NamedTuple):
    """Placement of the planes, and the ball.

    values (12,): the row-major 3 x 3 matrix from world to plane coordinates, then the ball's radius, slope and limit.
    """

    values: Tensor

    @classmethod
    def of(cls, matrix: Tensor, radius: Tensor, slope: Tensor, limit: float) -> Frame:
        return cls(torch.cat([matrix.flatten(), radius.view(1), slope.view(1), slope.new_full((1,), limit)]))

    @property
    def matrix(self) -> Tensor:
        """Matrix from world to plane coordinates, (3, 3)."""
        return self.values[:9].view(3, 3)

    def ball_logits(self, points: Tensor) -> Tensor:
        """Return the ball's logits (B, N) at points (B, N, 3)."""
        radius, slope, limit = self.values[9:].unbind()
        return (slope * (radius - points.norm(dim=-1))).clamp(-limit, limit)


def query(
    planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor, with_colors: bool
) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, N), and colors (B, N, 3) or None, at points (B, N, 3). planes: (B, size, size, 3, C), [y, x, plane]."""
    if not is_compiled_for(planes, decoder, points):
        return plain_query(planes, decoder, frame, is_product, points, with_colors)
    planes, points, decoder = planes.contiguous(), points.contiguous(), DecoderWeights(*(w.contiguous() for w in decoder))
    if torch.is_grad_enabled() and (planes.requires_grad or any(weight.requires_grad for weight in decoder)):
        return _Query.apply(planes, *decoder, frame, is_product, points, with_colors)
    return _forward(planes, decoder, frame, is_product, points, with_colors)


# -- plain PyTorch -----------------------------------------------------------------------------------------------------


def plain_query(
    planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor, with_colors: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`query` in plain PyTorch; points get a gradient too."""
    features = plain_features(planes, points @ frame.matrix.t(), is_product)
    if not with_colors:
        decoder = DecoderWeights(*decoder[:2], decoder.output_weight[:1], decoder.output_bias[:1])
    outputs = decode(decoder, features)
    logits = outputs[..., 0] + frame.ball_logits(points)
    return logits, torch.sigmoid(outputs[..., 1:]) if with_colors else None


def plain_features(planes: Tensor, coordinates: Tensor, is_product: bool) -> Tensor:
    """Return features (B, N, C) at plane coordinates (B, N, 3)."""
    values = []
    for plane, (x, y) in enumerate(PLANE_AXES):
        texels = planes[:, :, :, plane].permute(0, 3, 1, 2)
        grid = coordinates[..., x : y + 1 : y - x].unsqueeze(1)  # a slice: a list of indices would synchronize with a GPU
        value = F.grid_sample(texels, grid, mode="bilinear", padding_mode="border", align_corners=True)
        values.append(value.squeeze(2).transpose(1, 2))
    first, second, third = values
    return (1 + first) * (1 + second) * (1 + third) - 1 if is_product else first + second + third


# -- compiled ----------------------------------------------------------------------------------------------------------


class _FieldStruct(ctypes.Structure):
    """``Field`` of lookup.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("points", "planes", "frame")),
        *((name, ctypes.c_void_p) for name in DecoderWeights._fields),
        *((name, ctypes.c_long) for name in ("num_latents", "num_points", "size", "channels", "hidden", "is_product")),
    ]


@functools.cache
def _native() -> ctypes.CDLL | None:
    """Return the compiled functions, or None if they are unavailable."""
    library = None if os.environ.get("GOF_NATIVE_TRIPLANE") == "0" else load_library(SOURCE)
    if library is not None:
        field, pointer = ctypes.POINTER(_FieldStruct), ctypes.c_void_p
        library.gof_triplane_forward.argtypes = [field, pointer, pointer]
        library.gof_triplane_backward.argtypes = [field, *[pointer] * 5]
        library.gof_triplane_forward.restype = library.gof_triplane_backward.restype = None
    return library


def is_compiled_for(planes: Tensor, decoder: DecoderWeights, points: Tensor) -> bool:
    """Return whether :func:`query` uses lookup.c."""
    hidden_dim, num_channels = decoder.hidden_weight.shape
    points_need_gradient = torch.is_grad_enabled() and points.requires_grad
    if planes.device.type != "cpu" or points_need_gradient or torch.compiler.is_compiling():
        return False
    if any(tensor.dtype != torch.float32 for tensor in (planes, points, *decoder)):
        return False
    fits = num_channels in NATIVE_CHANNELS and hidden_dim <= MAX_NATIVE_HIDDEN and hidden_dim % 4 == 0 and planes.shape[1] >= 2
    return fits and _native() is not None


def _struct(planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor) -> _FieldStruct:
    """Return pointers to the contiguous tensors, which must outlive the call."""
    pointers = [tensor.data_ptr() for tensor in (points, planes, frame.values, *decoder)]
    hidden_dim, num_channels = decoder.hidden_weight.shape
    return _FieldStruct(*pointers, *points.shape[:2], planes.shape[1], num_channels, hidden_dim, is_product)


def _forward(
    planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor, with_colors: bool
) -> tuple[Tensor, Tensor | None]:
    logits = points.new_empty(points.shape[:2])
    colors = torch.empty_like(points) if with_colors else None
    struct = _struct(planes, decoder, frame, is_product, points)
    _native().gof_triplane_forward(struct, logits.data_ptr(), None if colors is None else colors.data_ptr())
    return logits, colors


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, planes, hidden_weight, hidden_bias, output_weight, output_bias, frame, is_product, points, with_colors
    ):
        decoder = DecoderWeights(hidden_weight, hidden_bias, output_weight, output_bias)
        logits, colors = _forward(planes, decoder, frame, is_product, points, with_colors)
        ctx.save_for_backward(planes, *decoder, points, colors)
        ctx.frame, ctx.is_product = frame, is_product
        ctx.set_materialize_grads(False)
        return logits, colors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logits, grad_colors):  # type: ignore[override]
        planes, *weights, points, colors = ctx.saved_tensors
        decoder = DecoderWeights(*weights)
        grad_planes = torch.zeros_like(planes)
        sizes = [weight.numel() for weight in decoder]
        grad_weights = planes.new_zeros(len(planes), sum(sizes))
        given = [None if grad is None else grad.contiguous() for grad in (colors, grad_logits, grad_colors)]
        _native().gof_triplane_backward(
            _struct(planes, decoder, ctx.frame, ctx.is_product, points),
            *(None if grad is None else grad.data_ptr() for grad in given),
            grad_planes.data_ptr(),
            grad_weights.data_ptr(),
        )
        parts = grad_weights.sum(dim=0).split(sizes)
        shaped = [part.view(weight.shape) for part, weight in zip(parts, decoder, strict=True)]
        return grad_planes, *shaped, None, None, None, None
