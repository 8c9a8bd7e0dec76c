"""A viewer in the browser for any generator, on a CPU or a GPU, here or on another machine.

    python view.py heads
    python view.py outputs/run/generator.safetensors --port 8000
    python view.py --watch outputs/run

Open the printed address. Drag turns the head, the wheel zooms; the panel has seed, psi, mixing, image, normals or depth, volume
or surface, the cameras that training used, the mesh, and downloads. Fewer pixels are rendered while something moves. --watch
shows the newest generator of a run while it trains. docs/viewer.md describes the page and how to reach another machine's.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from checkpoints.loading import LoadedGenerator
from common.arguments import (
    ArgumentParser,
    add_device_argument,
    finite_float,
    image_side,
    int_between,
    resolve_device,
    seed_number,
)
from common.program import run_script
from viewing.frames import FrameSettings
from viewing.looks import Look
from viewing.server import Viewer
from viewing.source import RunFolder
from viewing.worker import Worker
from visualization.generator_scripts import PRECISIONS, check_surface_only, load_with_notes

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
POLL_SECONDS = 2.0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("path", metavar="PATH", nargs="?", help="a generator file, or the name of a shipped one")
    parser.add_argument(
        "--watch", metavar="RUN_DIR", help="instead of PATH: a training's folder, whose newest generator is shown"
    )
    parser.add_argument("--curriculum", help="name or .json file; needed where the file does not carry its own settings")
    parser.add_argument("--seed", type=seed_number, default=0, help="the first head")
    parser.add_argument("--psi", type=finite_float, default=0.7, help="truncation: 1 is the full variety, 0 the mean")
    parser.add_argument("--image_size", type=image_side, default=256, help="side of an image at rest in pixels")
    parser.add_argument("--surface_only", action="store_true", help="start with the surface instead of the volume")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; others than this machine's are open to all"
    )
    parser.add_argument("--port", type=int_between(1, 65535), default=8080, help="where it is taken, the next free one is used")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="tf32", help="of the field's products on a GPU")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    if (args.path is None) == (args.watch is None):
        parser.error("name either a generator or --watch RUN_DIR")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = resolve_device(args.device)
    folder = RunFolder(Path(args.watch), args.curriculum, device, args.precision) if args.watch else None
    loaded = _wait_for_first(folder) if folder else load_with_notes(args.path, args.curriculum, device, precision=args.precision)
    check_surface_only(args.surface_only, loaded.curriculum)
    if args.host not in LOCAL_HOSTS:
        print(f"warning: whoever can reach {args.host} can use this viewer; it asks for no password", file=sys.stderr)
    look, settings = Look(args.seed, args.psi), FrameSettings(surface=args.surface_only, image_size=args.image_size)
    worker = Worker(loaded, device)
    worker.start(look, settings)
    viewer = Viewer(worker, Path(args.watch or args.path).resolve().stem, args.host, args.port, look, settings)
    print(f"the viewer: {viewer.url} (Ctrl-C ends it)", flush=True)
    try:
        _follow(folder, viewer)
    finally:
        viewer.stop()
        worker.stop()


def _wait_for_first(folder: RunFolder) -> LoadedGenerator:
    loaded, told = folder.poll(), False
    while loaded is None:
        if not told:
            print(f"waiting for the first generator: {folder.problem or 'none is there yet'}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
        loaded = folder.poll()
    return loaded


def _follow(folder: RunFolder | None, viewer: Viewer) -> None:
    """Show what a run writes, until interrupted."""
    problem = None
    while True:
        time.sleep(POLL_SECONDS)
        loaded = folder.poll() if folder else None
        if loaded is not None:
            viewer.show_generator(loaded)
        if folder and folder.problem not in (None, problem):
            print(f"note: still showing the generator before: {folder.problem}", file=sys.stderr, flush=True)
        problem = folder.problem if folder else None


if __name__ == "__main__":
    run_script(main)
