"""Signed distance of a head: smooth unions of ellipsoids, balls and capsules (I. Quilez, "distance functions").

One head unit is 0.1 world units. +y is up, the face looks along +z, and x is symmetric except for the hair's parting. The
head is inside a ball of radius 1.13 (0.113 world units). The zero set is the shape. Elsewhere the value is a close,
mostly low estimate of the distance, because smooth unions and ellipsoids have no exact closed form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heads.parameters import HeadParameters

HEAD_UNIT = 0.1
BALL_RADIUS = 1.13
_FAR = 10.0


class Parts(NamedTuple):
    """Distances (B, N), head units, to the separately colored parts. The head is their smooth union."""

    skin: Tensor
    hair: Tensor
    cloth: Tensor


def _ball(x: Tensor, y: Tensor, z: Tensor, radius: Tensor | float) -> Tensor:
    return (x * x + y * y + z * z).sqrt() - radius


def _ellipsoid(x: Tensor, y: Tensor, z: Tensor, rx: Tensor | float, ry: Tensor | float, rz: Tensor | float) -> Tensor:
    """Return the first-order distance to an ellipsoid: k0 (k0 - 1) / k1."""
    x, y, z = x / rx, y / ry, z / rz
    k0 = (x * x + y * y + z * z).sqrt()
    x, y, z = x / rx, y / ry, z / rz
    k1 = (x * x + y * y + z * z + 1e-12).sqrt()
    return k0 * (k0 - 1) / k1


def smooth_min(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Return a polynomial smooth minimum (union) of width ``k``, equal to min where |a - b| >= k."""
    overlap = (k - (a - b).abs_()).clamp_(min=0)
    return torch.minimum(a, b).sub_(overlap.mul_(overlap).mul_(0.25 / k))


def smooth_max(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Return a polynomial smooth maximum (intersection) of width ``k``, equal to max where |a - b| >= k."""
    overlap = (k - (a - b).abs_()).clamp_(min=0)
    return torch.maximum(a, b).add_(overlap.mul_(overlap).mul_(0.25 / k))


def _face(t: dict[str, Tensor], ax: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the distance to skull, jaw, cheeks, brow, eye sockets, eyeballs, nose and lips."""
    d = _ellipsoid(ax, y - 0.27, z + 0.08, 0.515, 0.55, 0.60)
    d = smooth_min(d, _ellipsoid(ax, y + 0.14, z - 0.10, t["jaw_width"], 0.46, 0.43), 0.20)
    d = smooth_min(d, _ball(ax * 0.8, y - t["chin_y"] - t["chin_radius"], z - t["chin_z"], t["chin_radius"]), 0.14)
    d = smooth_min(d, _ball(ax - 0.23, y + 0.09, z - 0.34, t["cheek_size"]), 0.16)
    d = smooth_min(d, _ellipsoid(ax - 0.17, y - t["brow_y"] - 0.01, z - 0.43, 0.16, 0.06, t["brow_ridge"]), 0.12)
    ex, ey = ax - t["eye_x"], y - t["eye_y"]
    d = smooth_max(d, -_ball(ex * 0.75, ey, z - 0.58, 0.13), 0.10)
    d = smooth_min(d, _ball(ex, ey, z - 0.515 + t["eye_radius"], t["eye_radius"]), 0.025)
    # the nose: a bridge that widens into the tip, and wings
    tip_y, tip_z, bridge_z = t["eye_y"] - t["nose_length"], t["nose_tip_z"], t["nose_bridge_z"]
    dy, dz = tip_y - 0.13, tip_z - 0.06 - bridge_z
    py, pz = y - 0.13, z - bridge_z + 0.03
    along = ((py * dy + pz * dz) / (dy * dy + dz * dz)).clamp(0, 1)
    radius = 0.045 + along * (t["nose_tip_radius"] - 0.045)
    d = smooth_min(d, _ball(ax, py - along * dy, pz - along * dz, radius), 0.08)
    wing = _ball(ax - t["nose_width"], y - tip_y + 0.015, z - tip_z + 0.115, 0.050)
    d = smooth_min(d, wing, 0.05)
    # lips: two ellipsoids, with ends raised by a smile
    my = y - t["mouth_y"] - t["smile"] * ax * ax
    depth = z - 0.475 + 1.1 * ax * ax
    full = t["lip_fullness"]
    d = smooth_min(d, _ellipsoid(ax, my - 0.6 * full, depth, t["mouth_width"], full, 0.075), 0.03)
    return smooth_min(d, _ellipsoid(ax, my + 0.75 * full, depth, t["mouth_width"] * 0.85, full, 0.075), 0.03)


def _ears_and_neck(t: dict[str, Tensor], d: Tensor, ax: Tensor, y: Tensor, z: Tensor) -> Tensor:
    out = ax - 0.505 - t["ear_out"]
    back = z + 0.06 + 0.25 * y  # ears lean back
    size = t["ear_size"]
    ear = _ellipsoid(out - 0.25 * (-back).clamp(min=0), y - 0.01, back, 0.055, 0.155 * size, 0.10 * size)
    ear = smooth_max(ear, -_ellipsoid(out - 0.055, y - 0.02, back - 0.01, 0.04, 0.09 * size, 0.055 * size), 0.03)
    d = smooth_min(d, ear, 0.04)
    below = (y + 0.35).clamp(max=0)
    neck = _ball(ax, torch.zeros_like(y), z + 0.10 - 0.12 * below, t["neck_radius"]) * 0.98
    return smooth_min(d, smooth_max(neck, y + 0.2, 0.2), 0.12)


def _hair(t: dict[str, Tensor], x: Tensor, ax: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the distance to the hair: a cap behind the hairline, curtains beside the face, and a bun."""
    thick = t["hair_thickness"] + t["extra_volume"]
    frequency = t["hair_wave_frequency"]
    waves = torch.sin(frequency * (x + 0.35 * y)) * torch.sin(frequency * (0.7 * z + 0.25 * y) + 3 * x) * t["hair_wave"]
    cap = _ellipsoid(ax, y - 0.28, z + 0.09, 0.515 + thick, 0.55 + thick, 0.60 + thick) + waves
    # hair covers the region where this is positive: above and behind a line from the forehead over the ear to the nape
    front = (z - 0.05).clamp(min=0)
    grown = 0.75 * (y - 0.40 - t["hairline"] + t["fringe"] * 1.6) - 0.62 * (z - 0.30)
    grown = grown - 1.1 * ax * ax * front + t["hair_parting"] * x * front * 2 - 0.045
    cap = smooth_max(cap, -grown, 0.05) + _FAR * (1 - t["has_cap"])
    if bool((t["has_curtain"] > 0).any()):
        curtain = _ellipsoid(ax, y - 0.10, z + 0.14, t["curtain_width"], 0.82, 0.56) + 1.5 * waves
        curtain = smooth_max(curtain, z - t["curtain_front"] - 0.25 * (y - 0.1), 0.08)
        curtain = smooth_max(curtain, -(y + t["curtain_length"] - 0.1 * z), 0.10)
        curtain = smooth_max(curtain, -_ellipsoid(ax, y + 0.20, z - 0.16, 0.455, 0.62, 0.62), 0.05)
        cap = smooth_min(cap, curtain + _FAR * (1 - t["has_curtain"]), 0.06)
    if bool((t["has_bun"] > 0).any()):
        bun = _ball(x, y - 0.66, z + 0.56, 0.20) + waves
        cap = smooth_min(cap, bun + _FAR * (1 - t["has_bun"]), 0.05)
    return cap


def head_parts(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor) -> Parts:
    """Return distances to skin, hair and clothes at coordinates (B, N) in head units."""
    t = params.traits
    x, y, z = x / t["scale_x"], y / t["scale_y"], z / t["scale_z"]
    ax = x.abs()
    skin = _ears_and_neck(t, _face(t, ax, y, z), ax, y, z)
    hair = _hair(t, x, ax, y, z)
    cloth = _ellipsoid(ax, y + 1.02, z + 0.13, t["shoulder_width"], 0.20, 0.30)
    neckline = _ellipsoid(ax, y + 0.70, z - 0.07, 0.30, 0.20, 0.36)
    cloth = smooth_max(smooth_min(cloth, _ellipsoid(ax, y + 0.93, z + 0.13, 0.36, 0.20, 0.30), 0.1), -neckline, 0.03)
    scale = torch.minimum(torch.minimum(t["scale_x"], t["scale_y"]), t["scale_z"])
    return Parts(skin * scale, hair * scale, cloth * scale)


def head_distance(params: HeadParameters, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the signed distance (B, N) at coordinates (B, N), all in head units; negative inside."""
    parts = head_parts(params, x, y, z)
    d = smooth_min(smooth_min(parts.skin, parts.hair, 0.015), parts.cloth, 0.02)
    return smooth_max(d, _ball(x, y, z, BALL_RADIUS), 0.03)


def head_sdf(params: HeadParameters, points: Tensor) -> Tensor:
    """Return the signed distance (B, N), world units, negative inside, at ``points`` (B, N, 3) in world coordinates."""
    if points.ndim != 3 or points.shape[-1] != 3 or len(points) != len(params):
        raise ValueError(f"points must be ({len(params)}, N, 3), not {tuple(points.shape)}")
    x, y, z = (points / HEAD_UNIT).unbind(-1)
    return head_distance(params, x, y, z) * HEAD_UNIT
