"""Photos in 3D: search for latent and camera, tuning that preserves the shape, latent files, mixing, directions."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import invert
import render_multiview_images
import style_mixing
from checkpoints.latents import (
    Directions,
    GeneratorName,
    Latent,
    load_directions,
    load_latent,
    save_directions,
    save_latent,
)
from checkpoints.loading import LoadedGenerator, load_generator
from common.errors import UserError
from generators.cameras import CameraPoses, camera_rays
from generators.styles import flatten_styles, mix_styles, style_distribution, unflatten_styles, with_weights
from generators.views import ViewSettings, make_pose, render_view
from inversion import features, outputs
from inversion.camera import Crop, no_crop, normals_in_photo, photo_rays, pixel_centers
from inversion.evaluation import pose_error_degrees, summarize, view_scores
from inversion.losses import feature_loss, gradient_loss, image_psnr_db, image_pyramid, pyramid_loss
from inversion.reconstruction import photo_view
from inversion.search import Candidates, Scene, Search, SearchSettings, best_of_bank, open_scene, render_candidates
from inversion.tuning import SurfacePool, TuneSettings, Tuning, tune_settings_of
from loading.files import find_images
from metrics.shapes import Geometry
from settings.registry import CURRICULUMS
from siren.mapping import FilmParameters
from tools import directions
from visualization.generator_scripts import Subject, mix_subjects, styles_from_seed

SMALL = SearchSettings(num_steps=60, image_size=32, num_bank=96)
QUICK_SEARCH = ["--num_steps", "6", "--image_size", "16", "--device", "cpu"]
QUICK = [*QUICK_SEARCH, "--view_size", "16"]
PHOTO_KEYS = {"pitch": 1.5, "yaw": 1.6, "shift_x": 0.01, "shift_y": 0.0, "roll": 0.02, "log_scale": -0.03}


@pytest.fixture(autouse=True)
def small_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MESH_RESOLUTION", 48)
    monkeypatch.setattr(outputs, "NUM_FRAMES", 6)


@pytest.fixture(scope="module")
def loaded(tiny_generator_path: Path) -> LoadedGenerator:
    return load_generator(tiny_generator_path)


@pytest.fixture(scope="module")
def scene(loaded: LoadedGenerator) -> Scene:
    return open_scene(loaded, SMALL, seed=0)


def candidate(scene: Scene, seed: int, yaw: float, pitch: float, crop: tuple[float, ...] = (0, 0, 0, 0)) -> Candidates:
    """A seed's latent from a pose given as angles from the mean pose."""
    styles = styles_from_seed(LoadedGenerator(scene.generator, scene.curriculum), seed, 1.0)
    angles = torch.tensor([[scene.curriculum.v_mean + pitch, scene.curriculum.h_mean + yaw]])
    coordinates = scene.distribution.coordinates(styles)
    return Candidates(coordinates, torch.zeros_like(scene.distribution.mean), angles, torch.tensor([crop], dtype=torch.float32))


@torch.no_grad()
def photo_of(scene: Scene, truth: Candidates, size: int = 32) -> torch.Tensor:
    return render_candidates(scene.generator, scene.curriculum, scene.distribution, truth, size, size)[0]


def run(search: Search | Tuning) -> list:
    return list(search.run())


# -- cameras -------------------------------------------------------------------------------------------------------------


def test_a_photo_without_crop_has_the_rays_of_any_image() -> None:
    poses = CameraPoses(torch.tensor([1.4, 1.7]), torch.tensor([1.2, 2.0]))
    expected, found = camera_rays(poses, 8, 12.0), photo_rays(poses, no_crop(2), 8, 8, 12.0)
    torch.testing.assert_close(found.directions, expected.directions, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.origins, expected.origins)


def test_the_pixels_of_a_reduced_photo_lie_in_the_middle_of_their_blocks() -> None:
    fine = torch.linspace(-1, 1, 8)
    torch.testing.assert_close(pixel_centers(2, 8), torch.stack([fine[:4].mean(), fine[4:].mean()]))
    with pytest.raises(ValueError, match="whole factor"):
        pixel_centers(3, 8)


def test_shift_roll_and_scale_move_the_rays_as_described() -> None:
    """By hand: q = scale R(roll) p + shift, then through (q, -1 / tan(fov / 2))."""
    poses = CameraPoses(torch.full((1,), math.pi / 2), torch.full((1,), math.pi / 2))  # axes parallel to the world's
    shift_x, shift_y, roll, log_scale = 0.1, -0.2, 0.3, 0.05
    rays = photo_rays(poses, Crop(*torch.tensor([[shift_x], [shift_y], [roll], [log_scale]])), 2, 2, 12.0)
    for (x, y), direction in zip([(-1, 1), (1, 1), (-1, -1), (1, -1)], rays.directions[0], strict=True):
        scale = math.exp(log_scale)
        q = torch.tensor(
            [
                scale * (math.cos(roll) * x - math.sin(roll) * y) + shift_x,
                scale * (math.sin(roll) * x + math.cos(roll) * y) + shift_y,
                -1 / math.tan(math.radians(6.0)),
            ]
        )
        torch.testing.assert_close(direction, q / q.norm(), atol=1e-6, rtol=0)


def test_normals_in_the_photo_undo_pose_and_roll() -> None:
    poses = CameraPoses(torch.tensor([1.3]), torch.tensor([1.9]))
    crop = no_crop(1)._replace(roll=torch.tensor([0.4]))
    toward_camera = -photo_rays(poses, no_crop(1), 3, 3, 12.0).directions[:, 4]
    z = normals_in_photo(toward_camera.view(1, 3, 1, 1), poses, crop)
    torch.testing.assert_close(z.flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    # the photo's own x axis, as a direction of the world: from its left pixel to its right one
    left, right = photo_rays(poses, crop, 3, 3, 12.0).directions[0, [3, 5]]
    axis = torch.nn.functional.normalize(right - left, dim=0)
    x = normals_in_photo(axis.view(1, 3, 1, 1), poses, crop)
    torch.testing.assert_close(x.flatten(), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


# -- losses --------------------------------------------------------------------------------------------------------------


def test_pyramid_and_gradients_against_loops() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 8, 8, generator=random)
    assert [level.shape[-1] for level in image_pyramid(a)] == [8, 4]
    for i in range(2):
        squares, differences = [], []
        for step in (1, 2):
            error = np.zeros((3, 8 // step, 8 // step))
            for y in range(8 // step):
                for x in range(8 // step):
                    block = (slice(None), slice(y * step, (y + 1) * step), slice(x * step, (x + 1) * step))
                    error[:, y, x] = (a[i][block] - b[i][block]).numpy().mean(axis=(1, 2))
            squares.append((error**2).mean())
            differences.append(np.abs(np.diff(error, axis=1)).mean() + np.abs(np.diff(error, axis=2)).mean())
        assert float(pyramid_loss(a, b)[i]) == pytest.approx(np.mean(squares), rel=1e-4)
        assert float(gradient_loss(a, b)[i]) == pytest.approx(np.mean(differences), rel=1e-4)
    assert float(image_psnr_db(a, a + 0.1)[0]) == pytest.approx(20, abs=1e-3)


def test_features_of_the_discriminator_are_those_of_the_size_it_was_trained_on(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tiny_generator_path: Path
) -> None:
    monkeypatch.setattr(features, "is_installed", lambda: False)
    (checkpoint,) = (repo / "pretrained" / "SYNTH_TRIPLANE").glob("checkpoint_*.pt")
    found, source = features.open_features(checkpoint, load_generator(checkpoint), torch.device("cpu"))
    assert source == "the discriminator"
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for large, small in zip(found(images), found(F.avg_pool2d(images, 2)), strict=True):  # it ended at 64 px
        torch.testing.assert_close(large, small)
    assert features.open_features(tiny_generator_path, load_generator(tiny_generator_path), torch.device("cpu"))[0] is None


def test_feature_loss_is_zero_for_parallel_features_and_two_per_layer_for_orthogonal_ones() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert float(feature_loss(image, 2 * image, lambda x: [x])) == pytest.approx(0, abs=1e-6)
    red, green = (torch.zeros(1, 3, 4, 4).index_fill(1, torch.tensor([c]), 1.0) for c in (0, 1))
    assert float(feature_loss(red, green, lambda x: [x, x])) == pytest.approx(4)


# -- styles --------------------------------------------------------------------------------------------------------------


def test_coordinates_of_styles_are_standard_normal_and_invertible(loaded: LoadedGenerator) -> None:
    distribution = style_distribution(loaded.generator, num=4000)
    z = torch.randn(4000, loaded.curriculum.latent_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        styles = loaded.generator.styles(z)
    coordinates = distribution.coordinates(styles)
    assert float(coordinates.mean(dim=0).abs().max()) < 0.1 and coordinates.std(dim=0).sub(1).abs().max() < 0.1
    torch.testing.assert_close(flatten_styles(distribution.styles(coordinates)), flatten_styles(styles), atol=1e-4, rtol=1e-3)
    identity = distribution.directions @ distribution.directions.t()
    torch.testing.assert_close(identity, torch.eye(len(identity)), atol=1e-4, rtol=0)
    assert (distribution.sigma.diff() <= 0).all()


def test_wide_styles_give_the_same_directions_through_the_random_basis(loaded: LoadedGenerator) -> None:
    exact, sketched = (
        style_distribution(loaded.generator, num=1000),
        style_distribution(loaded.generator, 1000, max_directions=20),
    )
    assert exact.mean.shape[1] > 40 and len(exact.sigma) <= 20  # so the second went through the basis
    torch.testing.assert_close(sketched.sigma, exact.sigma[: len(sketched.sigma)], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(sketched.directions[:4], exact.directions[:4], atol=1e-2, rtol=0)


def test_styles_of_any_shape_come_back_from_vectors() -> None:
    from triplane.mapping import TriplaneStyles

    for styles in (FilmParameters(torch.rand(3, 8), torch.rand(3, 8)), TriplaneStyles(torch.rand(3, 4, 5))):
        template = type(styles)(*(part[:1] for part in styles))
        back = unflatten_styles(flatten_styles(styles), template)
        assert type(back) is type(styles) and all(torch.equal(a, b) for a, b in zip(back, styles, strict=True))


# -- search --------------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_pose_of_a_rendered_image(scene: Scene) -> None:
    truth = candidate(scene, seed=7, yaw=0.33, pitch=-0.14)
    search = Search(scene, photo_of(scene, truth), SMALL)
    steps = run(search)
    assert len(steps) == SMALL.total_steps() and steps[-1].image_size == 32
    error = pose_error_degrees(search.best.angles, truth.poses())
    assert error["pose_error_degrees"] < 3
    assert steps[-1].psnr_db > 30
    first = best_of_bank(scene, search.photo, SMALL.stages[0].num_candidates, SMALL)
    assert pose_error_degrees(first.angles[:1], truth.poses())["pose_error_degrees"] > error["pose_error_degrees"]


def test_half_of_the_starts_have_the_opposite_pose(scene: Scene) -> None:
    starts = best_of_bank(scene, photo_of(scene, candidate(scene, 1, 0.4, 0.1)).unsqueeze(0), 6, SMALL)
    mean = torch.tensor([scene.curriculum.v_mean, scene.curriculum.h_mean])
    torch.testing.assert_close(starts.angles[:3] - mean, mean - starts.angles[3:], atol=1e-6, rtol=0)
    assert torch.equal(starts.coordinates[:3], starts.coordinates[3:])


def test_the_search_is_deterministic(scene: Scene) -> None:
    photo = photo_of(scene, candidate(scene, 2, -0.2, 0.1))
    settings = replace(SMALL, num_steps=9)
    searches = [Search(scene, photo, settings) for _ in range(2)]
    assert run(searches[0]) == run(searches[1])
    assert all(torch.equal(a, b) for a, b in zip(searches[0].best, searches[1].best, strict=True))


def test_a_search_interrupted_at_any_step_returns_its_best_result(scene: Scene) -> None:
    truth = candidate(scene, 3, 0.25, 0.0)
    photo = photo_of(scene, truth)
    search = Search(scene, photo, SMALL)
    assert search.best.angles.shape == (1, 2)  # before the first step
    objectives = [progress.objective for progress, _ in zip(search.run(), range(12), strict=False)]
    assert objectives == sorted(objectives, reverse=True)
    assert photo_view(scene.generator, scene, search.best, photo).psnr_db > 15


# -- tuning --------------------------------------------------------------------------------------------------------------


def test_tuning_fits_the_photo_and_holds_the_shape(scene: Scene) -> None:
    pivot = candidate(scene, 4, 0.1, 0.05)
    before = photo_view(scene.generator, scene, pivot, photo_of(scene, pivot))
    photo = photo_of(scene, pivot).flip(0) * 0.8  # the same ball in other colors
    held, free = TuneSettings(num_steps=40, num_points=256), TuneSettings(40, 1e-3, 256, 0.0, 0.0, 0.0)
    drifts = []
    for settings in (held, free):
        tuning = Tuning(scene, photo, pivot, settings, SMALL, seed=0)
        run(tuning)
        assert tuning.weights is not None and not any("mapping" in name for name in tuning.weights)
        view = photo_view(with_weights(scene.generator, tuning.weights), scene, pivot, photo)
        assert view.psnr_db > photo_view(scene.generator, scene, pivot, photo).psnr_db + 5
        both = view.mask & before.mask
        cosines = (view.normals * before.normals).sum(dim=0)[both]
        drifts.append(float(torch.rad2deg(cosines.clamp(-1, 1).acos()).mean()))
    assert drifts[0] < 4 and drifts[0] < 0.7 * drifts[1]


def test_tuning_fits_triplanes_and_holds_the_shape() -> None:
    loaded = load_generator("cats")
    scene = open_scene(loaded, SMALL, seed=0)
    pivot = candidate(scene, 4, 0.1, 0.05)
    before = photo_view(scene.generator, scene, pivot, photo_of(scene, pivot))
    photo = photo_of(scene, pivot).flip(0) * 0.8
    tuning = Tuning(scene, photo, pivot, tune_settings_of("TRIPLANE", num_steps=60), SMALL, seed=0)
    run(tuning)
    view = photo_view(with_weights(scene.generator, tuning.weights), scene, pivot, photo)
    assert view.psnr_db > photo_view(scene.generator, scene, pivot, photo).psnr_db + 3
    cosines = (view.normals * before.normals).sum(dim=0)[view.mask & before.mask]
    assert float(torch.rad2deg(cosines.clamp(-1, 1).acos()).median()) < 8


def test_tuning_does_not_change_the_generator(scene: Scene) -> None:
    before = {name: value.clone() for name, value in scene.generator.state_dict().items()}
    pivot = candidate(scene, 0, 0.0, 0.0)
    photo = photo_of(scene, pivot) * 0.5
    tunings = [Tuning(scene, photo, pivot, TuneSettings(num_steps=2, num_points=64), SMALL, seed=1) for _ in range(2)]
    assert run(tunings[0]) == run(tunings[1])
    assert all(torch.equal(value, before[name]) for name, value in scene.generator.state_dict().items())


# -- latent and direction files ------------------------------------------------------------------------------------------


def make_latent(loaded: LoadedGenerator, path: Path, seed: int = 3, weights=None, psi: float = 0.7) -> Latent:
    return Latent(styles_from_seed(loaded, seed, psi), PHOTO_KEYS, GeneratorName.of(loaded.generator, path), 25.5, weights)


def test_a_latent_file_comes_back_as_it_was_written(loaded: LoadedGenerator, tiny_generator_path: Path, tmp_path: Path) -> None:
    weights = {"siren.final_layer.bias": torch.tensor([0.25])}
    latent = make_latent(loaded, tiny_generator_path, weights=weights)
    save_latent(tmp_path / "a.safetensors", latent)
    save_latent(tmp_path / "b.safetensors", latent)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    back = load_latent(tmp_path / "a.safetensors", loaded.generator, GeneratorName.of(loaded.generator, "renamed.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(back.styles, latent.styles, strict=True))
    assert back.photo == PHOTO_KEYS and back.psnr_db == 25.5 and back.generator.name == "tiny"
    assert back.weights is not None and torch.equal(back.weights["siren.final_layer.bias"], torch.tensor([0.25]))


def test_the_latent_of_another_generator_is_rejected_naming_both(
    loaded: LoadedGenerator, tiny_generator_path: Path, empty_generator_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a_latent.safetensors"
    save_latent(path, make_latent(loaded, tiny_generator_path))
    arguments = [str(empty_generator_path), "--latent", str(path), "--output_dir", str(tmp_path / "out"), "--image_size", "8"]
    with pytest.raises(UserError, match=r"latent of the generator tiny \(.{12}\), not of empty \(.{12}\)"):
        render_multiview_images.main(arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["generator.json"]


@pytest.mark.parametrize("damage", ["cut", "other_format", "other_shape", "nan", "missing_part"])
def test_a_damaged_latent_file_is_refused(
    damage: str, loaded: LoadedGenerator, tiny_generator_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a_latent.safetensors"
    latent = make_latent(loaded, tiny_generator_path)
    save_latent(path, latent)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "other_format":
        path.write_bytes(tiny_generator_path.read_bytes())
    else:
        import json

        from checkpoints.files import read_safetensors, write_safetensors

        tensors, metadata = read_safetensors(path, "gof-latent-1", ())
        if damage == "other_shape":
            tensors["styles.frequencies"] = tensors["styles.frequencies"][:, :-1].contiguous()
        elif damage == "nan":
            tensors["styles.frequencies"][0, 0] = math.nan
        else:
            del tensors["styles.phase_shifts"]
        assert json.loads(metadata["photo"]) == PHOTO_KEYS
        write_safetensors(path, tensors, metadata)
    with pytest.raises(UserError, match=r"a_latent\.safetensors"):
        load_latent(path, loaded.generator, GeneratorName.of(loaded.generator, tiny_generator_path))


def views_of(arguments: list[str], output_dir: Path) -> dict[str, bytes]:
    common = ["--image_size", "12", "--ray_step_multiplier", "1", "--device", "cpu", "--output_dir", str(output_dir)]
    render_multiview_images.main([*arguments, *common])
    return {path.name: path.read_bytes() for path in output_dir.iterdir()}


def test_a_seeds_latent_renders_as_the_seed(loaded: LoadedGenerator, tiny_generator_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine_latent.safetensors"
    save_latent(path, make_latent(loaded, tiny_generator_path, seed=3, psi=0.7))
    generator = str(tiny_generator_path)
    seeds = views_of([generator, "--seeds_start", "3", "--seeds_end", "4"], tmp_path / "seed")
    latents = views_of([generator, "--latent", str(path)], tmp_path / "latent")
    assert {name.replace("mine_latent", "3"): data for name, data in latents.items()} == seeds


def test_a_direction_moves_what_is_rendered(loaded: LoadedGenerator, tiny_generator_path: Path, tmp_path: Path) -> None:
    name = GeneratorName.of(loaded.generator, tiny_generator_path)
    distribution = style_distribution(loaded.generator, num=500)
    parts = (distribution.directions[:2], distribution.sigma[:2], distribution.mean)
    path = tmp_path / "d.safetensors"
    save_directions(path, Directions(*parts, name), {"note": "none"})
    back = load_directions(path, loaded.generator, name)
    assert torch.equal(back.directions, distribution.directions[:2]) and torch.equal(back.sigma, distribution.sigma[:2])
    one_seed = [str(tiny_generator_path), "--seeds_start", "3", "--seeds_end", "4"]
    still = views_of(one_seed, tmp_path / "still")
    there = views_of([*one_seed, "--direction", f"{path}:1:2.5"], tmp_path / "there")
    back_again = views_of([*one_seed, "--direction", f"{path}:1:2.5", f"{path}:1:-2.5"], tmp_path / "back")
    assert still["image_3_0.png"] != there["image_3_0.png"] and still["image_3_0.png"] == back_again["image_3_0.png"]
    for text in ("nothing", f"{path}:2:1", f"{path}:x:1", f"{path}:0:nan"):
        with pytest.raises(UserError, match="--direction"):
            views_of([*one_seed, "--direction", text], tmp_path / "refused")


def test_weights_that_were_tuned_are_rendered_and_interpolated(loaded: LoadedGenerator) -> None:
    bias = {"siren.final_layer.bias": loaded.generator.siren.final_layer.bias.detach() + 3}
    styles = styles_from_seed(loaded, 0, 1.0)
    own = {name: value for name, value in loaded.generator.state_dict().items() if name in bias}
    half = Subject("a", styles, own).lerp(Subject("b", styles, bias), 0.5)
    field = with_weights(loaded.generator, half.weights or {}).field(half.styles)
    points = torch.rand(1, 50, 3) * 0.1
    difference = field.occupancy_logits(points) - loaded.generator.field(styles).occupancy_logits(points)
    torch.testing.assert_close(difference, torch.full_like(difference, 1.5), atol=1e-4, rtol=0)


# -- mixing and directions -----------------------------------------------------------------------------------------------


def test_mixing_only_the_appearance_does_not_change_the_surface(
    loaded: LoadedGenerator, tiny_generator_path: Path, tmp_path: Path
) -> None:
    curriculum = loaded.curriculum
    pose, settings = make_pose(curriculum.h_mean, curriculum.v_mean), ViewSettings(image_size=24, ray_step_multiplier=1)
    row, column = (Subject(str(seed), styles_from_seed(loaded, seed, 1.0)) for seed in (1, 6))
    views = []
    for split in (curriculum.num_layers, 1):
        mixed = mix_subjects(loaded, row, column, split)
        views.append(render_view(loaded.generator.field(mixed.styles), pose, curriculum, settings))
    own = render_view(loaded.generator.field(row.styles), pose, curriculum, settings)
    assert torch.equal(views[0].surface_depth, own.surface_depth) and torch.equal(views[0].normals, own.normals)
    assert not torch.equal(views[0].image, own.image)
    assert not torch.equal(views[1].surface_depth, own.surface_depth)
    whole = mix_styles(row.styles, column.styles, curriculum.num_layers + 1, curriculum)
    assert all(torch.equal(a, b) for a, b in zip(whole, row.styles, strict=True))


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "TRIPLANE"])
def test_tuned_weights_are_mixed_by_layer_like_the_styles(model: str) -> None:
    from generators.generator import ImplicitGenerator3d

    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"model={model}", "view_dependent=False"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = LoadedGenerator(ImplicitGenerator3d(curriculum).eval(), curriculum)
    names = dict(loaded.generator.named_parameters())
    row, column = (
        Subject(
            str(seed), styles_from_seed(loaded, seed, 1.0), {name: torch.full_like(value, seed) for name, value in names.items()}
        )
        for seed in (1, 2)
    )
    split = 2
    mixed = mix_subjects(loaded, row, column, split)
    first, last = ("siren.network.1.", "siren.network.2.") if model != "TRIPLANE" else ("blocks.1.0.", "blocks.1.1.")
    for part, seed in ((first, 1), (last, 2), ("color_layer_linear", 2), ("backbone.to_planes.0.", 1), ("decoder", 1)):
        values = [value for name, value in mixed.weights.items() if part in name]
        assert all((value == seed).all() for value in values), part
    alone = mix_subjects(loaded, Subject("seed", row.styles), column, split)
    assert all(torch.equal(alone.weights[name], value) for name, value in names.items() if first in name)
    assert any((value == 2).all() for value in alone.weights.values())


def test_mixing_writes_grids_and_rejects_a_split_beyond_the_network(tiny_generator_path: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_generator_path), "--rows", "0", "1", "--columns", "2", "3", "4", "--image_size", "8", "--device", "cpu"]
    style_mixing.main([*arguments, "--output_dir", str(tmp_path)])
    for name in ("mix_image.png", "mix_normals.png"):
        assert Image.open(tmp_path / name).size == (4 * 10 - 2, 3 * 10 - 2)
    with pytest.raises(UserError, match="has 4 layers, so use 1 to 3"):
        style_mixing.main([*arguments, "--split", "4", "--output_dir", str(tmp_path)])


def test_a_direction_of_the_color_layer_does_not_change_the_shape(loaded: LoadedGenerator) -> None:
    curriculum = loaded.curriculum
    distribution = style_distribution(loaded.generator, num=500)
    width, layers = curriculum.hidden_dim, curriculum.num_layers + 1
    color, first = torch.zeros(2, 2, layers, width)
    color[0, -1], first[0, 0] = 1, 1  # frequencies of one layer
    made = torch.stack([color.flatten(), first.flatten()]) / width**0.5
    distribution = distribution._replace(directions=made, sigma=torch.tensor([0.3, 0.3]))
    pose = make_pose(curriculum.h_mean, curriculum.v_mean)
    moved_color, moved_first = (directions.measure(loaded, distribution, k, pose) for k in (0, 1))
    assert moved_color.shape == 0 and moved_color.color > 1e-3 and moved_first.shape > 1e-5
    report = directions.report_of(distribution, [moved_color, moved_first])
    assert report[0]["shape_share"] == 0 and report[1]["shape_share"] == pytest.approx(1)
    assert report[0]["color_share"] + report[1]["color_share"] == pytest.approx(1)


def test_directions_write_a_file_a_report_and_sheets(tiny_generator_path: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(tiny_generator_path), "--num_directions", "1", "--image_size", "8", "--device", "cpu"]
    directions.main([*arguments, "--output_dir", str(tmp_path)])
    expected = {"tiny_directions.safetensors", "tiny_directions.json", "tiny_direction_0.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert Image.open(tmp_path / "tiny_direction_0.png").size == (5 * 10 - 2, 2 * 10 - 2)
    assert "100.0%" in capsys.readouterr().out


# -- evaluation ----------------------------------------------------------------------------------------------------------


def test_scores_of_the_truth_itself_are_perfect_and_of_its_hollow_twin_negative(scene: Scene) -> None:
    truth = candidate(scene, 5, 0.2, -0.1)
    view = photo_view(scene.generator, scene, truth, photo_of(scene, truth))
    geometry = Geometry(view.depth.unsqueeze(0), view.normals.unsqueeze(0), view.mask.unsqueeze(0))
    scores = view_scores(view, geometry)
    assert scores.depth_correlation == pytest.approx(1) and scores.normal_mean_degrees < 1e-3 and scores.mask_iou == 1
    hollow = view_scores(replace(view, depth=2 - view.depth), geometry)
    assert hollow.depth_correlation == pytest.approx(-1)
    photos = [
        {"seconds": 1.0, "yaw_error_degrees": y, "pitch_error_degrees": 0.0, "pose_error_degrees": abs(y), "before": s._asdict()}
        for y, s in ((-2.0, scores), (4.0, hollow))
    ]
    summary = summarize(photos)
    assert summary["before"]["num_hollow"] == 1 and summary["num_photos"] == 2 and "after" not in summary
    assert summary["median_yaw_error_degrees"] == 3 and summary["mean_signed_yaw_error_degrees"] == 1


def test_pose_errors_by_hand() -> None:
    true = CameraPoses(torch.tensor([math.pi / 2]), torch.tensor([math.pi / 2]))
    errors = pose_error_degrees(torch.tensor([[math.pi / 2, math.pi / 2 + 0.1]]), true)
    assert errors["yaw_error_degrees"] == pytest.approx(math.degrees(0.1), abs=1e-4)
    assert errors["pitch_error_degrees"] == 0 and errors["pose_error_degrees"] == pytest.approx(math.degrees(0.1), abs=1e-3)


def test_evaluation_reports_every_photo(tiny_generator_path: Path, tmp_path: Path) -> None:
    import json

    from tools.synthetic_heads import generate

    generate(tmp_path / "set", num_images=2, image_size=16, seed=5, curriculum=CURRICULUMS["SYNTH_TINY"], num_workers=1)
    arguments = [
        "--evaluate",
        str(tmp_path / "set"),
        "--generator",
        str(tiny_generator_path),
        *QUICK_SEARCH,
        "--tune",
        "--tune_steps",
        "2",
    ]
    invert.main([*arguments, "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert results["summary"]["num_photos"] == 2 == len(results["photos"])
    assert set(results["photos"][0]["before"]) == set(results["photos"][0]["after"])
    assert results["protocol"]["generator"] == "tiny" and results["protocol"]["num_steps"] == 6
    assert results["protocol"]["num_requested"] == 2
    data = {"folder": "set", "seed": 5, "curriculum": "SYNTH_TINY", "num_images": 2, "image_size": 16}
    assert results["protocol"]["data"] == data
    with pytest.raises(UserError, match="pass --image_size 16"):
        invert.main(["--evaluate", str(tmp_path / "set"), "--generator", str(tiny_generator_path), "--output_dir", str(tmp_path)])


# -- the command ---------------------------------------------------------------------------------------------------------


def save_photo(path: Path, photo: torch.Tensor) -> Path:
    Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path


def test_the_command_writes_everything_and_the_same_bytes_again(scene: Scene, tiny_generator_path: Path, tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "mine.png", photo_of(scene, candidate(scene, 2, 0.3, 0.1)))
    written = []
    for folder in ("a", "b"):
        arguments = [str(photo), "--generator", str(tiny_generator_path), *QUICK, "--tune", "--tune_steps", "3"]
        invert.main([*arguments, "--output_dir", str(tmp_path / folder)])
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.is_file()})
    assert set(written[0]) == {"generator.json", "mine_latent.safetensors", "mine.png", "mine.mp4", "mine.glb"}
    assert written[0] == written[1]
    assert Image.open(tmp_path / "a" / "mine.png").size == (7 * 18 - 2, 3 * 18 - 2)
    views = views_of([str(tiny_generator_path), "--latent", str(tmp_path / "a" / "mine_latent.safetensors")], tmp_path / "views")
    assert "grid_mine_latent.png" in views


def test_photos_are_never_overwritten_and_files_of_two_generators_never_mixed(
    scene: Scene, tiny_generator_path: Path, empty_generator_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = save_photo(folder / "overview.png", photo_of(scene, candidate(scene, 2, 0.3, 0.1)))
    before = photo.read_bytes()
    for given in (folder, photo, tmp_path):
        with pytest.raises(UserError, match="holds the photos themselves"):
            invert.main([str(given), "--generator", str(tiny_generator_path), *QUICK, "--output_dir", str(folder)])
    inside = folder / "inverted"
    invert.main([str(folder), "--generator", str(tiny_generator_path), *QUICK, "--output_dir", str(inside)])
    assert photo.read_bytes() == before
    assert (inside / "overview_2.png").is_file() and not (inside / "overview.png").exists()
    assert [Path(name).name for name in find_images(str(folder)).names] == ["overview.png"]
    with pytest.raises(UserError, match="choose another --output_dir"):
        invert.main([str(folder), "--generator", str(empty_generator_path), *QUICK, "--output_dir", str(inside)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "--tune_steps", "5"], "--tune_steps needs --tune"),
        (["--evaluate", "set", "--view_size", "64"], "--view_size cannot be combined with --evaluate"),
        (["--evaluate", "set", "a.png"], "either photos or --evaluate"),
    ],
)
def test_options_without_effect_are_rejected(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit):
        invert.parse_arguments([*arguments, "--generator", "heads"])
    assert words in capsys.readouterr().err


def test_a_photo_of_something_else_ends_with_its_psnr_and_a_note(tiny_generator_path: Path, tmp_path: Path, capsys) -> None:
    noise = save_photo(tmp_path / "noise.png", torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    arguments = [str(noise), str(broken), "--generator", str(tiny_generator_path), *QUICK, "--output_dir", str(tmp_path / "out")]
    invert.main(arguments)
    out, err = capsys.readouterr()
    assert " dB; yaw" in out and "noise: the generator reaches only" in err and "broken.png is skipped: it is" in err
    with pytest.raises(UserError, match="none of the photos can be read"):
        invert.main([str(broken), "--generator", str(tiny_generator_path), *QUICK, "--output_dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_ctrl_c_writes_the_best_result_so_far(repo: Path, scene: Scene, tiny_generator_path: Path, tmp_path: Path) -> None:
    photos = [save_photo(tmp_path / f"{i}.png", photo_of(scene, candidate(scene, i, 0.3, 0.1))) for i in range(2)]
    command = [sys.executable, "invert.py", *map(str, photos), "--generator", str(tiny_generator_path), *QUICK]
    command += ["--num_steps", "100000", "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    heed_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it, children too
    with subprocess.Popen(
        command, cwd=repo, env=environment, preexec_fn=heed_ctrl_c, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b" dB at 16 px" not in seen:
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, seen.decode()
            seen += piece
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(timeout=120) == -signal.SIGINT
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "0_latent.safetensors",
        "0.png",
        "0.mp4",
        "0.glb",
        "overview.png",
        "generator.json",
    }


@pytest.mark.parametrize("white_back", [False, True])
def test_a_transparent_photo_lies_on_the_background_of_training(white_back: bool, tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 90, np.uint8)
    pixels[..., 3] = np.where(np.arange(16)[:, None] < 4, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    curriculum = replace(CURRICULUMS["SYNTH_TINY"], white_back=white_back, dataset="Images")
    args = invert.parse_arguments([str(tmp_path / "a.png"), "--generator", "none", "--image_size", "16"])
    (photo,) = invert.read_photos(args, LoadedGenerator(None, curriculum)).values()
    assert bool((photo[:, :4] == float(white_back)).all()) and bool((photo[:, 4:] < 0.5).all())


class ConstantField:
    """The same density everywhere."""

    def __init__(self, density: float) -> None:
        self.density = density

    def occupancy_logits(self, points: torch.Tensor) -> torch.Tensor:
        return torch.full(points.shape[:2], self.density)


def test_tuning_holds_the_opacity_of_a_radiance_field() -> None:
    """Densities of 200 and 10 look different, -1 and -5 do not: the opposite holds of their sigmoids."""
    tuning = Tuning.__new__(Tuning)
    tuning.settings, tuning._random = TuneSettings(), torch.Generator().manual_seed(0)
    tuning.scene = Scene(None, CURRICULUMS["PIGAN_CelebA"], None, None, None, None)
    nothing = torch.zeros(0, 3)
    pool = SurfacePool(nothing, nothing, nothing, torch.zeros(0, dtype=torch.bool))
    assert float(tuning._hold(ConstantField(10.0), ConstantField(200.0), pool)) > 0.3
    assert float(tuning._hold(ConstantField(-5.0), ConstantField(-1.0), pool)) == 0
