"""Voxels and meshes of analytic fields, and the two renderers of meshes."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from settings.registry import CURRICULUMS
from visualization.gltf import linear_to_srgb, srgb_to_linear
from visualization.mesh_rendering import RaycastRenderer, open_renderer, pose_matrix
from visualization.meshes import (
    MeshSettings,
    extract_mesh,
    fill_occupancy,
    grid_coordinates,
    load_voxels,
    occupancy_of,
    refine_vertices,
    save_mesh,
    smooth_normals,
    vertex_colors,
    visible_radius,
)

BFM = CURRICULUMS["BFM"]
REPO = Path(__file__).resolve().parent.parent
CENTER = (0.02, -0.01, 0.03)


class BallsField:
    """Balls (center, radius); logits are cubic in the distance, so that linear interpolation is inaccurate. Color: position."""

    batch_size = 1

    def __init__(self, *balls: tuple[tuple[float, float, float], float]) -> None:
        self.balls = balls

    def occupancy_logits(self, points: Tensor) -> Tensor:
        inside = [radius - (points - torch.tensor(center)).norm(dim=-1) for center, radius in self.balls]
        distance = torch.stack(inside).amax(dim=0)
        return distance * 50 + (distance * 300) ** 3

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.equal(directions[0, 0], torch.tensor([0.0, 0.0, -1.0]))
        return self.occupancy_logits(points), (points * 4 + 0.5).clamp(0, 1)


def voxels_of(field: BallsField, resolution: int = 40, cube_size: float = 0.3) -> np.ndarray:
    out = np.empty((resolution,) * 3, dtype=np.float32)
    fill_occupancy(out, field, BFM, cube_size)
    return out


def test_grid_has_both_faces_of_the_cube() -> None:
    axis = grid_coordinates(0.3, 7)
    assert torch.allclose(axis, torch.tensor([-0.15, -0.1, -0.05, 0, 0.05, 0.1, 0.15]), atol=1e-8)


@pytest.mark.parametrize("resolution", [2, 5, 50])
def test_voxel_i_is_the_occupancy_at_coordinate_i(resolution: int) -> None:
    """Against point by point queries; 50 takes several slabs, the last of them short."""
    field = BallsField((CENTER, 0.07))
    voxels = voxels_of(field, resolution)
    random = np.random.default_rng(0)
    index = random.integers(0, resolution, (200, 3))
    points = -0.15 + index * (0.3 / (resolution - 1))
    expected = torch.sigmoid(field.occupancy_logits(torch.tensor(points, dtype=torch.float32).unsqueeze(0)))[0].numpy()
    assert np.abs(voxels[tuple(index.T)] - expected).max() < 1e-4
    assert voxels.dtype == np.float32 and voxels.min() >= 0 and voxels.max() <= 1


def test_radiance_occupancy_is_the_alpha_of_a_step() -> None:
    densities = torch.tensor([-1.0, 0.0, math.log(2) / 0.01])
    assert torch.allclose(occupancy_of(densities, CURRICULUMS["PIGAN_CelebA"], 0.01), torch.tensor([0.0, 0.0, 0.5]))
    softplus = dataclasses.replace(CURRICULUMS["PIGAN_CelebA"], clamp_mode="softplus")
    assert float(occupancy_of(torch.tensor([0.0]), softplus, 1.0)[0]) == pytest.approx(0.5)


def test_mesh_of_a_ball_is_closed_faces_outward_and_lies_where_the_ball_is() -> None:
    field = BallsField((CENTER, 0.07))
    settings = MeshSettings()
    mesh = extract_mesh(voxels_of(field), settings)
    assert mesh.is_watertight and mesh.volume > 0
    rough = np.abs(np.linalg.norm(mesh.vertices - CENTER, axis=1) - 0.07).max()
    assert rough < 0.3 / 39 / 2
    refine_vertices(mesh, field, BFM, settings, 40)
    fine = np.abs(np.linalg.norm(mesh.vertices - CENTER, axis=1) - 0.07).max()
    assert fine < 5e-5 < rough
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.07**3, rel=0.02)
    assert mesh.is_watertight


def test_a_higher_level_gives_a_smaller_solid() -> None:
    field = BallsField(((0, 0, 0), 0.07))
    volumes = [extract_mesh(voxels_of(field), MeshSettings(level=level)).volume for level in (0.1, 0.5, 0.9)]
    assert volumes[0] > volumes[1] > volumes[2]


def test_a_solid_that_leaves_the_cube_is_closed_at_its_faces() -> None:
    mesh = extract_mesh(voxels_of(BallsField(((0.12, 0, 0), 0.07))), MeshSettings())
    assert mesh.is_watertight
    assert mesh.bounds[1, 0] == pytest.approx(0.15, abs=0.3 / 39)


def test_clipping_keeps_the_ball_of_the_cameras_only() -> None:
    field = BallsField(((0, 0, 0), 0.05), ((0.13, 0.13, 0.13), 0.06), ((0.11, 0, 0), 0.03))
    radius = visible_radius(BFM)
    assert radius == pytest.approx(0.12 / math.cos(math.radians(6)))
    settings = MeshSettings(clip_radius=radius)
    mesh = extract_mesh(voxels_of(field, 60), settings)
    refine_vertices(mesh, field, BFM, settings, 60)
    distances = np.linalg.norm(mesh.vertices, axis=1)
    assert distances.max() == pytest.approx(radius, abs=1e-4), "the second ball is cut along the sphere, without steps"
    assert mesh.is_watertight and len(mesh.split(only_watertight=False)) == 2
    assert len(extract_mesh(voxels_of(field, 60), MeshSettings()).split(only_watertight=False)) == 3


def test_only_the_largest_piece_is_kept() -> None:
    field = BallsField(((-0.08, 0, 0), 0.03), ((0.06, 0, 0), 0.05))
    mesh = extract_mesh(voxels_of(field), MeshSettings(largest_piece=True))
    assert mesh.is_watertight
    assert mesh.bounds[0, 0] == pytest.approx(0.01, abs=0.005) and mesh.bounds[1, 0] == pytest.approx(0.11, abs=0.005)


def test_no_surface_is_none() -> None:
    assert extract_mesh(np.zeros((8, 8, 8), dtype=np.float32), MeshSettings()) is None
    assert extract_mesh(voxels_of(BallsField(((0, 0, 0.14), 0.01)), 60), MeshSettings(clip_radius=0.1)) is None


def test_all_solid_is_the_cube() -> None:
    mesh = extract_mesh(np.ones((8, 8, 8), dtype=np.float32), MeshSettings())
    assert mesh.is_watertight and mesh.volume == pytest.approx(0.3**3, rel=0.6)


def test_files_hold_the_mesh_and_its_colors_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    import trimesh

    field = BallsField((CENTER, 0.07))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        mesh = extract_mesh(voxels_of(field, 24), MeshSettings())
        mesh.visual.vertex_colors = vertex_colors(mesh, field, CURRICULUMS["BFM"])
        save_mesh(mesh, tmp_path / folder / "m", (".ply", ".glb", ".obj"))
    for suffix in ("ply", "glb", "obj"):
        loaded = trimesh.load(tmp_path / "a" / f"m.{suffix}", force="mesh", process=False)
        assert np.allclose(loaded.bounds, mesh.bounds, atol=1e-6)
        expected = np.round((loaded.vertices * 4 + 0.5).clip(0, 1) * 255)
        if suffix == "glb":  # glTF's vertex colors are linear, here uint16
            (loaded,) = trimesh.load(tmp_path / "a" / "m.glb", process=False).geometry.values()
            linear = loaded.visual.vertex_attributes["color"][:, :3] / 65535
            assert np.abs(linear - srgb_to_linear(expected / 255)).max() < 0.01
            assert np.abs(linear_to_srgb(linear) * 255 - expected).max() <= 1
        else:
            assert np.abs(loaded.visual.vertex_colors[:, :3] - expected).max() <= 1
        assert (tmp_path / "a" / f"m.{suffix}").read_bytes() == (tmp_path / "b" / f"m.{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), "N, N, N"),
        (np.zeros((4, 4, 5)), "N, N, N"),
        (np.zeros((4, 4, 4), dtype=np.int64), "floating-point"),
        (np.full((4, 4, 4), np.nan), "finite"),
        (np.array([[[object()]]]), "not a voxel file"),
    ],
)
def test_a_wrong_voxel_file_is_a_user_error(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        load_voxels(tmp_path / "v.npy")


def test_a_missing_or_broken_voxel_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no voxel file"):
        load_voxels(tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("not an array")
    with pytest.raises(UserError, match="not a voxel file"):
        load_voxels(tmp_path / "text.npy")


def test_settings_survive_their_file_and_damage_is_named(tmp_path: Path) -> None:
    settings = MeshSettings(0.25, 0.4, None, True)
    settings.save(tmp_path / "s.json")
    assert MeshSettings.load(tmp_path / "s.json") == settings
    for text in ("{", "[]", '{"cube_size": "big"}', '{"unknown": 1}', '{"level": 2}'):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(UserError, match="mesh settings"):
            MeshSettings.load(tmp_path / "s.json")


def colored_ball():
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    mesh.apply_translation([0.03, 0.02, 0])
    left = mesh.vertices[:, 0] < 0.03
    mesh.visual.vertex_colors = np.where(left[:, None], [255, 0, 0, 255], [0, 0, 255, 255])
    return mesh


def check_image_of_the_ball(image: np.ndarray) -> None:
    """From the front: right of and above the middle, its left half red, its right half blue, lit from above left."""
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    solid = (image < 250).any(axis=2)
    rows, columns = np.nonzero(solid)
    scale = 32 / math.tan(math.radians(6))
    assert columns.mean() == pytest.approx(31.5 + 0.03 * scale, abs=1.0)
    assert rows.mean() == pytest.approx(31.5 - 0.02 * scale, abs=1.0)
    assert solid.sum() == pytest.approx(math.pi * (0.05 * scale) ** 2, rel=0.06)
    middle = int(columns.mean())
    red, _, blue = (image[..., c].astype(int) for c in range(3))
    inner = image[..., 1] < 10  # the ball has no green; pixels of its rim, half of them white, have
    assert (red - blue)[:, : middle - 1][inner[:, : middle - 1]].min() > 50
    assert (blue - red)[:, middle + 3 :][inner[:, middle + 3 :]].min() > 50
    row = int(rows.mean())
    assert image[row - 8, middle - 6].max() > image[row + 8, middle - 6].max()


def test_shading_has_no_specks_at_slivers() -> None:
    field = BallsField(((0.0201, -0.0103, 0.0302), 0.07))
    mesh = extract_mesh(voxels_of(field), MeshSettings())
    refine_vertices(mesh, field, BFM, MeshSettings(), 40)
    radial = mesh.vertices - np.array(field.balls[0][0])
    radial /= np.linalg.norm(radial, axis=1, keepdims=True)
    ours, by_angle = (np.arccos((n * radial).sum(axis=1).clip(-1, 1)).max() for n in (smooth_normals(mesh), mesh.vertex_normals))
    assert ours < math.radians(6) and by_angle > math.radians(12)


def test_ray_casting_shows_the_mesh_where_the_camera_sees_it() -> None:
    image = RaycastRenderer("ray casting").render(colored_ball(), pose_matrix(math.pi / 2, math.pi / 2), 12, 64)
    check_image_of_the_ball(image)


def test_pyrender_agrees_with_ray_casting() -> None:
    renderer = open_renderer("auto")
    if not renderer.name.startswith("pyrender"):
        pytest.skip(f"no GL here: {renderer.name}")
    pose = pose_matrix(math.pi / 2, math.pi / 2)
    image = renderer.render(colored_ball(), pose, 12, 64)
    check_image_of_the_ball(image)
    assert np.array_equal(image, renderer.render(colored_ball(), pose, 12, 64))
    for yaw, pitch in ((1.1, 1.4), (2.1, 1.8)):
        pose = pose_matrix(yaw, pitch)
        by_rays = RaycastRenderer("ray casting").render(colored_ball(), pose, 12, 64)
        difference = np.abs(renderer.render(colored_ball(), pose, 12, 64).astype(int) - by_rays)
        assert difference.mean() < 4


def test_without_pyrender_auto_says_so_and_casts_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyrender", None)
    renderer = open_renderer("auto")
    assert isinstance(renderer, RaycastRenderer) and "pyrender does not work here" in renderer.name
    with pytest.raises(UserError, match="--renderer raycast"):
        open_renderer("pyrender")


def test_training_still_works_after_rendering_with_gl() -> None:
    """In a fresh process: GL first, then an optimizer, which makes torch import triton, whose LLVM is not Mesa's."""
    code = (
        "from visualization.mesh_rendering import open_renderer; open_renderer('auto');"
        " import torch; torch.optim.Adam([torch.zeros(1)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_visible_radius_is_the_longer_part_of_a_ray() -> None:
    for start, end in ((0.9, 1.15), (0.85, 1.1)):  # before and behind the origin: not alike
        curriculum = dataclasses.replace(BFM, ray_start=start, ray_end=end, interval_max=0.1)
        assert visible_radius(curriculum) == pytest.approx(0.15 / math.cos(math.radians(6)))
