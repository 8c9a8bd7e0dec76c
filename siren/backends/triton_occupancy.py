"""Occupancy logits in one fused GPU kernel: all layers at once, with activations that never leave the chip.

A program takes BLOCK points of one latent through every layer. Activations stay in registers and shared memory. The folded
weights are streamed, layer by layer, from the L2 cache, which all programs of a latent share. Each point reads 12 bytes of
device memory and writes 4, while the plain path moves 8 KB per layer of 256 units.

siren/backends/fused.py decides which queries use this kernel, and lists its errors.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from siren.backends.packed import PackedField

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_TAU = tl.constexpr(6.283185307179586)
_TURNS_PER_RADIAN = tl.constexpr(0.15915494309189535)


class LaunchConfig(NamedTuple):
    """Points per program, output columns per product, warps, and layers whose weights are in shared memory at once."""

    block: int
    chunk: int
    num_warps: int
    num_stages: int


# Each tile of weights serves `block` points, so the L2 cache must deliver 1 / block bytes per operation. On an H100, more than
# 128 points do not fit into a multiprocessor's registers, nor more than one layer of 256 x 256 weights into its shared memory.
CONFIGS = {64: LaunchConfig(128, 64, 4, 3), 128: LaunchConfig(128, 128, 8, 3), 256: LaunchConfig(128, 128, 8, 1)}


def occupancy_logits(packed: PackedField, points: Tensor, config: LaunchConfig | None = None) -> Tensor:
    """Run the kernel: points (B, N, 3) float32, world coordinates -> logits (B, N) float32."""
    batch, num_points = points.shape[:2]
    width = packed.final.shape[0]
    config = config or CONFIGS[width]
    logits = torch.empty(batch, num_points, device=points.device)
    if num_points == 0:
        return logits
    grid = (triton.cdiv(num_points, config.block), batch)
    with torch.cuda.device_of(points):
        _logits_kernel[grid](
            points.contiguous(),
            *packed,
            logits,
            num_points,
            packed.hidden.shape[1],
            WIDTH=width,
            CHUNK=config.chunk,
            BLOCK=config.block,
            STAGES=config.num_stages,
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )
    return logits


@triton.jit
def _sine(phase):
    """Return sin(phase): range reduction to [-pi, pi], then the hardware sine. |error| < 1e-6 + 2e-7 |turns|."""
    turns = tl.fma(phase, _TURNS_PER_RADIAN, _ROUNDER) - _ROUNDER
    angle = tl.fma(turns, -_TAU, phase)
    if _INTERPRETED:
        return tl.sin(angle)
    else:
        return libdevice.fast_sinf(angle)


@triton.jit
def _product(x, weight, phase):
    """Return phase + x @ weight, summed in float32."""
    if _INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter would multiply bit patterns
        return tl.dot(x.to(tl.float32), weight.to(tl.float32), phase)
    else:
        return tl.dot(x, weight, phase)


@triton.jit
def _first_layer(x, y, z, weight, bias, WIDTH: tl.constexpr):
    """Return the first layer's activations, in float32. x, y, z: (BLOCK,); weight, bias: pointers (CHUNK,) to the first row."""
    phase = tl.fma(x[:, None], tl.load(weight)[None, :], tl.load(bias)[None, :])
    phase = tl.fma(y[:, None], tl.load(weight + WIDTH)[None, :], phase)
    return _sine(tl.fma(z[:, None], tl.load(weight + 2 * WIDTH)[None, :], phase))


@triton.jit
def _half_layer(x0, x1, corner, bias, WIDTH: tl.constexpr):
    """Return half of a layer's activations. corner: pointers (CHUNK, CHUNK) to its upper weight tile; bias: pointers (CHUNK,)."""
    CHUNK: tl.constexpr = corner.shape[0]
    phase = _product(x0, tl.load(corner), tl.zeros((x0.shape[0], CHUNK), dtype=tl.float32))
    phase = _product(x1, tl.load(corner + CHUNK * WIDTH), phase)
    return _sine(phase + tl.load(bias)[None, :]).to(x0.dtype)


@triton.jit(do_not_specialize=["num_points"])  # compile once for all values of num_points
def _logits_kernel(
    points,
    first,
    biases,
    hidden,
    final,
    final_bias,
    logits,
    num_points,
    num_hidden,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Evaluate one block of points of one latent through all layers. CHUNK is WIDTH, or half of it.

    With half-width chunks, a layer has four weight tiles: x0, x1 are the halves of its input, and y0, y1 those of its output.
    """
    latent = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_points
    point = points + (latent * num_points + rows) * 3
    x = tl.load(point, mask=inside, other=0.0)
    y = tl.load(point + 1, mask=inside, other=0.0)
    z = tl.load(point + 2, mask=inside, other=0.0)

    column = tl.arange(0, CHUNK)
    first += latent * 3 * WIDTH + column
    biases += latent * (num_hidden + 1) * WIDTH + column
    tile = hidden + latent * num_hidden * WIDTH * WIDTH + tl.arange(0, CHUNK)[:, None] * WIDTH + column[None, :]
    dtype: tl.constexpr = hidden.dtype.element_ty
    x0 = _first_layer(x, y, z, first, biases, WIDTH).to(dtype)
    if WIDTH == CHUNK:
        for layer in tl.range(0, num_hidden, num_stages=STAGES):
            weight = tl.load(tile + layer * WIDTH * WIDTH)
            bias = tl.load(biases + (layer + 1) * WIDTH)
            phase = _product(x0, weight, tl.zeros((BLOCK, CHUNK), dtype=tl.float32))
            x0 = _sine(phase + bias[None, :]).to(dtype)
        total = tl.sum(x0.to(tl.float32) * tl.load(final + column)[None, :], axis=1)
    else:
        x1 = _first_layer(x, y, z, first + CHUNK, biases + CHUNK, WIDTH).to(dtype)
        for layer in tl.range(0, num_hidden, num_stages=STAGES):
            corner = tile + layer * WIDTH * WIDTH
            bias = biases + (layer + 1) * WIDTH
            y0 = _half_layer(x0, x1, corner, bias, WIDTH)
            y1 = _half_layer(x0, x1, corner + CHUNK, bias + CHUNK, WIDTH)
            x0 = y0
            x1 = y1
        total = tl.sum(
            x0.to(tl.float32) * tl.load(final + column)[None, :] + x1.to(tl.float32) * tl.load(final + CHUNK + column)[None, :],
            axis=1,
        )
    tl.store(logits + latent * num_points + rows, total + tl.load(final_bias), mask=inside)
