"""Tensors to images and videos: values, colors, files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from generators.views import View
from visualization.images import QUANTITIES, depth_image, from_uint8, image_grid, save_image, to_uint8, view_image
from visualization.videos import VideoWriter


def make_view(size: int = 4) -> View:
    hit_mask = torch.zeros(size, size, dtype=torch.bool)
    hit_mask[0] = True
    normals = torch.zeros(3, size, size)
    normals[2, 0] = 1
    return View(
        image=torch.full((3, size, size), -0.5),
        depth=torch.full((size, size), 1.0),
        depth_over_far=torch.full((size, size), 1.1),
        surface_depth=torch.full((size, size), 0.9),
        hit_mask=hit_mask,
        normals=normals,
        surface_image=torch.full((3, size, size), -1.0),
        yaw=1.5,
        pitch=1.6,
    )


def test_uint8_rounds_and_clamps() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 1, 5)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_all_uint8_values_survive_a_round_trip() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(to_uint8(from_uint8(pixels)), pixels)


def test_nearer_is_brighter_and_the_range_is_clamped() -> None:
    depth = torch.linspace(0.8, 1.2, 41).unsqueeze(0)
    lightness = depth_image(depth, 0.9, 1.1).mean(dim=0)[0]
    inside = lightness[10:31]
    assert (inside[1:] < inside[:-1]).all()
    assert torch.allclose(lightness[:10], lightness[10])
    assert torch.allclose(lightness[31:], lightness[30])


def test_colors_of_a_view() -> None:
    images = {quantity: view_image(make_view(), quantity, 0.88, 1.12) for quantity in QUANTITIES}
    assert all(image.shape == (3, 4, 4) for image in images.values())
    assert images["mask"][0, :, 0].tolist() == [1, -1, -1, -1]
    assert to_uint8(images["normals"])[0, 0].tolist() == [128, 128, 255]
    for quantity in ("normals", "surface_image", "surface_depth"):
        assert (images[quantity][:, 1:] == 1).all(), f"{quantity} must be white without a surface"
        assert (images[quantity][:, 0] < 1).any()
    assert (images["image"] == -0.5).all()


def test_an_unknown_quantity_is_named() -> None:
    with pytest.raises(ValueError, match="color"):
        view_image(make_view(), "color", 0.88, 1.12)


def test_grid_puts_each_image_in_its_place() -> None:
    def flat(value: float) -> torch.Tensor:
        return torch.full((3, 2, 2), value)

    grid = image_grid([[flat(-1.0), flat(-0.5)], [flat(0.0)]], padding=1)
    assert grid.shape == (3, 5, 5)
    assert grid[0, :, 0].tolist() == [-1, -1, 1, 0, 0]
    assert grid[0, 0].tolist() == [-1, -1, 1, -0.5, -0.5]
    assert (grid[:, 3:, 3:] == 1).all()


def test_an_image_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_image(tmp_path / "file" / "a.png", torch.zeros(3, 2, 2))


def test_a_full_disk_leaves_the_old_image_and_no_partial_file(small_disk: Path) -> None:
    noise = torch.rand(3, 1024, 1024) * 2 - 1  # 3 MB as PNG
    save_image(small_disk / "a.png", torch.zeros(3, 8, 8))
    before = (small_disk / "a.png").read_bytes()
    with pytest.raises(UserError, match=r"a\.png: No space left"):
        save_image(small_disk / "a.png", noise)
    assert (small_disk / "a.png").read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["a.png"]


def write_video(path: Path, num_frames: int, size: tuple[int, int] = (33, 48)) -> None:
    with VideoWriter(path, fps=12) as video:
        for i in range(num_frames):
            video.add(torch.linspace(-1, 1, size[1]).expand(3, *size).roll(i, dims=2))


def probe(path: Path) -> str:
    import imageio_ffmpeg

    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr


def test_video_is_h264_yuv420p_of_even_size_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_video(tmp_path / folder / "v.mp4", 5)
    text = probe(tmp_path / "a" / "v.mp4")
    assert "h264" in text and "yuv420p" in text and "48x34" in text and "12 fps" in text
    assert (tmp_path / "a" / "v.mp4").read_bytes() == (tmp_path / "b" / "v.mp4").read_bytes()
    frames = sorted((tmp_path / "a" / "v_frames").iterdir())
    assert [frame.name for frame in frames] == [f"{i:03d}.png" for i in range(5)]
    assert Image.open(frames[0]).size == (48, 33)


def test_video_shows_the_frames(tmp_path: Path) -> None:
    import imageio_ffmpeg

    write_video(tmp_path / "v.mp4", 3, size=(32, 48))
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "v.mp4"))
    assert next(reader)["size"] == (48, 32)
    decoded = [np.frombuffer(frame, np.uint8).reshape(32, 48, 3) for frame in reader]
    assert len(decoded) == 3
    for i, frame in enumerate(decoded):
        exact = np.array(Image.open(tmp_path / "v_frames" / f"{i:03d}.png"))
        assert np.abs(frame.astype(int) - exact).mean() < 4


def test_a_shorter_video_leaves_no_frames_of_the_longer_one(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 4)
    write_video(tmp_path / "v.mp4", 2)
    assert len(list((tmp_path / "v_frames").iterdir())) == 2


SWALLOWS = """#!/bin/sh
# An encoder on a full disk: reads its input, leaves a stump, and {ending}.
cat >/dev/null
for last; do :; done
[ "$last" = - ] || printf 'nohead' >"$last"
exit {status}
"""


@pytest.mark.parametrize(("status", "words"), [(1, "failed"), (0, "0 of 2 frames")])
def test_an_encoder_that_fails_leaves_the_old_video_and_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    write_video(tmp_path / "v.mp4", 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    encoder = tmp_path.parent / f"{tmp_path.name}_encoder.sh"
    encoder.write_text(SWALLOWS.format(ending="ends", status=status))
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    with pytest.raises(UserError, match=words):
        write_video(tmp_path / "v.mp4", 2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".v*"))


def test_a_failed_video_leaves_the_old_one(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 2)
    before = (tmp_path / "v.mp4").read_bytes()
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(tmp_path / "v.mp4") as video:
        video.add(torch.zeros(3, 8, 8))
        raise RuntimeError("stop")
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert not list(tmp_path.glob(".v*"))
