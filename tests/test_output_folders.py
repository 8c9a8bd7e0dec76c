"""Output folders of one generator each, batches that continue after a bad item, and the published commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cal_weighted_var
import eval_metrics
import extract_shapes
import render_meshimg
import render_multiview_images
import render_video
import render_video_interpolation
import train
from common.errors import UserError
from common.output_folders import GENERATOR_RECORD, claim_folder, output_folder, read_claim
from metrics.registry import METRICS, Evaluation, Metric

CPU = ["--device", "cpu"]


def test_a_folder_holds_the_files_of_one_generator(tmp_path: Path) -> None:
    assert read_claim(tmp_path) is None and claim_folder(tmp_path, "a/heads.safetensors", "01") is None
    assert claim_folder(tmp_path, "b/copy.safetensors", "01") is None  # the same weights in another file
    assert read_claim(tmp_path) == {"generator": "a/heads.safetensors", "sha256": "01"}
    with pytest.raises(UserError, match=r"of the generator a/heads\.safetensors .* not of c/cats\.safetensors; choose"):
        claim_folder(tmp_path, "c/cats.safetensors", "02")
    assert "earlier state of a/heads.safetensors" in claim_folder(tmp_path, "a/heads.safetensors", "03")  # its run went on
    assert read_claim(tmp_path)["sha256"] == "03" and output_folder(tmp_path) == "made by a generator"
    for damaged in ("", "[", "{}", "[1]", '{"generator": 1}'):
        (tmp_path / GENERATOR_RECORD).write_text(damaged)
        assert read_claim(tmp_path) is None


def test_a_folder_of_another_generator_is_rejected(tiny_generator_path: Path, empty_generator_path: Path, tmp_path: Path) -> None:
    arguments = ["--seeds", "0", "--voxel_resolution", "16", *CPU]
    extract_shapes.main([str(tiny_generator_path), *arguments, "--obj", "--output_dir", str(tmp_path / "shapes")])
    before = {path.name: path.read_bytes() for path in (tmp_path / "shapes").iterdir()}
    with pytest.raises(UserError, match=r"shapes holds files of .*/tiny\.safetensors .* not of .*/empty\.safetensors;"):
        extract_shapes.main([str(empty_generator_path), *arguments, "--output_dir", str(tmp_path / "shapes")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "shapes").iterdir()} == before
    extract_shapes.main([str(tiny_generator_path), *arguments, "--psi", "0", "--output_dir", str(tmp_path / "shapes")])
    names = {"0_16_voxel.npy", "0_16.ply", "0_16.glb", "0_16.json", GENERATOR_RECORD}
    assert {path.name for path in (tmp_path / "shapes").iterdir()} == names  # no .obj of the shape at another psi

    images = ["--image_size", "16", "--renderer", "raycast", "--output_dir", str(tmp_path / "images")]
    render_meshimg.main(["--input_dir", str(tmp_path / "shapes"), *images])
    assert read_claim(tmp_path / "images") == read_claim(tmp_path / "shapes")
    claim_folder(tmp_path / "others", "x/other.safetensors", "00")
    np.save(tmp_path / "others" / "0_16_voxel.npy", np.load(tmp_path / "shapes" / "0_16_voxel.npy"))
    with pytest.raises(UserError, match=r"1 of 1 voxel files failed"):
        render_meshimg.main(["--input_dir", str(tmp_path / "others"), *images])


def test_a_damaged_voxel_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ball = (np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 3)), axis=0) < 0.7).astype(np.float32)
    for name in ("0_16", "1_16", "2_16", "3_16", "4_16"):
        np.save(tmp_path / f"{name}_voxel.npy", ball)
    (tmp_path / "1_16_voxel.npy").write_bytes(b"\x93NUMPY damaged")
    np.save(tmp_path / "3_16_voxel.npy", ball[:, :, 0])
    (tmp_path / "4_16.json").write_text('{"cube_size": -1}')
    arguments = ["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "images"), "--image_size", "16"]
    with pytest.raises(
        UserError, match=r"3 of 5 voxel files failed \(.*1_16_voxel\.npy, .*3_16_voxel\.npy, .*4_16_voxel\.npy\); 2 are"
    ):
        render_meshimg.main([*arguments, "--renderer", "raycast"])
    made = {path.name for path in (tmp_path / "images").iterdir()}
    assert {"0_16_views.png", "2_16_views.png", "2_16_mesh.ply"} <= made and not any(
        name.startswith(("1_", "3_")) for name in made
    )
    assert capsys.readouterr().err.count("skipped:") == 3


def test_a_score_that_fails_does_not_lose_the_finished_ones(
    tiny_generator_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(evaluation: Evaluation) -> dict[str, float]:
        raise UserError("these weights are another network's")

    monkeypatch.setitem(METRICS, "refused", Metric(refuse, "always refused"))
    photos = make_photos(tmp_path / "photos")
    arguments = [str(tiny_generator_path), "--dataset_path", str(photos), "--num_images", "4", "--image_size", "16", *CPU]
    arguments += ["--output_json", str(tmp_path / "scores.json"), "--metrics"]
    with pytest.raises(UserError, match=r"1 of 2 scores failed \(refused: these weights .*\); the others are in .*scores\.json"):
        eval_metrics.main([*arguments, "refused", "swd"])
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["metrics"]["swd"] > 0 and record["failed"] == {"refused": "these weights are another network's"}
    (tmp_path / "scores.json").unlink()
    with pytest.raises(UserError, match=r"^these weights are another network's$"):
        eval_metrics.main([*arguments, "refused"])
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--output_json", "{folder}"], "is a folder; name a file in it"),
        (["--output_json", "{file}/x.json"], "cannot write to the output folder"),
        (["--dataset", "Dogs"], "unknown dataset"),
        (["--metrics", "fid", "--num_images", "2"], "too small"),
        (["--dataset_path", "{folder}"], "holds no images"),
    ],
)
def test_invalid_scores_are_rejected_before_any_image_is_rendered(
    tiny_generator_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("an image was made")

    monkeypatch.setattr(eval_metrics, "generated_images", never)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    changes = [part.replace("{folder}", str(tmp_path / "folder")).replace("{file}", str(tmp_path / "file")) for part in changes]
    photos = make_photos(tmp_path / "photos")
    arguments = ["--dataset_path", str(photos), "--metrics", "swd", "--output_json", str(tmp_path / "x.json"), *CPU]
    with pytest.raises(UserError, match=message):
        eval_metrics.main([str(tiny_generator_path), *arguments, *changes])


def make_photos(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# -- the published commands ----------------------------------------------------------------------------------------------


def test_shapes_of_a_published_file_alone(published_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the published README: without a curriculum, and without options.txt next to the file."""
    path = published_files / "whole_module" / "generator.pth"
    extract_shapes.main([str(path), "--seeds", "0", "1", "--voxel_resolution", "24", "--output_dir", str(tmp_path), *CPU])
    notes = capsys.readouterr().err
    assert "does not name its curriculum: network inferred from the file" in notes and "the mesh is not clipped" in notes
    voxels = np.load(tmp_path / "0_24_voxel.npy")
    assert voxels.shape == (24, 24, 24) and voxels.max() > 0.9 and (tmp_path / "1_24.ply").exists()
    named = ["--curriculum", "BFM", "--output_dir", str(tmp_path / "named")]
    extract_shapes.main([str(path), "--seeds", "0", "--voxel_resolution", "24", *named, *CPU])
    assert np.array_equal(voxels, np.load(tmp_path / "named" / "0_24_voxel.npy"))  # they need no camera
    with pytest.raises(UserError, match=r"pass --curriculum NAME, or put its options\.txt next to it"):
        render_video.main([str(path), "--output_dir", str(tmp_path / "video")])


def test_the_published_commands(published_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As published, including options about memory; only sizes and counts are smaller."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOF_CACHE", str(tmp_path / "cache"))
    path, small = str(published_files / "generator.pth"), ["--image_size", "8", "--ray_step_multiplier", "1", *CPU]
    named = ["--curriculum", "BFM"]
    old = ["--max_batch_size", "2400000"]
    render_multiview_images.main([path, *named, "--seeds_start", "0", "--seeds_end", "1", "--lock_view_dependence", *old, *small])
    render_video.main([path, *named, "--seed", "0", "--batch_size", "1", *old, "--num_frames", "2", *small])
    walk = ["--seeds", "0", "1", "--trajectory", "front", "--psi", "0.7", "--depth_map", "--batch_size", "1", "--num_frames", "1"]
    render_video_interpolation.main([path, *named, *walk, *old, *small, "--quantities", "image"])
    cal_weighted_var.main([path, *named, "--seeds_start", "0", "--seeds_end", "1", *old, "--image_size", "8", *CPU])
    photos = make_photos(tmp_path / "real")
    scores = ["--real_image_dir", str(photos), "--num_images", "4", "--image_size", "16", "--metrics", "swd"]
    eval_metrics.main([path, *named, *scores, *CPU])
    told = capsys.readouterr().err
    assert told.count("--max_batch_size has no effect") == 4 and told.count("--batch_size has no effect") == 2
    assert Path("vids/interpolation_0_1_front_depth.mp4").stat().st_size and Path("imgs/grid_0.png").stat().st_size
    command = "--curriculum CelebA --output_dir out --load_dir weights --load_dict --set_step 2000 --n_epochs 3000"
    command += " --sample_interval 1000 --model_save_interval 2000 --eval_freq 0 --use_logger --port 12355"
    assert train.parse_arguments(command.split()).set_step == 2000
