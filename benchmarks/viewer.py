"""Measure the viewer: seconds to the first image, frames per second in motion, and seconds to full quality at rest.

    python benchmarks/viewer.py heads --json viewer.json

Starts ``view.py PATH``, then drags and releases in a headless Chromium. The browser draws with the same CPU cores (SwiftShader)
and takes part of their time; to exclude it, the same motion is also sent to the viewer's worker without a browser.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=900,500")
MOTION_SECONDS, CAMERAS_PER_SECOND = 5.0, 60.0
MAX_SECONDS = 120.0
DRAG_PIXELS, DRAG_STEPS = 3, 160
SHOWN = re.compile(r"(\d+) px in ([\d.]+) (ms, (\d+) frames/s|s)")  # the panel's status line


class Recorder:
    """A screen that notes the time, size and quality of each frame."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, int, bool]] = []
        self.refined = threading.Event()

    def show(self, frame: Frame, is_refined: bool, seconds: float) -> None:
        self.frames.append((time.perf_counter(), frame.image_size, is_refined))
        if is_refined:
            self.refined.set()

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
    sizes = sorted(size for _, size, _ in moving)
    return {
        "frames_per_s": len(moving) / MOTION_SECONDS,
        "moving_size": sizes[len(sizes) // 2],
        "seconds_to_full_quality": at_rest,
    }


def measure_page(path: str, port: int, surface: bool) -> dict[str, float]:
    """Start view.py, open its page, drag, and let go. Raises UserError if there is no browser."""
    try:
        from selenium import webdriver
        from selenium.webdriver import ActionChains
    except ImportError:
        raise UserError("selenium is not installed; pip install selenium") from None
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        raise UserError("Chromium or its driver is not installed; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    command = [sys.executable, str(ROOT / "view.py"), path, "--port", str(port), *["--surface_only"] * surface]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = process.stdout.readline().split()
        address_seconds = time.perf_counter() - began
        driver.get(ready[2])
        first = _wait_for(driver, lambda shown: shown is not None) - began
        full = _wait_for(driver, lambda shown: shown is not None and shown[1] is None) - began
        canvas = driver.find_element("css selector", "canvas")
        ActionChains(driver, duration=0).move_to_element(canvas).click_and_hold().perform()
        rates, sizes = [], []
        for i in range(DRAG_STEPS):
            step = DRAG_PIXELS if (i // 40) % 2 == 0 else -DRAG_PIXELS
            ActionChains(driver, duration=0).move_by_offset(step, 0).perform()
            shown = _status(driver)
            if shown is not None and shown[1] is not None and i > 10:
                sizes.append(shown[0])
                rates.append(shown[1])
        ActionChains(driver, duration=0).release().perform()
        stopped = time.perf_counter()
        rest = _wait_for(driver, lambda shown: shown is not None and shown[1] is None) - stopped
    finally:
        driver.quit()
        process.terminate()
        process.wait()
    rates.sort()
    sizes.sort()
    return {
        "seconds_to_address": address_seconds,
        "seconds_to_first_image": first,
        "seconds_to_first_full_quality": full,
        "frames_per_s": rates[len(rates) // 2],
        "moving_size": sizes[len(sizes) // 2],
        "seconds_to_full_quality": rest,
    }


def _status(driver: Any) -> tuple[int, int | None] | None:
    """Return the displayed size in pixels, and the frames per second in motion or None at rest; None without a frame."""
    match = SHOWN.search(driver.execute_script("return document.body.innerText"))
    return None if match is None else (int(match[1]), None if match[4] is None else int(match[4]))


def _wait_for(driver: Any, is_reached: Any) -> float:
    """Return the time at which the status satisfies ``is_reached``."""
    deadline = time.perf_counter() + MAX_SECONDS
    while not is_reached(_status(driver)):
        if time.perf_counter() > deadline:
            raise UserError(f"the page did not get there within {MAX_SECONDS:.0f} s")
        time.sleep(0.02)
    return time.perf_counter()


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
