"""Measure frame times of the exported web page in a headless Chromium with software rendering.

    python benchmarks/web_page.py heads cats --json web_page.json

Opens the page of export_web.py in its ?benchmark mode and prints the results: milliseconds per frame at 128 and 256 px, points
evaluated, and the corresponding arithmetic. To measure a GPU, open page.html?benchmark in a browser. Times of a software
renderer say little about a GPU, but points and arithmetic are the same everywhere.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import write_atomically
from common.program import run_script
from visualization.generator_scripts import load_with_notes
from web.export import export_page

FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=800,900")
MAX_SECONDS = 900
HEAD = ("size", "ms/frame", "points/frame", "points/pixel", "GFLOP/frame", "GFLOP/s")


def measure(page: Path, model: str) -> dict[str, Any]:
    """Return the results of the page's benchmark. Raises UserError if there is no browser."""
    try:
        from selenium import webdriver
        from selenium.webdriver.support.ui import WebDriverWait
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
    try:
        driver.get(f"{page.as_uri()}?benchmark&size=64&model={model}")
        wait = WebDriverWait(driver, MAX_SECONDS, poll_frequency=1)
        return wait.until(lambda driver: driver.execute_script("return window.gof && window.gof.benchmark"))
    finally:
        driver.quit()


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="generator files, or names of pretrained generators")
    parser.add_argument("--json", help="write all results as JSON")
    args = parser.parse_args()
    report = {}
    for path in args.paths:
        name = Path(path).stem
        with tempfile.TemporaryDirectory(prefix="gof_page_") as folder:
            page = Path(folder) / "page.html"
            page.write_text(export_page({name: load_with_notes(path, None, torch.device("cpu"))}))
            report[name] = measure(page, name)
        print(f"{name}, {report[name]['gpu']}")
        print("".join(f"{cell:>15}" for cell in HEAD))
        for row in report[name]["results"]:
            numbers = (row["medianMs"], row["pointsPerFrame"], row["pointsPerPixel"], row["gflopPerFrame"], row["gflops"])
            print(f"{row['size']:>12} px" + "".join(f"{number:>15.1f}" for number in numbers))
    if args.json:
        write_atomically(args.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
