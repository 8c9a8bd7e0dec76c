"""Views with the cache against views without it, and their queries of the field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import render_multiview_images
import render_video
import view
from analytic import SphereField
from checkpoints.loading import load_generator
from common.errors import UserError
from generators import view_cache, volume_rendering
from generators.cameras import CameraPoses
from generators.extraction import LatticeSpec
from generators.view_cache import CachedField, build_cache, view_rays
from generators.views import LockedDirections, View, ViewSettings, make_pose, render_view
from settings.registry import CURRICULUMS
from visualization.trajectories import TrajectoryPose, ellipse

BFM = CURRICULUMS["BFM"]
SETTINGS = ViewSettings(image_size=32)


class CurvedField(SphereField):
    """A ball with nonlinear logits and with colors that vary along the ray and with the direction."""

    def occupancy_logits(self, points: Tensor) -> Tensor:
        logits = super().occupancy_logits(points)
        return 5 * torch.tanh(logits / 5) + 0.3 * torch.sin(points[..., 0] * 90)

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        self.num_color_points += points.shape[0] * points.shape[1]
        return self.occupancy_logits(points), (torch.sin(points * 12 + directions) + 1) / 2


@pytest.fixture(autouse=True, scope="module")
def small_lattice() -> Iterator[None]:
    """An eighth of the nodes, to save time; these fields are smooth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_cache, "FINE_SPACING", 0.0025)
        yield


def frames(num: int = 12) -> tuple[list[TrajectoryPose], CameraPoses]:
    poses = ellipse(num, BFM)
    return poses, CameraPoses(torch.tensor([p.pitch for p in poses]), torch.tensor([p.yaw for p in poses]))


def cache_of(field, settings: ViewSettings = SETTINGS, curriculum=BFM) -> CachedField:
    poses, camera_poses = frames()
    rays = view_rays(camera_poses, [pose.fov_degrees for pose in poses], size=48)
    return build_cache(field, rays, settings.render_settings(curriculum))


Curved = tuple[CurvedField, CachedField]


@pytest.fixture(scope="module")
def curved(small_lattice: None) -> Curved:
    field = CurvedField(0.08, sharpness=60)
    return field, cache_of(field)


def psnr_db(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / max(float((a - b).square().mean()), 1e-12))


def check_views_agree(view: View, plain: View, num_grazing: int = 0) -> None:
    assert psnr_db(view.image, plain.image) >= 45
    assert int((view.hit_mask != plain.hit_mask).sum()) <= num_grazing
    hit = view.hit_mask & plain.hit_mask
    assert int(hit.sum()) > 100
    for name in ("depth", "surface_depth"):
        error = (getattr(view, name) - getattr(plain, name))[hit].abs()
        assert float((error > 1e-4).float().mean()) < 0.01 and float(error.max()) < 4e-4
    assert psnr_db(view.surface_image, plain.surface_image) >= 45
    assert psnr_db(view.normals, plain.normals) >= 30


def test_views_of_a_curved_ball(curved: Curved) -> None:
    field, cache = curved
    for pose in frames()[0][::5]:
        field.num_logit_points = 0
        plain = render_view(field, make_pose(pose.yaw, pose.pitch), BFM, SETTINGS)
        num_plain = field.num_logit_points
        view = render_view(cache, make_pose(pose.yaw, pose.pitch), BFM, SETTINGS)
        assert field.num_logit_points - num_plain <= num_plain / 4
        check_views_agree(view, plain)


def test_other_cameras_than_the_announced_ones_are_also_correct(curved: Curved) -> None:
    """From behind, where the lattice has holes, so the field is queried."""
    field, cache = curved
    settings = ViewSettings(image_size=32, fov_degrees=20)
    pose = make_pose(math.pi * 1.4, 1.2)
    check_views_agree(render_view(cache, pose, BFM, settings), render_view(field, pose, BFM, settings))


def test_num_queried_counts_queries_of_the_field(curved: Curved) -> None:
    field, cache = curved
    before, field.num_logit_points = cache.num_queried, 0
    points = torch.rand(1, 5000, 3, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    cache.occupancy_logits(points)
    assert cache.num_queried - before == field.num_logit_points < 5000


def test_lookup_reports_where_it_is_inaccurate(curved: Curved) -> None:
    field, cache = curved
    toward_camera = torch.tensor([[[0.0, 0.0, 0.0805], [0.02, 0.03, 0.06]]])
    logits, quality = cache.lookup(toward_camera)
    assert torch.allclose(logits, field.occupancy_logits(toward_camera)[0], atol=0.05)
    assert (quality >= view_cache.FAIR).all()
    behind_and_outside = torch.tensor([[[0.0, 0.02, -0.078], [0.0, 0.0, 3.0]]])
    assert (cache.lookup(behind_and_outside)[1] == view_cache.UNKNOWN).all()
    assert torch.equal(cache.occupancy_logits(behind_and_outside), field.occupancy_logits(behind_and_outside))


def test_cubic_interpolation_is_exact_for_cubics() -> None:
    i = torch.arange(12.0, dtype=torch.float64)
    x, y, z = torch.meshgrid(i, i, i, indexing="ij")

    def cubic(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return (x - 4) ** 3 - y * z**2 + x * y * z - 2 * y**3 + 5

    position = torch.rand(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9 + 1
    assert torch.allclose(view_cache._interpolate_cubic(cubic(x, y, z), position), cubic(*position.unbind(-1)), atol=1e-9)


def test_lattice_points_are_returned_as_they_are() -> None:
    spec = LatticeSpec.of_cube(0.2, 9)
    values = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))
    cache = CachedField(SphereField(0.1), spec, values, torch.full((4, 4, 4), view_cache.FAIR), 0, 0.0)
    axis = spec.axis(1)
    logits, quality = cache.lookup(torch.cartesian_prod(axis, axis, axis).unsqueeze(0))
    assert torch.allclose(logits.view(9, 9, 9), values, atol=1e-5)
    known = quality.view(9, 9, 9) == view_cache.FAIR
    assert known[2:7, 2:7, 2:7].all() and not known[0].any() and not known[:, :, 8].any()


def test_colors_are_queried_where_the_weight_is_and_interpolated_between() -> None:
    alphas = torch.tensor([[0.0, 0.0, 0.5, 0.5, 1.0, 0.9], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    queried = view_cache._samples_to_query(alphas, 4)
    assert queried.tolist() == [[False, False, True, True, True, False], [False] * 5 + [True]]
    t = torch.tensor([[0.0, 1.0, 2.0, 4.0, 5.0, 9.0]] * 2)
    queried = torch.tensor([[False, True, False, True, False, False], [False, False, False, False, False, True]])
    colors = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.6, 0.9], [0.5, 0.5, 0.5]])
    filled = view_cache._interpolate_along(queried, colors, t)
    assert filled[0, :, 2].tolist() == pytest.approx([0, 0, 0.3, 0.9, 0.9, 0.9])
    assert (filled[1] == 0.5).all()


def test_depth_slopes_are_those_of_autograd() -> None:
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(5, 7, generator=random) * 3).double().requires_grad_(True)
    t = torch.rand(5, 7, generator=random).double().sort(dim=1).values
    weights = volume_rendering.add_remainder_to_last(volume_rendering.compute_weights(torch.sigmoid(logits)))
    (slopes,) = torch.autograd.grad((weights * t).sum(), logits)
    assert torch.allclose(view_cache._depth_slopes(torch.sigmoid(logits.detach()), t), slopes.abs(), atol=1e-6)


def test_hard_colors_get_more_samples(curved: Curved) -> None:
    class Stripes(CurvedField):
        def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            return self.occupancy_logits(points), (torch.sin(points * 150) + 1) / 2

    hard = Stripes(0.08, sharpness=60)
    cache = cache_of(hard)
    assert curved[1].num_colors < cache.num_colors
    pose = make_pose(1.4, 1.5)
    check_views_agree(render_view(cache, pose, BFM, SETTINGS), render_view(hard, pose, BFM, SETTINGS))


def test_a_field_too_curved_for_the_cache_is_detected(curved: Curved) -> None:
    class Bumps(SphereField):
        def occupancy_logits(self, points: Tensor) -> Tensor:
            return super().occupancy_logits(points) + 8 * torch.sin(points * 300).prod(dim=-1)

        def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            return self.occupancy_logits(points), (torch.sin(points * 40 + directions) + 1) / 2

    bumps = cache_of(Bumps(0.07, sharpness=200))
    assert bumps.num_colors == view_cache.COLORS_TO_TRY[-1] and bumps.trial_psnr_db < 40
    assert view_cache.TRIAL_PSNR_DB <= curved[1].trial_psnr_db < 120


def test_a_solid_camera_side_has_no_surface() -> None:
    """A ray whose first sample is solid: the published meaning is kept."""
    field = SphereField(0.13, sharpness=100)
    pose = make_pose(math.pi / 2, math.pi / 2)
    plain, view = (render_view(f, pose, BFM, SETTINGS) for f in (field, cache_of(field)))
    assert not plain.hit_mask[16, 16] and plain.hit_mask.any() == view.hit_mask.any()
    assert torch.equal(plain.hit_mask, view.hit_mask)


def test_no_surface_at_all() -> None:
    field = SphereField(-1.0, sharpness=10)
    view = render_view(cache_of(field), make_pose(1.5, 1.5), BFM, SETTINGS)
    assert not view.hit_mask.any() and torch.isfinite(view.image).all()


def test_locked_directions() -> None:
    field = CurvedField(0.08, sharpness=60)
    pose = make_pose(2.0, 1.4)
    plain = render_view(field, pose, BFM, ViewSettings(image_size=32, lock_view_dependence=True))
    check_views_agree(render_view(cache_of(LockedDirections(field, torch.tensor([0.0, 0.0, -1.0]))), pose, BFM, SETTINGS), plain)
    assert psnr_db(plain.image, render_view(field, pose, BFM, SETTINGS).image) < 40


@pytest.mark.parametrize("surface_sample", [True, False])
def test_surface_only_is_the_color_at_the_root(surface_sample: bool) -> None:
    """Also of occupancy fields whose images are composited from coarse samples."""
    field = CurvedField(0.08, sharpness=60)
    pose, curriculum = make_pose(1.8, 1.6), replace(BFM, surface_sample=surface_sample)
    preview = render_view(field, pose, curriculum, ViewSettings(image_size=32, surface_only=True))
    num_preview, field.num_color_points = field.num_color_points, 0
    plain = render_view(field, pose, curriculum, SETTINGS)
    assert torch.equal(preview.hit_mask, plain.hit_mask) and torch.equal(preview.surface_depth, plain.surface_depth)
    assert torch.allclose(preview.surface_image, plain.surface_image, atol=1e-5)
    assert torch.allclose(preview.image * preview.hit_mask, plain.surface_image * preview.hit_mask, atol=1e-5)
    assert torch.allclose(preview.depth[preview.hit_mask], plain.surface_depth[preview.hit_mask], atol=2e-5)
    assert num_preview == 32**2, "one color per ray"


def test_surface_only_shows_the_background_where_there_is_no_surface() -> None:
    field, pose = CurvedField(0.08, sharpness=2000), make_pose(1.8, 1.6)
    for white, value in ((False, -1.0), (True, 1.0)):
        curriculum = replace(CURRICULUMS["SYNTH"], white_back=white)  # without eval_last_back
        whole, preview, far = (
            render_view(field, pose, curriculum, ViewSettings(32, last_back=last_back, surface_only=surface_only)).image
            for last_back, surface_only in ((None, False), (None, True), (True, True))
        )
        missed = (preview == value).all(dim=0)
        assert 0.5 < missed.float().mean() < 0.7
        assert torch.equal(preview[:, ~missed], far[:, ~missed])
        assert psnr_db(preview, whole) > psnr_db(far, whole) + 5


def test_reference_generator() -> None:
    """A trained SIREN; for such a small image the lattice does not pay off, so only the view's points are counted."""
    from generators.generator import latent_from_seed
    from reference import load_reference_generator

    generator = load_reference_generator()
    with torch.no_grad():
        field = generator.field_of_latents(latent_from_seed(0, generator.curriculum), 0.7)
    poses, _ = frames()
    rays = view_rays(CameraPoses(torch.tensor([poses[0].pitch]), torch.tensor([poses[0].yaw])), [BFM.fov], size=32)
    cache = build_cache(field, rays, SETTINGS.render_settings(BFM))
    before, pose = cache.num_queried, make_pose(poses[0].yaw, poses[0].pitch)
    view = render_view(cache, pose, BFM, SETTINGS)
    assert (cache.num_queried - before) / 32**2 < 12
    check_views_agree(view, render_view(field, pose, BFM, SETTINGS), num_grazing=1)


# -- scripts -------------------------------------------------------------------------------------------------------------


def test_videos_with_and_without_the_cache(
    tiny_generator_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import numpy as np

    from visualization import generator_scripts

    monkeypatch.setattr(generator_scripts, "MIN_RAYS_TO_CACHE", 0)
    monkeypatch.setattr(generator_scripts, "MIN_PRODUCTS_TO_CACHE", 0)
    common = [str(tiny_generator_path), "--image_size", "24", "--device", "cpu", "--save_raw"]
    video = [*common, "--num_frames", "2", "--quantities", "image"]
    for name, extra in (("cached", []), ("plain", ["--plain"]), ("preview", ["--surface_only"])):
        render_video.main([*video, *extra, "--output_dir", str(tmp_path / name)])
    images = {}
    for name in ("cached", "plain", "preview"):
        with np.load(tmp_path / name / "raw_0_1.npz") as raw:
            images[name] = torch.from_numpy(raw["image"])
    assert psnr_db(images["cached"], images["plain"]) >= 45
    assert not torch.equal(images["cached"], images["plain"])
    assert "dB PSNR against the volume rendering" in capsys.readouterr().out
    monkeypatch.setattr(generator_scripts, "MIN_CACHE_PSNR_DB", math.inf)  # no cache is good enough
    render_video.main([*video, "--output_dir", str(tmp_path / "given_up")])
    assert "its views are not cached" in capsys.readouterr().err
    with np.load(tmp_path / "given_up" / "raw_0_1.npz") as raw:
        assert torch.equal(torch.from_numpy(raw["image"]), images["plain"])
    monkeypatch.undo()
    render_multiview_images.main([*common, "--seeds_end", "1", "--lock_view_dependence", "--output_dir", str(tmp_path / "five")])
    assert (tmp_path / "five" / "image_0_4.png").exists()


def test_radiance_fields_have_no_preview_and_no_cache(tmp_path: Path) -> None:
    from generators.generator import ImplicitGenerator3d
    from small_models import save_generator

    curriculum = CURRICULUMS["PIGAN_CelebA"].with_overrides(["hidden_dim=16", "num_layers=2", "latent_dim=16"])
    path = save_generator(ImplicitGenerator3d(curriculum).eval(), tmp_path / "radiance.safetensors")
    assert not load_generator(path).curriculum.pred_occ
    arguments = [str(path), "--image_size", "8", "--num_frames", "1", "--output_dir", str(tmp_path)]
    render_video.main(arguments)
    refused = [str(path), "--surface_only", "--output_dir", str(tmp_path / "preview")]
    with pytest.raises(UserError, match="needs an occupancy field"):
        render_video.main(refused)
    assert not (tmp_path / "preview").exists(), "refused before anything is written"
    with pytest.raises(UserError, match="needs an occupancy field"):
        view.main(refused[:2])
