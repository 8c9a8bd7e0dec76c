"""Logits and colors at points: :func:`query` chooses the implementation.

plain_lookup.py has the formulas, in plain PyTorch. native_lookup.py (C, for a CPU) and triton_lookup.py (Triton, for a GPU)
compute lookup and decoder in one pass, save no activations, and have gradients for planes and decoder, but not for points.
Plain PyTorch is used if points need a gradient, for other types than float32, under torch.compile, and where neither can run:
native_lookup.py and gpu_lookup.py say when.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplane import gpu_lookup, native_lookup, plain_lookup
from triplane.decoder import DecoderWeights
from triplane.plain_lookup import Frame


def query(
    planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor, with_colors: bool
) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, N), and colors (B, N, 3) or None, at points (B, N, 3). planes: (B, size, size, 3, C), [y, x, plane]."""
    implementation = implementation_for(planes, decoder, frame, is_product, points)
    if implementation is plain_lookup:
        return plain_lookup.query(planes, decoder, frame, is_product, points, with_colors)
    return fused_query(implementation, planes, decoder, frame, is_product, points, with_colors)


def implementation_for(planes: Tensor, decoder: DecoderWeights, frame: Frame, is_product: bool, points: Tensor) -> ModuleType:
    """Return the module that :func:`query` uses for these tensors."""
    points_need_gradient = torch.is_grad_enabled() and points.requires_grad
    if points_need_gradient or torch.compiler.is_compiling() or planes.shape[1] < 2:
        return plain_lookup
    if any(tensor.dtype != torch.float32 for tensor in (planes, points, frame.values, *decoder)):
        return plain_lookup
    if native_lookup.can_run(planes, decoder):
        return native_lookup
    return gpu_lookup.kernels() if gpu_lookup.can_run(planes, decoder, is_product) else plain_lookup


def fused_query(
    implementation: ModuleType,
    planes: Tensor,
    decoder: DecoderWeights,
    frame: Frame,
    is_product: bool,
    points: Tensor,
    with_colors: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`query` with ``implementation``, which has ``forward`` and ``backward`` as in native_lookup.py."""
    planes, points, frame = planes.contiguous(), points.contiguous(), Frame(frame.values.contiguous())
    decoder = DecoderWeights(*(weight.contiguous() for weight in decoder))
    if torch.is_grad_enabled() and (planes.requires_grad or any(weight.requires_grad for weight in decoder)):
        return _Query.apply(planes, *decoder, frame, is_product, points, with_colors, implementation)
    return implementation.forward(planes, decoder, frame, is_product, points, with_colors)


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, planes, hidden_weight, hidden_bias, output_weight, output_bias, frame, is_product, points, with_colors, module
    ):
        decoder = DecoderWeights(hidden_weight, hidden_bias, output_weight, output_bias)
        logits, colors = module.forward(planes, decoder, frame, is_product, points, with_colors)
        ctx.save_for_backward(planes, *decoder, points, colors)
        ctx.frame, ctx.is_product, ctx.module = frame, is_product, module
        ctx.set_materialize_grads(False)
        return logits, colors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logits, grad_colors):  # type: ignore[override]
        planes, *weights, points, colors = ctx.saved_tensors
        given = [None if grad is None else grad.contiguous() for grad in (colors, grad_logits, grad_colors)]
        grad_planes, grad_decoder = ctx.module.backward(
            planes, DecoderWeights(*weights), ctx.frame, ctx.is_product, points, *given
        )
        return grad_planes, *grad_decoder, None, None, None, None, None
