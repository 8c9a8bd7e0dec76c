"""Cameras: the convention, and the distributions of poses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generators.cameras import CameraPoses, camera_positions, camera_rays, camera_to_world, sample_camera_poses

CENTER = {"h_mean": math.pi / 2, "v_mean": math.pi / 2}


def poses(*pitch_yaw):
    pitch, yaw = torch.tensor(pitch_yaw, dtype=torch.float64).unbind(dim=1)
    return CameraPoses(pitch, yaw)


def test_frontal_camera_sits_on_plus_z_with_the_worlds_axes():
    cam2world = camera_to_world(poses((math.pi / 2, math.pi / 2)))[0]
    expected = torch.eye(4, dtype=torch.float64)
    expected[2, 3] = 1
    assert torch.allclose(cam2world, expected, atol=1e-12)


def test_every_camera_is_a_rotation_that_looks_at_the_origin():
    generator = torch.Generator().manual_seed(0)
    drawn = sample_camera_poses(64, h_stddev=3.0, v_stddev=1.2, sample_dist="uniform", generator=generator, **CENTER)
    cam2world = camera_to_world(drawn)
    rotation, position = cam2world[:, :3, :3], cam2world[:, :3, 3]
    assert torch.allclose(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand(64, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(64), atol=1e-5)
    assert torch.allclose(-rotation[:, :, 2], -position, atol=1e-5)
    assert torch.allclose(position, camera_positions(drawn))
    assert torch.allclose(position.norm(dim=1), torch.ones(64), atol=1e-5)


def test_rays_run_row_major_from_the_top_left():
    rays = camera_rays(poses((math.pi / 2, math.pi / 2)), 5, fov_degrees=90)
    directions = rays.directions[0].unflatten(0, (5, 5))
    assert directions[0, 0, 0] < 0 < directions[0, 4, 0]  # x grows along a row
    assert directions[4, 0, 1] < 0 < directions[0, 0, 1]  # y falls down the rows
    assert torch.allclose(directions[2, 2], torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64), atol=1e-6)
    # fov is the full angle: the middle of the right edge is 45 degrees off the axis
    assert torch.allclose(directions[2, 4], torch.tensor([math.sqrt(0.5), 0.0, -math.sqrt(0.5)], dtype=torch.float64), atol=1e-6)


def test_rays_need_no_matrix_product():
    """A GPU may round its inputs to TF32."""
    poses = CameraPoses(torch.tensor([1.4, 1.6]), torch.tensor([1.5, 1.2]))
    with FlopCounterMode(display=False) as counter:
        rays = camera_rays(poses, 6, 12)
    assert counter.get_total_flops() == 0
    camera = torch.linalg.inv(camera_to_world(poses).double())[:, :3, :3] @ rays.directions.double().transpose(1, 2)
    assert torch.allclose(camera[0], camera[1], atol=1e-6) and (camera[:, 2] < 0).all()


@pytest.mark.parametrize(
    ("sample_dist", "yaw_std", "yaw_reach"),
    [("gaussian", 0.3, None), ("uniform", 0.3 / math.sqrt(3), 0.3), ("truncated_gaussian", 0.3 * 0.8796, 0.6), (None, 0.0, 0.0)],
)
def test_distributions(sample_dist, yaw_std, yaw_reach):
    generator = torch.Generator().manual_seed(0)
    drawn = sample_camera_poses(20_000, h_stddev=0.3, v_stddev=0.1, sample_dist=sample_dist, generator=generator, **CENTER)
    assert float(drawn.yaw.mean()) == pytest.approx(math.pi / 2, abs=0.01)
    assert float(drawn.yaw.std()) == pytest.approx(yaw_std, abs=0.01)
    assert float(drawn.pitch.std()) == pytest.approx(yaw_std / 3, abs=0.01)
    if yaw_reach is not None:
        assert float((drawn.yaw - math.pi / 2).abs().max()) <= yaw_reach + 1e-6


def test_hybrid_mixes_batches():
    generator = torch.Generator().manual_seed(0)
    reaches = [
        float((sample_camera_poses(500, h_stddev=0.1, v_stddev=0.1, sample_dist="hybrid", generator=generator, **CENTER).yaw
               - math.pi / 2).abs().max())
        for _ in range(40)
    ]  # fmt: skip
    num_uniform = sum(reach <= 0.2 for reach in reaches)
    assert 10 <= num_uniform <= 30


def test_spherical_uniform_is_uniform_in_height():
    generator = torch.Generator().manual_seed(0)
    drawn = sample_camera_poses(
        20_000, h_stddev=math.pi, v_stddev=math.pi / 2, sample_dist="spherical_uniform", generator=generator, **CENTER
    )
    heights = torch.cos(drawn.pitch)
    assert float(heights.mean()) == pytest.approx(0, abs=0.02)
    assert float(heights.std()) == pytest.approx(1 / math.sqrt(3), abs=0.02)


def test_poles_are_avoided():
    position = camera_positions(poses((0.0, 1.0), (4.0, 1.0)))
    assert torch.isfinite(camera_to_world(poses((0.0, 1.0)))).all()
    assert torch.allclose(position[:, 1].abs(), torch.ones(2, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("sample_dist", ["gaussian", "uniform", "truncated_gaussian", "hybrid", "spherical_uniform", None])
def test_every_distribution_keeps_to_its_own_means(sample_dist):
    """The means are not the front, and the two spreads differ."""
    generator = torch.Generator().manual_seed(0)
    where = {"h_mean": 0.7, "v_mean": 1.0, "h_stddev": 0.3, "v_stddev": 0.2, "sample_dist": sample_dist}
    drawn = [sample_camera_poses(500, generator=generator, **where) for _ in range(40)]
    yaw, pitch = torch.cat([pose.yaw for pose in drawn]), torch.cat([pose.pitch for pose in drawn])
    assert float(yaw.mean()) == pytest.approx(0.7, abs=0.01)
    if sample_dist == "spherical_uniform":  # uniform in (1 - cos pitch) / 2, about v_mean / pi
        heights = (1 - torch.cos(pitch)) / 2
        assert float(heights.mean()) == pytest.approx(1.0 / math.pi, abs=0.002)
        assert float(heights.std()) == pytest.approx(0.2 / math.pi / math.sqrt(3), abs=0.002)
    else:
        assert float(pitch.mean()) == pytest.approx(1.0, abs=0.01)
        assert float(pitch.std()) == pytest.approx(float(yaw.std()) * 2 / 3, rel=0.03, abs=1e-6)


def test_the_uniform_half_of_hybrid_is_twice_as_wide_in_both_angles():
    generator = torch.Generator().manual_seed(0)
    where = {"h_mean": 0.7, "v_mean": 1.0, "h_stddev": 0.02, "v_stddev": 0.01, "sample_dist": "hybrid"}
    drawn = [sample_camera_poses(2000, generator=generator, **where) for _ in range(20)]
    reaches = [(float((pose.yaw - 0.7).abs().max()), float((pose.pitch - 1.0).abs().max())) for pose in drawn]
    uniform = [(yaw, pitch) for yaw, pitch in reaches if yaw <= 0.04 + 1e-6]
    assert 5 <= len(uniform) <= 15
    for yaw, pitch in uniform:
        assert yaw == pytest.approx(0.04, rel=0.02) and pitch == pytest.approx(0.02, rel=0.02)
