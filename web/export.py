"""Export of generators to one HTML page that computes everything from latent to pixels in WebGL 2.

The page is page/page.html with its style, scripts and weights inserted. It makes no network requests: a
Content-Security-Policy allows only the page's own script and style, by SHA-256, images from data: and blob:, and a worker from
blob:, whose script is text in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from checkpoints.latents import Latent
from checkpoints.loading import LoadedGenerator
from common.errors import UserError
from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.pose_prior import pose_half_widths
from generators.views import ViewSettings, make_pose, render_view
from settings.curriculum import Curriculum
from triplane.backbone import FIRST_SIZE, Backbone
from visualization.images import DEPTH_COLORS, to_uint8, view_image

PAGE_DIR = Path(__file__).with_name("page")
SCRIPTS = (  # in page order
    "random.js",
    "weights.js",
    "shared.js",
    "siren_program.js",
    "plane_maker.js",
    "triplane_program.js",
    "networks.js",
    "camera.js",
    "shaders.js",
    "renderer.js",
    "viewer.js",
    "benchmark.js",
    "controls.js",
    "main.js",
)
WORKER_SCRIPTS = ("shared.js", "triplane_backbone.js", "backbone_worker.js")
MAX_HIDDEN_DIM = 128
MAX_LAYERS = 4
MAX_PLANE_SIZE = 256  # texels
MAX_BLOCK_BYTES = 16384  # of a uniform block: the minimum that WebGL 2 guarantees
MODELS = ("SPATIALSIRENBASELINE", "TALLSIREN", "TRIPLANE")
RAY_STEP_MULTIPLIER = 2  # as in the render scripts

QUANTIZED_BITS = 12  # of a weight of a tri-plane backbone; 16 would not fit into 2 MiB, and 11 can move a silhouette
MAX_QUANTIZED = 2 ** (QUANTIZED_BITS - 1) - 1
MIN_QUANTIZED_NUMBERS = 1024  # smaller tensors stay as they are

TURNTABLE_FRAMES = 20
TURNTABLE_SIZE = 192  # pixels
TURNTABLE_YAW = 0.5  # radians to either side
TURNTABLE_MS = 90  # per frame
TURNTABLE_PSI = 0.7
WEBP_QUALITY = 80


class PackedTensors(NamedTuple):
    """``data``: all tensors concatenated, little-endian. ``packing``: names, shapes, offsets and a checksum."""

    data: bytes
    packing: dict[str, Any]


def check_exportable(name: str, curriculum: Curriculum) -> None:
    """Raise UserError for a generator that a fragment shader cannot hold."""
    c = curriculum
    if c.model not in MODELS:
        raise UserError(f"{name} is a {c.model}, for which the page has no shader ({', '.join(MODELS)}); use view.py")
    if not c.pred_occ:
        raise UserError(f"{name} is a radiance field and has no surface for the page to find; use render_video.py or view.py")
    if not c.is_siren:
        _check_triplane(name, c)
    elif c.hidden_dim > MAX_HIDDEN_DIM or c.num_layers > MAX_LAYERS or c.hidden_dim % 4:
        raise UserError(
            f"{name} has {c.num_layers} layers of {c.hidden_dim}; a page holds at most {MAX_LAYERS} of {MAX_HIDDEN_DIM}, "
            "a multiple of 4: use view.py, or train a narrower network"
        )


def _check_triplane(name: str, curriculum: Curriculum) -> None:
    c = curriculum
    size = FIRST_SIZE << (len(c.backbone_channels) - 1)
    if size > MAX_PLANE_SIZE or c.decoder_dim > MAX_HIDDEN_DIM or c.decoder_dim % 4 or c.plane_channels % 4:
        raise UserError(
            f"{name} has planes of {size} texels, {c.plane_channels} channels and a decoder of {c.decoder_dim}; a page holds "
            f"at most {MAX_PLANE_SIZE} texels and a decoder of {MAX_HIDDEN_DIM}, with channels in multiples of 4: use view.py"
        )
    num_bytes = 4 * (20 + c.decoder_dim * (1 + 4 + c.plane_channels))  # of the uniform block in triplane_program.js
    if num_bytes > MAX_BLOCK_BYTES:
        raise UserError(
            f"{name} has a decoder of {c.plane_channels} x {c.decoder_dim} weights, {num_bytes:,} bytes; a page holds at most "
            f"{MAX_BLOCK_BYTES:,}, which every browser supports: use view.py"
        )


def pack_tensors(tensors: dict[str, Tensor]) -> PackedTensors:
    """Pack tensors: those of :func:`is_quantized` rounded, others losslessly, as float16 if that is exact, else as float32."""
    parts, entries, offset = [], [], 0
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().float().contiguous()
        if is_quantized(name, values):
            dtype, stored = f"int{QUANTIZED_BITS}", quantize(values)
        elif torch.equal(values.half().float(), values):
            dtype, stored = "float16", values.numpy().astype("<f2").tobytes()
        else:
            dtype, stored = "float32", values.numpy().astype("<f4").tobytes()
        entries.append({"name": name, "shape": list(values.shape), "dtype": dtype, "offset": offset})
        parts.append(stored)
        offset += len(stored)
    data = b"".join(parts)
    return PackedTensors(data, {"tensors": entries, "numBytes": len(data), "crc32": zlib.crc32(data)})


def is_quantized(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is rounded: the large weights of a tri-plane generator, not its decoder, nor any SIREN's."""
    is_weight = name.startswith(("triplane.backbone.", "triplane.mapping_network.")) and name.endswith(".weight")
    return is_weight and tensor.ndim >= 2 and tensor.numel() >= MIN_QUANTIZED_NUMBERS


def quantize(values: Tensor) -> bytes:
    """Round a tensor (rows, ...) to integers of QUANTIZED_BITS bits, with one scale per row.

    Returns the scales (rows,) in half precision, then the integers plus MAX_QUANTIZED as a stream of bits, lowest first.
    """
    rows = values.flatten(1)
    scales = (rows.abs().amax(dim=1, keepdim=True) / MAX_QUANTIZED).half()
    divisors = torch.where(scales > 0, scales.float(), 1.0)  # a row may be all zeros
    integers = (rows / divisors).round().clamp(-MAX_QUANTIZED, MAX_QUANTIZED) + MAX_QUANTIZED
    bits = integers.numpy().astype(np.uint16).reshape(-1, 1) >> np.arange(QUANTIZED_BITS, dtype=np.uint16) & 1
    return scales.numpy().astype("<f2").tobytes() + np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def generator_tensors(generator: ImplicitGenerator3d) -> dict[str, Tensor]:
    """Return the weights and truncation means by name, as in an inference file."""
    mean = generator.truncation_mean or generator.compute_truncation_mean()
    return {**generator.state_dict(), **{f"truncation_mean.{part}": value for part, value in mean._asdict().items()}}


def page_settings(generator: ImplicitGenerator3d) -> dict[str, Any]:
    """Return the settings that the page's scripts need, under their names there; radians except for the field of view."""
    c = generator.curriculum
    render = ViewSettings(ray_step_multiplier=RAY_STEP_MULTIPLIER, surface_only=True).render_settings(c)
    pitch_limit, yaw_limit = pose_half_widths(c)
    return {
        "latentDim": c.latent_dim,
        "latentDistribution": c.z_dist,
        **_network_settings(generator),
        "fovDegrees": c.fov,
        "meanYaw": c.h_mean,
        "meanPitch": c.v_mean,
        "yawLimit": yaw_limit,
        "pitchLimit": pitch_limit,
        "tNear": render.t_near,
        "tFar": render.t_far,
        "numCoarse": render.num_coarse,
        "numRootSteps": render.num_root_steps,
        "rootMethod": render.root_method,
        "tau": render.tau,
        "fillsWithFarEnd": render.background is None,
        "background": render.background or 0.0,
    }


def _network_settings(generator: ImplicitGenerator3d) -> dict[str, Any]:
    c = generator.curriculum
    if c.is_siren:
        sizes = {"network": "siren", "hiddenDim": c.hidden_dim, "numLayers": c.num_layers}
        return {**sizes, "viewDependent": c.view_dependent, "pointScale": generator.siren.point_scale}
    num_resolutions = len(c.backbone_channels)
    return {
        "network": "triplane",
        "styleDim": c.w_dim,
        "numStyleLayers": Backbone.num_layers(num_resolutions),
        "numResolutions": num_resolutions,
        "planeSize": FIRST_SIZE << (num_resolutions - 1),
        "planeChannels": c.plane_channels,
        "decoderDim": c.decoder_dim,
        "isProduct": c.plane_reduce == "product",
    }


@torch.no_grad()
def turntable(generator: ImplicitGenerator3d) -> bytes:
    """Render seed 0 turning to both sides and back, as an animated WebP: the fallback for browsers without WebGL 2."""
    c = generator.curriculum
    z = latent_from_seed(0, c).to(generator.device)
    field = generator.field_of_latents(z, TURNTABLE_PSI)
    settings = ViewSettings(TURNTABLE_SIZE, RAY_STEP_MULTIPLIER, surface_only=True)
    frames = []
    for i in range(TURNTABLE_FRAMES):
        yaw = c.h_mean + TURNTABLE_YAW * math.sin(2 * math.pi * i / TURNTABLE_FRAMES)
        view = render_view(field, make_pose(yaw, c.v_mean, z.device), c, settings)
        frames.append(Image.fromarray(to_uint8(view_image(view, "image", c.ray_start, c.ray_end))))
    buffer = BytesIO()
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=TURNTABLE_MS, loop=0, quality=WEBP_QUALITY, method=4
    )
    return buffer.getvalue()


def export_page(generators: dict[str, LoadedGenerator], latents: Mapping[str, Latent] | None = None) -> str:
    """Build the page of the named generators; the first is selected initially. Raises UserError for one that it does not support.

    ``latents``: inverted photos by name (invert.py), of the first generator; each becomes an additional choice.
    """
    entries, blocks = [], []
    for name, loaded in generators.items():
        check_exportable(name, loaded.curriculum)
        entries.append(_Entry(name, loaded.generator, None, generator_tensors(loaded.generator)))
    first = next(iter(generators))
    for name, latent in (latents or {}).items():
        if name in generators:
            raise UserError(f"a latent and a generator are both named {name}; rename the latent's file")
        tensors = {**(latent.weights or {}), **{f"photo.{part}": value for part, value in latent.styles._asdict().items()}}
        entries.append(_Entry(name, generators[first].generator, first, tensors))
    models = []
    for entry in entries:
        data, packing = pack_tensors(entry.tensors)
        settings = page_settings(entry.generator)
        models.append({"name": entry.name, "base": entry.base, "settings": settings, "packing": packing})
        encoded = base64.b64encode(data).decode()
        blocks.append(f'<script type="text/plain" id="weights-{escape(entry.name)}">{encoded}</script>')
    return fill_page(
        title=f"{', '.join(generators)}: Generative Occupancy Fields in the browser",
        data=json.dumps({"models": models, "depthColors": DEPTH_COLORS}, separators=(",", ":")),
        weights="\n".join(blocks),
        turntable_url="data:image/webp;base64," + base64.b64encode(turntable(generators[first].generator)).decode(),
    )


class _Entry(NamedTuple):
    """One choice of the page. ``tensors``: those that differ from the entry named ``base``, or all."""

    name: str
    generator: ImplicitGenerator3d
    base: str | None
    tensors: dict[str, Tensor]


def page_script() -> str:
    """Concatenate all scripts of the page."""
    return _concatenated(SCRIPTS)


def worker_script() -> str:
    """Concatenate the scripts of the worker that makes planes."""
    return _concatenated(WORKER_SCRIPTS)


def _concatenated(names: Sequence[str]) -> str:
    return '"use strict";\n' + "\n".join((PAGE_DIR / name).read_text(encoding="utf-8") for name in names)


def page_style() -> str:
    return (PAGE_DIR / "page.css").read_text(encoding="utf-8")


def fill_page(*, title: str, data: str, weights: str, turntable_url: str) -> str:
    """Fill the template. ``data``: JSON; ``weights``: HTML."""
    style, script = page_style(), page_script()
    page = (PAGE_DIR / "page.html").read_text(encoding="utf-8")
    parts = {
        "policy": content_security_policy(script, style),
        "title": escape(title),
        "style": style,
        "turntable": turntable_url,
        "data": data.replace("<", "\\u003c"),
        "weights": weights,
        "worker_script": worker_script(),
        "script": script,
    }
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def content_security_policy(script: str, style: str) -> str:
    """Return a policy that allows only this script and this style, and no network requests."""
    directives = (
        "default-src 'none'",
        f"script-src '{_sha256_source(script)}'",
        f"style-src '{_sha256_source(style)}'",
        "img-src data: blob:",
        "worker-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(directives)


def _sha256_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
