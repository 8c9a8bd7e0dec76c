"""Rendering, scores and meshes work without POSIX; training names what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# A system as Python shows it on Windows: no such modules, signals and calls.
WITHOUT_POSIX = """
import json, os, runpy, signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
import subprocess, torch, numpy, PIL.Image
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
for name in ("pread", "fork", "getuid", "killpg"):
    delattr(os, name)
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        print("ended", command[0], command[1], end.code, flush=True)
"""
SCRIPTS = ("dataset", "train", "eval_metrics", "cal_weighted_var", "extract_shapes", "render_meshimg")
SCRIPTS += ("render_multiview_images", "render_video", "render_video_interpolation")


def test_scripts_without_posix(repo: Path, tiny_generator_path: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    small, shapes = str(tiny_generator_path), str(tmp_path / "shapes")
    multiview = ["--seeds_end", "1", "--image_size", "8", "--output_dir", str(tmp_path / "imgs")]
    scores = ["--num_images", "4", "--image_size", "16", "--metrics", "swd", "--output_json", str(tmp_path / "scores.json")]
    commands = [
        *([f"{name}.py", "--help"] for name in SCRIPTS),
        ["dataset.py", "--check", str(photos), "--image_size", "8", "--output", str(tmp_path / "sheet.png")],
        ["render_multiview_images.py", small, *multiview],
        ["extract_shapes.py", small, "--seeds", "0", "--voxel_resolution", "24", "--output_dir", shapes],
        ["eval_metrics.py", small, "--dataset_path", str(photos), *scores],
        ["train.py", "--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(tmp_path / "run")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, json.dumps(commands)],
        cwd=repo,
        env={**os.environ, "PYTHONPATH": str(repo), "GOF_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    ends = [line.split() for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert [end[3] for end in ends] == ["0"] * (len(commands) - 1) + ["2"], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("train.py: error: training needs Linux or macOS")
    assert not (tmp_path / "run").exists() and (tmp_path / "imgs" / "grid_0.png").exists()
    assert list((tmp_path / "cache").glob("*.npy")) and json.loads((tmp_path / "scores.json").read_text())["metrics"]
