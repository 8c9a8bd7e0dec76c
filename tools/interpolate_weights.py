"""Interpolate the weights of two checkpoints of one run, with another amount for the coarse layers if asked for.

    python -m tools.interpolate_weights early.safetensors late.safetensors --output mixed.safetensors --coarse_amount 0
    python -m tools.interpolate_weights early.safetensors late.safetensors --output mixed.safetensors --amount 1.4

An amount of 0 is the first generator, 1 the second, and more than 1 goes beyond the second. Both must come from one run, or one
must have been trained on from the other: weights of unrelated runs have nothing in common, and their mean generates noise.
If a SIREN was mirrored between the two (docs/hollow.md), its weights changed sign, which is not detected.

The coarse layers of a tri-plane generator are its mapping network, its constant, and the convolutions of the first resolutions
of its backbone (--coarse_resolutions: 4 and 8 texels by default). They set the shape and the layout, the others the details.

Source: Pinkney and Adler, "Resolution dependent GAN interpolation for controllable image synthesis between domains", 2020, who
interpolate between domains; Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, who interpolate all weights equally.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.files import save_inference
from checkpoints.loading import load_generator
from common.arguments import ArgumentParser, finite_float, positive_int
from common.errors import UserError
from common.program import run_script
from generators.generator import ImplicitGenerator3d


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("first", help="a generator file, or the name of a pretrained generator")
    parser.add_argument("second", help="a later one of the same run, or of a run that continues it")
    parser.add_argument("--output", required=True, help="output file, .safetensors")
    parser.add_argument("--amount", type=finite_float, default=1.0, help="0: the first; 1: the second (default: %(default)s)")
    parser.add_argument("--coarse_amount", type=finite_float, help="amount for the coarse layers (default: --amount)")
    parser.add_argument(
        "--coarse_resolutions", type=positive_int, default=2, help="resolutions of the backbone that are coarse (default: 2)"
    )
    return parser.parse_args(argv)


def coarse_parameters(generator: ImplicitGenerator3d, num_resolutions: int) -> set[str]:
    """Return the names of the parameters of the coarse layers of a tri-plane generator.

    Raises UserError for a SIREN, and if the backbone has fewer than ``num_resolutions`` resolutions.
    """
    if generator.curriculum.is_siren:
        raise UserError(
            f"--coarse_amount needs tri-plane generators, but the model is {generator.curriculum.model}; leave it out"
        )
    available = len(generator.triplane.backbone.blocks)
    if num_resolutions > available:
        raise UserError(f"--coarse_resolutions {num_resolutions}: the backbone has {available}")
    backbone = "triplane.backbone."
    prefixes = ("triplane.mapping_network.", f"{backbone}start", *(f"{backbone}blocks.{i}." for i in range(num_resolutions)))
    return {name for name, _ in generator.named_parameters() if name.startswith(prefixes)}


def check_same_orientation(first: ImplicitGenerator3d, second: ImplicitGenerator3d, names: tuple[str, str]) -> None:
    """Raise UserError if one of two tri-plane generators was mirrored after they parted (triplane/network.py)."""
    a, b = (dict(generator.named_buffers()).get("triplane.orientation") for generator in (first, second))
    if a is not None and b is not None and not torch.equal(a, b):
        raise UserError(f"one of {names[0]} and {names[1]} was mirrored, but not the other; use checkpoints after that step")


@torch.no_grad()
def interpolate(
    first: ImplicitGenerator3d, second: ImplicitGenerator3d, amounts: dict[str, float], names: tuple[str, str]
) -> None:
    """Replace parameters of ``second`` by first + amount (second - first); ``amounts`` has the amount of each.

    Parameters with an amount of 1 stay as they are, and the first generator need not have them. So the coarse layers may come
    from a generator whose planes had fewer texels. The slope of the ball stays that of ``second``, too.
    Raises UserError if the first generator lacks a parameter, or has it in another shape.
    """
    start = dict(first.named_parameters())
    for name, parameter in second.named_parameters():
        if amounts[name] == 1:
            continue
        if name not in start or start[name].shape != parameter.shape:
            raise UserError(f"{names[0]} and {names[1]} have different networks ({name}); use two checkpoints of one run")
        parameter.copy_(torch.lerp(start[name], parameter, amounts[name]))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    output = Path(args.output)
    if output.exists():
        raise UserError(f"{output} already exists; choose another --output")
    if args.amount == 1 and args.coarse_amount in (None, 1):
        raise UserError(f"these amounts give {args.second} unchanged; use --coarse_amount 0, for instance")
    first, loaded = load_generator(args.first), load_generator(args.second)
    generator, names = loaded.generator, (args.first, args.second)
    amounts = {name: args.amount for name, _ in generator.named_parameters()}
    coarse: set[str] = set()
    if args.coarse_amount is not None:
        coarse = coarse_parameters(generator, args.coarse_resolutions)
        amounts |= dict.fromkeys(coarse, args.coarse_amount)
    check_same_orientation(first.generator, generator, names)
    interpolate(first.generator, generator, amounts, names)
    generator.truncation_mean = None  # computed anew
    save_inference(output, generator, loaded.step or 0)
    print(f"{output}: {len(amounts) - len(coarse)} tensors with an amount of {args.amount:g}", end="")
    print(f", {len(coarse)} coarse ones with {args.coarse_amount:g}" if coarse else "")


if __name__ == "__main__":
    run_script(main)
