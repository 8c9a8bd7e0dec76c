"""The rendering scripts, most run once as by a user, and in more detail in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import extract_shapes
import render_meshimg
import render_multiview_images
import render_video
import render_video_interpolation
from checkpoints.loading import load_generator
from common.errors import UserError
from visualization.images import QUANTITIES

SMALL = ["--image_size", "16", "--ray_step_multiplier", "1", "--device", "cpu"]
GENERATOR_SCRIPTS = {
    "multiview": render_multiview_images.main,
    "video": render_video.main,
    "interpolation": render_video_interpolation.main,
    "shapes": extract_shapes.main,
}
Script = Callable[[list[str]], None]


def run_script(repo: Path, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, name, *map(str, arguments)]
    return subprocess.run(
        command, cwd=repo, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_raw(path: Path, seed: int, size: int) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        raw = dict(content)
    shapes = {name: (3, size, size) for name in ("image", "normals", "surface_image")}
    shapes |= {name: (size, size) for name in ("depth", "depth_over_far", "surface_depth", "hit_mask")}
    assert set(raw) == {*shapes, "yaw", "pitch", "seed"}
    for name, shape in shapes.items():
        assert raw[name].shape == shape
        assert raw[name].dtype == (bool if name == "hit_mask" else np.float32)
        assert np.isfinite(raw[name]).all()
    for name in ("image", "normals", "surface_image"):
        assert np.abs(raw[name]).max() <= 1 + 1e-5
    assert int(raw["seed"]) == seed
    return raw


# -- each script, as a user runs it ------------------------------------------------------------------------------------


def test_multiview_images(repo: Path, tiny_generator_path: Path, tmp_path: Path) -> None:
    arguments = [tiny_generator_path, "--seeds_start", 3, "--seeds_end", 5, "--image_size", 24, "--save_raw", "--device", "cpu"]
    done = run_script(repo, "render_multiview_images.py", *arguments, "--output_dir", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    expected = {f"{quantity}_{seed}_{i}.png" for quantity in QUANTITIES for seed in (3, 4) for i in range(5)}
    expected |= {f"raw_{seed}_{i}.npz" for seed in (3, 4) for i in range(5)} | {"grid_3.png", "grid_4.png", "generator.json"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == expected
    assert Image.open(tmp_path / "a" / "grid_3.png").size == (5 * 26 - 2, len(QUANTITIES) * 26 - 2)
    for i, offset in enumerate((-0.5, -0.25, 0, 0.25, 0.5)):
        raw = check_raw(tmp_path / "a" / f"raw_4_{i}.npz", seed=4, size=24)
        assert raw["yaw"] == pytest.approx(np.pi / 2 + offset, abs=1e-6) and raw["pitch"] == pytest.approx(np.pi / 2, abs=1e-6)
        # the ball of radius 0.07 at the middle of an image 2 tan(6 deg) wide
        assert raw["hit_mask"].mean() == pytest.approx(np.pi * 0.07**2 / 0.2102**2, rel=0.15)
        assert raw["surface_depth"][12, 12] == pytest.approx(0.93, abs=0.01)
    # in another process, the same bytes
    render_multiview_images.main([*map(str, arguments), "--output_dir", str(tmp_path / "b")])
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_video(repo: Path, tiny_generator_path: Path, tmp_path: Path) -> None:
    arguments = [tiny_generator_path, "--seed", 2, "--num_frames", 4, *SMALL, "--save_raw"]
    done = run_script(repo, "render_video.py", *arguments, "--output_dir", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "a").iterdir()}
    videos = {"2.mp4", "2_depth.mp4", "2_normals.mp4"}
    raws = {f"raw_2_{i}.npz" for i in range(4)}
    assert names == videos | {f"{name[:-4]}_frames" for name in videos} | raws | {"generator.json"}
    assert len(list((tmp_path / "a" / "2_frames").iterdir())) == 4
    yaws = [float(check_raw(tmp_path / "a" / f"raw_2_{i}.npz", 2, 16)["yaw"]) for i in range(4)]
    assert yaws == pytest.approx([np.pi / 2 + offset for offset in (0.5, 0, -0.5, 0)], abs=1e-6)
    render_video.main([*map(str, arguments), "--output_dir", str(tmp_path / "b")])
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_video_interpolation(tiny_generator_path: Path, tmp_path: Path) -> None:
    arguments = ["--seeds", 5, 1, "--num_frames", 2, "--trajectory", "orbit", "--quantities", "image", "--save_raw"]
    arguments = [str(tiny_generator_path), *map(str, arguments), *SMALL, "--output_dir", str(tmp_path / "out")]
    render_video_interpolation.main(arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("interpolation_5_1_orbit.mp4", "interpolation_5_1_orbit_frames", "generator.json"),
        *("raw_5_0.npz", "raw_5_1.npz", "raw_1_2.npz", "raw_1_3.npz"),
    }
    assert float(check_raw(tmp_path / "out" / "raw_1_2.npz", 1, 16)["yaw"]) == pytest.approx(np.pi, abs=1e-6)


def test_shapes_and_their_images(repo: Path, tiny_generator_path: Path, tmp_path: Path) -> None:
    import trimesh

    shapes = tmp_path / "shapes"
    arguments = ["--seeds", 0, 7, "--voxel_resolution", 32, "--obj", "--largest_piece", "--device", "cpu"]
    done = run_script(repo, "extract_shapes.py", tiny_generator_path, *arguments, "--output_dir", shapes)
    assert done.returncode == 0, done.stderr
    endings = ("_voxel.npy", ".json", ".ply", ".glb", ".obj")
    names = {f"{seed}_32{ending}" for seed in (0, 7) for ending in endings}
    assert {path.name for path in shapes.iterdir()} == {*names, "generator.json"}
    check_voxels_are_the_field(shapes / "7_32_voxel.npy", tiny_generator_path, seed=7)
    for ending in ("ply", "glb", "obj"):
        mesh = trimesh.load(shapes / f"7_32.{ending}", force="mesh")
        assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * 0.07**3, rel=0.15)
        assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(0.07, abs=0.006)
        if ending == "glb":
            (mesh,) = trimesh.load(shapes / "7_32.glb").geometry.values()
            colors = mesh.visual.vertex_attributes["color"] / 257
        else:
            colors = mesh.visual.vertex_colors
        assert np.ptp(colors[:, :3], axis=0).max() > 30
    extract_shapes.main([str(tiny_generator_path), *map(str, arguments), "--output_dir", str(tmp_path / "again")])
    assert files_of(shapes) == files_of(tmp_path / "again")

    # without any GL: EGL requested on a platform for which PyOpenGL has no driver
    done = run_script(
        *(repo, "render_meshimg.py", "--input_dir", shapes, "--output_dir", tmp_path / "images", "--image_size", 64),
        PYOPENGL_PLATFORM="nothing",
    )
    assert done.returncode == 0, done.stderr
    assert "rendering with ray casting, as pyrender does not work here" in done.stdout
    names = [*(f"{stem}_{i}.png" for stem in ("0_32", "7_32") for i in range(5))]
    names += [f"{stem}_{ending}" for stem in ("0_32", "7_32") for ending in ("mesh.ply", "views.png")]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {*names, "generator.json"}
    image = np.array(Image.open(tmp_path / "images" / "7_32_2.png"))
    assert (image < 250).any(axis=2).mean() == pytest.approx(np.pi * 0.07**2 / 0.2102**2, rel=0.15)


def check_voxels_are_the_field(path: Path, generator_path: Path, seed: int) -> None:
    """At a few voxels: the issue's coordinates, the latent of torch.manual_seed(seed), psi 0.7."""
    voxels = np.load(path)
    assert voxels.dtype == np.float32 and voxels.shape == (32, 32, 32)
    generator = load_generator(generator_path).generator
    torch.manual_seed(seed)
    z = torch.randn(1, generator.curriculum.latent_dim)
    index = torch.tensor([[0, 0, 0], [31, 0, 5], [13, 16, 20], [16, 16, 16], [10, 22, 16]])
    points = -0.15 + index * (0.3 / 31)
    with torch.no_grad():
        logits = generator.field_of_latents(z, 0.7).occupancy_logits(points.unsqueeze(0))[0]
    assert voxels[tuple(index.T.numpy())] == pytest.approx(torch.sigmoid(logits).numpy(), abs=1e-4)


def test_meshimg_reads_published_voxels_and_colored_meshes(tiny_generator_path: Path, tmp_path: Path, capsys) -> None:
    """Voxels without the files beside them; and --mesh_colors with them."""
    shapes = tmp_path / "shapes"
    extract_shapes.main([str(tiny_generator_path), "--seeds", "0", "--voxel_resolution", "32", "--output_dir", str(shapes)])
    alone = tmp_path / "alone_voxel.npy"
    alone.write_bytes((shapes / "0_32_voxel.npy").read_bytes())
    common = ["--output_dir", str(tmp_path), "--image_size", "32", "--renderer", "raycast"]
    render_meshimg.main([str(alone), *common])
    gray = [np.array(Image.open(tmp_path / f"alone_{view}.png")).astype(int) for view in range(5)]
    assert (gray[2] < 250).any() and np.ptp(gray, axis=-1).max() < 12
    render_meshimg.main([str(shapes / "0_32_voxel.npy"), *common, "--mesh_colors"])
    colored = [np.array(Image.open(tmp_path / f"0_32_{view}.png")).astype(int) for view in range(5)]
    assert np.ptp(colored, axis=-1).max() > 1.5 * np.ptp(gray, axis=-1).max()  # the test ball's colors are faint
    with pytest.raises(UserError, match=r"there is no mesh .*alone\.ply"):
        render_meshimg.main([str(alone), *common, "--mesh_colors"])
    assert "rendering with ray casting" in capsys.readouterr().out


# -- no surface ----------------------------------------------------------------------------------------------------------


def test_images_of_a_field_without_a_surface(empty_generator_path: Path, tmp_path: Path) -> None:
    path = str(empty_generator_path)
    render_multiview_images.main([path, "--seeds_end", "1", *SMALL, "--save_raw", "--output_dir", str(tmp_path)])
    raw = check_raw(tmp_path / "raw_0_2.npz", seed=0, size=16)
    assert not raw["hit_mask"].any() and (raw["normals"] == 0).all()
    assert (np.array(Image.open(tmp_path / "mask_0_2.png")) == 0).all()
    render_video.main([path, "--num_frames", "2", *SMALL, "--output_dir", str(tmp_path)])
    render_video_interpolation.main([path, "--seeds", "0", "1", "--num_frames", "1", *SMALL, "--output_dir", str(tmp_path)])
    assert (tmp_path / "0.mp4").stat().st_size > 0 and (tmp_path / "interpolation_0_1_front.mp4").stat().st_size > 0


def test_shapes_without_a_surface(empty_generator_path: Path, tmp_path: Path, capsys) -> None:
    stale = tmp_path / "4_16.ply"
    stale.touch()
    with pytest.raises(UserError, match="no seed of 4 5 has a surface"):
        extract_shapes.main(
            [str(empty_generator_path), "--seeds", "4", "5", "--voxel_resolution", "16", "--output_dir", str(tmp_path)]
        )
    assert "seed 4: no surface at level 0.5 inside the cube" in capsys.readouterr().err
    assert (tmp_path / "4_16_voxel.npy").exists() and (tmp_path / "5_16_voxel.npy").exists() and not stale.exists()
    with pytest.raises(UserError, match="none of the 2 voxel files has a surface"):
        render_meshimg.main(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path), "--renderer", "raycast"])


# -- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", GENERATOR_SCRIPTS.values(), ids=GENERATOR_SCRIPTS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--curriculum", "BMF"], "unknown curriculum 'BMF'"),
        (["--curriculum", "BFM"], "tiny"),  # another network than the file's
        (["--device", "abacus"], "abacus"),
        (["--output_dir", "{file}/inside"], "cannot write to the output folder"),
    ],
)
def test_user_errors(script: Script, arguments: list[str], message: str, tiny_generator_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = [argument.replace("{file}", str(tmp_path / "file")) for argument in arguments]
    with pytest.raises(UserError, match=message):
        script([str(tiny_generator_path), "--output_dir", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize("script", GENERATOR_SCRIPTS.values(), ids=GENERATOR_SCRIPTS)
def test_a_missing_generator_is_named(script: Script, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        script([str(tmp_path / "nowhere.safetensors"), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("multiview", ["--seeds_start", "-1"], "must be between 0"),
        ("multiview", ["--image_size", "0"], "at least 1"),
        ("multiview", ["--psi", "nan"], "finite"),
        ("multiview", ["--ray_step_multiplier", "1.5"], "not a whole number"),
        ("video", ["--seed", "two"], "not a seed"),
        ("video", ["--seed", str(2**63)], "must be between 0"),
        ("video", ["--num_frames", "0"], "at least 1"),
        ("video", ["--fps", "0"], "greater than 0"),
        ("interpolation", ["--seeds"], "expected at least one argument"),
        ("interpolation", ["--trajectory", "spiral"], "invalid choice"),
        ("shapes", ["--seeds", "0", "one"], "'one' is not a seed"),
        ("shapes", ["--voxel_resolution", "1"], "at least 2"),
        ("shapes", ["--cube_size", "-1"], "greater than 0"),
        ("shapes", ["--level", "1"], "between 0 and 1"),
    ],
)
def test_arguments_out_of_range(script: str, arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        GENERATOR_SCRIPTS[script](["any.safetensors", *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and len(error.strip().splitlines()) == 1


def test_an_empty_range_of_seeds(tiny_generator_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seeds_end must be greater"):
        render_multiview_images.main([str(tiny_generator_path), "--seeds_start", "5", "--seeds_end", "5"])


def test_meshimg_without_voxels(tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match="no voxel files"):
        render_meshimg.main(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match="there is no voxel file"):
        render_meshimg.main([str(tmp_path / "none_voxel.npy"), "--output_dir", str(tmp_path), "--renderer", "raycast"])
    with pytest.raises(SystemExit):
        render_meshimg.main(["--fov", "180"])
    assert "--fov must be below 180" in capsys.readouterr().err
