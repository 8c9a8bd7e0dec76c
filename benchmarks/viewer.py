"""Measure the viewer: seconds to the first image, frames per second in motion, and seconds to full quality at rest.

    python benchmarks/viewer.py heads --json viewer.json

Starts ``view.py PATH``, then drags and releases in a headless Chromium. The browser draws with the same CPU cores (SwiftShader)
and takes part of their time; to exclude it, the same motion is also sent to the viewer's worker without a browser.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chromium import open_chromium, wait_for
from checkpoints.loading import LoadedGenerator
from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import write_atomically
from common.program import run_script
from viewing.camera import camera_at
from viewing.frames import Frame, FrameSettings
from viewing.looks import Look
from viewing.worker import Session, Worker
from visualization.generator_scripts import load_with_notes

ROOT = Path(__file__).resolve().parent.parent
MOTION_SECONDS, CAMERAS_PER_SECOND = 5.0, 60.0
MAX_SECONDS = 120.0
DRAG_PIXELS, DRAG_STEPS = 3, 160
SHOWN = re.compile(r"(\d+) px in ([\d.]+) (ms, (\d+) frames/s|s)")  # the panel's status line


class Status(NamedTuple):
    """The panel's status line: the frame's side in pixels, and frames per second, or None at rest."""

    size: int
    frames_per_s: int | None


class Recorder:
    """A screen that notes the time, size and quality of each frame."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, int, bool]] = []
        self.refined = threading.Event()

    def show(self, frame: Frame, is_refined: bool, seconds: float) -> None:
        self.frames.append((time.perf_counter(), frame.image_size, is_refined))
        if is_refined:
            self.refined.set()

    def report(self, problem: str) -> None:
        raise UserError(problem)

    def wait_for_refined(self) -> float:
        """Return the time of the next frame at full quality."""
        if not self.refined.wait(MAX_SECONDS):
            raise UserError(f"no frame at full quality within {MAX_SECONDS:.0f} s")
        return self.frames[-1][0]


def measure_worker(loaded: LoadedGenerator, settings: FrameSettings) -> dict[str, float]:
    """Turn the camera for MOTION_SECONDS, then let it rest, without a browser."""
    curriculum, screen = loaded.curriculum, Recorder()
    session = Session(screen, camera_at(curriculum.h_mean, curriculum.v_mean, 1.0, 0.25, height=500), Look(), settings)
    worker = Worker(loaded, torch.device("cpu"))
    worker.start(Look(), settings)
    worker.add(session)
    screen.wait_for_refined()
    screen.frames.clear()
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < MOTION_SECONDS:
        yaw = curriculum.h_mean + 0.3 * elapsed / MOTION_SECONDS
        worker.change(session, camera=camera_at(yaw, curriculum.v_mean, 1.0, 0.25, height=500))
        time.sleep(1 / CAMERAS_PER_SECOND)
    moving = list(screen.frames)
    screen.refined.clear()
    stopped = time.perf_counter()
    at_rest = screen.wait_for_refined() - stopped
    worker.stop()
    return {
        "frames_per_s": len(moving) / MOTION_SECONDS,
        "moving_size": statistics.median(size for _, size, _ in moving),
        "seconds_to_full_quality": at_rest,
    }


def measure_page(path: str, port: int, surface: bool) -> dict[str, float]:
    """Start view.py, open its page, drag, and let go. Raises UserError if there is no browser."""
    command = [sys.executable, str(ROOT / "view.py"), path, "--port", str(port), *["--surface_only"] * surface]
    with open_chromium(900, 500) as driver:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            ready = process.stdout.readline().split()
            times = {"seconds_to_address": time.perf_counter() - began}
            driver.get(ready[1])
            wait_for(lambda: _status(driver), MAX_SECONDS)
            times["seconds_to_first_image"] = time.perf_counter() - began
            _wait_for_rest(driver)
            times["seconds_to_first_full_quality"] = time.perf_counter() - began
            moving = _drag(driver)
            stopped = time.perf_counter()
            _wait_for_rest(driver)
            return {**times, **moving, "seconds_to_full_quality": time.perf_counter() - stopped}
        finally:
            process.terminate()
            process.wait()


def _drag(driver: Any) -> dict[str, float]:
    """Drag to and fro; return the medians of the displayed frame rate and size."""
    from selenium.webdriver import ActionChains

    canvas = driver.find_element("css selector", "canvas")
    ActionChains(driver, duration=0).move_to_element(canvas).click_and_hold().perform()
    shown = []
    for i in range(DRAG_STEPS):
        dx = DRAG_PIXELS if (i // 40) % 2 == 0 else -DRAG_PIXELS
        ActionChains(driver, duration=0).move_by_offset(dx, 0).perform()
        status = _status(driver)
        if i > 10 and status is not None and status.frames_per_s is not None:
            shown.append(status)
    ActionChains(driver, duration=0).release().perform()
    return {
        "frames_per_s": statistics.median(status.frames_per_s for status in shown),
        "moving_size": statistics.median(status.size for status in shown),
    }


def _status(driver: Any) -> Status | None:
    """Return what the panel displays, or None without a frame."""
    match = SHOWN.search(driver.execute_script("return document.body.innerText"))
    return None if match is None else Status(int(match[1]), None if match[4] is None else int(match[4]))


def _wait_for_rest(driver: Any) -> None:
    wait_for(lambda: (status := _status(driver)) is not None and status.frames_per_s is None, MAX_SECONDS)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="generator files, or names of pretrained generators")
    parser.add_argument("--port", type=int, default=8090, help="port of the viewer")
    parser.add_argument("--json", help="write all results as JSON")
    args = parser.parse_args()
    report: dict[str, Any] = {}
    for path in args.paths:
        for surface in (False, True):
            name = f"{Path(path).stem}, {'surface' if surface else 'volume'}"
            loaded = load_with_notes(path, None, torch.device("cpu"))
            worker = measure_worker(loaded, FrameSettings(surface=surface))
            report[name] = {"without a browser": worker, "in Chromium": measure_page(path, args.port, surface)}
            for where, numbers in report[name].items():
                print(f"{name}, {where}: " + ", ".join(f"{key} {number:.4g}" for key, number in numbers.items()), flush=True)
    if args.json:
        write_atomically(args.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
