"""The progress bar, log.jsonl, metrics.jsonl, TensorBoard, and grids of image, depth, normals and mask.

Nothing here stops a run. A failure to write or to evaluate is reported once, in one line, and retried the next time.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import append_line, write_atomically
from generators.generator import ImplicitGenerator3d
from training.mirror import Mirroring
from training.run.run_folder import truncate_log
from training.sample_grid import sample_grid
from visualization.images import png_bytes, to_uint8

ON_THE_BAR = {"D": "D/gan", "G": "G/gan", "hit": "G/hit_rate", "Delta": "schedule/interval", "img/s": "images_per_second"}
MAX_UNWRITTEN = 10_000  # lines of the log kept in memory while they cannot be written


def training_minutes(output_dir: Path) -> float:
    """Return the minutes of a run up to the last line of its log.jsonl, without start-up."""
    seconds, seen = 0.0, 0.0
    for line in map(json.loads, (output_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()):
        if "images_per_second" in line and "images_seen" in line:
            seconds += (line["images_seen"] - seen) / max(line["images_per_second"], 1e-9)
            seen = line["images_seen"]
    return seconds / 60


class Recorder:
    """Write logs and samples in ``output_dir``, in the main process only. Log lines after ``step`` are removed at the start."""

    def __init__(self, output_dir: Path, step: int, end_step: int, use_tensorboard: bool) -> None:
        self._dir = output_dir
        self._log_path, self._metrics_path = output_dir / "log.jsonl", output_dir / "metrics.jsonl"
        # lines waiting for free disk space
        self._unwritten: dict[Path, list[dict[str, Any]]] = {self._log_path: [], self._metrics_path: []}
        self._failing: set[str] = set()  # reported failures that are not yet resolved
        self._bar = tqdm(total=end_step, initial=step, unit="step", dynamic_ncols=True, mininterval=1.0)
        self._use_tensorboard = use_tensorboard
        self._writer: Any = None
        self._purge_step = step + 1  # TensorBoard hides an earlier attempt's steps from here on
        self._since = time.perf_counter()
        self._images = 0
        self._truncate_logs(step)

    def advance(self, num_images: int) -> None:
        """Count a step in which D saw ``num_images`` real images."""
        self._images += num_images
        self._bar.update()

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write scalars, and the images per second since the last call."""
        now = time.perf_counter()
        scalars = {**scalars, "images_per_second": self._images / max(now - self._since, 1e-9)}
        self._since, self._images = now, 0
        shown = {short: f"{scalars.get(name, 0.0):.3g}" for short, name in ON_THE_BAR.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._write(self._log_path, step, scalars)

    def log_evaluation(self, step: int, scores: dict[str, float]) -> None:
        """Write the scores, if any, as one line of metrics.jsonl."""
        if scores:
            self.note(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
            self._write(self._metrics_path, step, scores, prefix="eval/")

    def log_mirroring(self, step: int, bulge: float, mirroring: Mirroring, is_done: bool) -> None:
        """Log that hollow shapes (``bulge`` below 0) were mirrored in depth, or left unchanged, in metrics.jsonl."""
        how = mirroring.description
        if not is_done:
            how = f"concave objects, not molds, because their images would change when {how}; left unchanged"
        self.note(
            f"step {step}: the shapes are hollow (bulge {bulge:.4g}): {how}, PSNR {mirroring.psnr_db:.1f} dB to the images before"
        )
        numbers = {"bulge_before": float(f"{bulge:.6g}"), "mirror_psnr_db": float(f"{mirroring.psnr_db:.6g}")}
        self._append(self._metrics_path, {"step": step, "mirrored_depth": is_done, "inverted": mirroring.invert, **numbers})

    def event(self, step: int, name: str, **details: str | int | float) -> None:
        """Write an event, such as a recovery, to log.jsonl."""
        self._append(self._log_path, {"step": step, "event": name, **details})

    def go_back(self, step: int) -> None:
        """Continue from an earlier ``step``: remove the log lines after it."""
        self._bar.n = step
        self._bar.refresh()
        self._close_writer()
        self._purge_step = step + 1
        self._truncate_logs(step)

    def _write(self, path: Path, step: int, scalars: dict[str, float], prefix: str = "") -> None:
        """Write scalars to ``path``, and to TensorBoard with ``prefix``. JSON has no NaN, so ``not_finite`` lists those names."""
        finite = {name: float(f"{value:.6g}") for name, value in scalars.items() if math.isfinite(value)}
        bad = [name for name in scalars if name not in finite]
        self._append(path, {"step": step, **finite, **({"not_finite": bad} if bad else {})})
        self._show(lambda writer: [writer.add_scalar(prefix + name, value, step) for name, value in finite.items()])

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._unwritten[path] = [*self._unwritten[path], line][-MAX_UNWRITTEN:]
        self._write_logs()

    def _write_logs(self) -> None:
        for path, lines in self._unwritten.items():
            with self._tolerate(f"writing {path}", key=path.name):
                if lines:
                    append_line(path, "\n".join(json.dumps(line) for line in lines))
                self._unwritten[path] = []

    def _truncate_logs(self, step: int) -> None:
        for path, lines in self._unwritten.items():
            self._unwritten[path] = [line for line in lines if line["step"] <= step or "event" in line]
            with self._tolerate(f"truncating {path}", key=f"truncate {path.name}"):
                truncate_log(path, step)

    def _show(self, write: Callable[[Any], None]) -> None:
        """Call ``write`` with TensorBoard's writer. Reopen the writer after a failure, as its thread does not recover."""
        if not self._use_tensorboard:
            return
        with self._tolerate("writing TensorBoard logs", key="tensorboard"):
            try:
                if self._writer is None:
                    from torch.utils.tensorboard import SummaryWriter

                    _rename_newer_events(self._dir / "tensorboard")
                    self._writer = SummaryWriter(str(self._dir / "tensorboard"), purge_step=self._purge_step, flush_secs=10)
                    self._purge_step = None
                write(self._writer)
            except Exception:
                self._close_writer()
                raise

    def _close_writer(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):  # the same error may occur again
                self._writer.close()
            self._writer = None

    def tolerate_evaluation(self, step: int, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the metrics ``name`` may fail."""
        return self._tolerate(f"evaluation at step {step}, {name},", key=f"evaluation, {name}")

    @contextlib.contextmanager
    def _tolerate(self, what: str, key: str) -> Iterator[None]:
        """Report once when ``what`` fails in this context, and once when it works again."""
        try:
            yield
        except Exception as error:  # training itself is not affected
            if key not in self._failing:
                reason = " ".join(str(error).split())[:300]
                self.warn(f"{what} failed ({type(error).__name__}: {reason}); training continues and will retry")
            self._failing.add(key)
        else:
            if key in self._failing:
                self.warn(f"{what} works again")
            self._failing.discard(key)

    def sample(self, step: int, generator: ImplicitGenerator3d, image_size: int, interval: float) -> None:
        """Write a grid of fixed latents to samples/STEP.png and TensorBoard."""
        with self._tolerate(f"the sample grid of step {step}", key="samples"):
            grid = to_uint8(sample_grid(generator, image_size, interval))
            write_atomically(self._dir / "samples" / f"{step:07d}.png", png_bytes(grid))
            self._show(lambda writer: writer.add_image("samples", grid, step, dataformats="HWC"))

    def note(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._bar.write(text)

    def warn(self, text: str) -> None:
        """Print a line on stderr, above the progress bar."""
        self._bar.write(" ".join(text.split()), file=sys.stderr)

    def close(self) -> None:
        """Write pending log lines, and close the progress bar and TensorBoard's writer."""
        self._write_logs()
        self._bar.close()
        self._close_writer()


def _rename_newer_events(folder: Path) -> None:
    """Rename TensorBoard's files if the clock was set back, because it reads them in the order of the times in their names."""
    names = sorted(path.name for path in folder.glob("events.out.tfevents.*"))
    if names and names[-1] >= f"events.out.tfevents.{int(time.time()):010d}":
        for index, name in enumerate(names):
            rest = name.split(".", 4)[4]
            (folder / name).rename(folder / f"events.out.tfevents.{index:010d}.{rest}")
