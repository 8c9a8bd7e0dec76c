"""benchmarks/gpu.py: its code path on a CPU, without the packages that a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_training
from common.errors import UserError
from training import steps
from triplane import gpu_lookup

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
    assert {"device", "gemm", "queries", "frames", "extraction", "training", "targets"} <= set(report)
    assert report["extraction"]["sign_mismatches"] == 0
    assert [row["variant"] for row in report["training"]] == ["eager", "channels_last"]
    assert all(row["tflops"] > 0 and row["seconds"] > 0 for row in report["training"])
    assert (tmp_path / "gpu.md").read_text() == done.stdout.rstrip("\n") + "\n"


@pytest.mark.parametrize("shares", [False, True])
def test_an_iteration_is_that_of_the_curriculum(monkeypatch, shares):
    """Shared images are generated once, the others twice; relativistic losses get real images."""
    from checkpoints.loading import load_generator

    loaded = load_generator("heads_siren")
    curriculum = replace(loaded.curriculum, share_images=shares, gan_loss="relativistic", r2_lambda=0.02)
    network = SimpleNamespace(curriculum=curriculum, generator=loaded.generator)
    monkeypatch.setattr(loaded.generator, "curriculum", curriculum)
    bench = SimpleNamespace(on_gpu=False, device=torch.device("cpu"))
    iteration = gpu.Iteration(bench, network, 16, 2, channels_last=False)
    calls = []
    for module in (gpu, steps):
        monkeypatch.setattr(module, "generate", lambda *args, call=module.generate: calls.append(1) or call(*args))
    before = [next(part.parameters()).detach().clone() for part in (iteration.D.final_layer, iteration.state.generator)]
    assert 0 < float(iteration()) < 1
    assert len(calls) == (1 if shares else 2)
    after = [next(part.parameters()) for part in (iteration.D.final_layer, iteration.state.generator)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_a_gpu_it_says_so():
    for module in (gpu, gpu_training):
        with pytest.raises(UserError, match=r"benchmarks/run\.py"):
            module.main(["--device", "cpu"])


@pytest.mark.parametrize("name", ["CATS_TRIPLANE", "SYNTH_TRIPLANE"])
def test_a_quick_run_measures_training(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr(gpu_lookup, "ENABLED", True)
    used, make = [], gpu_training.Trainer

    def watched(state, options, processes):
        used.append((options.use_graphs, gpu_lookup.ENABLED))
        return make(state, options, processes)

    monkeypatch.setattr(gpu_training, "Trainer", watched)
    arguments = ["--device", "cpu", "--quick", "--curriculum", name, "--json", str(tmp_path / "training.json")]
    gpu_training.main(arguments)
    assert used == [(variant.use_graphs, variant.use_kernels) for variant in gpu_training.VARIANTS]
    assert gpu_lookup.ENABLED
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [variant.name for variant in gpu_training.VARIANTS]
    assert all(row["seconds"] > 0 and row["batch_size"] == 2 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize(("extract_s", "met"), [(0.2, True), (0.4, False)])
def test_verdicts_compare_results_with_targets(extract_s, met):
    rows = [{"size": 32, "tflops": 300.0}, {"size": 32, "tflops": 200.0}, {"size": 64, "error": "no"}]
    queries = {"fused_float16": 450.0, "fused_bfloat16": 300.0}
    report = {"gemm": {"bf16": 800.0}, "queries": queries, "frames": {"surface_frames_per_s": 70.0}}
    verdicts = gpu.verdicts({**report, "extraction": {"seconds": extract_s}, "training": rows})
    assert verdicts["occupancy_share"] == {"value": 450 / 800, "target": 0.5, "met": True}
    assert verdicts["extract_s"]["met"] is met
    assert verdicts["training_share_32"]["value"] == 300 / 800 and verdicts["training_share_32"]["met"]
    assert "training_share_64" not in verdicts
