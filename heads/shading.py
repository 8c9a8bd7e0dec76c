"""Colors of a head at surface points: albedo (skin, lips, brows, eyes, hair, clothes), then lighting."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.parameters import HeadParameters
from heads.sdf import head_distance, head_parts


def _step(low: float | Tensor, high: float | Tensor, value: Tensor) -> Tensor:
    """Return a smoothstep: 0 below ``low``, 1 above ``high``."""
    s = ((value - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)


def _power(value: Tensor, num_squarings: int) -> Tensor:
    """Return value ** (2 ** num_squarings). The last bit of torch.pow depends on the tensor's length."""
    for _ in range(num_squarings):
        value = value * value
    return value


def _paint(base: Tensor, color: Tensor, amount: Tensor) -> Tensor:
    """Blend ``base`` (B, N, 3) with ``color`` (B, 3) by ``amount`` (B, N) in [0, 1]."""
    return torch.lerp(base, color.unsqueeze(1).expand_as(base), amount.unsqueeze(-1))


def _tint(params: HeadParameters, color: tuple[float, float, float]) -> Tensor:
    return torch.tensor(color, device=params.skin.device).expand(len(params), 3)


def _eyes(params: HeadParameters, base: Tensor, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Paint whites, iris and pupil in an almond shape on each eyeball; return the colors and the eye's coverage (B, N)."""
    t = params.traits
    side = torch.sign(x)
    ex, ey, radius = x.abs() - t["eye_x"], y - t["eye_y"], t["eye_radius"]
    u, v = ex / radius, ey / radius - t["eye_slant"] * ex / radius
    lid = (v / t["eye_open"]).abs()
    almond = 1 - (u / 0.98) ** 2 - lid * lid.sqrt()
    front = _step(0.40, 0.44, z)
    lash = _step(-0.42, -0.05, almond) * _step(-0.05, 0.25, v) * front
    base = _paint(base, params.skin * 0.42, lash * 0.85)
    eye = _step(-0.08, 0.10, almond) * front
    base = _paint(base, _tint(params, (0.96, 0.95, 0.93)), eye)
    gaze = ((u - side * t["gaze_x"]) ** 2 + (v - t["gaze_y"]) ** 2).sqrt()
    base = _paint(base, params.iris * 0.9, eye * (1 - _step(0.44, 0.54, gaze)))
    return _paint(base, _tint(params, (0.07, 0.06, 0.06)), eye * (1 - _step(0.17, 0.27, gaze))), eye


def _skin_color(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return colors (B, N, 3) in [0, 1] of the skin with all facial features, and the eyes' coverage (B, N)."""
    t = params.traits
    ax, front = x.abs(), _step(0.20, 0.32, z)
    base = params.skin.unsqueeze(1).expand(-1, x.shape[1], 3)
    blush = torch.exp(-(((ax - 0.25) / 0.11) ** 2) - ((y + 0.13) / 0.09) ** 2)
    tip_y = t["eye_y"] - t["nose_length"]
    blush = blush + 0.7 * torch.exp(-((ax / 0.08) ** 2) - ((y - tip_y) / 0.07) ** 2)
    base = _paint(base, params.skin * torch.tensor((1.0, 0.62, 0.60), device=x.device), 0.38 * blush.clamp(max=1) * front)
    jaw = _step(-0.10, -0.20, y + 0.30 * _step(0.12, 0.30, z)) * _step(-0.02, 0.10, z + 0.25 * ax)
    base = _paint(base, params.hair * 0.8, t["beard"] * jaw * _step(-0.66, -0.57, y) * 0.85)
    my = y - t["mouth_y"] - t["smile"] * ax * ax
    lip_half = t["lip_fullness"] * 1.75 * (1 - (ax / (t["mouth_width"] * 1.02)) ** 2).clamp(min=0).sqrt()
    base = _paint(base, params.lips, _step(-0.008, 0.012, lip_half - my.abs()) * (lip_half > 0) * front)
    seam = _step(0.020, 0.006, my.abs()) * _step(1.0, 0.9, ax / t["mouth_width"])
    base = _paint(base, params.lips * 0.5, seam * front)
    nostril = torch.exp(-(((ax - 0.05) / 0.03) ** 2) - ((y - tip_y + 0.07) / 0.022) ** 2)
    base = _paint(base, params.skin * 0.40, 0.8 * nostril * front)
    arch = t["brow_y"] + 0.025 + t["brow_tilt"] * (ax - 0.2) - t["brow_arch"] * ((ax - 0.2) / 0.12) ** 2
    ends = _step(0.05, 0.09, ax) * _step(0.345, 0.28, ax)
    brow = _step(t["brow_thickness"] + 0.012, t["brow_thickness"] - 0.008, (y - arch).abs()) * ends
    base = _paint(base, params.hair * 0.72, 0.9 * brow * front)
    return _eyes(params, base, x, y, z)


def _hair_color(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return hair colors (B, N, 3) with lighter and darker strands that run down the head."""
    angle = torch.atan2(x, z + 0.15)
    strands = torch.sin(angle * 23 + 3 * torch.sin(5 * y)) + 0.6 * torch.sin(angle * 41 - 7 * y)
    return params.hair.unsqueeze(1) * (1 + 0.11 * strands).unsqueeze(-1)


def head_colors(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor, normals: Tensor, to_camera: Tensor) -> Tensor:
    """Return colors (B, N, 3) in [0, 1] at surface points.

    ``x, y, z``: (B, N), head units. ``normals`` and ``to_camera``: (B, N, 3), unit, world axes. The light is
    fixed in the world, so shading does not depend on the view, except for a faint highlight.
    """
    t = params.traits
    px, py, pz = x / t["scale_x"], y / t["scale_y"], z / t["scale_z"]
    parts = head_parts(params, x, y, z)
    skin, eye = _skin_color(params, px, py, pz)
    is_hair = _step(-0.006, 0.006, parts.skin - parts.hair)
    is_cloth = _step(-0.006, 0.006, torch.minimum(parts.skin, parts.hair) - parts.cloth)
    color = torch.lerp(skin, _hair_color(params, px, py, pz), is_hair.unsqueeze(-1))
    color = _paint(color, params.cloth, is_cloth)

    light = torch.cat([t["light_x"], t["light_y"], torch.ones_like(t["light_x"])], dim=1)
    light = (light / (light * light).sum(1, keepdim=True).sqrt()).unsqueeze(1)
    facing = (normals * light).sum(-1)
    diffuse = (0.25 + 0.75 * facing).clamp(min=0)  # wrapped diffuse, soft like skin
    sky = 0.85 + 0.15 * normals[..., 1]
    reach = 0.10
    nx, ny, nz = normals.unbind(-1)
    open_air = head_distance(params, x + reach * nx, y + reach * ny, z + reach * nz) / reach
    shade = (0.45 + 0.55 * open_air.clamp(0, 1)) * (1 - eye) + eye
    half = light + to_camera
    half = half / ((half * half).sum(-1, keepdim=True) + 1e-9).sqrt()
    shine = (normals * half).sum(-1).clamp(min=0)
    gloss = (0.06 * (1 - is_hair) + 0.14 * is_hair) * (1 - is_cloth) * _power(shine, 4) + 0.5 * eye * _power(shine, 6)
    lit = color * ((t["ambient"] * sky + t["light_intensity"] * diffuse) * shade).unsqueeze(-1) + gloss.unsqueeze(-1)
    return lit.clamp(0, 1)
