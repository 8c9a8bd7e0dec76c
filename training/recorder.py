"""What a run shows: the progress line, log.jsonl, TensorBoard scalars, and grids of image, depth, normals and mask."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.views import View, ViewSettings, render_views
from imaging import picture_grid, save_picture, to_uint8, view_picture
from training.evaluation import evaluate

GRID_SEEDS = 6
GRID_YAWS = (-0.4, 0.0, 0.4)


class Recorder:
    """Writes into ``output_dir``; made in the main process only."""

    def __init__(self, output_dir: Path, step: int, end_step: int, use_tensorboard: bool) -> None:
        self._dir = output_dir
        self._bar = tqdm(total=end_step, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)
        self._writer = None
        if use_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step)
        self._since = time.perf_counter()
        self._images = 0

    def advance(self, num_images: int) -> None:
        """One step over, in which D saw ``num_images`` real images."""
        self._images += num_images
        self._bar.update()

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars since the last call; adds images per second."""
        now = time.perf_counter()
        scalars = {**scalars, "images_per_second": self._images / max(now - self._since, 1e-9)}
        self._since, self._images = now, 0
        shown = {
            "D": scalars["D/gan"],
            "G": scalars["G/gan"],
            "hit": scalars.get("G/hit_rate", 0.0),
            "Delta": scalars["schedule/interval"],
            "img/s": scalars["images_per_second"],
        }
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self._write(step, scalars)

    def log_evaluation(self, step: int, generator: ImplicitGenerator3d, image_size: int) -> None:
        """Measure the generator; a failure is noted and no reason for the run to die."""
        try:
            scalars = evaluate(generator, image_size)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            self.note(f"evaluation at step {step} failed: {error}")
            return
        self.note(f"step {step}: " + ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in scalars.items()))
        self._write(step, scalars)

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        with (self._dir / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **{name: float(f"{value:.6g}") for name, value in scalars.items()}}) + "\n")
        if self._writer:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def sample(self, step: int, generator: ImplicitGenerator3d, image_size: int, interval: float) -> None:
        """A grid of fixed latents: samples/{step}.png, and TensorBoard."""
        curriculum = generator.curriculum
        # The expected depth of a ray that meets nothing means nothing, so where there are surfaces theirs is shown.
        depth = "surface_depth" if curriculum.pred_occ else "depth"
        views = sample_views(generator, image_size, interval)
        rows = []
        for per_seed in views:
            pictures = [
                view_picture(view, quantity, curriculum.ray_start, curriculum.ray_end)
                for quantity in ("image", depth, "normals", "mask")
                for view in per_seed
            ]
            rows.append(pictures)
        grid = picture_grid(rows)
        folder = self._dir / "samples"
        folder.mkdir(exist_ok=True)
        save_picture(folder / f"{step:07d}.png", grid)
        if self._writer:
            self._writer.add_image("samples", to_uint8(grid), step, dataformats="HWC")

    def note(self, text: str) -> None:
        """A line above the progress bar."""
        self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()


@torch.no_grad()
def sample_views(generator: ImplicitGenerator3d, image_size: int, interval: float) -> list[list[View]]:
    """Fixed seeds from a few yaws, at psi 1: per seed, a list of views."""
    device = next(generator.parameters()).device
    curriculum = generator.curriculum
    settings = ViewSettings(image_size=image_size, ray_step_multiplier=1, interval=interval)
    yaws = torch.tensor(GRID_YAWS, device=device) + curriculum.h_mean
    views = []
    for seed in range(GRID_SEEDS):
        z = latent_from_seed(seed, curriculum.latent_dim, curriculum.z_dist).to(device)
        film = generator.film(z.expand(len(yaws), -1))
        poses = CameraPoses(torch.full_like(yaws, curriculum.v_mean), yaws)
        views.append(render_views(generator.field(film), poses, curriculum, settings))
    return views
