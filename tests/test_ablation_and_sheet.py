"""Packaging a run with its card, ablations, and sheets: small real runs through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.loading import PRETRAINED_DIR, load_generator
from common.errors import UserError
from common.files import read_json
from metrics.sampling import generated_images
from tools import ablation, sheet
from tools.ablation import GROUPS, distinct, minutes_left, parse_arguments
from tools.package_model import main, set_ball_slope
from train import main as train

SETTINGS = [
    *("hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=6", "num_steps_surface=3", "num_steps_fine=2", "batch_size=4", "img_size=8"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    output = tmp_path_factory.mktemp("run")
    command = ["--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"]
    train(
        [*command, "--no-cache", "--no-use_logger", "--log_interval", "1", "--max_steps", "3", "--seed", "0", "--set", *SETTINGS]
    )
    return output


def test_a_packaged_run_is_its_averaged_generator_with_a_card(run: Path, tmp_path: Path) -> None:
    scores = tmp_path / "eval_metrics.json"
    record = {"metrics": {"swd": 1.5}, "protocol": {"num_fake": 7, "dataset_path": "somewhere"}, "model": {"step": 3}}
    scores.write_text(json.dumps(record))
    where = ["--name", "small-one", "--output_dir", str(tmp_path), "--scores", str(scores), "--note", "A test."]
    main([str(run), *where, "--precision", "full"])
    card = json.loads((tmp_path / "small-one.json").read_text())
    assert card["step"] == 3 and card["training"]["seed"] == 0
    assert card["training"]["command"].startswith("python train.py --curriculum SYNTH_TINY")
    assert card["training"]["device"].startswith("CPU") and card["training"]["minutes"] >= 0
    assert card["scores"]["eval_metrics"]["metrics"] == {"swd": 1.5} and "somewhere" not in json.dumps(card)
    assert str(tmp_path) not in json.dumps({**card, "training": {**card["training"], "command": ""}})
    packed = load_generator(tmp_path / "small-one.safetensors").generator.state_dict()
    original = load_generator(run / "generator.safetensors").generator.state_dict()
    assert all(torch.equal(packed[name], value) for name, value in original.items())
    assert card["bytes"] == (tmp_path / "small-one.safetensors").stat().st_size


def test_half_precision_halves_the_file_and_hardly_changes_images(run: Path, tmp_path: Path) -> None:
    for precision in ("full", "half"):
        main([str(run), "--name", precision, "--output_dir", str(tmp_path), "--precision", precision])
    before = (tmp_path / "full.safetensors").read_bytes()
    with pytest.raises(UserError, match="already exists"):
        main([str(run), "--name", "full", "--output_dir", str(tmp_path), "--precision", "half"])
    assert (tmp_path / "full.safetensors").read_bytes() == before
    full, half = (tmp_path / f"{precision}.safetensors" for precision in ("full", "half"))
    assert half.stat().st_size < 0.7 * full.stat().st_size
    a, b = (load_generator(path).generator.state_dict() for path in (full, half))
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-6) for name in a)
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"path": "{tmp}"}, "holds no intact checkpoint"),
        ({"name": "../x"}, "letters, digits"),
        ({"scores": '{"model": {"step": 2}}'}, "holds scores of step 2, but the generator is at step 3"),
        ({"scores": "[]"}, "does not hold a dictionary"),
        ({"scores": "{"}, "is not JSON"),
    ],
)
def test_mismatched_arguments_are_rejected(run: Path, tmp_path: Path, change: dict[str, str], words: str) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(change.get("scores", "{}"))
    path = change.get("path", str(run)).format(tmp=tmp_path)
    with pytest.raises(UserError, match=words):
        main([path, "--name", change.get("name", "x"), "--output_dir", str(tmp_path), "--scores", str(scores)])
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_ball_of_a_triplane_generator_can_be_weakened(run: Path, tmp_path: Path) -> None:
    shipped = PRETRAINED_DIR / "cats.safetensors"
    main([str(shipped), "--name", "weak", "--output_dir", str(tmp_path), "--ball_slope", "25"])
    generators = [load_generator(path).generator for path in (shipped, tmp_path / "weak.safetensors")]
    points = torch.tensor([[[0.0, 0.0, 0.15], [0.06, 0.0, 0.0]]])  # outside the ball and inside it
    before, after = (
        generator.field_of_latents(torch.zeros(1, generator.curriculum.latent_dim)).occupancy_logits(points)
        for generator in generators
    )
    ball = generators[0].triplane
    change = (25 - ball.ball_slope) * (ball.ball_radius - points.norm(dim=-1))
    torch.testing.assert_close(after - before, change, atol=1e-4, rtol=0)
    assert read_json(tmp_path / "weak.json")["ball_slope"] == 25
    inverted = load_generator(shipped)
    inverted.generator.triplane.ball_slope.neg_()  # as after mirroring with inversion
    set_ball_slope(inverted, 25)
    assert inverted.generator.triplane.ball_slope == -25
    with pytest.raises(UserError, match="--ball_slope needs a tri-plane generator"):
        main([str(run), "--name", "siren", "--output_dir", str(tmp_path), "--ball_slope", "25"])


def test_equal_variants_are_skipped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for curriculum, extra in (("SYNTH_TINY", "weak_r1"), ("SYNTH", "strong_r1"), ("CATS_TINY", "strong_normal_term")):
        common = ["recipe", "--curriculum", curriculum, "--dataset_path", "none", "--output_dir", str(tmp_path)]
        args = parse_arguments(common)
        kept = distinct(args, list(GROUPS["recipe"]))
        assert extra not in kept and {"as_it_is", "no_opacity_prior", "wide_interval", "narrow_interval"} <= set(kept)
        told = capsys.readouterr().out
        assert f"{extra} is the same run as as_it_is with {curriculum}" in told
        own_loss = "relativistic" if curriculum == "CATS_TINY" else "non_saturating"
        assert f"{own_loss} is the same run as as_it_is with {curriculum}" in told
        assert distinct(parse_arguments(["hollow", *common[1:]]), list(GROUPS["hollow"])) == list(GROUPS["hollow"])


def test_an_ablation_trains_each_variant_and_its_table_has_them(photos: Path, tmp_path: Path) -> None:
    common = ["hollow", "--dataset_path", str(photos), "--output_dir", str(tmp_path), "--steps", "2", "--eval_images", "0"]
    common += ["--seeds", "5", "--set", *SETTINGS, "--variants", "plain", "watch"]
    ablation.main(common)
    record = json.loads((tmp_path / "hollow.json").read_text())
    assert set(record["runs"]) == {"plain", "watch"} and record["runs"]["plain"]["5"]["step"] == 2
    settings = json.loads((tmp_path / "watch_s5" / "run.json").read_text())["curriculum"]
    assert settings["hollow_check_interval"] == 50 and settings["hidden_dim"] == 16
    rows = (tmp_path / "hollow.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:4]] == ["| plain", "| watch"] and "| 1 | 2 |" in rows[2]
    before = (tmp_path / "plain_s5" / "checkpoint_0000002.pt").read_bytes()
    ablation.main([*common, "--variants", "plain"])  # what is done is not done again
    assert (tmp_path / "plain_s5" / "checkpoint_0000002.pt").read_bytes() == before
    assert set(json.loads((tmp_path / "hollow.json").read_text())["runs"]) == {"plain"}


def test_an_ablation_of_equal_minutes_trains_what_is_left(tmp_path: Path) -> None:
    def write_log(seconds: int) -> None:
        lines = [{"step": step, "images_seen": 16 * step, "images_per_second": 16} for step in range(1, seconds + 1)]
        (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))

    assert minutes_left(tmp_path, 2) == 2
    write_log(110)
    assert minutes_left(tmp_path, 2) == pytest.approx(10 / 60)  # not evaluated yet
    (tmp_path / "metrics.jsonl").write_text('{"step": 110, "hit_rate": 0.5}')
    assert minutes_left(tmp_path, 2) == 0
    assert minutes_left(tmp_path, 3) == pytest.approx(70 / 60)
    write_log(130)
    assert minutes_left(tmp_path, 2) == 0


def test_an_ablation_rejects_unknown_variants_and_invalid_settings(photos: Path, tmp_path: Path) -> None:
    where = ["--dataset_path", str(photos), "--output_dir", str(tmp_path / "x")]
    for more, words in ((["--variants", "none"], "--variants none: not in hollow"), (["--set", "fov=0"], "fov must be positive")):
        with pytest.raises(UserError, match=words):
            ablation.main(["hollow", *where, *more])
    assert not (tmp_path / "x").exists()


def test_a_sheet_shows_the_images_that_are_scored(run: Path, photos: Path, tmp_path: Path) -> None:
    generator, output = run / "generator.safetensors", tmp_path / "sheet.png"
    size = ["--image_size", "8", "--num", "5", "--columns", "3", "--device", "cpu"]
    sheet.main([str(generator), str(generator), "--output", str(output), *size, "--dataset_path", str(photos)])
    pixels = np.asarray(Image.open(output))
    group = 2 * 10 - 2 + 10  # two rows, and the gap below
    assert pixels.shape == (3 * group - 10, 3 * 10 - 2, 3)  # both generators and the photos
    expected = generated_images(load_generator(generator), 5, 8).permute(0, 2, 3, 1).numpy()
    for i in range(5):
        top, left = 10 * (i // 3), 10 * (i % 3)
        for below in (0, group):
            np.testing.assert_array_equal(pixels[top + below : top + below + 8, left : left + 8], expected[i])
    assert (pixels[:10, 20:28][:8] != 255).any() and (pixels[10:18, 20:] == 255).all()
    photo = pixels[2 * group : 2 * group + 8, :8]
    assert any((np.asarray(Image.open(path)) == photo).all() for path in photos.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heads", "--output", "sheet.jpg"], "must end in .png"),
        (["heads", "--output", "nowhere/sheet.png"], "the folder nowhere does not exist"),
        (["nothing", "--output", "sheet.png"], "there is no generator file nothing"),
    ],
)
def test_a_sheet_rejects_invalid_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sheet.main(arguments)
    assert not list(tmp_path.iterdir())
