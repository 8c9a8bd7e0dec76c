"""Every script with --device, with a simulated GPU, up to the point where it moves a network there.

tests/test_cuda.py runs the same scripts to their end on a GPU.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import eval_metrics
import test_cuda
import train
from common.arguments import PRECISIONS

SCORES = "highest"  # what is measured is measured in float32
PICTURES = PRECISIONS["tf32"]
# by module: arguments beside --device, and the precision of its products on a GPU; None: it sets none
SCRIPTS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "cal_weighted_var": (("GENERATOR", "--seeds_end", "1", "--output_json", "OUT/x.json"), SCORES),
    "eval_metrics": (("GENERATOR", "--dataset_path", "PHOTOS", "--metrics", "swd", "--output_json", "OUT/x.json"), SCORES),
    "extract_shapes": (("GENERATOR", "--output_dir", "OUT"), PICTURES),
    "invert": (("PHOTOS", "--generator", "GENERATOR", "--output_dir", "OUT"), SCORES),
    "render_multiview_images": (("GENERATOR", "--output_dir", "OUT"), PICTURES),
    "render_video": (("GENERATOR", "--output_dir", "OUT"), PICTURES),
    "render_video_interpolation": (("GENERATOR", "--output_dir", "OUT"), PICTURES),
    "style_mixing": (("GENERATOR", "--rows", "0", "--columns", "1", "--output_dir", "OUT"), PICTURES),
    "tools.directions": (("GENERATOR", "--output_dir", "OUT"), SCORES),
    "tools.eval_geometry": (("GENERATOR", "--dataset_path", "TRUTH", "--output_json", "OUT/x.json"), SCORES),
    "view": (("GENERATOR",), PICTURES),
    "tools.mesh_score": (("GENERATOR", "--output_dir", "OUT"), PICTURES),
    "tools.pose_spread": (("PHOTOS", "--num_images", "64", "--readout_cache", "OUT"), None),
    "tools.sheet": (("GENERATOR", "--output", "OUT/sheet.png"), SCORES),
    "train": (("--curriculum", "SYNTH_TINY", "--dataset_path", "PHOTOS", "--output_dir", "OUT", "--no-cache"), "high"),
}
# where each first meets the device, if not in load_generator
FIRST_USE = {"train": "train.RunState", "tools.pose_spread": "tools.pose_spread.get_pose_readout"}


class Reached(Exception):
    """The script is about to move a network to this device."""


def commands_with_a_device(repo: Path) -> set[str]:
    """Modules that are run as scripts and select a device, themselves or through shared arguments."""
    found = set()
    for path in [*repo.glob("*.py"), *(repo / "tools").glob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if "run_script" in names and names & {"add_device_argument", "add_generator_arguments", "add_common_arguments"}:
            found.add(".".join(path.relative_to(repo).with_suffix("").parts))
    return found


def test_no_script_is_left_out(repo: Path) -> None:
    assert commands_with_a_device(repo) == set(SCRIPTS)
    assert set(test_cuda.SCRIPTS) == set(SCRIPTS) - {"view"}  # which serves until it is interrupted


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Values for the placeholders in capitals: a few photos, and a few views with ground truth."""
    from tools.synthetic_heads import main as make_heads

    folder = tmp_path_factory.mktemp("heads")
    make_heads(["--output_dir", str(folder / "set"), "--num_images", "64", "--image_size", "16"])
    return {"PHOTOS": str(folder / "set" / "images"), "TRUTH": str(folder / "set")}


@pytest.fixture
def gpu_in_sight(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # what a script does not set shows
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_reaches_its_first_use_of_the_gpu(
    name, places, gpu_in_sight, tiny_generator_path, tmp_path, monkeypatch
) -> None:
    devices = []

    def stop(*args: object, **kwargs: object) -> None:
        devices.extend(value for value in (*args, *kwargs.values()) if isinstance(value, torch.device))
        raise Reached

    where = FIRST_USE.get(name, "visualization.generator_scripts.load_generator")
    script = importlib.import_module(name)
    monkeypatch.setattr(where, stop)
    (tmp_path / "out").mkdir()
    words = {**places, "GENERATOR": str(tiny_generator_path), "OUT": str(tmp_path / "out")}
    arguments, precision = SCRIPTS[name]
    for word, value in words.items():
        arguments = tuple(argument.replace(word, value) for argument in arguments)
    with pytest.raises(Reached):
        script.main(list(arguments))
    assert [device.type for device in devices] == ["cuda"]
    if precision is not None:
        assert torch.get_float32_matmul_precision() == precision


def test_products_on_a_cpu_are_float32_whatever_was_set_before(places, tiny_generator_path, tmp_path) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        command = [str(tiny_generator_path), "--dataset_path", places["PHOTOS"], "--metrics", "swd", "--num_images", "4"]
        eval_metrics.main([*command, "--image_size", "16", "--output_json", str(tmp_path / "x.json"), "--device", "cpu"])
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_training_flushes_denormals_and_leaves_them_to_others() -> None:
    smallest = torch.full((64,), torch.finfo(torch.float32).tiny)
    with train.flushed_denormals():
        assert (smallest / 2 == 0).all()
    assert (smallest / 2 > 0).all()
