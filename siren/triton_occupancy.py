"""Occupancy logits by one fused GPU kernel: all layers at once, activations never leaving the chip.

A program takes BLOCK points of one latent through every layer. Activations stay in registers and shared memory; the
folded weights are streamed, layer by layer, from the L2 cache, where all programs of a latent find them. Per point the
device's memory sees 12 bytes in and 4 bytes out, where the plain path moves 8 KB per layer of 256 units.

Precision. The inputs of the hidden layers' products are rounded to ``fp16`` or ``bf16``; sums, biases, phases, the first
layer (whose phases are the largest) and the sine's argument are float32. fp16 suits a SIREN: activations lie in [-1, 1],
folded weights are far from its limits, and its significand has the 11 bits of TF32 at twice TF32's rate. Measured on the
recorded reference generator (benchmarks/precision.py; rounding emulated):

                phase error (rms, max)   logit error (rms)   surface t (median, 99%)   64 px image, PSNR
    fp16        @@
    tf32        @@
    bf16        @@

So fp16 goes where float32 products may round to TF32, and bf16 where the caller accepts it: the choice follows
``torch.set_float32_matmul_precision``. ``highest`` (PyTorch's default): plain float32, no kernel; ``high``: fp16;
``medium``: bf16. GOF_TRITON=0 in the environment turns the kernel off. It also stays off without Triton, for widths other
than WIDTHS, for models with a feature grid, where a gradient is recorded, and where its first result disagrees with
:func:`emulated_logits`. Triton's interpreter (TRITON_INTERPRET=1, set before the import) runs it on a CPU, for the tests.
"""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from siren.folded import FoldedSiren

try:
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice
except ImportError:  # PyTorch for CPUs comes without it
    triton = None

WIDTHS = (64, 128, 256)
DTYPES = {"high": torch.float16, "medium": torch.bfloat16}  # by torch.get_float32_matmul_precision()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ENABLED = triton is not None and os.environ.get("GOF_TRITON") != "0"
CHECK_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative: what rounding at other places changes


class PackedField(NamedTuple):
    """The folded layers of B latents, H units, L hidden layers after the first, as the kernel reads them.

    ``first`` (B, 3, H) and ``biases`` (B, L + 1, H) float32; ``hidden`` (B, L, H, H), [in, out], fp16 or bf16; ``final``
    (H,) and ``final_bias`` (1,) float32.
    """

    first: Tensor
    biases: Tensor
    hidden: Tensor
    final: Tensor
    final_bias: Tensor

    @classmethod
    def of(cls, folded: FoldedSiren, dtype: torch.dtype) -> PackedField:
        return cls(
            first=folded.weights[0].detach().contiguous(),
            biases=torch.stack([bias.detach() for bias in folded.biases], dim=1),
            hidden=torch.stack([weight.detach().to(dtype) for weight in folded.weights[1:]], dim=1),
            final=folded.logit_weight.detach().reshape(-1).contiguous(),
            final_bias=folded.logit_bias.detach(),
        )


class LaunchConfig(NamedTuple):
    """Points per program, output columns per product, warps, and weight tiles in flight."""

    block: int
    chunk: int
    num_warps: int
    num_stages: int


# A tile of weights serves `block` points, so the L2 cache has to deliver 1 / block bytes per operation: 64 points would be
# held up by it, 128 are not, and more do not fit into the registers of a multiprocessor (H100, H200).
CONFIGS = {64: LaunchConfig(128, 64, 4, 3), 128: LaunchConfig(128, 128, 8, 3), 256: LaunchConfig(128, 128, 8, 3)}


def kernel_dtype(folded: FoldedSiren, points: Tensor) -> torch.dtype | None:
    """The kernel's precision for a query of (B, N, 3) points; None where the plain path is to be taken."""
    width, num_inputs = folded.logit_weight.shape[1], folded.weights[0].shape[1]
    if not ENABLED or torch.is_grad_enabled() or width not in WIDTHS or num_inputs != 3 or len(folded.weights) < 2:
        return None
    if not (points.is_cuda and torch.version.hip is None) and not (INTERPRETED and points.device.type == "cpu"):
        return None
    dtype = DTYPES.get(torch.get_float32_matmul_precision())
    return dtype if dtype is not None and _is_right(points.device, width, dtype) else None


def occupancy_logits(packed: PackedField, points: Tensor, config: LaunchConfig | None = None) -> Tensor:
    """points (B, N, 3) float32, world coordinates -> logits (B, N) float32."""
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


# -- the kernel ----------------------------------------------------------------------------------------------------------

if triton is not None:
    _INTERPRETED = tl.constexpr(INTERPRETED)
    _ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
    _TAU = tl.constexpr(6.283185307179586)
    _TURNS_PER_RADIAN = tl.constexpr(0.15915494309189535)

    @triton.jit
    def _sine(phase):
        """sin, |error| < 1e-6 + 2e-7 |turns|: reduced to [-pi, pi], then the hardware's approximation."""
        turns = tl.fma(phase, _TURNS_PER_RADIAN, _ROUNDER) - _ROUNDER
        angle = tl.fma(turns, -_TAU, phase)
        if _INTERPRETED:
            return tl.sin(angle)
        else:
            return libdevice.fast_sinf(angle)

    @triton.jit
    def _product(x, weight, phase):
        """phase + x @ weight, summed in float32."""
        if _INTERPRETED and x.dtype == tl.bfloat16:  # the interpreter would multiply the bit patterns
            return tl.dot(x.to(tl.float32), weight.to(tl.float32), phase)
        else:
            return tl.dot(x, weight, phase)

    @triton.jit
    def _first_layer(x, y, z, weight, bias, WIDTH: tl.constexpr):
        """Three multiply-adds per unit, float32. x, y, z: (BLOCK,); weight, bias: pointers (CHUNK,) to its first row."""
        phase = tl.fma(x[:, None], tl.load(weight)[None, :], tl.load(bias)[None, :])
        phase = tl.fma(y[:, None], tl.load(weight + WIDTH)[None, :], phase)
        return _sine(tl.fma(z[:, None], tl.load(weight + 2 * WIDTH)[None, :], phase))

    @triton.jit
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
        """One block of points of one latent through all layers. CHUNK is WIDTH, or half of it.

        In halves, tile i of the stream of weights makes half i % 2 of layer i // 2 from both halves x0, x1 of the layer
        before: one loop over all tiles, so that the next ones are on their way while a layer ends.
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
            done = x0
            for i in tl.range(0, 2 * num_hidden, num_stages=STAGES):
                layer, half = i // 2, i % 2
                corner = tile + layer * WIDTH * WIDTH + half * CHUNK
                upper = tl.load(corner)
                lower = tl.load(corner + CHUNK * WIDTH)
                bias = tl.load(biases + (layer + 1) * WIDTH + half * CHUNK)
                phase = _product(x0, upper, tl.zeros((BLOCK, CHUNK), dtype=tl.float32))
                phase = _product(x1, lower, phase)
                result = _sine(phase + bias[None, :]).to(dtype)
                if half == 1:
                    x0 = done
                    x1 = result
                done = result
            total = tl.sum(
                x0.to(tl.float32) * tl.load(final + column)[None, :]
                + x1.to(tl.float32) * tl.load(final + CHUNK + column)[None, :],
                axis=1,
            )
        tl.store(logits + latent * num_points + rows, total + tl.load(final_bias), mask=inside)
