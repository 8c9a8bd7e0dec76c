"""Compare the exported page's field in WebGL 2 with the same arithmetic in a WebGPU compute shader, in a headless Chromium.

    python benchmarks/webgpu.py

Prints milliseconds per frame of 15 points per pixel, their ratio, and the largest difference of the results. On a machine with
a GPU, open benchmarks/webgpu.html in its browser instead: this script uses software rendering.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chromium import open_chromium, wait_for
from common.arguments import ArgumentParser
from common.program import run_script

WEBGPU_FLAGS = ("--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU", "--use-webgpu-adapter=swiftshader")
MAX_SECONDS = 300


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the frame in pixels (default: 128)")
    args = parser.parse_args()
    with open_chromium(600, 400, *WEBGPU_FLAGS) as driver:
        driver.get(f"{(Path(__file__).parent / 'webgpu.html').resolve().as_uri()}?size={args.size}")
        report = wait_for(lambda: driver.execute_script("return window.report"), MAX_SECONDS)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main)
