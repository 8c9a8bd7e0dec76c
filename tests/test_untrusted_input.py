"""Minimal cases of the defects found by fuzzing (tests/fuzz), which now give a value or a one-line error."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import signal
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import render_meshimg
from checkpoints.files import read_inference
from checkpoints.loading import load_generator
from checkpoints.published import read_options_curriculum
from checkpoints.torch_files import read_torch_file
from common.errors import UserError
from common.files import write_atomically
from common.program import run_script
from dataset import DATASETS, ImageDataset
from loading.files import decode, find_images, open_member
from metrics.fidelity import read_state_dict
from metrics.truth import camera_fov, find_truth
from settings.registry import CURRICULUMS, get_curriculum
from tools.report import main
from visualization.images import depth_image
from visualization.meshes import MeshSettings, load_mesh, load_voxels


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Turn a hang into a failure. The limit is long, because a busy machine may pause."""

    def stop(*_: object) -> None:
        raise TimeoutError("no end after 300 seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def image(path: Path, size: tuple[int, int] = (4, 4)) -> Path:
    Image.new("RGB", size, (9, 9, 9)).save(path)
    return path


def npy(header: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + b"\0" * 64


# ------------------------------------------------------------------------------------------------ files that are none


READERS: list[Callable[[Path], Any]] = [
    load_generator,
    read_torch_file,
    read_options_curriculum,
    load_voxels,
    load_mesh,
    MeshSettings.load,
    lambda path: get_curriculum(str(path)),
    lambda path: ImageDataset(path, 8, cache_dir=None),
    read_inference,
    read_state_dict,
]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere", "circle", "long name"])
def test_pipes_devices_and_broken_links_are_rejected(tmp_path: Path, kind: str) -> None:
    for read, suffix in itertools.product(READERS, (".json", ".safetensors")):
        path = tmp_path / f"{READERS.index(read)}{suffix}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "long name":
            path = tmp_path / ("x" * 5000 + suffix)
        else:
            path.symlink_to({"device": "/dev/zero", "nowhere": "missing", "circle": path.name}[kind])
        with pytest.raises(UserError):
            read(path)


def test_settings_files_are_limited_in_size(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)  # takes no room on the disk, and 16 GB where it is read
    for read in (lambda p: get_curriculum(str(p)), read_options_curriculum, MeshSettings.load):
        with pytest.raises(UserError, match="more than"):
            read(path)


# ------------------------------------------------------------------------------------------------ checkpoints


def zip_around(program: bytes, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"archive/data.pkl": program, **entries}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_endless_integers_are_refused(tmp_path: Path) -> None:
    """Python hashes an integer each time it is used as a key: a megabyte of digits, used 100,000 times, takes hours."""
    number = pickle.dumps(1 << 8_000_000, protocol=2)[2:-1]
    path = tmp_path / "g.pth"
    path.write_bytes(zip_around(b"\x80\x02" + number + b"q\x000}" + b"h\x00Ns" * 100_000 + b"."))
    with pytest.raises(UserError, match="integer of more than"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_with_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/data.pkl", b"\x80\x02K\x01.")
    with pytest.raises(UserError, match="two members with the same name"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "junk",
    [
        {"ema2": torch.ones(3)},
        {"ema2": True},
        {"optimizer_G": {"param_groups": [{"params": torch.tensor(1)}], "state": {}}},
        {"optimizer_G": {"param_groups": torch.tensor(1), "state": {}}},
        {"seed": torch.zeros(2)},
        {"world_size": torch.zeros(2)},
        {"scaler_G": torch.zeros(2)},
    ],
)
def test_training_checkpoints_with_junk_in_them(tmp_path: Path, junk: dict[str, Any]) -> None:
    from checkpoints.files import load_training_checkpoint, save_training_checkpoint
    from training.run.run_state import RunState

    small = ("hidden_dim=4", "num_layers=2", "latent_dim=4", "disc_channels=(2, 2, 2, 2, 2, 2, 2, 2, 2)")
    state = RunState(CURRICULUMS["SYNTH_TINY"].with_overrides(small), 0, torch.device("cpu"), None)
    path = state.save(tmp_path, world_size=1)
    save_training_checkpoint(path, {**load_training_checkpoint(path), **junk})
    if set(junk) == {"scaler_G"}:
        state.resume(path, world_size=1)  # a run on a CPU has no use for it
    else:
        with pytest.raises(UserError, match=next(iter(junk))):
            state.resume(path, world_size=1)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "assignment",
    [
        "end_step=-0x" + "f" * 5000,  # more digits than Python prints
        "end_step=" + "9" * 500,
        "fov=" + "9" * 500,
        "tau=" + "-" * 50_000 + "1",
        "tau=" + "1" + "+1" * 50_000,
        "stages=[3]",
        "stages=[{'start_step': 'x', 'batch_size': 1, 'img_size': 4, 'gen_lr': 1.0, 'disc_lr': 1.0}]",
        "dataset={1}",
        "dataset=[1]",
        "sample_dist={1}",
        "num_layers=1000000000",
        "num_steps_coarse=1000000000",
        "batch_size=1000000000",
    ],
    ids=lambda text: text[:20],
)
def test_impossible_overrides_are_rejected(assignment: str) -> None:
    with pytest.raises(UserError) as caught:
        CURRICULUMS["CelebA"].with_overrides([assignment])
    assert len(str(caught.value)) < 400


def test_files_that_are_not_curricula_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    settings = CURRICULUMS["BFM"].to_dict()
    for content in (
        "[" * 100_000,
        json.dumps({**settings, "name": ["x"]}),
        json.dumps({**settings, "stages": {"0": 1}}),
        "\ufeff{}",
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError):
            get_curriculum(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        get_curriculum(str(path))


# ------------------------------------------------------------------------------------------------ images


def test_cyclic_links_are_followed_once(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for name in ("b", "c"):
        (tmp_path / name).symlink_to(".")  # 2^40 folders to walk
    (tmp_path / "nowhere.png").symlink_to("missing")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images(tmp_path).names == (str(tmp_path / "a.png"),)
    assert find_images(str(tmp_path / "**" / "*.png")).names == (str(tmp_path / "a.png"),)
    assert find_images(str(tmp_path / "**")).names == (str(tmp_path / "a.png"),)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "x" * 5000, "a\0b", "[", "**x", ""])
def test_impossible_paths_are_rejected(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_images(path)


def test_no_program_is_started_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow identifies files by content, and passes those that begin like PostScript to Ghostscript."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(ghostscript.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(Exception):  # noqa: B017
        image.load()
    assert (tmp_path / "ran").exists(), "this proves nothing where Pillow does not call it"
    (tmp_path / "ran").unlink()
    found = decode(find_images(tmp_path / "a.png"), 0, DATASETS["Images"], 8)
    assert found.pixels is None and "PostScript" in found.remark
    assert not (tmp_path / "ran").exists()


def test_zip_bombs_are_rejected(tmp_path: Path) -> None:
    for method, told in (
        (zipfile.ZIP_BZIP2, "compressed with bzip2, which is not supported here"),
        (zipfile.ZIP_DEFLATED, "more than"),
    ):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            with archive.open("a.png", "w") as member:
                for _ in range(260 if method == zipfile.ZIP_DEFLATED else 1):  # MiB, of 256 that are permitted
                    member.write(bytes(1 << 20))
            archive.writestr("b.png", b"", zipfile.ZIP_STORED)  # a zip of which nothing can be unpacked is refused as a whole
        with pytest.raises(ValueError, match=told):
            open_member(find_images(path), "a.png")


def test_a_line_of_pixels_is_not_made_320_wide(tmp_path: Path) -> None:
    image(tmp_path / "line.png", (9000, 1))  # 320 x 2,880,000 at CelebA's size
    assert decode(find_images(tmp_path), 0, DATASETS["CelebA"], 8).pixels is None
    assert decode(find_images(tmp_path), 0, DATASETS["Images"], 8).pixels is not None


def test_a_zip_whose_directory_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\5\6" + b"\xff" * 18)
    with pytest.raises(UserError, match=r"a\.zip"):
        find_images(tmp_path / "a.zip")


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, suffix: str) -> None:
    for name in ("a.png", "b.png"):
        image(tmp_path / name)
    damage = {".npy": [npy("{"), npy("'''"), b""], ".json": [b"[" * 100_000, b'{"unreadable": [5]}', b'{"unreadable": [0, 0]}']}
    damage[".json"] += [
        b'{"unreadable": [], "reasons": [1], "remarks": {}}',
        b'{"unreadable": [], "reasons": [], "remarks": {"a": []}}',
    ]
    for content in damage[suffix]:
        ImageDataset(tmp_path, 8, cache_dir=tmp_path / "cache")
        next((tmp_path / "cache").glob(f"*{suffix}")).write_bytes(content)
        data = ImageDataset(tmp_path, 8, cache_dir=tmp_path / "cache")
        assert len(data) == len(data.names) == 2


def test_invalid_ground_truth_is_rejected(tmp_path: Path) -> None:
    for name in ("images", "ground_truth"):
        (tmp_path / name).mkdir()
    image(tmp_path / "images" / "0.png")
    (tmp_path / "ground_truth" / "0.npz").symlink_to("missing")
    with pytest.raises(UserError, match="no images with ground truth"):
        find_truth(tmp_path, 5)
    for text in ("[" * 100_000, '{"camera": {"fov": ' + "9" * 400 + "}}"):
        (tmp_path / "meta.json").write_text(text)
        assert camera_fov(tmp_path) is None


# ------------------------------------------------------------------------------------------------ voxels, meshes, views


def test_voxel_files_with_an_invalid_header_are_rejected(tmp_path: Path) -> None:
    for header in ("{", "'''", "(" * 5000, "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 2, 2)}"):
        (tmp_path / "v.npy").write_bytes(npy(header))
        with pytest.raises(UserError, match="not a voxel file"):
            load_voxels(tmp_path / "v.npy")


@pytest.mark.parametrize(
    "text", ['{"cube_size": 1e999}', '{"cube_size": 1e-320}', '{"level": 1e-320}', "[" * 100_000, '{"x": 1}']
)
def test_impossible_mesh_settings_are_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match="mesh settings"):
        MeshSettings.load(tmp_path / "s.json")


@pytest.mark.parametrize(("corner", "vertex"), [("9", "0 0 1"), ("-1", "0 0 1"), ("1", "nan 0 1")])
def test_meshes_with_invalid_vertices_are_rejected(tmp_path: Path, corner: str, vertex: str) -> None:
    kinds = "".join(f"property float {axis}\n" for axis in "xyz")
    counts = f"element vertex 3\n{kinds}element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "m.ply").write_text(f"ply\nformat ascii 1.0\n{counts}0 0 0\n1 0 0\n{vertex}\n3 0 {corner} 2\n")
    with pytest.raises(UserError):
        load_mesh(tmp_path / "m.ply")


def test_a_folder_instead_of_a_voxel_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="folder"):
        render_meshimg.main([".", "--renderer", "raycast"])
    with pytest.raises(UserError, match="folder"):
        write_atomically(".", b"")


def test_depths_that_are_not_finite_have_a_color() -> None:
    depth = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]])
    assert depth_image(depth, 0.88, 1.12).isfinite().all()


# ------------------------------------------------------------------------------------------------ the report, the command line


def test_report_of_a_folder_full_of_junk(tmp_path: Path) -> None:
    for name, text in {
        "steps.tsv": "a\t²\tok\tx\nb\t1\tok\ty\n",
        "train/log.jsonl": '{"step": 1e999}\n[]\n{"step": 1, "D/gan": "x"}\n{"step": 2, "D/gan": 1' + "0" * 400 + "}\n",
        "train/run.json": '{"curriculum": []}',
        "scores/images.json": '{"metrics": {"swd": "x"}, "protocol": [1]}',
        "scores/geometry.json": '{"score": {"mask_iou": []}, "baselines": {"<b>": 3}}',
        "scores/weighted_variance.json": "[" * 100_000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("train/samples/²³.png", "imgs/grid_0.png", "vids/²³.mp4"):
        (tmp_path / name).mkdir(parents=True)
    main([str(tmp_path), "--output", str(tmp_path / "page.html")])
    assert "<code>y</code>" in (tmp_path / "page.html").read_text()


def ending(error: Exception) -> tuple[int | str | None, str]:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(fail)
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(36, "File name too long", "x" * 5000),
        MemoryError("Unable to allocate 9 EiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
        UserError("a name\nof two lines, \x1b[31mred\udcff"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_user_or_system_take_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(error)[0] == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ": error: " in said and said[:-1].isprintable() and len(said) < 3000


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_script(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(ValueError, match="reshape"):
        run_script(lambda: np.array([1, 2]).reshape(3))


@pytest.mark.parametrize("value", ["0", "2147483648", "9" * 400, "-1", "1.5", "x"])
def test_sizes_are_bounded(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        render_meshimg.main(["--image_size", value])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and "--image_size" in said
