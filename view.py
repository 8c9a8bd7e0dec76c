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
from viewing.server import MAX_PSI, MAX_SHOWN_SEED, MIN_PSI, Viewer
from viewing.source import RunFolder
from viewing.worker import Worker
from visualization.generator_scripts import PRECISIONS, Subject, check_surface_only, load_with_notes, open_subjects

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
POLL_SECONDS = 2.0


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
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = resolve_device(args.device)
    folder = RunFolder(Path(args.watch), args.curriculum, device, args.precision) if args.watch else None
    loaded = _wait_for_first(folder) if folder else load_with_notes(args.path, args.curriculum, device, precision=args.precision)
    check_surface_only(args.surface_only, loaded.curriculum)
    if args.host not in LOCAL_HOSTS:
        print(f"warning: anyone who can reach {args.host} can use this viewer, without a password", file=sys.stderr)
    latents = read_latents(loaded, args)
    look = Look(args.seed, args.psi, latent=next(iter(latents), None))
    settings = FrameSettings(surface=args.surface_only, image_size=args.image_size)
    worker = Worker(loaded, device, latents)
    worker.start(look, settings)
    viewer = Viewer(worker, Path(args.watch or args.path).resolve().stem, args.host, args.port, look, settings)
    print(f"viewer ready: {viewer.url} (Ctrl-C to stop)", flush=True)
    try:
        _follow(folder, viewer)
    finally:
        viewer.stop()
        worker.stop()


def read_latents(loaded: LoadedGenerator, args: argparse.Namespace) -> dict[str, Subject]:
    """Read the files of --latent, by label. Raises UserError for a latent of another generator."""
    chosen = argparse.Namespace(path=args.path, latent=args.latent, direction=[], psi=args.psi)
    subjects = [make_subject() for make_subject in open_subjects(loaded, [], chosen)] if args.latent else []
    return {subject.label: subject for subject in subjects}


def _wait_for_first(folder: RunFolder) -> LoadedGenerator:
    loaded, is_noted = folder.poll(), False
    while loaded is None:
        if not is_noted:
            print(f"waiting for the first generator: {folder.problem or 'there is none yet'}", file=sys.stderr, flush=True)
            is_noted = True
        time.sleep(POLL_SECONDS)
        loaded = folder.poll()
    return loaded


def _follow(folder: RunFolder | None, viewer: Viewer) -> None:
    """Show each new generator of a run until interrupted."""
    problem = None
    while True:
        time.sleep(POLL_SECONDS)
        loaded = folder.poll() if folder else None
        if loaded is not None:
            viewer.show_generator(loaded)
        if folder and folder.problem not in (None, problem):
            print(f"note: still showing the previous generator: {folder.problem}", file=sys.stderr, flush=True)
        problem = folder.problem if folder else None


if __name__ == "__main__":
    run_script(main)
