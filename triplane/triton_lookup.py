"""Lookup and decoder on a GPU, in one Triton kernel for forward and one for backward.

A program looks up a block of points of one latent and applies the decoder to them. Features and hidden units stay in registers
and shared memory: a point reads its 12 bytes and its texels, mostly from the cache, and writes 4 to 16 bytes, while plain PyTorch
moves about 4 KB. The backward kernel computes features and hidden units again. It adds the gradients of texels atomically, so
their order, and with it the last bits of their sums, vary. The decoder's gradients are summed per program, and then over
programs. Products are float32. A coordinate that is NaN becomes that of the first texel, as in C.

gpu_lookup.py decides when these kernels are used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triplane.decoder import DecoderWeights
from triplane.mapping import LEAKY_SLOPE
from triplane.plain_lookup import Planes

FORWARD_BLOCK = 64  # points of a program
MAX_ROUNDS = 32  # blocks of points that a program of the backward kernel processes, one after the other
MIN_PROGRAMS = 2048  # of the backward kernel, if there are enough points: several for each multiprocessor of a large GPU
NUM_WARPS = 4
NUM_STAGES = 1  # loading the next block ahead would take ten times the shared memory

_LEAK = tl.constexpr(LEAKY_SLOPE)


def forward(planes: Planes, points: Tensor, with_colors: bool) -> tuple[Tensor, Tensor | None]:
    """Compute ``plain_lookup.query`` for contiguous tensors, without recording gradients."""
    batch, num_points = points.shape[:2]
    logits = points.new_empty(batch, num_points)
    colors = torch.empty_like(points) if with_colors else None
    if logits.numel():
        with torch.cuda.device_of(points):
            _forward_kernel[(triton.cdiv(num_points, FORWARD_BLOCK), batch)](
                points,
                planes.texels,
                planes.frame.values,
                *planes.decoder,
                logits,
                colors,
                num_points,
                **_constants(planes),
                BLOCK=FORWARD_BLOCK,
                WITH_COLORS=with_colors,
                num_stages=NUM_STAGES,
            )
    return logits, colors


def backward(
    planes: Planes, points: Tensor, colors: Tensor | None, grad_logits: Tensor | None, grad_colors: Tensor | None
) -> tuple[Tensor, DecoderWeights]:
    """Return the gradients of texels and decoder. ``colors``: the output of :func:`forward`, needed with ``grad_colors``."""
    batch, num_points = points.shape[:2]
    hidden_dim, num_channels = planes.decoder.hidden_weight.shape
    block = backward_block(num_channels, hidden_dim)
    num_blocks = triton.cdiv(num_points, block)
    num_rounds = max(1, min(MAX_ROUNDS, num_blocks * batch // MIN_PROGRAMS))
    num_programs = triton.cdiv(num_blocks, num_rounds)
    grad_texels = torch.zeros_like(planes.texels)
    grad_weights = points.new_empty(batch * num_programs, planes.decoder.num_weights)
    if points.numel():
        with torch.cuda.device_of(points):
            _backward_kernel[(num_programs, batch)](
                points,
                planes.texels,
                planes.frame.values,
                *planes.decoder,
                colors,
                grad_logits,
                grad_colors,
                grad_texels,
                grad_weights,
                num_points,
                num_rounds,
                **_constants(planes),
                BLOCK=block,
                WITH_LOGITS=grad_logits is not None,
                WITH_COLORS=grad_colors is not None,
                num_stages=NUM_STAGES,
            )
    return grad_texels, planes.decoder.shaped(grad_weights.sum(dim=0))


def backward_block(num_channels: int, hidden_dim: int) -> int:
    """Return the points of a block in the backward kernel: few enough for the registers of an H100 (tests/test_triton.py)."""
    return 32 if num_channels * hidden_dim <= 1024 else 16


def _constants(planes: Planes) -> dict[str, int | bool]:
    hidden_dim, num_channels = planes.decoder.hidden_weight.shape
    sizes = {"SIZE": planes.texels.shape[1], "CHANNELS": num_channels, "HIDDEN": hidden_dim}
    return {**sizes, "IS_PRODUCT": planes.is_product, "num_warps": NUM_WARPS}


# -- lookup ------------------------------------------------------------------------------------------------------------


@triton.jit
def _coordinate(frame, axis: tl.constexpr, x, y, z):
    """Return the plane coordinate (BLOCK,) along an axis."""
    m = frame + 3 * axis
    return tl.load(m) * x + tl.load(m + 1) * y + tl.load(m + 2) * z


@triton.jit
def _cell(frame, axis: tl.constexpr, x, y, z, SIZE: tl.constexpr):
    """Return the lower texel (BLOCK,) along a plane axis, and the fraction of the way to the next one."""
    u = (_coordinate(frame, axis, x, y, z) + 1) * (0.5 * (SIZE - 1))
    u = tl.minimum(tl.where(u > 0, u, 0.0), SIZE - 1.0)  # NaN becomes 0
    low = tl.minimum(tl.floor(u), SIZE - 2.0)
    return low.to(tl.int32), u - low


@triton.jit
def _point(point, inside):
    """Return the coordinates (BLOCK,) at the pointers ``point``, or 0 where ``inside`` is not set."""
    x = tl.load(point, mask=inside, other=0.0)
    y = tl.load(point + 1, mask=inside, other=0.0)
    z = tl.load(point + 2, mask=inside, other=0.0)
    return x, y, z


@triton.jit
def _cells(frame, x, y, z, SIZE: tl.constexpr):
    """Return the lower texels i, j, k and the fractions u, v, w along the three axes."""
    i, u = _cell(frame, 0, x, y, z, SIZE)
    j, v = _cell(frame, 1, x, y, z, SIZE)
    k, w = _cell(frame, 2, x, y, z, SIZE)
    return i, j, k, u, v, w


@triton.jit
def _bilinear(plane, i, j, u, v, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the values (BLOCK, C) of a plane. plane: pointers (C,) to its first texel; i, j: a texel's x, y; u, v: fractions."""
    corner = plane[None, :] + ((j * SIZE + i) * (3 * CHANNELS))[:, None]
    down: tl.constexpr = SIZE * 3 * CHANNELS
    upper = (1 - u)[:, None] * tl.load(corner) + u[:, None] * tl.load(corner + 3 * CHANNELS)
    lower = (1 - u)[:, None] * tl.load(corner + down) + u[:, None] * tl.load(corner + down + 3 * CHANNELS)
    return (1 - v)[:, None] * upper + v[:, None] * lower


@triton.jit
def _plane_values(plane, i, j, k, u, v, w, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the values (BLOCK, C) of the planes XY, XZ and YZ. plane: pointers (C,) to the first texel of XY."""
    a = _bilinear(plane, i, j, u, v, SIZE, CHANNELS)
    b = _bilinear(plane + CHANNELS, i, k, u, w, SIZE, CHANNELS)
    c = _bilinear(plane + 2 * CHANNELS, j, k, v, w, SIZE, CHANNELS)
    return a, b, c


@triton.jit
def _features(a, b, c, IS_PRODUCT: tl.constexpr):
    """Return the features of three planes' values."""
    if IS_PRODUCT:
        return (1 + a) * (1 + b) * (1 + c) - 1
    else:
        return a + b + c


@triton.jit
def _value_gradients(grad, a, b, c, IS_PRODUCT: tl.constexpr):
    """Return the gradients of the three planes' values, given that of their features."""
    if IS_PRODUCT:
        return grad * (1 + b) * (1 + c), grad * (1 + a) * (1 + c), grad * (1 + a) * (1 + b)
    else:
        return grad, grad, grad


@triton.jit
def _scatter(plane, i, j, u, v, values, mask, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Add values (BLOCK, C), times the weights of bilinear interpolation, to four texels where ``mask`` (BLOCK,) is set."""
    corner = plane[None, :] + ((j * SIZE + i) * (3 * CHANNELS))[:, None]
    down: tl.constexpr = SIZE * 3 * CHANNELS
    row_mask = mask[:, None]
    tl.atomic_add(corner, ((1 - u) * (1 - v))[:, None] * values, mask=row_mask, sem="relaxed")
    tl.atomic_add(corner + 3 * CHANNELS, (u * (1 - v))[:, None] * values, mask=row_mask, sem="relaxed")
    tl.atomic_add(corner + down, ((1 - u) * v)[:, None] * values, mask=row_mask, sem="relaxed")
    tl.atomic_add(corner + down + 3 * CHANNELS, (u * v)[:, None] * values, mask=row_mask, sem="relaxed")


@triton.jit
def _activation(x):
    """Return triplane.decoder.activation(x) and its derivative."""
    above = tl.maximum(x - 1, 0.0)
    bend = tl.maximum(x + 1, 0.0) - above
    return x * _LEAK + (0.25 * bend * bend + above) * (1 - _LEAK), bend * (0.5 * (1 - _LEAK)) + _LEAK


@triton.jit
def _hidden_units(features, hidden_weight, hidden_bias, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr):
    """Return the hidden units (BLOCK, H) of features (BLOCK, C), and the derivative of their activation."""
    unit = tl.arange(0, HIDDEN)
    weight = tl.load(hidden_weight + unit[None, :] * CHANNELS + tl.arange(0, CHANNELS)[:, None])
    return _activation(tl.dot(features, weight, input_precision="ieee") + tl.load(hidden_bias + unit)[None, :])


@triton.jit
def _output(hidden, output_weight, output_bias, output: tl.constexpr, HIDDEN: tl.constexpr):
    """Return one output (BLOCK,) of the decoder, before the sigmoid."""
    weight = tl.load(output_weight + output * HIDDEN + tl.arange(0, HIDDEN))
    return tl.sum(hidden * weight[None, :], axis=1) + tl.load(output_bias + output)


@triton.jit
def _ball(frame, x, y, z):
    """Return the ball's logits (BLOCK,)."""
    u = _coordinate(frame, 0, x, y, z) * tl.load(frame + 9)
    v = _coordinate(frame, 1, x, y, z) * tl.load(frame + 10)
    w = _coordinate(frame, 2, x, y, z) * tl.load(frame + 11)
    limit = tl.load(frame + 13)
    logits = tl.load(frame + 12) * (1 - tl.sqrt(u * u + v * v + w * w))
    return tl.minimum(tl.where(logits > -limit, logits, -limit), limit)


# -- kernels -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_points"])  # compile once for all values of num_points
def _forward_kernel(
    points,
    texels,
    frame,
    hidden_weight,
    hidden_bias,
    output_weight,
    output_bias,
    logits,
    colors,
    num_points,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    IS_PRODUCT: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_COLORS: tl.constexpr,
):
    latent = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_points
    x, y, z = _point(points + (latent * num_points + rows) * 3, inside)
    i, j, k, u, v, w = _cells(frame, x, y, z, SIZE)
    plane = texels + latent * (SIZE * SIZE * 3 * CHANNELS) + tl.arange(0, CHANNELS)
    a, b, c = _plane_values(plane, i, j, k, u, v, w, SIZE, CHANNELS)
    features = _features(a, b, c, IS_PRODUCT)
    hidden, _ = _hidden_units(features, hidden_weight, hidden_bias, CHANNELS, HIDDEN)
    logit = _output(hidden, output_weight, output_bias, 0, HIDDEN) + _ball(frame, x, y, z)
    tl.store(logits + latent * num_points + rows, logit, mask=inside)
    if WITH_COLORS:
        color = colors + (latent * num_points + rows) * 3
        tl.store(color, tl.sigmoid(_output(hidden, output_weight, output_bias, 1, HIDDEN)), mask=inside)
        tl.store(color + 1, tl.sigmoid(_output(hidden, output_weight, output_bias, 2, HIDDEN)), mask=inside)
        tl.store(color + 2, tl.sigmoid(_output(hidden, output_weight, output_bias, 3, HIDDEN)), mask=inside)


@triton.jit
def _color_gradient(colors, grad_colors, index, mask):
    """Return the gradient (BLOCK,) of a color before the sigmoid."""
    color = tl.load(colors + index, mask=mask, other=0.0)
    return tl.load(grad_colors + index, mask=mask, other=0.0) * color * (1 - color)


@triton.jit(do_not_specialize=["num_points", "num_rounds"])
def _backward_kernel(
    points,
    texels,
    frame,
    hidden_weight,
    hidden_bias,
    output_weight,
    output_bias,
    colors,
    grad_logits,
    grad_colors,
    grad_texels,
    grad_weights,
    num_points,
    num_rounds,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    IS_PRODUCT: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_LOGITS: tl.constexpr,
    WITH_COLORS: tl.constexpr,
):
    latent = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, HIDDEN)
    offset = latent * (SIZE * SIZE * 3 * CHANNELS) + channel
    plane = texels + offset
    grad_plane = grad_texels + offset
    sum_hidden_weight = tl.zeros((HIDDEN, CHANNELS), dtype=tl.float32)
    sum_hidden_bias = tl.zeros((HIDDEN,), dtype=tl.float32)
    sum_0 = tl.zeros((HIDDEN,), dtype=tl.float32)  # gradients of the output weights: logit, red, green, blue
    sum_1 = tl.zeros((HIDDEN,), dtype=tl.float32)
    sum_2 = tl.zeros((HIDDEN,), dtype=tl.float32)
    sum_3 = tl.zeros((HIDDEN,), dtype=tl.float32)
    bias_0 = tl.zeros((BLOCK,), dtype=tl.float32)
    bias_1 = tl.zeros((BLOCK,), dtype=tl.float32)
    bias_2 = tl.zeros((BLOCK,), dtype=tl.float32)
    bias_3 = tl.zeros((BLOCK,), dtype=tl.float32)

    for round_index in range(num_rounds):
        rows = (tl.program_id(0) * num_rounds + round_index) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < num_points
        index = latent * num_points + rows
        x, y, z = _point(points + index * 3, inside)
        i, j, k, u, v, w = _cells(frame, x, y, z, SIZE)
        a, b, c = _plane_values(plane, i, j, k, u, v, w, SIZE, CHANNELS)
        features = _features(a, b, c, IS_PRODUCT)
        hidden, slope = _hidden_units(features, hidden_weight, hidden_bias, CHANNELS, HIDDEN)

        grad_hidden = tl.zeros((BLOCK, HIDDEN), dtype=tl.float32)
        has_gradient = tl.zeros((BLOCK,), dtype=tl.int1)
        if WITH_LOGITS:
            grad = tl.load(grad_logits + index, mask=inside, other=0.0)
            has_gradient = has_gradient | (grad != 0)
            bias_0 += grad
            sum_0 += tl.sum(hidden * grad[:, None], axis=0)
            grad_hidden += grad[:, None] * tl.load(output_weight + unit)[None, :]
        if WITH_COLORS:
            red = _color_gradient(colors, grad_colors, index * 3, inside)
            green = _color_gradient(colors, grad_colors, index * 3 + 1, inside)
            blue = _color_gradient(colors, grad_colors, index * 3 + 2, inside)
            has_gradient = has_gradient | (red != 0) | (green != 0) | (blue != 0)
            bias_1 += red
            bias_2 += green
            bias_3 += blue
            sum_1 += tl.sum(hidden * red[:, None], axis=0)
            sum_2 += tl.sum(hidden * green[:, None], axis=0)
            sum_3 += tl.sum(hidden * blue[:, None], axis=0)
            grad_hidden += red[:, None] * tl.load(output_weight + HIDDEN + unit)[None, :]
            grad_hidden += green[:, None] * tl.load(output_weight + 2 * HIDDEN + unit)[None, :]
            grad_hidden += blue[:, None] * tl.load(output_weight + 3 * HIDDEN + unit)[None, :]
        grad_hidden *= slope
        sum_hidden_bias += tl.sum(grad_hidden, axis=0)
        sum_hidden_weight += tl.dot(tl.trans(grad_hidden), features, input_precision="ieee")

        weight = tl.load(hidden_weight + unit[:, None] * CHANNELS + channel[None, :])
        grad_features = tl.dot(grad_hidden, weight, input_precision="ieee")
        grad_a, grad_b, grad_c = _value_gradients(grad_features, a, b, c, IS_PRODUCT)
        _scatter(grad_plane, i, j, u, v, grad_a, has_gradient, SIZE, CHANNELS)
        _scatter(grad_plane + CHANNELS, i, k, u, w, grad_b, has_gradient, SIZE, CHANNELS)
        _scatter(grad_plane + 2 * CHANNELS, j, k, v, w, grad_c, has_gradient, SIZE, CHANNELS)

    # Hidden weight, hidden bias, output weight and output bias, one after the other
    program = latent * tl.num_programs(0) + tl.program_id(0)
    total = grad_weights + program * (HIDDEN * CHANNELS + 5 * HIDDEN + 4)
    tl.store(total + unit[:, None] * CHANNELS + channel[None, :], sum_hidden_weight)
    total += HIDDEN * CHANNELS
    tl.store(total + unit, sum_hidden_bias)
    tl.store(total + HIDDEN + unit, sum_0)
    tl.store(total + 2 * HIDDEN + unit, sum_1)
    tl.store(total + 3 * HIDDEN + unit, sum_2)
    tl.store(total + 4 * HIDDEN + unit, sum_3)
    total += 5 * HIDDEN
    tl.store(total, tl.sum(bias_0))
    tl.store(total + 1, tl.sum(bias_1))
    tl.store(total + 2, tl.sum(bias_2))
    tl.store(total + 3, tl.sum(bias_3))
