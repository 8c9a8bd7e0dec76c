"""The field's arithmetic on a CPU, in cache-sized blocks with hand-written gradients.

The functions of siren/backends/folded.py, applied latent by latent to blocks of 1024 or 2048 points. A block's activations
are used while they are in the cache, and a latent's weights stay there across blocks. For training, the forward pass saves one
number per point, layer and unit: the phase. Recomputing its sine and cosine is cheaper than loading them. Automatic
differentiation would save both the phase and the sine, and would pass through memory for each operation.

B latents, N points each, C input channels, H hidden units; all float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from siren.backends.folded import FoldedSiren
from siren.backends.sine import biased_sine_into, sine_into, times_cosine_

BLOCK = 2048  # points
BLOCK_WITH_GRADIENT = 1024  # smaller, because more matrices are in use at a time


def logits_and_colors(folded: FoldedSiren, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Map x (B, N, C) to logits (B, N) and, given unit directions (B, N, 3), colors (B, N, 3) in [0, 1].

    Differentiable once, with respect to ``folded`` and ``x``.
    """
    return _Query.apply(*_detached_without_grad(x, directions, *folded.tensors()))


def logits_and_gradients(folded: FoldedSiren, x: Tensor) -> tuple[Tensor, Tensor]:
    """Map x (B, N, C) to logits (B, N) and d logit / d x (B, N, C), differentiable once with respect to ``folded``."""
    return _GradientQuery.apply(*_detached_without_grad(x, *folded.tensors()))


def _detached_without_grad(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors, detached if gradients are disabled: ``ctx.needs_input_grad`` ignores torch.no_grad."""
    if torch.is_grad_enabled():
        return list(tensors)
    return [None if tensor is None else tensor.detach() for tensor in tensors]


def _blocks(x: Tensor, size: int) -> Iterator[tuple[int, slice]]:
    for latent in range(x.shape[0]):
        for start in range(0, x.shape[1], size):
            yield latent, slice(start, min(start + size, x.shape[1]))


class _Scratch:
    """Matrices of a block's size, reused so that they stay in the cache."""

    def __init__(self, x: Tensor, width: int, size: int) -> None:
        self._rows = min(size, x.shape[1])
        self._width = width
        self._like = x
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, block: slice) -> Tensor:
        """Return the matrix ``name``: (number of points in the block, H), uninitialized."""
        if name not in self._kept:
            self._kept[name] = self._like.new_empty(self._rows, self._width)
        return self._kept[name][: block.stop - block.start]


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, directions: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        folded = FoldedSiren.from_tensors(tensors)
        num_layers, width = len(folded.weights), folded.logit_weight.shape[1]
        keep = any(ctx.needs_input_grad)
        num_phases = num_layers + (directions is not None)
        phases = x.new_empty(num_phases, *x.shape[:2], width) if keep else None
        logits = x.new_empty(x.shape[:2])
        colors = None if directions is None else x.new_empty(*x.shape[:2], 3)
        size = BLOCK_WITH_GRADIENT if keep else BLOCK
        scratch = _Scratch(x, width, size)
        for b, block in _blocks(x, size):
            hidden = x[b, block]
            for i in range(num_layers):
                phase = scratch.get(f"phase{i % 2}", block) if phases is None else phases[i, b, block]
                torch.mm(hidden, folded.weights[i][b], out=phase)
                sines = phase if phases is None else scratch.get(f"hidden{i % 2}", block)
                hidden = biased_sine_into(phase, folded.biases[i][b], sines)
            torch.addmv(folded.logit_bias.expand(len(hidden)), hidden, folded.logit_weight[0], out=logits[b, block])
            if directions is not None:
                phase = scratch.get("color", block) if phases is None else phases[-1, b, block]
                torch.mm(hidden, folded.color_weight[b], out=phase)
                phase.addmm_(directions[b, block], folded.direction_weight[b])
                hidden = biased_sine_into(phase, folded.color_bias[b], phase if phases is None else scratch.get("color", block))
                rgb = torch.addmm(folded.rgb_bias, hidden, folded.rgb_weight.t())
                torch.sigmoid(rgb, out=colors[b, block])
        if keep:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, directions, phases, colors, *tensors)
        return logits, colors

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logits: Tensor | None, grad_colors: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, directions, phases, colors, *tensors = ctx.saved_tensors
        folded = FoldedSiren.from_tensors(tensors)
        grads = FoldedSiren.from_tensors([torch.zeros_like(tensor) for tensor in tensors])
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        num_layers = len(folded.weights)
        scratch = _Scratch(x, folded.logit_weight.shape[1], BLOCK_WITH_GRADIENT)
        for b, block in _blocks(x, BLOCK_WITH_GRADIENT):
            grad = scratch.get("grad0", block).zero_()
            hidden = sine_into(phases[num_layers - 1, b, block], scratch.get("hidden", block))
            if grad_colors is not None:
                rgb = colors[b, block]
                grad_rgb = grad_colors[b, block] * rgb * (1 - rgb)
                color_hidden = sine_into(phases[-1, b, block], scratch.get("color", block))
                grads.rgb_weight.addmm_(grad_rgb.t(), color_hidden)
                grads.rgb_bias.add_(grad_rgb.sum(dim=0))
                grad_phase = torch.mm(grad_rgb, folded.rgb_weight, out=color_hidden)
                times_cosine_(grad_phase, phases[-1, b, block])
                grads.color_weight[b].addmm_(hidden.t(), grad_phase)
                grads.direction_weight[b].addmm_(directions[b, block].t(), grad_phase)
                grads.color_bias[b].add_(grad_phase.sum(dim=0))
                torch.mm(grad_phase, folded.color_weight[b].t(), out=grad)
            if grad_logits is not None:
                grads.logit_weight[0].addmv_(hidden.t(), grad_logits[b, block])
                grads.logit_bias.add_(grad_logits[b, block].sum())
                grad.addr_(grad_logits[b, block], folded.logit_weight[0])
            for i in reversed(range(num_layers)):
                times_cosine_(grad, phases[i, b, block])
                below = x[b, block] if i == 0 else sine_into(phases[i - 1, b, block], hidden)
                grads.weights[i][b].addmm_(below.t(), grad)
                grads.biases[i][b].add_(grad.sum(dim=0))
                if i > 0:
                    grad = torch.mm(grad, folded.weights[i][b].t(), out=scratch.get(f"grad{(num_layers - i) % 2}", block))
                elif grad_x is not None:
                    torch.mm(grad, folded.weights[0][b].t(), out=grad_x[b, block])
        return grad_x, None, *grads.tensors()


class _GradientQuery(torch.autograd.Function):
    """Logits and d logit / d x for the layers a_i = x_{i-1} W_i + b_i, x_i = sin a_i.

    With g_L the logit's weight and h_i = g_i cos a_i, the recursion g_{i-1} = h_i W_i^T gives d logit / d x = g_0. The backward
    pass runs up that chain and then down the layers.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        folded = FoldedSiren.from_tensors(tensors)
        num_layers, width = len(folded.weights), folded.logit_weight.shape[1]
        keep = any(ctx.needs_input_grad)
        logits, gradients = x.new_empty(x.shape[:2]), torch.empty_like(x)
        size = BLOCK_WITH_GRADIENT if keep else BLOCK
        scratch = _Scratch(x, width, size)
        kept = x.new_empty(2, num_layers, *x.shape[:2], width) if keep else None
        for b, block in _blocks(x, size):
            hidden = x[b, block]
            phases = []
            for i in range(num_layers):
                phases.append(scratch.get(f"phase{i}", block) if kept is None else kept[0, i, b, block])
                torch.mm(hidden, folded.weights[i][b], out=phases[i])
                hidden = biased_sine_into(phases[i], folded.biases[i][b], scratch.get(f"hidden{i % 2}", block))
            torch.addmv(folded.logit_bias.expand(len(hidden)), hidden, folded.logit_weight[0], out=logits[b, block])
            chain = scratch.get("chain", block) if kept is None else kept[1, num_layers - 1, b, block]
            chain.copy_(folded.logit_weight.expand_as(chain))
            for i in reversed(range(num_layers)):
                scaled = scratch.get("scaled", block).copy_(chain)
                times_cosine_(scaled, phases[i])
                if i == 0:
                    torch.mm(scaled, folded.weights[0][b].t(), out=gradients[b, block])
                else:
                    chain = scratch.get("chain", block) if kept is None else kept[1, i - 1, b, block]
                    torch.mm(scaled, folded.weights[i][b].t(), out=chain)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, kept, *tensors)
        return logits, gradients

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logits: Tensor | None, grad_gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.needs_input_grad[0]:
            raise NotImplementedError(
                "the blocked field gradient is not differentiable with respect to its points; use siren/backends/folded.py"
            )
        x, kept, *tensors = ctx.saved_tensors
        folded = FoldedSiren.from_tensors(tensors)
        grads = FoldedSiren.from_tensors([torch.zeros_like(tensor) for tensor in tensors])
        scratch = _Scratch(x, folded.logit_weight.shape[1], BLOCK_WITH_GRADIENT)
        for b, block in _blocks(x, BLOCK_WITH_GRADIENT):
            part = _Part(b, x[b, block], kept[0, :, b, block], kept[1, :, b, block], block)
            bends = None
            if grad_gradients is not None:
                bends = _backward_through_chain(folded, grads, part, grad_gradients[b, block], scratch)
            _backward_through_layers(folded, grads, part, bends, None if grad_logits is None else grad_logits[b, block], scratch)
        return None, *grads.tensors()


class _Part(NamedTuple):
    """One block of n points: x (n, C), phases a_i and chain g_i (L, n, H)."""

    latent: int
    x: Tensor
    phases: Tensor
    chain: Tensor
    block: slice


def _backward_through_chain(
    folded: FoldedSiren, grads: FoldedSiren, part: _Part, grad: Tensor, scratch: _Scratch
) -> list[Tensor]:
    """Propagate the gradient of g_0 to g_L. Returns the gradient of each phase through its cosine, (n, H) per layer."""
    bends = []
    for i, phase in enumerate(part.phases):
        scaled = scratch.get("scaled", part.block).copy_(part.chain[i])  # h_i
        times_cosine_(scaled, phase)
        grads.weights[i][part.latent].addmm_(grad.t(), scaled)
        grad_scaled = torch.mm(grad, folded.weights[i][part.latent], out=scratch.get(f"up{i % 2}", part.block))
        bend = sine_into(phase, scratch.get(f"bend{i}", part.block))
        bends.append(bend.mul_(part.chain[i]).mul_(grad_scaled).neg_())
        grad = times_cosine_(grad_scaled, phase)
    grads.logit_weight[0].add_(grad.sum(dim=0))
    return bends


def _backward_through_layers(
    folded: FoldedSiren,
    grads: FoldedSiren,
    part: _Part,
    bends: list[Tensor] | None,
    grad_logits: Tensor | None,
    scratch: _Scratch,
) -> None:
    """Propagate the gradients of the logits (n,), and those of the phases through their cosines, back through the layers."""
    b, block, num_layers = part.latent, part.block, len(part.phases)
    grad = scratch.get("down", block).zero_()
    if grad_logits is not None:
        hidden = sine_into(part.phases[-1], scratch.get("hidden", block))
        grads.logit_weight[0].addmv_(hidden.t(), grad_logits)
        grads.logit_bias.add_(grad_logits.sum())
        grad.addr_(grad_logits, folded.logit_weight[0])
    for i in reversed(range(num_layers)):
        times_cosine_(grad, part.phases[i])
        if bends is not None:
            grad.add_(bends[i])
        below = part.x if i == 0 else sine_into(part.phases[i - 1], scratch.get("hidden", block))
        grads.weights[i][b].addmm_(below.t(), grad)
        grads.biases[i][b].add_(grad.sum(dim=0))
        if i > 0:
            grad = torch.mm(grad, folded.weights[i][b].t(), out=scratch.get(f"down{i % 2}", block))
