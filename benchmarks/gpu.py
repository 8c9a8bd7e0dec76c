"""Measure speed on a GPU: field queries, frames, extraction of shapes, training iterations.

    python benchmarks/gpu.py --json gpu.json --markdown gpu.md            # expected: under 8 minutes on an H100
    python benchmarks/gpu.py --device cpu --quick                         # only tests that this script runs

Needs torch, triton, numpy and safetensors. Times are medians between device events after a warm-up. Rates are compared with
that of the bf16 matrix product, measured in the same process. The network is the pretrained one, widened and deepened to the
size of the published curricula (networks.py), so that there is a surface to find. FLOP are two per multiply-add of linear layers
and convolutions (see flops.py and training_step.py); in an iteration, recomputation is not counted. gpu_training.py measures
training of tri-planes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.flops import flops_of_D, flops_of_images, flops_per_hit
from benchmarks.networks import PSI, Network, flops_per_point, full_network, shipped_network
from common.arguments import ArgumentParser, add_device_argument, resolve_device
from common.errors import UserError
from common.program import run_script
from fields.interface import in_chunks
from generators.cameras import CameraPoses, camera_rays
from generators.generator import latent_from_seed
from generators.renderer import draw_noise, render
from generators.views import ViewSettings, make_pose, render_view
from settings.curriculum import Curriculum
from siren.backends import fused
from siren.field import SirenField
from training.cuda_graphs import NUM_WARM_UP, StepGraphs
from training.outward_start import NUM_HOLD_POINTS, draw_points
from training.run.nonfinite import step_if_finite
from training.run.run_state import RunState
from training.steps import GeneratorInputs, StepSettings, discriminator_losses, generate, generator_losses
from visualization.meshes import fill_occupancy, fill_occupancy_near_surface

STEP = 5000  # halfway through BFM's first stage
TARGETS = {"occupancy_share": 0.5, "frames_per_s": 60.0, "extract_s": 0.3, "training_share": 0.35}
Row = dict[str, Any]


class Bench:
    """Measures times on ``device``. ``quick``: use the smallest sizes."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.on_gpu = device.type == "cuda"

    def seconds(self, call: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
        """Return the median seconds of a call."""
        if self.quick:
            repeats = warm_up = 1
        for _ in range(warm_up):
            call()
        times = []
        for _ in range(repeats):
            self.wait()
            if self.on_gpu:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                call()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1000)
            else:
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def with_peak(self, call: Callable[[], Row]) -> Row:
        """Return the result of ``call`` and its peak device memory ``peak_mb``. If it fails, return the ``error`` instead."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            row = call()
        except Exception as failure:  # the other parts are still worth measuring
            if self.quick:
                raise
            return {"error": f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"}
        return {**row, "peak_mb": torch.cuda.max_memory_allocated(self.device) / 2**20 if self.on_gpu else None}


# -- parts ---------------------------------------------------------------------------------------------------------------


def gemm_rates(bench: Bench) -> Row:
    """Measure the TFLOP/s of a large square matrix product with random inputs."""
    n = 256 if bench.quick else 8192
    rates: Row = {"n": n}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp16", torch.float16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        rates[name] = 2 * n**3 / bench.seconds(lambda a=a, b=b: a @ b) / 1e12
    return rates


@torch.no_grad()
def query_rates(bench: Bench, network: Network) -> Row:
    """Measure the TFLOP/s of occupancy queries: plain PyTorch, and the kernel with each precision and launch configuration."""
    num = 2048 if bench.quick else 1 << 21
    points = (torch.rand(1, num, 3, device=bench.device) - 0.5) * 0.24
    flops = num * flops_per_point(network.curriculum, with_color=False)
    field = field_of(network, bench.device)
    exact = _plain(field, points)
    row: Row = {"points": num}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        row[f"plain_{precision}"] = flops / bench.seconds(lambda: _plain(field, points), 5) / 1e12
    for precision in fused.DTYPES:
        torch.set_float32_matmul_precision(precision)
        if fused.kernel_dtype(field._folded, points) is None:
            continue
        name = str(fused.DTYPES[precision]).removeprefix("torch.")
        row[f"fused_{name}"] = flops / bench.seconds(lambda: field.occupancy_logits(points), 20) / 1e12
        row[f"fused_{name}_error"] = float((field.occupancy_logits(points) - exact).norm() / exact.norm())
    if row.get("fused_float16"):
        row["launches"] = _launch_rates(bench, field, points, flops)
    return row


def field_of(network: Network, device: torch.device) -> SirenField:
    """Return the field of seed 0, psi 0.7, on ``device``."""
    z = latent_from_seed(0, network.curriculum)
    return network.generator.field_of_latents(z.to(device), PSI)


def _plain(field: SirenField, points: torch.Tensor) -> torch.Tensor:
    return in_chunks(field._logits, field.batch_size, points)[0]


def _launch_rates(bench: Bench, field: SirenField, points: torch.Tensor, flops: float) -> Row:
    """Measure the TFLOP/s of the fp16 kernel by launch configuration: is the default the fastest on this GPU?"""
    from siren.backends.triton_occupancy import LaunchConfig, occupancy_logits

    packed = field._packed[torch.float16]
    width = packed.final.shape[0]
    rates: Row = {}
    for block, warps, stages in ((128, 8, 3), (128, 8, 2), (128, 8, 1), (128, 4, 1), (64, 4, 2), (64, 4, 1), (64, 8, 1)):
        config = LaunchConfig(block, min(128, width), warps, stages)
        try:
            call = lambda config=config: occupancy_logits(packed, points, config)  # noqa: E731
            rates[f"{block} points, {warps} warps, {stages} stages"] = flops / bench.seconds(call) / 1e12
        except Exception as failure:  # some configurations exceed the shared memory
            rates[f"{block} points, {warps} warps, {stages} stages"] = f"{type(failure).__name__}"
    return rates


@torch.no_grad()
def frame_rates(bench: Bench, network: Network) -> Row:
    """Measure the frames per second of one latent: rendering on the device, and complete views on the host."""
    size = 16 if bench.quick else 256
    torch.set_float32_matmul_precision("high")
    field, pose = field_of(network, bench.device), make_pose(1.7, 1.5, bench.device)
    row: Row = {"size": size}
    for name, surface_only in (("surface", True), ("volume", False)):
        settings = ViewSettings(image_size=size, surface_only=surface_only)
        render_settings = settings.render_settings(network.curriculum)
        rays = camera_rays(pose, size, network.curriculum.fov)
        row[f"{name}_frames_per_s"] = 1 / bench.seconds(lambda s=render_settings, r=rays: render(field, r, s))
        row[f"{name}_views_per_s"] = 1 / bench.seconds(lambda s=settings: render_view(field, pose, network.curriculum, s), 5)
    return row


@torch.no_grad()
def extraction_seconds(bench: Bench, network: Network) -> Row:
    """Measure the time to fill a lattice of occupancies in host memory, by queries near the surface and by dense queries."""
    resolution = 24 if bench.quick else 256
    torch.set_float32_matmul_precision("high")
    field = field_of(network, bench.device)
    near, dense = (np.empty((resolution,) * 3, dtype=np.float32) for _ in range(2))
    arguments = (field, network.curriculum, 0.3)
    row: Row = {"resolution": resolution}
    row["seconds"] = bench.seconds(lambda: fill_occupancy_near_surface(near, *arguments, device=bench.device), 5)
    row["dense_seconds"] = bench.seconds(lambda: fill_occupancy(dense, *arguments, device=bench.device), 3, 1)
    row["sign_mismatches"] = int(((near >= 0.5) != (dense >= 0.5)).sum())
    return row


# -- training ------------------------------------------------------------------------------------------------------------

VARIANTS = ("eager", "plain queries", "channels_last", "compile", "compile, channels_last", "graph")


class Iteration:
    """A step of D and a step of G as in training/trainer.py, with inputs that stay on the device."""

    def __init__(self, bench: Bench, network: Network, size: int, batch: int, channels_last: bool) -> None:
        self.curriculum: Curriculum = network.curriculum
        self.amp_dtype = torch.bfloat16 if bench.on_gpu else None
        self.state = RunState(self.curriculum, 0, bench.device, self.amp_dtype)
        self.state.generator.load_state_dict(network.generator.state_dict())
        self.D = self.state.discriminator
        if channels_last:
            self.D.to(memory_format=torch.channels_last)
        self.settings = replace(StepSettings.at(self.curriculum, STEP), image_size=size, topk_fraction=1.0)
        self.real = torch.rand(batch, 3, size, size, device=bench.device) * 2 - 1
        poses = CameraPoses(*(torch.randn(batch, device=bench.device) * 0.15 + torch.pi / 2 for _ in range(2)))
        z = torch.randn(batch, self.curriculum.latent_dim, device=bench.device)
        noise = draw_noise(batch, size**2, self.settings.render, bench.device)
        neighbors = nn.functional.normalize(torch.randn(batch, size**2, 3, device=bench.device), dim=-1)
        ball_points = draw_points(batch, NUM_HOLD_POINTS, self.curriculum, torch.Generator(bench.device))
        self.inputs = GeneratorInputs(z, poses, noise, neighbors, ball_points if self.settings.lambda_ball_hold else None)

    def __call__(self) -> torch.Tensor:
        """Take both steps and return the fraction of rays that hit."""
        state, settings, c = self.state, self.settings, self.curriculum
        if c.share_images:
            generated = generate(state.generator, self.inputs, settings)
            self._train_D(generated.images)
        else:
            with torch.no_grad():
                fake = generate(state.generator, self.inputs, settings).images
            self._train_D(fake)
            generated = generate(state.generator, self.inputs, settings)
        state.optimizer_G.zero_grad(set_to_none=True)
        self.D.requires_grad_(False)
        result = generator_losses(generated, self.D, c, self.real, self.inputs, settings, self.amp_dtype)
        result.total.backward()
        self.D.requires_grad_(True)
        self._move(state.generator, state.optimizer_G, state.scaler_G)
        return result.terms["hit_rate"]

    def _train_D(self, fake: torch.Tensor) -> None:
        self.state.optimizer_D.zero_grad(set_to_none=True)
        inputs, settings = self.inputs, self.settings
        discriminator_losses(self.D, self.curriculum, self.real, fake, inputs, settings, self.amp_dtype).total.backward()
        self._move(self.D, self.state.optimizer_D, self.state.scaler_D)

    def _move(self, network: nn.Module, optimizer: torch.optim.Adam, scaler: torch.amp.GradScaler) -> None:
        step_if_finite(optimizer, scaler, nn.utils.clip_grad_norm_(network.parameters(), self.curriculum.grad_clip))


def iteration_seconds(bench: Bench, network: Network, size: int, batch: int, variant: str) -> Row:
    """Measure the seconds and TFLOP/s of an iteration."""
    torch.set_float32_matmul_precision("high")
    iteration = Iteration(bench, network, size, batch, "channels_last" in variant)
    flops = (flops_of_images(network.curriculum, size) + flops_of_D(iteration.D, network.curriculum, size, STEP)) * batch
    fused_before = fused.ENABLED
    fused.ENABLED = fused.ENABLED and variant != "plain queries"
    if "compile" in variant:
        iteration.state.generator.siren.is_compiled = True
    try:
        hit_rate = float(iteration())
        call = _captured(iteration) if variant == "graph" else iteration
        seconds = bench.seconds(call)
    finally:
        fused.ENABLED = fused_before
    flops += hit_rate * batch * size**2 * flops_per_hit(network.curriculum)
    row = {"variant": variant, "size": size, "batch": batch, "seconds": seconds, "tflops": flops / seconds / 1e12}
    return {**row, "images_per_s": batch / seconds, "hit_rate": hit_rate}


def _captured(iteration: Iteration) -> Callable[[], Any]:
    """Capture the iteration as one CUDA graph with fixed settings, to show the launch overhead. Raises if capturing fails."""
    state = iteration.state
    graphs = StepGraphs(state.device, (state.optimizer_D, state.optimizer_G))

    def call() -> Any:
        return graphs.run("iteration", lambda _: {"hit_rate": iteration()}, ())

    for _ in range(NUM_WARM_UP + 1):
        call()
    return call


def training_rates(bench: Bench, network: Network, deadline: float) -> list[Row]:
    """Measure all variants at 32 and 64 px, batch 32, until the deadline."""
    sizes, batch = ((8,), 2) if bench.quick else ((32, 64), 32)
    variants = ("eager", "channels_last") if bench.quick else VARIANTS
    rows = []
    for size in sizes:
        for variant in variants:
            if time.monotonic() > deadline:
                rows.append({"variant": variant, "size": size, "error": "skipped: out of time"})
                continue
            call = lambda size=size, variant=variant: iteration_seconds(bench, network, size, batch, variant)  # noqa: E731
            rows.append({"variant": variant, "size": size, **bench.with_peak(call)})
    return rows


# -- the report ----------------------------------------------------------------------------------------------------------


def verdicts(report: Row) -> Row:
    """Return, for each target that could be measured, the value, the target, and whether it is met."""
    bf16 = report["gemm"]["bf16"]
    best_query = max((report["queries"].get(f"fused_{name}", 0.0) for name in ("float16", "bfloat16")), default=0.0)
    figures = {"occupancy_share": best_query / bf16 if best_query else None}
    figures["frames_per_s"] = report["frames"].get("surface_frames_per_s")
    figures["extract_s"] = report["extraction"].get("seconds")
    for size in sorted({row["size"] for row in report["training"]}):
        rates = [row["tflops"] for row in report["training"] if row["size"] == size and "tflops" in row]
        figures[f"training_share_{size}"] = max(rates) / bf16 if rates else None
    result = {}
    for name, value in figures.items():
        target = TARGETS[name if name in TARGETS else "training_share"]
        if value is not None:
            is_met = value <= target if name == "extract_s" else value >= target
            result[name] = {"value": value, "target": target, "met": is_met}
    return result


def markdown(report: Row) -> str:
    """Format the report as Markdown tables."""
    lines = [f"{report['device']}, torch {report['torch']}; {report['network']}.", "", "| | measured | target | met |"]
    lines += ["|---|---|---|---|"]
    for name, row in report["targets"].items():
        lines.append(f"| {name} | {row['value']:.3g} | {row['target']} | {'yes' if row['met'] else 'no'} |")
    lines += ["", "| part | results |", "|---|---|"]
    for part in ("gemm", "queries", "frames", "extraction"):
        lines.append(f"| {part} | " + "; ".join(f"{k} {_show(v)}" for k, v in report[part].items()) + " |")
    lines += ["", "| iteration | px | ms | TFLOP/s | images/s | peak MB |", "|---|---|---|---|---|---|"]
    for row in report["training"]:
        if "seconds" in row:
            cells = (row["seconds"] * 1000, row["tflops"], row["images_per_s"], row["peak_mb"] or 0)
            lines.append(f"| {row['variant']} | {row['size']} | " + " | ".join(f"{cell:.4g}" for cell in cells) + " |")
        else:
            lines.append(f"| {row['variant']} | {row['size']} | {row.get('error', '')} | | | |")
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k}: {_show(v)}" for k, v in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(bench: Bench, network: Network, max_minutes: float) -> Row:
    """Run all parts."""
    deadline = time.monotonic() + max_minutes * 60
    network.generator.to(bench.device)
    report: Row = {
        "device": torch.cuda.get_device_name(bench.device) if bench.on_gpu else "cpu",
        "torch": torch.__version__,
        "network": network.description,
        "gemm": gemm_rates(bench),
    }
    for name, part in (("queries", query_rates), ("frames", frame_rates), ("extraction", extraction_seconds)):
        print(f"{name} ...", file=sys.stderr, flush=True)
        report[name] = bench.with_peak(lambda part=part: part(bench, network))
    print("training ...", file=sys.stderr, flush=True)
    report["training"] = training_rates(bench, network, deadline)
    report["targets"] = verdicts(report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes, only to test this script")
    parser.add_argument("--json", type=Path, help="write all results as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables as Markdown")
    parser.add_argument("--generator", help="a generator file (default: the pretrained network, widened)")
    parser.add_argument("--curriculum", help="name or .json file; required if the generator file does not contain its settings")
    parser.add_argument("--max_minutes", type=float, default=7, help="skip training variants that would start later")
    add_device_argument(parser)
    args: argparse.Namespace = parser.parse_args(argv)
    device = resolve_device(args.device)
    if device.type != "cuda" and not args.quick:
        raise UserError("this measures a GPU; use benchmarks/run.py for the CPU, or --quick to test the script")
    torch.manual_seed(0)
    network = shipped_network() if args.quick else full_network(args.generator, args.curriculum)
    report = run(Bench(device, args.quick), network, args.max_minutes)
    text = markdown(report)
    print(text)
    for path, content in ((args.json, json.dumps(report, indent=1) + "\n"), (args.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


if __name__ == "__main__":
    run_script(main)
