"""What a run shows: the progress line, log.jsonl, metrics.jsonl, TensorBoard, and grids of image, depth, normals and mask.

Nothing here ends a run: what cannot be written or measured is said once, in one line, and tried again the next time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.files import write_atomically
from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.views import View, ViewSettings, render_views
from training.mirror import Turn
from training.run.run_folder import cut_log
from visualization.images import image_grid, png_bytes, to_uint8, view_image

GRID_SEEDS = 6
GRID_YAWS = (-0.4, 0.0, 0.4)
MAX_UNWRITTEN = 10_000  # lines of the log kept in memory while they cannot be written


class Recorder:
    """Writes into ``output_dir``; made in the main process only. What was logged beyond ``step`` before is taken back."""

    def __init__(self, output_dir: Path, step: int, end_step: int, use_tensorboard: bool) -> None:
        self._dir = output_dir
        self._log_path, self._metrics_path = output_dir / "log.jsonl", output_dir / "metrics.jsonl"
        # lines that wait for room on the disk
        self._unwritten: dict[Path, list[dict[str, Any]]] = {self._log_path: [], self._metrics_path: []}
        self._failing: set[str] = set()  # what could not be done the last time, and was said
        self._bar = tqdm(total=end_step, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)
        self._use_tensorboard = use_tensorboard
        self._writer: Any = None
        self._purge_step = step + 1  # steps from here on are hidden in what TensorBoard has of an earlier attempt
        self._since = time.perf_counter()
        self._images = 0
        self._cut_log(step)

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
        self._write(self._log_path, step, scalars)

    def log_evaluation(self, step: int, parts: Mapping[str, Callable[[], dict[str, float]]]) -> None:
        """Measure the parts, each by itself, and write what came out of them as one line of metrics.jsonl."""
        scalars: dict[str, float] = {}
        for name, measure in parts.items():
            with self._no_reason_to_stop(f"evaluation at step {step}, {name},", key=f"evaluation, {name}"):
                scalars |= measure()
        if scalars:
            self.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scalars.items()))
            self._write(self._metrics_path, step, scalars, prefix="eval/")

    def log_turn(self, step: int, bulge: float, turn: Turn, is_done: bool) -> None:
        """The shapes are hollow (``bulge`` below 0) and were mirrored in depth, or left. A line of metrics.jsonl."""
        how = "mirrored in depth, inverted" if turn.invert else "mirrored in depth"
        if not is_done:
            how = "an object, not a mold, for its images would not be the same when " + how + "; left as it is"
        self.note(f"step {step}: the shapes are hollow (bulge {bulge:.4g}): {how}, {turn.psnr_db:.1f} dB from before")
        numbers = {"bulge_before": float(f"{bulge:.6g}"), "turn_psnr_db": float(f"{turn.psnr_db:.6g}")}
        self._append(self._metrics_path, {"step": step, "mirrored_depth": is_done, "inverted": turn.invert, **numbers})

    def event(self, step: int, name: str, **details: str | int | float) -> None:
        """A line in log.jsonl for something that happened, beside the scalars."""
        self._append(self._log_path, {"step": step, "event": name, **details})

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier ``step``: what was logged beyond it is taken back."""
        self._bar.n = step
        self._bar.refresh()
        self._close_writer()
        self._purge_step = step + 1
        self._cut_log(step)

    def _write(self, path: Path, step: int, scalars: dict[str, float], prefix: str = "") -> None:
        """Values that are not finite are no JSON; their names go into ``not_finite``. ``prefix``: of names in TensorBoard."""
        finite = {name: float(f"{value:.6g}") for name, value in scalars.items() if math.isfinite(value)}
        bad = [name for name in scalars if name not in finite]
        self._append(path, {"step": step, **finite, **({"not_finite": bad} if bad else {})})
        self._show(lambda writer: [writer.add_scalar(prefix + name, value, step) for name, value in finite.items()])

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._unwritten[path] = [*self._unwritten[path], line][-MAX_UNWRITTEN:]
        self._write_logs()

    def _write_logs(self) -> None:
        for path, lines in self._unwritten.items():
            with self._no_reason_to_stop(f"writing {path}", key=path.name):
                if lines:
                    append_line(path, "\n".join(json.dumps(line) for line in lines))
                self._unwritten[path] = []

    def _cut_log(self, step: int) -> None:
        for path, lines in self._unwritten.items():
            self._unwritten[path] = [line for line in lines if line["step"] <= step or "event" in line]
            with self._no_reason_to_stop(f"shortening {path}", key=f"cut {path.name}"):
                cut_log(path, step)

    def _show(self, write: Callable[[Any], None]) -> None:
        """``write`` to TensorBoard's writer, which is opened anew after a failure (its own thread fails later than the call)."""
        if not self._use_tensorboard:
            return
        with self._no_reason_to_stop("writing for TensorBoard", key="tensorboard"):
            try:
                if self._writer is None:
                    from torch.utils.tensorboard import SummaryWriter

                    _put_behind_us(self._dir / "tensorboard")
                    self._writer = SummaryWriter(str(self._dir / "tensorboard"), purge_step=self._purge_step, flush_secs=10)
                    self._purge_step = None
                write(self._writer)
            except Exception:
                self._close_writer()
                raise

    def _close_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):  # what failed before fails again
                self._writer.close()
            self._writer = None

    @contextlib.contextmanager
    def _no_reason_to_stop(self, what: str, key: str) -> Iterator[None]:
        """Say once that ``what`` failed, and once that it works again."""
        try:
            yield
        except Exception as error:  # whatever it is, the training behind it is sound
            if key not in self._failing:
                reason = " ".join(str(error).split())[:300]
                self.warn(f"{what} failed ({type(error).__name__}: {reason}); the run goes on and will try again")
            self._failing.add(key)
        else:
            if key in self._failing:
                self.warn(f"{what} works again")
            self._failing.discard(key)

    def sample(self, step: int, generator: ImplicitGenerator3d, image_size: int, interval: float) -> None:
        """A grid of fixed latents: samples/{step}.png, and TensorBoard."""
        with self._no_reason_to_stop(f"the sample grid of step {step}", key="samples"):
            curriculum = generator.curriculum
            # The expected depth of a ray that meets nothing means nothing, so where there are surfaces theirs is shown.
            depth = "surface_depth" if curriculum.pred_occ else "depth"
            rows = []
            for per_seed in sample_views(generator, image_size, interval):
                images = [
                    view_image(view, quantity, curriculum.ray_start, curriculum.ray_end)
                    for quantity in ("image", depth, "normals", "mask")
                    for view in per_seed
                ]
                rows.append(images)
            grid = to_uint8(image_grid(rows))
            write_atomically(self._dir / "samples" / f"{step:07d}.png", png_bytes(grid))
            self._show(lambda writer: writer.add_image("samples", grid, step, dataformats="HWC"))

    def note(self, text: str) -> None:
        """A line above the progress bar."""
        self._bar.write(text)

    def warn(self, text: str) -> None:
        """A line on stderr, above the progress bar."""
        self._bar.write(" ".join(text.split()), file=sys.stderr)

    def close(self) -> None:
        self._write_logs()
        self._bar.close()
        self._close_writer()


def _put_behind_us(folder: Path) -> None:
    """Where the clock was set back, rename what TensorBoard has: it reads files in the order of the seconds in their names."""
    names = sorted(path.name for path in folder.glob("events.out.tfevents.*"))
    if names and names[-1] >= f"events.out.tfevents.{int(time.time()):010d}":
        for place, name in enumerate(names):
            rest = name.split(".", 4)[4]
            (folder / name).rename(folder / f"events.out.tfevents.{place:010d}.{rest}")


def append_line(path: Path, text: str) -> None:
    """Add a line (or several) to a file: all of it, or (OSError) none."""
    data = (text + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


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
