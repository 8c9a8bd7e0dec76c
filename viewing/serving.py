"""The viewer behind its address: load the generator, or follow a run's newest one, and serve it until interrupted."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from checkpoints.loading import LoadedGenerator
from common.arguments import resolve_device
from viewing.address import LocalServer
from viewing.frames import FrameSettings
from viewing.looks import Look
from viewing.server import Viewer
from viewing.source import RunFolder
from viewing.worker import Worker
from visualization.generator_scripts import Subject, check_surface_only, load_with_notes, open_subjects

POLL_SECONDS = 2.0


def serve(server: LocalServer, name: str, args: argparse.Namespace) -> None:
    """Serve the generator of view.py's arguments. Raises UserError if it or a latent file cannot be used."""
    device = resolve_device(args.device)
    folder = RunFolder(Path(args.watch), args.curriculum, device, args.precision) if args.watch else None
    loaded = _wait_for_first(folder) if folder else load_with_notes(args.path, args.curriculum, device, precision=args.precision)
    check_surface_only(args.surface_only, loaded.curriculum)
    latents = _read_latents(loaded, args)
    look = Look(args.seed, args.psi, latent=next(iter(latents), None))
    settings = FrameSettings(surface=args.surface_only, image_size=args.image_size)
    worker = Worker(loaded, device, latents)
    worker.start(look, settings)
    try:
        viewer = Viewer(server, worker, name, look, settings)
        print("viewer ready", flush=True)
        _follow(folder, viewer)
    finally:
        worker.stop()


def _read_latents(loaded: LoadedGenerator, args: argparse.Namespace) -> dict[str, Subject]:
    """Read the files of --latent, by label. Raises UserError for a latent of another generator."""
    if not args.latent:
        return {}
    subjects = [make_subject() for make_subject in open_subjects(loaded, args.path, [], args.psi, args.latent)]
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
