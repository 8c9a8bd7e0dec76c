"""Random parameters of a head: a named number per trait, determined by (seed, index).

Lengths are in head units (0.1 of a world unit); colors are linear in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Traits sampled uniformly from a range. The order is part of the data set: append, never insert.
RANGES: dict[str, tuple[float, float]] = {
    # the whole head, stretched along each axis
    "scale_x": (0.92, 1.07),
    "scale_y": (0.95, 1.03),
    "scale_z": (0.95, 1.04),
    # skull and jaw
    "jaw_width": (0.37, 0.46),
    "chin_y": (-0.60, -0.53),
    "chin_z": (0.30, 0.38),
    "chin_radius": (0.10, 0.16),
    "cheek_size": (0.10, 0.17),
    "brow_ridge": (0.07, 0.11),
    # eyes
    "eye_x": (0.185, 0.22),
    "eye_y": (0.045, 0.085),
    "eye_radius": (0.112, 0.135),
    "eye_open": (0.40, 0.68),
    "eye_slant": (-0.06, 0.14),
    "gaze_x": (-0.22, 0.22),
    "gaze_y": (-0.12, 0.12),
    # eyebrows
    "brow_y": (0.155, 0.20),
    "brow_arch": (-0.02, 0.05),
    "brow_tilt": (-0.16, 0.12),
    "brow_thickness": (0.020, 0.040),
    # nose
    "nose_length": (0.20, 0.28),
    "nose_tip_z": (0.60, 0.70),
    "nose_tip_radius": (0.060, 0.092),
    "nose_bridge_z": (0.475, 0.53),
    "nose_width": (0.055, 0.095),
    # mouth
    "mouth_y": (-0.385, -0.345),
    "mouth_width": (0.135, 0.205),
    "lip_fullness": (0.028, 0.052),
    "smile": (-0.3, 1.9),
    # ears and neck
    "ear_size": (0.8, 1.2),
    "ear_out": (0.00, 0.05),
    "neck_radius": (0.21, 0.28),
    "shoulder_width": (0.50, 0.62),
    # hair
    "hair_thickness": (0.045, 0.085),
    "hairline": (-0.04, 0.07),
    "hair_parting": (-0.16, 0.16),
    "hair_wave": (0.002, 0.012),
    "hair_wave_frequency": (14.0, 26.0),
    "curtain_length": (0.30, 0.82),
    "curtain_width": (0.58, 0.68),
    "curtain_front": (0.00, 0.16),
    # light, fixed in the world
    "light_x": (-0.55, 0.55),
    "light_y": (0.35, 0.75),
    "light_intensity": (0.60, 0.78),
    "ambient": (0.40, 0.50),
}
STYLES = ("bald", "short", "cropped", "voluminous", "long", "bob", "bun")
_STYLE_WEIGHTS = (0.10, 0.20, 0.14, 0.14, 0.20, 0.12, 0.10)
_SKIN = ((0.98, 0.80, 0.69), (0.94, 0.72, 0.57), (0.85, 0.61, 0.44), (0.72, 0.48, 0.33), (0.56, 0.36, 0.25), (0.43, 0.28, 0.20))
_HAIR = (
    *((0.17, 0.14, 0.14), (0.30, 0.19, 0.12), (0.45, 0.27, 0.15), (0.62, 0.38, 0.18), (0.90, 0.72, 0.38)),
    *((0.74, 0.29, 0.13), (0.64, 0.64, 0.66), (0.93, 0.90, 0.84), (0.36, 0.42, 0.72), (0.78, 0.36, 0.52)),
)
_HAIR_WEIGHTS = (0.19, 0.19, 0.16, 0.12, 0.13, 0.09, 0.05, 0.03, 0.02, 0.02)
_IRIS = ((0.25, 0.47, 0.72), (0.27, 0.50, 0.32), (0.42, 0.26, 0.14), (0.50, 0.38, 0.18), (0.42, 0.50, 0.56))
_CLOTH = ((0.75, 0.22, 0.22), (0.20, 0.42, 0.70), (0.22, 0.52, 0.38), (0.85, 0.68, 0.25), (0.50, 0.32, 0.60), (0.80, 0.80, 0.78))


@dataclass(frozen=True)
class HeadParameters:
    """Parameters of B heads. ``traits``: name -> (B, 1), for each of RANGES and each style switch; colors (B, 3) in [0, 1].

    ``style``: (B,) index into STYLES.
    """

    traits: dict[str, Tensor]
    style: Tensor
    skin: Tensor
    hair: Tensor
    iris: Tensor
    cloth: Tensor
    lips: Tensor

    def __len__(self) -> int:
        return len(self.style)

    def __getitem__(self, which: slice | Tensor) -> HeadParameters:
        """Return the selected heads."""
        traits = {name: value[which] for name, value in self.traits.items()}
        return HeadParameters(traits, *(getattr(self, n)[which] for n in ("style", "skin", "hair", "iris", "cloth", "lips")))

    def to(self, device: torch.device | str) -> HeadParameters:
        traits = {name: value.to(device) for name, value in self.traits.items()}
        return HeadParameters(traits, *(getattr(self, n).to(device) for n in ("style", "skin", "hair", "iris", "cloth", "lips")))


def head_generator(seed: int, index: int) -> torch.Generator:
    """Return the random generator of head ``index`` of the set ``seed``, independent of every other head."""
    mask = 0xFFFFFFFF  # the generator keeps 32 bits of its seed; this hash is a bijection of the index, so seeds do not collide
    state = (index * 0x9E3779B1 + seed * 0x85EBCA6B + (seed >> 32) * 0xC2B2AE35) & mask
    state = ((state ^ (state >> 16)) * 0x7FEB352D) & mask
    state = ((state ^ (state >> 15)) * 0x846CA68B) & mask
    return torch.Generator().manual_seed(state ^ (state >> 16))


def _choose(u: float, weights: Sequence[float]) -> int:
    total, edge = sum(weights), 0.0
    for i, weight in enumerate(weights):
        edge += weight / total
        if u < edge:
            return i
    return len(weights) - 1


def _mix(palette: Sequence[tuple[float, float, float]], u: float) -> Tensor:
    """Return a color interpolated along ``palette``, with ``u`` in [0, 1]."""
    place = u * (len(palette) - 1)
    i = min(int(place), len(palette) - 2)
    return torch.lerp(torch.tensor(palette[i]), torch.tensor(palette[i + 1]), place - i)


def _style_switches(style: str, u: Tensor) -> dict[str, float]:
    """Return switches (0 or 1) for the parts of the hair and the style's offsets of shared traits. ``u``: (3,) uniform."""
    return {
        "has_cap": float(style != "bald"),
        "has_curtain": float(style in ("long", "bob")),
        "has_bun": float(style == "bun"),
        "extra_volume": {"voluminous": 0.05 + 0.08 * float(u[0]), "cropped": -0.035}.get(style, 0.0),
        "fringe": float(u[1] < 0.4) * (0.06 + 0.10 * float(u[2])) if style in ("short", "long", "bob") else 0.0,
    }


def sample_heads(indices: Sequence[int], seed: int = 0) -> HeadParameters:
    """Sample the heads ``indices`` of the set ``seed``. A head depends only on (seed, index)."""
    rows: list[dict[str, float]] = []
    colors: dict[str, list[Tensor]] = {name: [] for name in ("skin", "hair", "iris", "cloth", "lips")}
    styles = []
    for index in indices:
        u = torch.rand(len(RANGES) + 32, generator=head_generator(seed, int(index)))
        extra = u[len(RANGES) :]
        style = _choose(float(extra[0]), _STYLE_WEIGHTS)
        row = {name: low + (high - low) * float(u[k]) for k, (name, (low, high)) in enumerate(RANGES.items())}
        row |= _style_switches(STYLES[style], extra[1:4])
        row["beard"] = float(extra[4] < 0.22) * (0.4 + 0.6 * float(extra[5])) * float(STYLES[style] not in ("bob", "bun", "long"))
        if STYLES[style] == "bob":
            row["curtain_length"] = 0.12 + 0.25 * float(extra[6])
        skin = _mix(_SKIN, float(extra[7])) * (0.96 + 0.08 * extra[8:11])
        hair = torch.tensor(_HAIR[_choose(float(extra[11]), _HAIR_WEIGHTS)]) * (0.9 + 0.2 * extra[12:15])
        lip_tint = torch.tensor((0.80, 0.25, 0.28))
        drawn = {
            "skin": skin.clamp(0, 1),
            "hair": hair.clamp(0.12, 1),  # keep hair brighter than the black background
            "iris": torch.tensor(_IRIS[_choose(float(extra[15]), (1,) * len(_IRIS))]) * (0.85 + 0.3 * extra[16:19]),
            "cloth": (torch.tensor(_CLOTH[_choose(float(extra[19]), (1,) * len(_CLOTH))]) * (0.85 + 0.3 * extra[20:23])).clamp(
                0, 1
            ),
            "lips": torch.lerp(skin * torch.tensor((0.86, 0.62, 0.62)), lip_tint, 0.15 + 0.5 * float(extra[23]) ** 2),
        }
        for name, color in drawn.items():
            colors[name].append(color)
        rows.append(row)
        styles.append(style)
    traits = {name: torch.tensor([row[name] for row in rows]).unsqueeze(1) for name in rows[0]}
    return HeadParameters(traits, torch.tensor(styles), **{name: torch.stack(values) for name, values in colors.items()})
