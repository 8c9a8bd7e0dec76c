"""Camera paths: the published angles, and loops that close without showing a frame twice."""

from __future__ import annotations

import math

import pytest
import torch

from render_video_interpolation import interpolate_closed
from settings.registry import CURRICULUMS
from siren.mapping import FilmParameters
from visualization.trajectories import TRAJECTORIES, ellipse, front, multiview, orbit

BFM = CURRICULUMS["BFM"]
HALF_PI = math.pi / 2


def test_multiview_turns_around_the_mean_pose() -> None:
    poses = multiview(BFM)
    assert [round(pose.yaw - HALF_PI, 9) for pose in poses] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert {(pose.pitch, pose.fov_degrees) for pose in poses} == {(HALF_PI, 12.0)}


def test_ellipse_follows_the_formula() -> None:
    poses = ellipse(36, BFM)
    assert len(poses) == 36
    assert poses[0] == pytest.approx((HALF_PI + 0.5, HALF_PI, 12))
    assert poses[9] == pytest.approx((HALF_PI, HALF_PI + 0.25, 12))
    assert poses[18] == pytest.approx((HALF_PI - 0.5, HALF_PI, 12))


def test_front_follows_the_formula() -> None:
    poses = front(8, BFM)
    assert poses[0] == pytest.approx((HALF_PI, HALF_PI + 0.2, 17))
    assert poses[2] == pytest.approx((HALF_PI + 0.4, HALF_PI, 22))
    assert poses[6] == pytest.approx((HALF_PI - 0.4, HALF_PI, 12))


def test_orbit_follows_the_formula() -> None:
    poses = orbit(4, BFM)
    assert [pose.yaw for pose in poses] == pytest.approx([0, HALF_PI, math.pi, 3 * HALF_PI])
    assert [pose.pitch for pose in poses] == pytest.approx([math.pi / 4 + d for d in (0.2, 0, -0.2, 0)])


@pytest.mark.parametrize("name", sorted(TRAJECTORIES))
def test_the_step_back_to_the_start_is_like_any_other(name: str) -> None:
    """A closed loop has no jump and no repeated frame at its end."""
    poses = torch.tensor(TRAJECTORIES[name](60, BFM), dtype=torch.float64)
    steps = (torch.roll(poses, -1, dims=0) - poses)[:, :2]
    steps = torch.remainder(steps + math.pi, 2 * math.pi) - math.pi
    sizes = steps.norm(dim=1)
    assert 0 < sizes[-1] <= sizes[:-1].max() * 1.001


def test_interpolation_is_linear_and_closes() -> None:
    films = [FilmParameters(torch.full((1, 2), value), torch.full((1, 2), -value)) for value in (0.0, 4.0, 8.0)]
    walk = interpolate_closed(films, 4)
    assert [float(film.frequencies[0, 0]) for film in walk] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 4, 2]
    assert [float(film.phase_shifts[0, 1]) for film in walk[:2]] == [0, -1]
