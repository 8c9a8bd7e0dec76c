"""View a generator interactively in the browser, rendered on a CPU or a GPU of this or another machine.

    python view.py heads
    python view.py outputs/run/generator.safetensors --port 8000
    python view.py --watch outputs/run
    python view.py cats --latent inverted/photo_latent.safetensors

Open the printed address. Drag to rotate; use the wheel to zoom. The panel offers seed, psi, mixing, image, normals or depth,
volume or surface, the camera prior, the mesh, and downloads. While something moves, fewer pixels are rendered. --watch shows
the newest generator of a run in training. docs/viewer.md describes the viewer and how to reach it on another machine.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import (
    PRECISIONS,
    ArgumentParser,
    add_device_argument,
    finite_float,
    image_side,
    int_between,
    seed_number,
)
from common.program import run_script
from viewing.address import LOCAL_HOSTS, MAX_PSI, MAX_SHOWN_SEED, MIN_PSI, address_of, open_server


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", metavar="PATH", nargs="?", help="a generator file, or the name of a pretrained one")
    parser.add_argument("--watch", metavar="RUN_DIR", help="instead of PATH: folder of a run whose newest generator is shown")
    parser.add_argument("--curriculum", help="name or .json file; required if the generator file contains no settings")
    parser.add_argument("--seed", type=seed_number, default=0, help="initial seed")
    parser.add_argument("--psi", type=finite_float, default=0.7, help="truncation: 1 is the full variety, 0 the mean")
    parser.add_argument("--image_size", type=image_side, default=256, help="side of the full-quality frame in pixels")
    parser.add_argument("--surface_only", action="store_true", help="start with the surface instead of the volume")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; with the default, only this machine can connect"
    )
    parser.add_argument("--port", type=int_between(1, 65535), default=8080, help="port, or the next free one if it is in use")
    parser.add_argument(
        "--precision", choices=list(PRECISIONS), default="tf32", help="precision of the field's matrix products on a GPU"
    )
    add_device_argument(parser)
    parser.add_argument("--latent", nargs="+", default=[], metavar="FILE", help="latent files of invert.py, offered beside seeds")
    args = parser.parse_args(argv)
    if not MIN_PSI <= args.psi <= MAX_PSI or args.seed > MAX_SHOWN_SEED:
        parser.error(f"the panel offers --psi from {MIN_PSI:g} to {MAX_PSI:g} and --seed up to {MAX_SHOWN_SEED}")
    if args.watch and args.latent:
        parser.error("--latent cannot be combined with --watch: a latent belongs to one state of a generator")
    if (args.path is None) == (args.watch is None):
        parser.error("specify either a generator or --watch RUN_DIR")
    if args.watch and not Path(args.watch).is_dir():
        parser.error(f"--watch {args.watch} is not a folder; pass the --output_dir of a run")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.host not in LOCAL_HOSTS:
        print(f"warning: anyone who can reach {args.host} can use this viewer, without a password", file=sys.stderr)
    name = Path(args.watch or args.path).resolve().stem
    server = open_server(args.host, args.port, name)
    print(f"viewer: {address_of(server, args.host)} (Ctrl-C to stop)", flush=True)
    try:
        from viewing.serving import serve  # imports PyTorch for seconds, while the browser already loads the page

        serve(server, name, args)
    finally:
        server.stop()


if __name__ == "__main__":
    run_script(main)
