"""Export generators as one HTML file that computes everything from latent to pixels in the browser, without a server.

    python export_web.py cats heads --output page.html
    python export_web.py cats --latent inverted/photo_latent.safetensors --output page.html

Open the file in any browser with WebGL 2, or publish it on any static host. Drag to rotate. A seed gives the same object as in
the scripts. With several generators, the page has a selector. page.html?benchmark measures frame times. The page renders the
surface, like --surface_only in the other scripts. SIRENs beyond 4 layers of 128 units are rejected: use view.py for them.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints.latents import GeneratorName, load_latent
from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import write_atomically
from common.program import run_script
from visualization.generator_scripts import load_with_notes
from web.export import export_page


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="generator files, or names of pretrained generators")
    parser.add_argument("--curriculum", help="name or .json file; required if a generator file contains no settings")
    parser.add_argument(
        "--latent",
        nargs="+",
        default=[],
        metavar="FILE",
        help="latent files of invert.py for the first PATH, as additional choices",
    )
    parser.add_argument("--output", default="page.html", help="HTML file to write")
    args = parser.parse_args(argv)
    generators = {}
    for path in args.paths:
        name = Path(path).stem
        if name in generators:
            raise UserError(f"two generators are named {name}; rename one of the files")
        generators[name] = load_with_notes(path, args.curriculum, torch.device("cpu"))
    first = next(iter(generators.values())).generator
    name = GeneratorName.of(first, args.paths[0])
    latents = {Path(path).stem.removesuffix("_latent"): load_latent(path, first, name) for path in args.latent}
    if len(latents) < len(args.latent):
        raise UserError("two latents have the same name; rename one of the files")
    page = export_page(generators, latents).encode()
    write_atomically(args.output, page)
    print(f"wrote {Path(args.output).resolve()} ({len(page) / 1e6:.2f} MB)")


if __name__ == "__main__":
    run_script(main)
