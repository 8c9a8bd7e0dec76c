"""benchmarks/gpu.py: its code path on a CPU, without the packages that a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu

ABSENT = ("tqdm", "tensorboard", "trimesh", "skimage", "scipy", "PIL", "imageio_ffmpeg", "torchvision", "torch_fidelity")
RUN_WITHOUT = """
import runpy, sys
for name in {absent}:
    sys.modules[name] = None
sys.argv = ["benchmarks/gpu.py", *{arguments}]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def test_quick_run_on_a_cpu(repo, tmp_path):
    arguments = ["--device", "cpu", "--quick", "--json", str(tmp_path / "gpu.json"), "--markdown", str(tmp_path / "gpu.md")]
    code = RUN_WITHOUT.format(absent=ABSENT, arguments=arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {"device", "gemm", "queries", "frames", "extraction", "training", "bars"} <= set(report)
    assert report["extraction"]["sign_mismatches"] == 0
    assert [row["variant"] for row in report["training"]] == ["eager", "channels_last"]
    assert all(row["tflops"] > 0 and row["seconds"] > 0 for row in report["training"])
    assert (tmp_path / "gpu.md").read_text() == done.stdout.rstrip("\n") + "\n"


def test_without_a_gpu_it_says_so(repo):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "benchmarks/run.py" in done.stderr


@pytest.mark.parametrize(("extract_s", "met"), [(0.2, True), (0.4, False)])
def test_bars(extract_s, met):
    rows = [{"size": 32, "tflops": 300.0}, {"size": 32, "tflops": 200.0}, {"size": 64, "error": "no"}]
    queries = {"fused_float16": 450.0, "fused_bfloat16": 300.0}
    report = {"gemm": {"bf16": 800.0}, "queries": queries, "frames": {"surface_frames_per_s": 70.0}}
    bars = gpu.verdicts({**report, "extraction": {"seconds": extract_s}, "training": rows})
    assert bars["occupancy_share"] == {"value": 450 / 800, "bar": 0.5, "met": True}
    assert bars["extract_s"]["met"] is met
    assert bars["training_share_32"]["value"] == 300 / 800 and bars["training_share_32"]["met"]
    assert "training_share_64" not in bars
