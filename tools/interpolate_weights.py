"""Interpolate the weights of two checkpoints of one run, with another amount for the coarse layers if asked for.

    python -m tools.interpolate_weights early.safetensors late.safetensors --output mixed.safetensors --coarse_amount 0
    python -m tools.interpolate_weights early.safetensors late.safetensors --output mixed.safetensors --amount 1.4

An amount of 0 is the first generator, 1 the second, and more than 1 goes beyond the second. Both must come from one run, or one
must have been trained on from the other: weights of unrelated runs have nothing in common, and their mean generates noise.

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
from torch import Tensor

from checkpoints.files import save_inference
from checkpoints.loading import load_generator
from common.arguments import ArgumentParser, finite_float, positive_int
from common.errors import UserError
from common.program import run_script
from generators.generator import ImplicitGenerator3d


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("first", help="a generator file, or the name of a pretrained generator")
    parser.add_argument("second", help="another one, which has the same networks")
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


def check_same_network(first: ImplicitGenerator3d, second: ImplicitGenerator3d, names: tuple[str, str]) -> None:
    """Raise UserError unless both have equal parameter shapes, and equal buffers but for the slope of the ball.

    Other buffers define the field, such as its orientation, so their mean has no meaning.
    """
    shapes = [{name: value.shape for name, value in generator.named_parameters()} for generator in (first, second)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{names[0]} and {names[1]} have different networks; use two checkpoints of one run")
    a, b = field_buffers(first), field_buffers(second)
    if a.keys() != b.keys() or not all(torch.equal(a[name], b[name]) for name in a):
        raise UserError(f"{names[0]} and {names[1]} have fields of different size or orientation; use two checkpoints of one run")


def field_buffers(generator: ImplicitGenerator3d) -> dict[str, Tensor]:
    """Return all buffers but the slope of the ball, which has no effect on what the weights mean."""
    return {name: value for name, value in generator.named_buffers() if not name.endswith("ball_slope")}


@torch.no_grad()
def interpolate(first: ImplicitGenerator3d, second: ImplicitGenerator3d, amount: float, coarse: dict[str, float]) -> None:
    """Replace each parameter of ``second`` by first + amount (second - first); ``coarse`` has amounts of single parameters.

    The slope of the ball and the truncation means stay those of ``second``; compute the latter anew.
    """
    start = dict(first.named_parameters())
    for name, parameter in second.named_parameters():
        parameter.copy_(torch.lerp(start[name], parameter, coarse.get(name, amount)))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    output = Path(args.output)
    if output.exists():
        raise UserError(f"{output} already exists; choose another --output")
    first, loaded = load_generator(args.first), load_generator(args.second)
    generator = loaded.generator
    check_same_network(first.generator, generator, (args.first, args.second))
    coarse = {}
    if args.coarse_amount is not None:
        coarse = dict.fromkeys(coarse_parameters(generator, args.coarse_resolutions), args.coarse_amount)
    interpolate(first.generator, generator, args.amount, coarse)
    generator.truncation_mean = None
    save_inference(output, generator, loaded.step or 0)
    print(f"{output}: {len(list(generator.parameters())) - len(coarse)} tensors with an amount of {args.amount:g}, ", end="")
    print(f"{len(coarse)} coarse ones" + (f" with {args.coarse_amount:g}" if coarse else ""))


if __name__ == "__main__":
    run_script(main)
