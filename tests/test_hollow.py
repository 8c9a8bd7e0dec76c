"""The direction in which shapes bulge, and the checks that mirror hollow ones during a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.files import load_training_checkpoint
from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from train import main as train
from training.hollow import MIN_MIRROR_PSNR_DB, PATIENCE, Bulge, measure_bulge
from training.mirror import Mirroring, reflection
from training.run.run_state import RunState

SETTINGS = [
    *("hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=8", "num_steps_surface=3", "num_steps_fine=2", "batch_size=4", "img_size=8", "gen_lr=1e-6"),
]
CENTRES = {"ball": (0.0, 0.0, 0.0), "bowl": (0.0, 0.0, 0.12)}  # a bowl is what is left around a ball before it
RADII = {"ball": 0.08, "bowl": 0.16}


def curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*SETTINGS, *more])


def fit(generator: ImplicitGenerator3d, shape: str) -> None:
    """Make every latent's field a solid ball, or a block with a hollow toward the camera."""
    random = torch.Generator().manual_seed(0)
    center, sign = torch.tensor(CENTRES[shape]), 1 if shape == "ball" else -1
    with torch.no_grad():  # a smooth start, and latents that differ a little only
        generator.siren.network[0].layer.weight.mul_(0.3)
        generator.siren.mapping_network.network[-1].weight.mul_(0.1)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    for _ in range(300):
        points = (torch.rand(4, 256, 3, generator=random) - 0.5) * 0.26
        field = generator.field_of_latents(torch.randn(4, generator.curriculum.latent_dim, generator=random))
        target = (sign * (RADII[shape] - (points - center).norm(dim=-1)) * 150).clamp(-5, 5)
        loss = (field.occupancy_logits(points) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator.zero_grad(set_to_none=True)


@pytest.fixture(scope="module")
def states() -> dict[str, RunState]:
    made = {}
    for shape in CENTRES:
        state = RunState(curriculum(), 0, torch.device("cpu"), None)
        fit(state.generator, shape)
        for average in state.averages.values():
            average.generator.load_state_dict(state.generator.state_dict())
        made[shape] = state
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_ball_goes_outward_and_a_bowl_inward(states: dict[str, RunState]) -> None:
    for image_size in (16, 64):
        ball, bowl = (measure_bulge(states[shape].generator, image_size) for shape in ("ball", "bowl"))
        assert ball.num_shapes == bowl.num_shapes == 16
        assert ball.mean > 0.01 and not ball.is_hollow(0.24)
        assert bowl.mean < -0.01 and bowl.is_hollow(0.24)


def test_only_clearly_hollow_shapes_count_as_hollow() -> None:
    assert Bulge(-0.02, 0.002, 16).is_hollow(0.24)
    assert not Bulge(-0.02, 0.012, 16).is_hollow(0.24), "the shapes do not agree"
    assert not Bulge(-0.001, 0.0001, 16).is_hollow(0.24), "nearly flat"
    assert not Bulge(-0.02, 0.002, 4).is_hollow(0.24), "most have no surface"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def command(photos: Path, output: Path, start: Path, *more: str) -> list[str]:
    return [
        *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"),
        *("--no-cache", "--no-use_logger", "--sample_interval", "0", "--load_dir", str(start), *more),
        *("--set", *SETTINGS, "hollow_check_interval=1"),
    ]


@pytest.mark.parametrize("shape", ["ball", "bowl"])
def test_a_run_turns_hollow_shapes_outward_once(states, photos, tmp_path, shape: str) -> None:
    start, output = tmp_path / "start", tmp_path / "run"
    start.mkdir()
    states[shape].save(start, 1)
    train(command(photos, output, start, "--max_steps", "6", "--eval_freq", "6", "--eval_images", "0"))
    turned = [line for line in lines(output) if line.get("mirrored_depth")]
    assert [line["step"] for line in turned] == ([PATIENCE] if shape == "bowl" else [])
    assert lines(output)[-1]["bulge"] > 0.01 and lines(output)[-1]["hit_rate"] > 0.3
    assert all(line["inverted"] for line in turned), "the block before which the bowl lay is free now"
    before, after = (
        load_training_checkpoint(folder / f"checkpoint_{step:07d}.pt")["discriminator"]["final_layer.weight"][-2:]
        for folder, step in ((start, 0), (output, 6))
    )
    agreement = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert (agreement < -0.9) if shape == "bowl" else (agreement > 0.9)


def test_a_run_interrupted_at_the_mirroring_resumes_identically(states, photos, tmp_path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    states["bowl"].save(start, 1)
    for name, stops in (("whole", ("6",)), ("cut", ("2", str(PATIENCE), "6"))):
        for stop in stops:
            train(command(photos, tmp_path / name, start, "--max_steps", stop, "--eval_freq", "2", "--eval_images", "0"))
    whole, cut = (tmp_path / name / "checkpoint_0000006.pt" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_depth_is_reversed_along_the_mean_direction_of_view() -> None:
    assert torch.equal(reflection(curriculum()), torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    turned = reflection(curriculum("h_mean=0.0"))
    assert torch.allclose(turned, torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)))


def test_radiance_fields_are_not_checked_for_hollow_shapes() -> None:
    with pytest.raises(Exception, match="hollow_check_interval and init_ball_radius need pred_occ"):
        CURRICULUMS["PIGAN_CelebA"].with_overrides(["hollow_check_interval=100"])


def test_a_truly_concave_object_is_not_mirrored(states, photos, tmp_path, monkeypatch) -> None:
    """Its mirrored images would differ from those before, however hollow it is."""
    start, output = tmp_path / "start", tmp_path / "run"
    start.mkdir()
    states["bowl"].save(start, 1)
    monkeypatch.setattr("training.trainer.best_mirroring", lambda generator, size: Mirroring(True, MIN_MIRROR_PSNR_DB - 0.1))
    train(command(photos, output, start, "--max_steps", "5", "--eval_freq", "5", "--eval_images", "0"))
    (line,) = [line for line in lines(output) if "mirrored_depth" in line]
    assert line["mirrored_depth"] is False and line["step"] == PATIENCE
    assert lines(output)[-1]["bulge"] < -0.01
