"""The spread of poses in images: its statistics on known values, both predictors, and the script from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.files import save_training_checkpoint
from common.errors import UserError
from metrics.pose_head import load_pose_head
from metrics.pose_readout import ReadoutSettings, get_pose_readout, render_posed_heads, vary
from metrics.pose_statistics import Calibration, calibrate, fit_prior, measure_spread, near, without_outliers
from settings.registry import CURRICULUMS
from tools import pose_spread
from training.run.run_state import RunState

TINY = ReadoutSettings(num_heads=96, num_steps=60, batch_size=32, width=8)
CPU = torch.device("cpu")
EXACT = Calibration(1.0, 0.0, 0.0, 100)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def draw(kind: str, num: int = 20_000, seed: int = 0) -> torch.Tensor:
    """Standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return torch.randn(num, generator=generator)
    return (torch.rand(num, generator=generator) * 2 - 1) * math.sqrt(3)


def test_calibration_is_the_line_of_least_squares():
    truth = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    exact = calibrate(0.5 * truth + 3, truth)
    assert exact.slope == pytest.approx(0.5) and exact.noise == pytest.approx(0, abs=1e-12)
    assert exact.error == pytest.approx(math.sqrt(sum((3 - 0.5 * t) ** 2 for t in (-1, 0, 1, 2)) / 4))
    noisy = calibrate(0.8 * draw("uniform") + 0.3 * draw("gaussian", seed=1), draw("uniform"))
    assert noisy.slope == pytest.approx(0.8, abs=0.01) and noisy.noise == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind, kurtosis", [("gaussian", 0.0), ("uniform", -1.2)])
def test_noise_and_slope_are_removed_from_the_spread(kind, kurtosis):
    readings = 0.1 + 0.8 * 0.3 * draw(kind) + 0.15 * draw("gaussian", seed=1)
    spread = measure_spread(readings, Calibration(0.8, 0.15, 0.2, 100))
    assert spread.stddev == pytest.approx(0.3, rel=0.02) and spread.kurtosis == pytest.approx(kurtosis, abs=0.15)
    assert spread.median == pytest.approx(0.1, abs=0.01)
    assert spread.plain == pytest.approx(math.hypot(0.24, 0.15), rel=0.02)


def test_outliers_are_ignored():
    readings = torch.cat([draw("uniform", 1000), torch.full((20,), 40.0)])
    spread = measure_spread(readings, EXACT)
    assert spread.num_outliers == 20 and spread.num == 1020 and spread.stddev == pytest.approx(1, rel=0.05)
    assert spread.robust == pytest.approx(1.4826 * math.sqrt(3) / 2, rel=0.08)  # the median distance is half the half width
    assert len(without_outliers(draw("uniform"))) == 20_000


def test_spreads_that_cannot_be_estimated_are_none():
    readings = draw("gaussian", 500)
    assert measure_spread(readings, Calibration(0.1, 0.1, 0.1, 9)).stddev is None  # hardly follows the pose
    assert measure_spread(readings, Calibration(1.0, 1.0, 1.0, 9)).stddev is None  # nothing but noise
    assert measure_spread(readings, EXACT, trusted=False).stddev is None
    nothing = measure_spread(readings, Calibration(1.0, 1.0, 1.0, 9))
    assert fit_prior(nothing, nothing) is None
    assert fit_prior(nothing, measure_spread(0.2 * readings, EXACT)).settings() == ["v_stddev=0.2", "sample_dist=gaussian"]


def test_prior_as_curriculum_settings():
    gaussian = fit_prior(measure_spread(0.31 * draw("gaussian"), EXACT), measure_spread(0.12 * draw("gaussian", seed=1), EXACT))
    assert gaussian.settings() == ["h_stddev=0.31", "v_stddev=0.12", "sample_dist=gaussian"]
    half_widths = [0.7 * draw("uniform") / math.sqrt(3), 0.25 * draw("uniform", seed=1) / math.sqrt(3)]
    uniform = fit_prior(*(measure_spread(readings, EXACT) for readings in half_widths))
    assert uniform.settings() == ["h_stddev=0.7", "v_stddev=0.25", "sample_dist=uniform"]
    changed = CURRICULUMS["CelebA"].with_overrides(uniform.settings())
    assert (changed.h_stddev, changed.v_stddev, changed.sample_dist) == (0.7, 0.25, "uniform")


def test_near_keeps_the_poses_around_the_front():
    truth = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.6, 0.0], [0.0, 0.3]])
    assert near(truth, (0.2, 0.1), 1).tolist() == [True, True, False, False]
    assert near(truth, (0.2, 0.1), 3).all()


@pytest.fixture(scope="module")
def heads():
    return render_posed_heads(TINY)


def test_varied_heads_keep_their_poses(heads):
    images, poses = vary(heads, torch.Generator().manual_seed(0))
    assert images.shape == (96, 3, 32, 32) and images.abs().max() <= 1 and images.isfinite().all()
    mirrored = poses[:, 0] == -heads.poses[:, 0]
    assert torch.equal(poses[:, 0].abs(), heads.poses[:, 0].abs()) and torch.equal(poses[:, 1], heads.poses[:, 1])
    assert 30 < int(mirrored.sum()) < 66


def test_a_mirrored_head_is_a_mirrored_image(heads, monkeypatch):
    """Without variation, the mirrored head is the flipped image."""
    import metrics.pose_readout as module

    for name, value in (("ZOOM", (1.0, 1.0)), ("SHIFT", 0.0), ("ROLL", 0.0)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "degrade", lambda images, generator: images)
    images, poses = vary(heads, torch.Generator().manual_seed(0))
    plain = torch.nn.functional.interpolate(heads.masks[:, None].float(), size=(32, 32), mode="bilinear")[:, 0]
    for flipped in (False, True):
        index = (poses[:, 0] == (-1 if flipped else 1) * heads.poses[:, 0]).nonzero().flatten()
        inside = (plain[index].flip(-1) if flipped else plain[index]) > 0.99
        assert len(index) > 20
        columns = torch.arange(32.0)
        light = (images[index].mean(dim=1) + 1) * inside
        expected = heads.images[index].float().mean(dim=1)
        expected = torch.nn.functional.interpolate(expected[:, None], size=(32, 32), mode="bilinear")[:, 0]
        expected = (expected.flip(-1) if flipped else expected) * inside
        centers = [(image * columns).sum((1, 2)) / image.sum((1, 2)).clamp_min(1e-6) for image in (light, expected)]
        assert np.corrcoef(*(center.numpy() for center in centers))[0, 1] > 0.6


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_the_network_learns_and_is_cached(heads, cache_dir, monkeypatch):
    import metrics.pose_readout as module

    monkeypatch.setattr(module, "render_posed_heads", lambda settings: heads)
    settings = ReadoutSettings(num_heads=96, num_steps=150, batch_size=48, width=8)
    readout, path = get_pose_readout(settings, cache_dir, CPU)
    images = torch.nn.functional.interpolate(heads.images.float() / 127.5 - 1, size=(32, 32), mode="bilinear")
    poses, disagreement = readout.read(images)
    assert np.corrcoef(poses[:, 0].numpy(), heads.poses[:, 0].numpy())[0, 1] > 0.7
    flipped, other = readout.read(images.flip(-1))
    assert torch.allclose(flipped[:, 0], -poses[:, 0], atol=1e-5) and torch.allclose(flipped[:, 1], poses[:, 1], atol=1e-5)
    assert torch.allclose(other[:, 0], disagreement[:, 0], atol=1e-5)
    assert readout.held_out.shape == (30, 6) and readout.held_out[:, 2:4].std() > 0

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_readout", refuse)
    again, same = get_pose_readout(settings, cache_dir, CPU)
    assert same == path and torch.equal(again.read(images)[0], poses) and torch.equal(again.held_out, readout.held_out)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AssertionError, match="trained again"):
        get_pose_readout(settings, cache_dir, CPU)


@pytest.fixture(scope="module")
def photos(heads, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(30):
        Image.fromarray(heads.images[i].permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return folder


def tiny_run() -> RunState:
    settings = ["hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "img_size=8"]
    settings += ["num_steps_coarse=4", "num_steps_surface=2", "num_steps_fine=2"]
    state = RunState(CURRICULUMS["SYNTH_TINY"].with_overrides(settings), 0, CPU, None)
    state.step = 200
    return state


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """The checkpoint of a run whose discriminator was never trained."""
    folder = tmp_path_factory.mktemp("run")
    tiny_run().save(folder, 1)
    return folder


def test_script_with_built_in_heads(photos, tmp_path, capsys):
    args = [str(photos), "--num_heads", "30", "--readout_steps", "2", "--readout_cache", str(tmp_path)]
    args += ["--json", str(tmp_path / "x.json"), "--sheet", str(tmp_path / "sheet.png")]
    try:
        pose_spread.main(args)
    except UserError as error:  # two steps are too few, so a rejection is acceptable
        assert "neither yaw nor pitch" in str(error)
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["num_images"] == 30 and record["yaw"]["num"] == 30 and record["reader"]["settings"]["num_heads"] == 30
    assert record["yaw"]["median_degrees"] == pytest.approx(math.degrees(record["yaw"]["median"]))
    out = capsys.readouterr().out
    assert "robust standard deviation" in out and (out.splitlines()[-1].startswith("--set ") == bool(record["set"]))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (10 * 34 - 2, 5 * 34 - 2)


def test_discriminator_predicts_known_poses_of_its_run(run_dir):
    """Poses come from the run's prior, yaw before pitch, and are counted from its mean pose."""
    head = load_pose_head(run_dir, CPU)
    assert head.image_size == 8 and head.step == 200
    readings, truth = head.read_generated(16, 0)
    assert readings.shape == truth.shape == (16, 2)
    assert truth[:, 0].abs().max() <= 0.7 and truth[:, 1].abs().max() <= 0.25 and truth[:, 0].std() > 2 * truth[:, 1].std()
    with torch.no_grad():
        head.discriminator.final_layer.weight.zero_()
        head.discriminator.final_layer.bias[-2:] = torch.tensor([math.pi / 2 + 0.1, math.pi / 2 + 0.4])  # pitch, yaw
    fixed = head.read(torch.zeros(3, 3, 8, 8))
    assert torch.allclose(fixed, torch.tensor([0.4, 0.1]).expand(3, 2), atol=1e-5)


def test_script_with_a_discriminator(photos, tmp_path, capsys, monkeypatch):
    """For an untrained run: the script reports the discriminator's predictions, however poor."""
    monkeypatch.setattr(pose_spread, "NUM_GENERATED", 32)
    state = tiny_run()
    state.save(tmp_path, 1)
    args = [str(photos), "--checkpoint", str(tmp_path), "--dataset", "Images", "--json", str(tmp_path / "x.json")]
    try:
        pose_spread.main(args)
    except UserError as error:
        assert "neither yaw nor pitch" in str(error) and "train longer" in str(error)
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["reader"]["step"] == 200 and record["reader"]["image_size"] == 8
    assert record["reader"]["prior"] == {"h_stddev": 0.7, "v_stddev": 0.25, "sample_dist": "uniform"}
    assert record["yaw"]["calibration"]["num"] >= 10 and any("biased toward the prior" in note for note in record["notes"])
    head = load_pose_head(tmp_path, CPU)
    images = pose_spread.real_images(photos, "Images", 30, 8).float() / 127.5 - 1
    assert record["yaw"]["median"] == pytest.approx(float(head.read(images)[:, 0].median()), abs=1e-6)


def test_bad_input_in_one_line(photos, run_dir, tmp_path, repo):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "checkpoint_0000001.pt"
    broken.write_bytes(next(run_dir.glob("*.pt")).read_bytes()[:-1000])
    for args, words in (
        ([tmp_path / "empty"], "holds no images"),
        ([photos, "--checkpoint", tmp_path / "empty"], "no intact training checkpoint"),
        ([photos, "--checkpoint", tmp_path / "nowhere.pt"], "nowhere.pt"),
        ([photos, "--checkpoint", broken], "checkpoint_0000001.pt"),
    ):
        with pytest.raises(UserError, match=words):
            pose_spread.main([str(arg) for arg in args])
    with pytest.raises(UserError, match="at least 20"):
        pose_spread.main([str(photos / "00.png")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.pose_spread", str(photos), "--checkpoint", str(broken)]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_checkpoints_without_a_trained_pose_output_are_rejected(tmp_path):
    state = tiny_run()
    content = {name: getattr(state, name).state_dict() for name in ("generator", "discriminator")}
    content |= {"ema": content["generator"], "step": 5, "curriculum": state.curriculum.to_dict()}
    path = tmp_path / "x.pt"
    for change, words in (
        ({"step": 0}, "before the first step"),
        ({"curriculum": state.curriculum.with_overrides(["pos_lambda=0"]).to_dict()}, "no pose loss"),
        ({"discriminator": dict(list(content["discriminator"].items())[1:])}, "do not match the checkpoint's curriculum"),
        ({"curriculum": state.curriculum.with_overrides(["latent_dim=1000000"]).to_dict()}, "do not match"),
    ):
        save_training_checkpoint(path, {**content, **change})
        with pytest.raises(UserError, match=words):
            load_pose_head(path, CPU)
