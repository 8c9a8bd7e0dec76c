"""Measure frame times of the exported web page in a headless Chromium with software rendering.

    python benchmarks/web_page.py heads cats --json web_page.json

Opens the page of export_web.py in its ?benchmark mode and prints the results: milliseconds per frame at 128 and 256 px, points
evaluated, and the corresponding arithmetic. To measure a GPU, open page.html?benchmark in a browser. Times of a software
renderer say little about a GPU, but points and arithmetic are the same everywhere.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chromium import open_chromium, wait_for
from common.arguments import ArgumentParser
from common.files import write_atomically
from common.program import run_script
from visualization.generator_scripts import load_with_notes
from web.export import export_page

MAX_SECONDS = 900
HEAD = ("size", "ms/frame", "points/frame", "points/pixel", "GFLOP/frame", "GFLOP/s")


def measure(page: Path, model: str) -> dict[str, Any]:
    """Return the results of the page's benchmark. Raises UserError if there is no browser."""
    with open_chromium(800, 900) as driver:
        driver.get(f"{page.as_uri()}?benchmark&size=64&model={model}")
        return wait_for(lambda: driver.execute_script("return window.gof && window.gof.benchmark"), MAX_SECONDS)


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
        print(f"{name}, {report[name]['gpu']}; first frame after {report[name]['firstFrameMs']:.0f} ms")
        print("".join(f"{cell:>15}" for cell in HEAD))
        for row in report[name]["results"]:
            numbers = (row["medianMs"], row["pointsPerFrame"], row["pointsPerPixel"], row["gflopPerFrame"], row["gflops"])
            print(f"{row['size']:>12} px" + "".join(f"{number:>15.1f}" for number in numbers))
    if args.json:
        write_atomically(args.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_script(main)
