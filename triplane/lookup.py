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
from triplane.plain_lookup import Frame, Planes


def query(planes: Planes, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, N), and colors (B, N, 3) or None, at points (B, N, 3)."""
    implementation = implementation_for(planes, points)
    if implementation is plain_lookup:
        return plain_lookup.query(planes, points, with_colors)
    return fused_query(implementation, planes, points, with_colors)


def implementation_for(planes: Planes, points: Tensor) -> ModuleType:
    """Return the module that :func:`query` uses for these tensors."""
    points_need_gradient = torch.is_grad_enabled() and points.requires_grad
    if points_need_gradient or torch.compiler.is_compiling() or planes.texels.shape[1] < 2:
        return plain_lookup
    if any(tensor.dtype != torch.float32 for tensor in (points, planes.frame.values, *planes.leaves)):
        return plain_lookup
    if native_lookup.can_run(planes):
        return native_lookup
    return gpu_lookup.kernels() if gpu_lookup.can_run(planes) else plain_lookup


def fused_query(implementation: ModuleType, planes: Planes, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`query` with ``implementation``, which has ``forward`` and ``backward`` as in native_lookup.py."""
    leaves = [tensor.contiguous() for tensor in planes.leaves]
    frame, points = Frame(planes.frame.values.contiguous()), points.contiguous()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in leaves):
        return _Query.apply(implementation, frame, planes.is_product, points, with_colors, *leaves)
    return implementation.forward(Planes.of(leaves, frame, planes.is_product), points, with_colors)


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(ctx, implementation, frame, is_product, points, with_colors, *leaves):  # type: ignore[override]
        logits, colors = implementation.forward(Planes.of(leaves, frame, is_product), points, with_colors)
        ctx.save_for_backward(points, colors, *leaves)
        ctx.implementation, ctx.frame, ctx.is_product = implementation, frame, is_product
        ctx.set_materialize_grads(False)
        return logits, colors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logits, grad_colors):  # type: ignore[override]
        points, colors, *leaves = ctx.saved_tensors
        planes = Planes.of(leaves, ctx.frame, ctx.is_product)
        outputs = [None if tensor is None else tensor.contiguous() for tensor in (colors, grad_logits, grad_colors)]
        grad_texels, grad_decoder = ctx.implementation.backward(planes, points, *outputs)
        return None, None, None, None, None, grad_texels, *grad_decoder
