"""View consistency: high if and only if the colors come from where the depth is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from analytic import SphereField
from generators.cameras import CameraPoses, camera_rays
from generators.views import ViewSettings, render_views
from metrics.consistency import compare_views, project, view_consistency
from settings.registry import CURRICULUMS

CURRICULUM = CURRICULUMS["SYNTH"]
CPU = torch.device("cpu")


class Direction(SphereField):
    """The color depends only on the view direction, so the pattern moves with the camera."""

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.occupancy_logits(points), (directions * 0.8 + 0.5).clamp(0, 1)


class Fog(SphereField):
    """Opacity is so low that a ray passes through: colors come from all depths."""

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return super().occupancy_logits(points).clamp(max=0.0) - 2.0


@pytest.mark.parametrize("pitch,yaw", [(1.571, 1.571), (1.3, 2.0), (1.9, 0.9)])
def test_a_camera_sees_its_own_rays_at_its_own_pixels(pitch: float, yaw: float) -> None:
    poses = CameraPoses(torch.tensor([pitch]), torch.tensor([yaw]))
    rays = camera_rays(poses, 5, 12.0)
    places, t = project(rays.origins + 0.97 * rays.directions, poses, 12.0)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
    assert torch.allclose(places[0], torch.stack([columns, rows], dim=-1).reshape(-1, 2), atol=1e-4)
    assert torch.allclose(t, torch.full_like(t, 0.97), atol=1e-6)


def test_a_solid_whose_colors_are_on_its_surface_is_consistent() -> None:
    scores = view_consistency(SphereField(0.08, sharpness=4000, batch_size=2), CURRICULUM, 48, CPU)
    assert scores["consistency_psnr_db"] > 45 and scores["consistency_depth"] < 0.004  # of samples 0.0075 apart
    assert 0.5 < scores["consistency_seen"] < 0.95  # the rest of it is turned away from the other camera


def test_colors_that_move_with_the_camera_are_inconsistent() -> None:
    good = view_consistency(SphereField(0.08, sharpness=4000), CURRICULUM, 48, CPU)
    bad = view_consistency(Direction(0.08, sharpness=4000), CURRICULUM, 48, CPU)
    assert bad["consistency_psnr_db"] < good["consistency_psnr_db"] - 20
    assert bad["consistency_depth"] == pytest.approx(good["consistency_depth"], abs=1e-6)


def test_wrong_depth_is_detected_and_occluded_points_do_not_count() -> None:
    poses = [CameraPoses(torch.tensor([1.571]), torch.tensor([yaw])) for yaw in (1.4, 1.7)]
    settings = ViewSettings(48, 1, last_back=False)
    a, b = (render_views(SphereField(0.08, sharpness=4000), pose, CURRICULUM, settings) for pose in poses)
    good = compare_views(a, b, CURRICULUM)
    off = compare_views(a, [replace(view, depth=view.depth + 0.01) for view in b], CURRICULUM)
    assert off["consistency_depth"] == pytest.approx(0.01, abs=0.003)
    hidden = compare_views(a, [replace(view, depth=view.depth - 0.05) for view in b], CURRICULUM)
    assert hidden["consistency_seen"] < 0.05 < good["consistency_seen"]


def test_without_a_surface_no_point_counts() -> None:
    assert view_consistency(Fog(0.08), CURRICULUM, 16, CPU) == {"consistency_seen": 0.0}
