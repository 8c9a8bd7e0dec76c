"""The built-in heads: exact geometry, determinism, and a set on disk that is never overwritten."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from dataset import ImageDataset
from generators.cameras import CameraPoses, camera_rays
from heads.parameters import RANGES, STYLES, HeadParameters, head_generator
from heads.sdf import BALL_RADIUS, HEAD_UNIT, smooth_max, smooth_min
from settings.registry import get_curriculum
from tools.synthetic_heads import generate, head_poses, head_sdf, main, render_heads, sample_heads

SYNTH = get_curriculum("SYNTH")
SIZE = 32


@pytest.fixture(scope="module")
def scene() -> tuple:
    """(parameters, poses, images) of eight heads."""
    params, poses = sample_heads(range(8), 0), head_poses(range(8), 0, SYNTH)
    return params, poses, render_heads(params, poses, SIZE, SYNTH.fov)


def surface_points(poses: CameraPoses, depth: torch.Tensor) -> torch.Tensor:
    rays = camera_rays(poses, depth.shape[-1], SYNTH.fov)
    return rays.origins + rays.directions * depth.flatten(1).unsqueeze(-1)


def in_float64(params: HeadParameters) -> HeadParameters:
    return replace(params, traits={name: value.double() for name, value in params.traits.items()})


def test_depth_lies_on_the_surface_and_nothing_lies_before_it(scene) -> None:
    params, poses, heads = scene
    mask = heads.mask.flatten(1)
    on = head_sdf(params, surface_points(poses, heads.depth))
    assert on[mask].abs().max() < 5e-5
    # brute force: 400 steps along each ray from the near end to just before the depth found
    far = torch.where(mask, heads.depth.flatten(1), torch.tensor(1.12))
    for i in range(8):
        fractions = torch.linspace(0, 1, 400)
        t = 0.88 + (far[i : i + 1, :, None] - 6e-4 - 0.88) * fractions
        rays = camera_rays(CameraPoses(poses.pitch[i : i + 1], poses.yaw[i : i + 1]), SIZE, SYNTH.fov)
        points = (rays.origins[:, :, None] + rays.directions[:, :, None] * t.unsqueeze(-1)).reshape(1, -1, 3)
        before = head_sdf(params[i : i + 1], points).view(SIZE * SIZE, 400)
        # slivers thinner than a thirtieth of a pixel may be passed through
        assert before.min() > -1e-4


def test_normals_are_the_distance_gradient_unit_and_toward_the_camera(scene) -> None:
    params, poses, heads = scene
    points = surface_points(poses, heads.depth).double()
    exact = in_float64(params)
    h = 1e-6  # in float64: the exact gradient but at creases
    gradient = [head_sdf(exact, points + step) - head_sdf(exact, points - step) for step in h * torch.eye(3).double()]
    expected = torch.nn.functional.normalize(torch.stack(gradient, dim=-1), dim=-1)
    mask = heads.mask.flatten(1)
    normals = heads.normals.flatten(2).transpose(1, 2)
    cosine = (normals * expected).sum(-1)[mask]
    assert cosine.median() > 0.9999 and (cosine > 0.99).float().mean() > 0.98  # creases are where the rest is
    assert torch.allclose(normals[mask].norm(dim=-1), torch.ones(int(mask.sum())), atol=1e-4)
    directions = camera_rays(poses, SIZE, SYNTH.fov).directions
    assert ((normals * directions).sum(-1)[mask] < 0.1).float().mean() > 0.995


def test_pixels_outside_the_mask_are_black_and_empty(scene) -> None:
    _, _, heads = scene
    assert heads.images.shape == (8, 3, SIZE, SIZE) and heads.images.min() == -1 and heads.images.max() <= 1
    assert (heads.depth[~heads.mask] == 0).all() and (heads.normals.transpose(0, 1)[:, ~heads.mask] == 0).all()
    around = torch.nn.functional.max_pool2d(heads.mask.float().unsqueeze(1), 3, 1, 1).squeeze(1) > 0
    assert (heads.images.transpose(0, 1)[:, ~around] == -1).all()
    inside = torch.nn.functional.avg_pool2d(heads.mask.float().unsqueeze(1), 3, 1, 1).squeeze(1) > 0.99
    assert heads.images.amax(1)[inside].min() > -0.95  # no part of a head is as dark as the background
    assert (heads.alpha[~around] == 0).all() and (heads.alpha[inside] == 1).all()
    assert set(heads.alpha.unique().tolist()) == {0, 0.25, 0.5, 0.75, 1}


def test_heads_fill_the_image_and_stay_in_the_ball() -> None:
    params = sample_heads(range(48), 3)
    shell = torch.nn.functional.normalize(torch.randn(48, 2000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert (head_sdf(params, shell * (BALL_RADIUS + 0.01) * HEAD_UNIT) > 0).all()
    assert (BALL_RADIUS + 0.02) * HEAD_UNIT < 0.12  # inside t in [0.88, 1.12] from a camera at distance 1
    assert (head_sdf(params, torch.zeros(48, 1, 3)) < -0.02).all()
    front = CameraPoses(torch.full((48,), math.pi / 2), torch.full((48,), math.pi / 2))
    mask = render_heads(params, front, SIZE).mask
    assert mask.float().mean((1, 2)).min() > 0.22 and mask.float().mean((1, 2)).max() < 0.75
    assert not mask[:, 0].any() and not mask[:, :, 0].any() and not mask[:, :, -1].any()  # the top and the sides are free


def test_the_face_looks_along_z_with_two_eyes_in_a_mirrored_face() -> None:
    bald = [i for i in range(40) if STYLES[sample_heads([i], 0).style[0]] == "bald"][:2]
    params = sample_heads(bald, 0)
    front = CameraPoses(torch.full((2,), math.pi / 2), torch.full((2,), math.pi / 2))
    heads = render_heads(params, front, 64)
    assert torch.allclose(heads.depth, heads.depth.flip(-1), atol=2e-3)  # no parting in a bald head: mirrored
    middle = heads.depth[:, :, 31:33].mean(-1)
    nose_row = torch.where(middle > 0, middle, 9.0).argmin(1)
    assert ((nose_row > 28) & (nose_row < 46)).all()  # the nose is nearest, in the middle of the face
    whites = (heads.images.amin(1) > 0.3) & (heads.images.amax(1) - heads.images.amin(1) < 0.3)
    assert (whites[:, 20:36, :32].sum((1, 2)) >= 3).all() and (whites[:, 20:36, 32:].sum((1, 2)) >= 3).all()


def test_the_light_is_fixed_in_the_world() -> None:
    """A point on the cheek keeps its color when the camera moves, except for a faint highlight."""
    params = sample_heads([5], 0)
    yaws = torch.tensor([math.pi / 2 - 0.2, math.pi / 2 + 0.2])
    views = [render_heads(params, CameraPoses(torch.tensor([math.pi / 2]), yaw[None]), 128) for yaw in yaws]
    point = torch.tensor([0.0, 0.032, 0.0])  # up the forehead, wherever the surface is
    seen = []
    for yaw, view in zip(yaws, views, strict=True):
        surface = surface_points(CameraPoses(torch.tensor([math.pi / 2]), yaw[None]), view.depth)[0]
        near = (surface[:, :2] - point[:2]).norm(dim=-1) + (surface[:, 2] < 0) + ~view.mask.flatten()
        seen.append(view.images[0].flatten(1)[:, near.argmin()])
    assert (seen[0] - seen[1]).abs().max() < 0.12


def test_same_seed_same_bits_whatever_the_batch(scene) -> None:
    params, _, heads = scene
    for indices in ([5], [7, 5, 0]):
        picked = render_heads(sample_heads(indices, 0), head_poses(indices, 0, SYNTH), SIZE, SYNTH.fov)
        row = indices.index(5)
        for name, value in picked._asdict().items():
            assert torch.equal(value[row], getattr(heads, name)[5]), name
    other = sample_heads([5], 1)
    assert not torch.equal(other.skin, params[5:6].skin)
    assert len({head_generator(0, i).initial_seed() for i in range(5000)}) == 5000


def test_heads_are_varied() -> None:
    params = sample_heads(range(400), 0)
    assert (torch.bincount(params.style, minlength=len(STYLES)) > 15).all()
    for name, (low, high) in RANGES.items():
        values = params.traits[name]
        if name != "curtain_length":  # a bob cuts it
            assert values.min() >= low and values.max() <= high and values.std() > 0.2 * (high - low)
    assert params.skin.mean(1).min() < 0.4 and params.skin.mean(1).max() > 0.75


def test_smooth_union_is_min_away_from_the_seam_and_rounds_it() -> None:
    a, b = torch.tensor([0.0, 1.0, 0.1]), torch.tensor([1.0, 0.0, 0.1])
    assert torch.allclose(smooth_min(a, b, 0.2), torch.tensor([0.0, 0.0, 0.1 - 0.05]))
    assert torch.allclose(smooth_max(a, b, 0.2), torch.tensor([1.0, 1.0, 0.1 + 0.05]))


def test_head_sdf_rejects_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"points must be \(2, N, 3\)"):
        head_sdf(sample_heads([0, 1]), torch.zeros(5, 3))


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_set_on_disk_is_complete_resumable_extendable_and_never_overwritten(tmp_path: Path) -> None:
    assert generate(tmp_path / "a", 6, 16, num_workers=1) == 6
    whole = digest(tmp_path / "a")
    assert len(whole) == 13
    assert generate(tmp_path / "a", 6, 16, num_workers=1) == 0
    # a smaller set is the beginning of a larger one, and can be extended to it
    assert generate(tmp_path / "b", 2, 16, num_workers=1) == 2
    small = digest(tmp_path / "b")
    assert all(whole[name] == small[name] for name in small if name != "meta.json")
    assert generate(tmp_path / "b", 6, 16, num_workers=1) == 4
    assert digest(tmp_path / "b") == whole
    # interrupted: some files are missing
    (tmp_path / "b" / "images" / "000004.png").unlink()
    (tmp_path / "b" / "ground_truth" / "000001.npz").unlink()
    assert generate(tmp_path / "b", 6, 16, num_workers=1) == 2
    assert digest(tmp_path / "b") == whole
    for other in ({"seed": 1}, {"image_size": 17}, {"num_images": 3}, {"curriculum": get_curriculum("BFM")}):
        settings = {"num_images": 6, "image_size": 16, "num_workers": 1, **other}
        with pytest.raises(UserError, match="already holds another set"):
            generate(tmp_path / "a", **settings)
    assert digest(tmp_path / "a") == whole
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path / "c", 2, 16)
    assert digest(tmp_path / "c") == {"thesis.txt": b"mine"}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "meta.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        generate(tmp_path / "d", 2, 16)


def test_files_hold_what_is_documented_and_load_as_a_data_set(tmp_path: Path) -> None:
    generate(tmp_path / "set", 3, 16, seed=4, num_workers=1)
    poses = head_poses(range(3), 4, SYNTH)
    heads = render_heads(sample_heads(range(3), 4), poses, 16, SYNTH.fov)
    with np.load(tmp_path / "set" / "ground_truth" / "000002.npz", allow_pickle=False) as truth:
        assert {name: (truth[name].shape, truth[name].dtype.name) for name in truth} == {
            "depth": ((16, 16), "float32"),
            "normals": ((3, 16, 16), "float32"),
            "mask": ((16, 16), "bool"),
            "yaw": ((), "float32"),
            "pitch": ((), "float32"),
        }
        assert np.array_equal(truth["depth"], heads.depth[2].numpy()) and truth["yaw"] == poses.yaw[2].numpy()
    with Image.open(tmp_path / "set" / "images" / "000002.png") as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.allclose(pixels[3], heads.alpha[2], atol=0.5 / 255 + 1e-6)
    opaque, colors = pixels[3] == 1, (heads.images[2] + 1) / 2
    assert torch.allclose(pixels[:3, opaque], colors[:, opaque], atol=0.5 / 255 + 1e-6)
    assert torch.allclose(pixels[:3] * pixels[3], colors, atol=1 / 255 + 1e-6)
    meta = json.loads((tmp_path / "set" / "meta.json").read_text())
    assert meta["num_images"] == 3 and meta["camera"]["fov"] == 12.0
    for place in ("set", "set/images"):
        assert len(ImageDataset(tmp_path / place, 16, preset="Heads", cache_dir=None)) == 3


def test_poses_follow_the_curriculum() -> None:
    poses = head_poses(range(300), 0, SYNTH)
    yaw, pitch = poses.yaw - math.pi / 2, poses.pitch - math.pi / 2
    assert 0.6 < yaw.abs().max() <= 0.7 and 0.2 < pitch.abs().max() <= 0.25
    assert abs(yaw.mean()) < 0.08 and abs(pitch.mean()) < 0.03
    assert not torch.equal(poses.yaw, head_poses(range(300), 1, SYNTH).yaw)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        main(["--output_dir", str(tmp_path / "set"), *arguments])
        return capsys.readouterr().out

    # two processes, several blocks
    assert "70 heads" in run("--num_images", "70", "--image_size", "8", "--num_workers", "2")
    assert len(list((tmp_path / "set" / "images").glob("*.png"))) == 70
    generate(tmp_path / "alone", 34, 8, num_workers=1)
    made, alone = digest(tmp_path / "set"), digest(tmp_path / "alone")
    assert all(made[name] == alone[name] for name in alone if name != "meta.json")
    assert "nothing to do" in run("--num_images", "70", "--image_size", "8")
    for bad, word in (
        (("--seed", "1"), "another set"),
        (("--curriculum", "NOPE"), "NOPE"),
        (("--num_images", "0"), "num_images"),
    ):
        with pytest.raises(UserError, match=word):
            run(*bad)
