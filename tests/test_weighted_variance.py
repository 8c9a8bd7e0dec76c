"""The thickness of surfaces: the formula by hand, the masking, the recorded number, and the script."""

from __future__ import annotations

import json
import math

import pytest
import torch

import cal_weighted_var
from common.errors import UserError
from generators.cameras import camera_rays
from generators.pose_prior import mean_poses
from metrics.weighted_variance import NUM_SAMPLES, latent_variances, ray_variances, weight_variance
from reference import load_outputs, load_reference_generator
from settings.registry import CURRICULUMS
from siren.mapping import FilmParameters

BFM = CURRICULUMS["BFM"]


class BallField:
    """Analytic: logit = sharpness * (radius - |p|), and optional haze in front."""

    batch_size = 1

    def __init__(self, sharpness=2000.0, radius=0.08, haze_z=None):
        self.sharpness, self.radius, self.haze_z = sharpness, radius, haze_z

    def occupancy_logits(self, points):
        logits = self.sharpness * (self.radius - points.norm(dim=-1))
        if self.haze_z is not None:  # a thin cloud near the camera, too faint to be a surface
            logits = torch.where((points[..., 2] - self.haze_z).abs() < 0.01, -1.0, logits)
        return logits

    def normals(self, points):
        return torch.nn.functional.normalize(points, dim=-1)


class DensityField(BallField):
    def occupancy_logits(self, points):
        return torch.where(points.norm(dim=-1) < self.radius, self.sharpness, 0.0)


def front(curriculum):
    return mean_poses(curriculum, 1, torch.device("cpu"))


def test_formula_by_hand():
    t, weights = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 0.25]])
    mean = 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    expected = (0.5 * (1 - mean) ** 2 + 0.25 * (2 - mean) ** 2 + 0.25 * (4 - mean) ** 2) / (2 / 3)
    assert weight_variance(t, weights).item() == pytest.approx(expected, rel=1e-4)
    assert weight_variance(t, torch.tensor([[0.0, 1.0, 0.0]])).item() < 1e-8


def test_sharp_surfaces_are_thin_and_soft_ones_thick():
    sharp, soft = (latent_variances(BallField(s), front(BFM), BFM, 16)[0] for s in (20000.0, 200.0))
    spacing = (BFM.ray_end - BFM.ray_start) / (NUM_SAMPLES - 1)
    assert sharp.variance < (spacing / 2) ** 2
    assert soft.variance > 4 * sharp.variance
    x = torch.linspace(-1, 1, 16) * math.tan(math.radians(6))
    angles = torch.atan((x[:, None] ** 2 + x**2).sqrt())
    assert abs(sharp.num_rays - int((torch.sin(angles) < 0.08).sum())) <= 4  # rays that graze the ball


def test_haze_far_in_front_is_cut_and_haze_near_the_surface_is_not():
    plain = latent_variances(BallField(), front(BFM), BFM, 8)[0].variance
    # the ball's front is at z = 0.08; interval_max / 2 = 0.06, so haze is cut beyond z = 0.14 (behind the camera's near end)
    narrow = CURRICULUMS["BFM"].with_overrides(["interval_max=0.03"])
    assert latent_variances(BallField(haze_z=0.11), front(narrow), narrow, 8)[0].variance == pytest.approx(plain, rel=0.05)
    assert latent_variances(BallField(haze_z=0.11), front(BFM), BFM, 8)[0].variance > 2 * plain


def test_radiance_field_is_not_masked_and_empty_rays_do_not_count():
    pigan = CURRICULUMS["PIGAN_CelebA"]
    rays = camera_rays(mean_poses(pigan, 1, torch.device("cpu")), 16, pigan.fov)
    variance, valid = ray_variances(DensityField(1e4), rays, pigan)
    assert 0 < int(valid.sum()) < 256
    assert variance[valid].max() < 1e-4
    background = DensityField(1e4, radius=10.0)  # dense everywhere: the first sample takes all
    assert ray_variances(background, rays, pigan)[1].all()
    assert not ray_variances(DensityField(1e-3, radius=10.0), rays, pigan)[1].any()  # thin fog: only the last sample is full


@torch.no_grad()
def test_recorded_value():
    outputs = load_outputs()
    field = load_reference_generator().field(FilmParameters(outputs["frequencies"], outputs["phase_shifts"]))
    values = latent_variances(field, mean_poses(BFM, 2, torch.device("cpu")), BFM, 64)
    for value, expected in zip(values, outputs["weighted_variance"], strict=True):
        assert value.variance == pytest.approx(float(expected), rel=1e-4)


def test_script(tiny_generator_path, tmp_path, capsys):
    args = [str(tiny_generator_path), "--seeds_start", "3", "--seeds_end", "6", "--image_size", "12"]
    texts = []
    for name in ("a.json", "b.json"):
        cal_weighted_var.main([*args, "--output_json", str(tmp_path / name)])
        texts.append(json.loads((tmp_path / name).read_text()))
    first, second = texts
    assert first["metrics"] == second["metrics"] and set(first["per_seed_1e4"]) == {"3", "4", "5"}
    assert first["metrics"]["num_seeds"] == 3 and 0 < first["metrics"]["weighted_variance_1e4"] < 100
    assert first["metrics"]["weighted_variance_1e4"] == pytest.approx(sum(first["per_seed_1e4"].values()) / 3)
    assert first["protocol"]["psi"] == 0.7 and first["protocol"]["image_size"] == 12
    assert "weighted_variance_1e4" in capsys.readouterr().out


def test_bad_input(tiny_generator_path, empty_generator_path, tmp_path):
    output = ["--output_json", str(tmp_path / "x.json"), "--image_size", "8"]
    with pytest.raises(UserError, match="none of the 2 seeds"):
        cal_weighted_var.main([str(empty_generator_path), "--seeds_end", "2", *output])
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(UserError, match="seeds_end"):
        cal_weighted_var.main([str(tiny_generator_path), "--seeds_start", "5", "--seeds_end", "5", *output])
    with pytest.raises(UserError, match="there is no generator file"):
        cal_weighted_var.main([str(tmp_path / "absent.pth"), "--seeds_end", "2", *output])


def test_each_seed_has_a_pose_of_the_prior_of_its_own(tiny_generator_path, tmp_path):
    from checkpoints.loading import load_generator
    from metrics.sampling import pose_of_seed
    from visualization.generator_scripts import field_from_seed

    args = [str(tiny_generator_path), "--seeds_start", "3", "--seeds_end", "6", "--image_size", "12"]
    records = {}
    for pose in ("prior", "mean"):
        cal_weighted_var.main([*args, "--pose", pose, "--output_json", str(tmp_path / f"{pose}.json")])
        records[pose] = json.loads((tmp_path / f"{pose}.json").read_text())
        assert records[pose]["protocol"]["pose"]["pose"] == pose
    loaded = load_generator(tiny_generator_path)
    curriculum = loaded.curriculum
    assert records["prior"]["protocol"]["pose"]["sample_dist"] == curriculum.sample_dist
    poses = [pose_of_seed(seed, curriculum) for seed in range(400)]
    yaws = torch.cat([pose.yaw for pose in poses])
    assert yaws.std() == pytest.approx(curriculum.h_stddev / 3**0.5, rel=0.1)  # uniform
    assert torch.cat([pose.pitch for pose in poses]).std() == pytest.approx(curriculum.v_stddev / 3**0.5, rel=0.1)
    for seed in (3, 5):
        field = field_from_seed(loaded, seed, 0.7)
        for pose, seen_from in (
            ("prior", pose_of_seed(seed, curriculum)),
            ("mean", mean_poses(curriculum, 1, torch.device("cpu"))),
        ):
            value = latent_variances(field, seen_from, curriculum, 12)[0].variance
            assert records[pose]["per_seed_1e4"][str(seed)] == pytest.approx(1e4 * value, rel=1e-4)
    assert records["prior"]["per_seed_1e4"]["3"] != pytest.approx(records["mean"]["per_seed_1e4"]["3"], rel=1e-3)
