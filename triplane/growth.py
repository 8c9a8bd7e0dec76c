"""Planes of a higher resolution for a trained generator: new layers that add nothing to the planes at first.

Source: the progressive growing of GANs (Karras et al., 2018), with the skip outputs of StyleGAN2 in place of a fade-in.
"""

from __future__ import annotations

import math
import re

from torch import Tensor

from triplane.backbone import FIRST_SIZE

OUTPUT_WEIGHT = re.compile(r"triplane\.backbone\.to_planes\.(\d+)\.weight")
LAYER = re.compile(r"triplane\.backbone\.(?:blocks|to_planes)\.(\d+)\.")
EXTENT = "triplane.extent"


def grow_planes(weights: dict[str, Tensor], larger: dict[str, Tensor]) -> bool:
    """Add the finest layers of the state ``larger`` to those of a generator, in place. Returns whether there were any to add.

    The field changes only by the smoothing of bilinear upsampling, and normals use smaller steps. ``extent`` grows so that the
    old texels keep their places. Weights without tri-planes are left unchanged.
    """
    before, after = (sum(OUTPUT_WEIGHT.fullmatch(name) is not None for name in part) for part in (weights, larger))
    if not 0 < before < after:
        return False
    for name, value in larger.items():
        layer = LAYER.match(name)
        if layer and int(layer[1]) >= before:
            weights[name] = value.clone().zero_() if OUTPUT_WEIGHT.fullmatch(name) else value.clone()
        elif OUTPUT_WEIGHT.fullmatch(name):
            weights[name] = weights[name] * math.sqrt(after / before)  # ToPlanes scales by the number of resolutions
    size, larger_size = (FIRST_SIZE * 2 ** (num - 1) for num in (before, after))
    # Upsampling by s moves texel k to s k + (s - 1) / 2, and the lookup stretches the outermost texels to the extent.
    scale = larger_size / size
    weights[EXTENT] = weights[EXTENT] * (larger_size - 1) / (scale * (size - 1))
    return True
