"""The benchmark: its counts, the function of the widened network, and the results of a quick run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, run, training_step
from benchmarks.flops import flops_of_D
from benchmarks.networks import (
    CountingField,
    Network,
    StraightforwardField,
    flops_per_point,
    full_network,
    shipped_network,
    widen,
)
from common.errors import UserError
from discriminators.progressive import ProgressiveEncoderDiscriminator
from settings.registry import CURRICULUMS

KEYS = {
    "gemm_gflops",
    "occupancy_gemm_share",
    "color_gemm_share",
    "extract_size",
    "extract_256_over_dense",
    "extract_sign_mismatch",
    "video_frame_over_plain",
    "video_psnr_db",
    "video_depth_error",
    "surface_over_volume_psnr_db",
    "train_step_over_floor",
    "peak_mb",
    "quick",
    "machine",
    "network",
}


@pytest.fixture(scope="module")
def shipped() -> Network:
    return shipped_network()


def some_points(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    points = (torch.rand(1, num, 3, generator=random) - 0.5) * 0.24
    return points, F.normalize(torch.randn(1, num, 3, generator=random), dim=-1)


@torch.no_grad()
def test_the_widened_network_has_the_function_of_the_shipped_one(shipped: Network) -> None:
    wide = widen(shipped.generator, CURRICULUMS["BFM"])
    z = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    points, directions = (part.expand(2, -1, -1) for part in some_points(2000))
    small_field = shipped.generator.field_of_latents(z[:, :64])
    wide_field = wide.field_of_latents(z)
    (small, small_colors), (logits, colors) = (f.logits_and_colors(points, directions) for f in (small_field, wide_field))
    assert float(small.std()) > 1
    assert float((small - logits).abs().max()) < 0.02
    assert float((small_colors - colors).abs().max()) < 1e-3
    weights = torch.cat([layer.layer.weight.flatten() for layer in wide.siren.network])
    assert float((weights == 0).float().mean()) < 0.001, "no zero is there to be skipped"


@torch.no_grad()
def test_the_straightforward_field_is_the_same_field(shipped: Network) -> None:
    points, directions = some_points(500)
    plain, field = StraightforwardField.of_seed(shipped, 3), shipped.field(3)
    for ours, theirs in zip(
        field.logits_and_colors(points, directions), plain.logits_and_colors(points, directions), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=2e-4)
    assert torch.allclose(field.occupancy_logits(points), plain.occupancy_logits(points), atol=2e-4)
    assert torch.allclose(field.normals(points), plain.normals(points), atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("with_color", [False, True])
def test_flops_are_those_that_torch_counts(shipped: Network, with_color: bool) -> None:
    field, (points, directions) = StraightforwardField.of_seed(shipped), some_points(100)
    with FlopCounterMode(display=False) as counter:
        field.logits_and_colors(points, directions) if with_color else field.occupancy_logits(points)
    assert counter.get_total_flops() == 100 * flops_per_point(shipped.curriculum, with_color)


def test_every_point_is_counted(shipped: Network) -> None:
    field, (points, directions) = CountingField(shipped.field()), some_points(10)
    field.occupancy_logits(points)
    field.logits_and_colors(points, directions)
    assert field.num_points == 20
    field.normals(points)
    assert field.num_points == 40


def test_work_is_seconds_times_the_gemm_rate() -> None:
    gemm = measure.Gemm()
    timed = gemm.around(lambda: time.sleep(0.05))
    assert 0.05 <= timed.seconds < 5
    assert min(gemm.rates) <= timed.gemm_gflops <= max(gemm.rates) == gemm.best
    assert timed.work == pytest.approx(timed.seconds * timed.gemm_gflops)


def hungry(megabytes: int) -> dict[str, int]:
    return {"length": len(bytes(megabytes * 2**20).replace(b"\0", b"\1"))}


def test_a_child_process_reports_its_own_peak_memory() -> None:
    small, large = (measure.in_child(hungry, megabytes) for megabytes in (1, 300))
    assert large["length"] == 300 * 2**20
    assert large["peak_mb"] - small["peak_mb"] > 250


def test_a_failing_child_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="hungry failed"):
        measure.in_child(hungry, "many")


def test_phases_cover_the_iteration(shipped: Network) -> None:
    threads = torch.get_num_threads()
    for shares, loss in ((False, "non_saturating"), (True, "relativistic")):
        curriculum = replace(shipped.curriculum, share_images=shares, gan_loss=loss)
        result = training_step.measure(replace(shipped, curriculum=curriculum), 32, 2, 1)
        torch.set_num_threads(threads)
        assert set(result["phases_s"]) == set(training_step.PHASES)
        idle = {name for name, seconds in result["phases_s"].items() if seconds <= 0}
        assert idle == ({"generate_for_D"} if shares else set())
        assert sum(result["phases_s"].values()) == pytest.approx(result["seconds"])
        assert 0 < result["hit_rate"] < 1 and result["over_floor"] > 1


def test_the_arithmetic_of_D_is_that_of_the_step(shipped: Network) -> None:
    """A lazy penalty counts when it is due, R2 as much as R1, and real images in G's step as one forward pass."""
    D = ProgressiveEncoderDiscriminator(shipped.curriculum)

    def flops(step: int = 7, **changes: object) -> float:
        curriculum = replace(shipped.curriculum, **{"gan_loss": "non_saturating", "r1_lambda": 0, "r2_lambda": 0, **changes})
        return flops_of_D(D, curriculum, 16, step)

    none, of_R1 = flops(), flops(r1_lambda=1) - flops()
    assert of_R1 > 0.1 * none
    assert flops(r1_lambda=1, r1_interval=4) == none + of_R1 and flops(6, r1_lambda=1, r1_interval=4) == none
    assert flops(r2_lambda=1) - none == pytest.approx(of_R1, rel=0.01)
    assert 0 < flops(gan_loss="relativistic") - none < 0.3 * none


def test_a_quick_run_reports_all_results(tmp_path: Path, capsys) -> None:
    """Uses the small network in both places, to save time."""
    path, table = tmp_path / "speed.json", tmp_path / "speed.md"
    run.main(["--quick", "--generator", "heads_siren", "--json", str(path), "--markdown", str(table)])
    report = json.loads(path.read_text())
    assert set(report) >= KEYS and report["extract_size"] == 128
    assert report["extract_sign_mismatch"] <= 1e-5 and report["extract_256_over_dense"] < 0.5
    assert report["video_psnr_db"] >= 45 and report["video_depth_error"]["share_within_1e-4"] > 0.99
    assert 0 < report["occupancy_gemm_share"] < 1.5
    lines = table.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(capsys.readouterr().out.splitlines()) + 1


def test_only_the_named_parts_are_run(tmp_path: Path) -> None:
    arguments = ["--quick", "--generator", "heads_siren", "--only", "queries", "--json", str(tmp_path / "speed.json")]
    run.main(arguments)
    report = json.loads((tmp_path / "speed.json").read_text())
    assert list(report["parts"]) == ["queries"] and "video_psnr_db" not in report


def test_an_output_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        run.write(tmp_path / "no" / "speed.json", "{}")


def test_another_generator_can_be_measured(tmp_path: Path, shipped: Network) -> None:
    from checkpoints.files import save_inference

    generator = widen(shipped.generator, CURRICULUMS["BFM"])
    save_inference(tmp_path / "wide.safetensors", generator, step=0)
    assert full_network(str(tmp_path / "wide.safetensors"), None).description.startswith("wide.safetensors (8 layers of 256)")
