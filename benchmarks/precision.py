"""Measure how rounding the inputs of the field's matrix products affects phases, logits, surface and image.

    python benchmarks/precision.py [PATH] [--image_size 64] [--num_seeds 4]

The rounding is emulated on the CPU, so the results hold for any GPU, up to the order of summation. The inputs of the hidden
layers' products are rounded to the format; sums, biases, phases, the first layer and the two heads stay in float32. The fused
kernel (siren/backends/triton_occupancy.py) does the same in fp16 and bf16, and so does TF32, except for the heads' weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.loading import load_generator
from common.arguments import ArgumentParser
from common.errors import UserError
from common.program import run_script
from common.psnr import psnr_db
from generators.cameras import CameraPoses, camera_rays
from generators.generator import ImplicitGenerator3d, latents_of_first_seeds
from generators.renderer import RenderSettings, render
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from siren.backends import folded
from siren.backends.folded import FoldedSiren, fold

Rounding = Callable[[Tensor], Tensor]


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to 10 fraction bits, to nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


ROUNDINGS: dict[str, Rounding] = {
    "tf32": round_to_tf32,
    "fp16": lambda x: x.half().float(),
    "bf16": lambda x: x.bfloat16().float(),
}


class RoundedField:
    """A field (fields.interface.Field) of B latents whose products have rounded inputs. ``rounding`` None: no rounding."""

    def __init__(self, siren: FoldedSiren, rounding: Rounding | None) -> None:
        self.batch_size = siren.weights[0].shape[0]
        self._round = rounding or (lambda x: x)
        hidden = tuple(self._round(weight) for weight in siren.weights[1:])
        self._siren = siren._replace(weights=(siren.weights[0], *hidden), color_weight=self._round(siren.color_weight))

    def phases(self, points: Tensor) -> list[Tensor]:
        """Return the phases (B, N, H) of every layer."""
        x, found = points, []
        for i, (weight, bias) in enumerate(zip(self._siren.weights, self._siren.biases, strict=True)):
            found.append(torch.baddbmm(bias.unsqueeze(1), self._round(x) if i else x, weight))
            x = found[-1].sin()
        return found

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return folded.logits(self._siren, self._round(self.phases(points)[-1].sin()))

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._round(self.phases(points)[-1].sin())
        return folded.logits(self._siren, hidden), folded.colors(self._siren, hidden, directions)

    def normals(self, points: Tensor) -> Tensor:
        return -F.normalize(folded.logits_and_gradients(self._siren, points)[1], dim=-1)


def folded_siren(generator: ImplicitGenerator3d, z: Tensor, psi: float) -> FoldedSiren:
    siren = generator.siren
    if siren.embedding_grid is not None:
        raise UserError("generators with a feature grid are not supported; choose another generator")
    heads = (siren.color_layer_sine.layer, siren.final_layer, siren.color_layer_linear[0])
    return fold([layer.layer for layer in siren.network], *heads, generator.styles(z, psi), siren.point_scale)


@torch.no_grad()
def measure(siren: FoldedSiren, curriculum: Curriculum, image_size: int) -> dict[str, dict[str, float]]:
    """Return, for each format, its errors compared with float32."""
    batch = siren.weights[0].shape[0]
    yaw = torch.linspace(-0.3, 0.3, batch) + torch.pi / 2
    rays = camera_rays(CameraPoses(torch.full((batch,), torch.pi / 2), yaw), image_size, curriculum.fov)
    settings = RenderSettings.from_curriculum(curriculum).multiply_steps(2)
    exact = RoundedField(siren, None)
    truth = render(exact, rays, settings)
    hit = truth.surface.hit_mask
    points = rays.origins + truth.surface.t.unsqueeze(-1) * rays.directions  # on the surface, where errors matter
    phases, logits = exact.phases(points), exact.occupancy_logits(points)
    results = {}
    for name, rounding in ROUNDINGS.items():
        field = RoundedField(siren, rounding)
        phase_errors = torch.stack([(a - b).abs() for a, b in zip(field.phases(points), phases, strict=True)])
        logit_errors = (field.occupancy_logits(points) - logits).abs()
        output = render(field, rays, settings)
        both = hit & output.surface.hit_mask
        t_errors = (output.surface.t - truth.surface.t).abs()[both]
        results[name] = {
            "phase_rms": float(phase_errors.square().mean().sqrt()),
            "phase_max": float(phase_errors.max()),
            "logit_rms": float(logit_errors.square().mean().sqrt()),
            "t_median": float(t_errors.median()),
            "t_99": float(t_errors.quantile(0.99)),
            "psnr_db": psnr_db(float((output.rgb - truth.rgb).square().mean()), peak=1),
            "mask_changed": float((hit != output.surface.hit_mask).float().mean()),
        }
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", nargs="?", default="pretrained/heads_siren.safetensors", help="a generator file")
    parser.add_argument(
        "--curriculum", choices=sorted(CURRICULUMS), help="for files that do not contain their settings (default: BFM)"
    )
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_seeds", type=int, default=2)
    parser.add_argument("--psi", type=float, default=1.0)
    args: argparse.Namespace = parser.parse_args(argv)
    published = Path(args.path).suffix == ".pth"
    loaded = load_generator(Path(args.path), CURRICULUMS[args.curriculum or "BFM"] if args.curriculum or published else None)
    with torch.no_grad():
        z = latents_of_first_seeds(args.num_seeds, loaded.curriculum)
        siren = folded_siren(loaded.generator, z, args.psi)
    results = measure(siren, loaded.curriculum, args.image_size)
    keys = list(next(iter(results.values())))
    print("| format | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
    for name, row in results.items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.3g}" for key in keys) + " |")


if __name__ == "__main__":
    run_script(main)
