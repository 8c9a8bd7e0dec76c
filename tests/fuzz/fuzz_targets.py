"""Targets of untrusted input: the readers, and every script through its command line.

Each target gets the folder with the case's files. It may return, raise UserError, or exit with status 0 or 2; the rest
is a defect (fuzz_worker.py).
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from checkpoints.files import latest_checkpoint, load_training_checkpoint, save_inference
from checkpoints.loading import load_generator
from checkpoints.published import load_published_training, read_options_curriculum
from checkpoints.torch_files import read_torch_file
from common.program import run_script
from dataset import ImageDataset
from metrics.fidelity import read_state_dict
from metrics.truth import camera_fov, find_truth, read_truth
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS, get_curriculum
from training.run.run_state import RunState

REPO = Path(__file__).resolve().parents[2]
SMALL_SETTINGS = ("hidden_dim=4", "num_layers=2", "latent_dim=4", "disc_channels=(2, 2, 2, 2, 2, 2, 2, 2, 2)")
SMALL = CURRICULUMS["SYNTH_TINY"].with_overrides(SMALL_SETTINGS)
SCRIPTS = (
    *("train", "eval_metrics", "tools.eval_geometry", "cal_weighted_var", "render_multiview_images", "render_video"),
    *("render_video_interpolation", "extract_shapes", "render_meshimg", "tools.report", "dataset", "tools.synthetic_heads"),
)


def prepare(sandbox: Path) -> None:
    """Trigger the first-use actions of libraries, so that they are not attributed to a case."""
    import skimage.measure
    import trimesh.ray.ray_triangle
    from PIL import Image

    torch.set_num_threads(1)
    Image.init()
    for name in SCRIPTS:
        importlib.import_module(name)
    state = _run_state()
    _one_step(state)
    (sandbox / "input").mkdir(exist_ok=True)
    save_inference(sandbox / "input" / "g.safetensors", state.generator, 1)
    read_generator(sandbox / "input", "g.safetensors", None, "ema")
    levels = np.linalg.norm(np.mgrid[:4, :4, :4], axis=0).astype(np.float32) - 2
    skimage.measure.marching_cubes(levels, 0.0)
    trimesh.creation.box().ray.intersects_location([[0, 0, 3]], [[0, 0, -1]])


# ------------------------------------------------------------------------------------------------ checkpoints


def read_generator(folder: Path, name: str, curriculum: str | None, weights: str) -> None:
    """A file that loads must also be usable. ``curriculum``: a name, "SMALL", or None for the file's own."""
    chosen = None if curriculum is None else {**CURRICULUMS, "SMALL": SMALL}[curriculum]
    loaded = load_generator(folder / name, chosen, weights=weights)
    with torch.no_grad():
        field = loaded.generator.field_of_latents(torch.zeros(1, loaded.curriculum.latent_dim))
        field.occupancy_logits(torch.zeros(1, 1, 3))


def read_any_torch_file(folder: Path, name: str) -> None:
    read_torch_file(folder / name)


def read_training(folder: Path, name: str) -> None:
    load_training_checkpoint(folder / name)


def read_published_run(folder: Path, prefix: str) -> None:
    load_published_training(folder, prefix)


def read_options(folder: Path, name: str) -> None:
    read_options_curriculum(folder / name)


def read_weights(folder: Path, name: str) -> None:
    read_state_dict(folder / name)


@functools.cache
def _run_state() -> RunState:
    return RunState(SMALL, 0, torch.device("cpu"), None)


def _one_step(state: RunState) -> None:
    """A run that resumed must be able to continue."""
    state.set_learning_rates(0)
    for optimizer in (state.optimizer_G, state.optimizer_D):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for average in state.averages.values():
        average.update(state.generator, torch.tensor(True), average.next_rate())


def start_from(folder: Path, name: str) -> None:
    state = _run_state()
    state.start_from(folder / name, [])
    _one_step(state)


def resume(folder: Path) -> None:
    """Resume as train.py does if the output folder has checkpoints."""
    state = _run_state()
    newest = latest_checkpoint(folder, notice=lambda text: None)
    if newest is not None:
        state.resume(newest, world_size=1)
        if state.images_seen < 0 or state.step < 0:
            raise AssertionError(f"resumed at step {state.step} after {state.images_seen} images")
        _one_step(state)


# ------------------------------------------------------------------------------------------------ images


def read_images(folder: Path, path: str, size: int, preset: str, use_cache: bool) -> None:
    """Read twice if there is a cache: it is written, then read."""
    for _ in range(1 + use_cache):
        data = ImageDataset(folder / path, size, preset, folder.parent / "cache" / "images" if use_cache else None, num_workers=1)
        picked = data.gather(torch.arange(len(data)))
        if picked.shape != (len(data), 3, size, size) or len(data.names) != len(data):
            raise AssertionError(f"{len(data.names)} names, {len(data)} images, {tuple(picked.shape)}")


def read_images_behind_a_cache(folder: Path, damage: list[tuple[str, bytes]]) -> None:
    """``damage``: replacement contents of the cache's two files, by suffix."""
    cache = folder.parent / "cache" / str(random.getrandbits(64))
    good = ImageDataset(folder, 8, cache_dir=cache, num_workers=1)
    expected = good.gather(torch.arange(len(good)))
    for suffix, content in damage:
        for file in cache.glob(f"*{suffix}"):
            file.write_bytes(content)
    again = ImageDataset(folder, 8, cache_dir=cache, num_workers=1)
    if len(again.names) != len(again) or len(again) > len(good):
        raise AssertionError(f"{len(again.names)} names for {len(again)} images")
    again.gather(torch.arange(len(again)))
    assert expected.shape[1:] == (3, 8, 8)


def read_truths(folder: Path) -> None:
    files = find_truth(folder, 10)
    read_truth(files)
    camera_fov(folder)


# ------------------------------------------------------------------------------------------------ settings


def override(folder: Path, name: str, assignments: list[str]) -> None:
    check_settings(get_curriculum(name).with_overrides(assignments))


def read_curriculum_file(folder: Path, name: str) -> None:
    check_settings(get_curriculum(str(folder / name)))


def check_settings(curriculum: Curriculum) -> None:
    """Accepted settings must survive a round trip through a checkpoint, and every schedule of a run."""
    from training.steps import StepSettings

    assert Curriculum.from_dict(curriculum.to_dict()) == curriculum
    for step in (0, 1, curriculum.end_step - 1, curriculum.end_step):
        StepSettings.at(curriculum, step)


# ------------------------------------------------------------------------------------------------ scripts


def run_command(folder: Path, script: str, arguments: list[str]) -> None:
    """Run like ``python SCRIPT.py ARGUMENTS`` from an empty folder."""
    module = importlib.import_module(script)
    threads = torch.get_num_threads()
    kept, sys.argv = sys.argv, [f"{script}.py", *arguments]
    try:
        run_script(module.main)
    finally:
        sys.argv = kept
        torch.set_num_threads(threads)


TARGETS: dict[str, Callable[..., None]] = {
    "checkpoint.generator": read_generator,
    "checkpoint.torch_file": read_any_torch_file,
    "checkpoint.training": read_training,
    "checkpoint.published_run": read_published_run,
    "checkpoint.options": read_options,
    "checkpoint.weights": read_weights,
    "checkpoint.start_from": start_from,
    "checkpoint.resume": resume,
    "image.set": read_images,
    "image.cache": read_images_behind_a_cache,
    "image.truth": read_truths,
    "curriculum.set": override,
    "curriculum.file": read_curriculum_file,
    "mesh.images": run_command,
    "report.page": run_command,
    "command.line": run_command,
}
