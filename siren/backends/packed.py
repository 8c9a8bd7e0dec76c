"""The folded layers in the memory layout of the fused GPU kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from siren.backends.folded import FoldedSiren


class PackedField(NamedTuple):
    """The folded layers of B latents in the kernel's layout: H units, L hidden layers after the first.

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
