"""Agreement with the published implementation's recorded numbers (tests/reference/README.md), one test per group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from generators.cameras import CameraPoses, camera_ray_directions, camera_rays, camera_to_world
from generators.renderer import RenderSettings, draw_noise, query_logits, render
from generators.samplers import coarse_samples, surface_interval
from reference import load_outputs, load_reference_generator, relative_error
from settings.registry import CURRICULUMS
from siren.mapping import FilmParameters

VIEWS = (0, 1, 2)
INTERVAL = 0.02
# Rays that graze the silhouette, where rounding decides between hit and miss.
GRAZING_FRACTION = 1e-3


@pytest.fixture(scope="module")
def outputs():
    return load_outputs()


@pytest.fixture(scope="module")
def generator():
    return load_reference_generator()


@pytest.fixture(scope="module")
def field(generator, outputs):
    with torch.no_grad():
        return generator.field(FilmParameters(outputs["frequencies"], outputs["phase_shifts"]))


def view_rays(outputs, view, size=64):
    pitch, yaw = outputs["cam_pitch_yaw"][view]
    return camera_rays(CameraPoses(pitch.expand(2), yaw.expand(2)), size, fov_degrees=12)


def settings(num_coarse, num_surface=0, num_fine=0, **changes):
    counts = {"num_coarse": num_coarse, "num_surface": num_surface, "num_fine": num_fine}
    return replace(RenderSettings.from_curriculum(CURRICULUMS["BFM"], INTERVAL), **counts, **changes)


def as_images(rgb, size=64):
    return rgb.transpose(1, 2).unflatten(2, (size, size)) * 2 - 1


def psnr(a, b):
    """dB for images in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@torch.no_grad()
def test_mapping_network(generator, outputs):
    film = generator.styles(outputs["z"])
    assert relative_error(film.frequencies, outputs["frequencies"]) < 1e-4
    assert relative_error(film.phase_shifts, outputs["phase_shifts"]) < 1e-4


@torch.no_grad()
def test_field(field, outputs):
    logits, colors = field.logits_and_colors(outputs["points"], outputs["ray_dirs"])
    assert relative_error(logits, outputs["occ_logit"]) < 1e-4
    assert relative_error(field.occupancy_logits(outputs["points"]), outputs["occ_logit"]) < 1e-4
    assert relative_error(colors, outputs["rgb"]) < 1e-4
    assert relative_error(field.normals(outputs["points"]), outputs["normals"]) < 1e-4


def test_cameras(outputs):
    pitch, yaw = outputs["cam_pitch_yaw"].unbind(dim=1)
    assert relative_error(camera_to_world(CameraPoses(pitch, yaw)), outputs["cam2world"]) < 1e-4
    assert relative_error(camera_ray_directions(8, 12), outputs["rays_cam_8"]) < 1e-4


def check_surface(surface, outputs, view, num_coarse):
    mask, expected_mask = surface.hit_mask, outputs[f"surf_mask_v{view}_c{num_coarse}"].flatten(1)
    assert (mask != expected_mask).float().mean() <= GRAZING_FRACTION
    both = mask & expected_mask
    assert both.float().mean() > 0.1
    expected_t = outputs[f"surf_depth_v{view}_c{num_coarse}"].flatten(1)
    assert relative_error(surface.t[both], expected_t[both]) < 1e-4
    low, high = surface_interval(surface.t, mask, INTERVAL, 0.88, 1.12)
    same = mask == expected_mask
    ends = torch.stack([low, high], dim=-1)
    assert relative_error(ends[same], outputs[f"surf_samples_v{view}_c{num_coarse}"].flatten(1, 2)[same]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("view", VIEWS)
def test_roots_and_intervals_from_9_coarse_samples(field, outputs, view):
    output = render(field, view_rays(outputs, view), settings(9, num_surface=2))
    check_surface(output.surface, outputs, view, 9)


@torch.no_grad()
@pytest.mark.parametrize(("view", "jittered"), [(0, False), (0, True), (1, False), (2, True)])
def test_images_and_their_roots(field, outputs, view, jittered):
    image_settings = settings(18, num_surface=12, num_fine=3)
    random = torch.Generator().manual_seed(0)
    noise = draw_noise(2, 64 * 64, image_settings, torch.device("cpu"), random) if jittered else None
    output = render(field, view_rays(outputs, view), image_settings, noise)
    check_surface(output.surface, outputs, view, 18)
    assert psnr(as_images(output.rgb), outputs[f"img_v{view}"]) > 35


@torch.no_grad()
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["occ", "relu"])
def test_volume_rendering_of_coarse_samples(field, outputs, view, mode):
    volume = settings(18, surface_sample=False, pred_occ=mode == "occ")
    output = render(field, view_rays(outputs, view), volume)
    assert relative_error(as_images(output.rgb), outputs[f"vol_{mode}_img_v{view}"]) < 1e-4
    assert relative_error(output.depth.unflatten(1, (64, 64)), outputs[f"vol_{mode}_depth_v{view}"]) < 1e-4


@torch.no_grad()
def test_coarse_queries_agree_with_one_by_one(field, outputs):
    rays = view_rays(outputs, 0, size=4)
    t = coarse_samples(0.88, 1.12, 9, 2, 16, torch.device("cpu"))
    together = query_logits(field, rays, t)
    for ray in (0, 7, 15):
        point = rays.origins[:, ray] + rays.directions[:, ray] * t[0, 0, 4]
        assert torch.allclose(together[:, ray, 4], field.occupancy_logits(point[:, None])[:, 0], rtol=1e-4, atol=1e-4)
