"""Random backgrounds: real and generated images lie on colors drawn per image, so that dark space around an object shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from dataset import ImageDataset, training_spec
from distributed.processes import Processes
from generators.generator import ImplicitGenerator3d
from generators.renderer import image_colors
from generators.views import ViewSettings, render_views
from metrics.geometry import over_background
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from train import main as train
from training.batches import NUM_CHECKED, StageBatches
from training.inputs import draw_inputs
from training.options import RunOptions
from training.run.run_state import RunState
from training.steps import GENERATED, REAL, StepSettings, generate, over_backgrounds, over_color
from training.trainer import Trainer

SIZE = 8
SMALL = [
    *("backbone_channels=(8,8,8)", "w_dim=8", "latent_dim=8", "decoder_dim=8", "disc_widths=(4,8)"),
    *("img_size=8", "batch_size=4"),
]
ALONE = Processes(0, 1, torch.device("cpu"))


def curriculum_of(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TRIPLANE"].with_overrides([*SMALL, *more])


def small_state(*more: str) -> RunState:
    return RunState(curriculum_of(*more), seed=0, device=torch.device("cpu"), amp_dtype=None)


def inputs_of(curriculum: Curriculum, processes: Processes = ALONE, batch_size: int = 4):
    settings = StepSettings.at(curriculum, 3)
    return draw_inputs(curriculum, settings, batch_size, processes, seed=0, step=3, purpose="G"), settings


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos with a transparent border, four pixels of which are half transparent."""
    folder = tmp_path_factory.mktemp("cutouts")
    random = np.random.default_rng(0)
    for i in range(10):
        pixels = random.integers(0, 255, (SIZE, SIZE, 4), dtype=np.uint8)
        pixels[..., 3] = 0
        pixels[2:6, 2:6, 3] = 255
        pixels[2, 2:6, 3] = 100
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_solid_black_object_is_visible_only_on_a_color() -> None:
    nothing, black = torch.full((1, 3, 2, 2), -1.0), torch.full((1, 3, 2, 2), -1.0)
    color = torch.tensor([[1.0, 0.0, -0.5]])
    free, solid = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert torch.equal(over_color(nothing, free, color)[0, :, 0, 0], color[0])
    assert torch.equal(over_color(black, solid, color), black)
    gray = over_color(torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1, 1), 0.5), torch.tensor([[1.0, -1.0, 0.0]]))
    assert torch.allclose(gray.flatten(), torch.tensor([1.0, 0.0, 0.5]))


def test_generated_images_lie_on_the_color_of_their_image_where_rays_are_free() -> None:
    curriculum = curriculum_of()
    generator = ImplicitGenerator3d(curriculum)
    inputs, settings = inputs_of(curriculum)
    colored, black = generate(generator, inputs, settings), generate(generator, inputs._replace(backgrounds=None), settings)
    free = (1 - black.output.weights.sum(-1)).view(4, 1, SIZE, SIZE)
    assert free.max() > 0.9 and free.min() < 0.5
    expected = (black.images + 1) / 2 + free * (inputs.backgrounds[:, GENERATED, :, None, None] + 1) / 2
    assert torch.allclose((colored.images + 1) / 2, expected, atol=1e-6)
    assert torch.equal(black.images, image_colors(black.output, settings.render).transpose(1, 2).view(4, 3, SIZE, SIZE) * 2 - 1)


def test_the_generator_learns_from_the_color_behind_it() -> None:
    """The gradient of a ray's opacity depends on its background. On black, that of a black ray would vanish."""
    curriculum = curriculum_of()
    generator = ImplicitGenerator3d(curriculum)
    inputs, settings = inputs_of(curriculum)
    gradients = []
    for color in (-1.0, 1.0):
        generated = generate(generator, inputs._replace(backgrounds=torch.full((4, 2, 3), color)), settings)
        (gradient,) = torch.autograd.grad(generated.images.sum(), generated.output.weights)
        gradients.append(gradient)
    difference = gradients[1] - gradients[0]  # white adds 2 to each of three channels where the ray is free
    assert torch.allclose(difference, torch.full_like(difference, -6.0), atol=1e-4)


def test_views_of_the_generator_stay_black() -> None:
    curriculum = curriculum_of()
    inputs, _ = inputs_of(curriculum)
    field = ImplicitGenerator3d(curriculum).field_of_latents(inputs.z)
    image = render_views(field, inputs.poses, curriculum, ViewSettings(SIZE))[0].image
    assert image[:, 0, 0].max() < -0.9


def test_real_images_lie_on_the_colors_drawn_for_them(cutouts: Path) -> None:
    state = small_state()
    batches = StageBatches(RunOptions(Path(), str(cutouts), use_cache=False), state.curriculum.stages[0], state, ALONE)
    try:
        batches.restart()
        real = batches.next()
    finally:
        batches.close()
    inputs, _ = inputs_of(state.curriculum)
    seen = over_backgrounds(real, inputs)
    assert real.shape == (4, 4, SIZE, SIZE) and seen.shape == (4, 3, SIZE, SIZE) and seen.abs().max() <= 1 + 1e-6
    colors = inputs.backgrounds[:, REAL]
    assert torch.allclose(seen[:, :, 0, 0], colors, atol=1e-6)
    assert torch.equal(seen[:, :, 3:6, 2:6], real[:, :3, 3:6, 2:6])
    # by Pillow: the original over that color
    names = sorted(cutouts.glob("*.png"))
    level = tuple(((colors[0] + 1) * 127.5).round().int().tolist())
    laid = [Image.alpha_composite(Image.new("RGBA", (SIZE, SIZE), (*level, 255)), Image.open(name)) for name in names]
    laid = torch.stack([torch.from_numpy(np.array(image)[..., :3]).permute(2, 0, 1) for image in laid]) / 127.5 - 1
    errors = torch.cat([laid, laid.flip(-1)]).sub(seen[0]).abs().amax(dim=(1, 2, 3))
    assert errors.min() < 2.1 / 127.5 < errors.median()


def test_alpha_is_resized_and_cached_with_the_colors(tmp_path: Path) -> None:
    ramp = np.zeros((16, 16, 4), np.uint8)
    ramp[..., :3], ramp[..., 3] = 200, np.arange(16)[None] * 17
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    index = Image.new("P", (16, 16), 1)
    index.putpalette([0, 0, 0, 200, 100, 50])
    index.paste(0, (0, 0, 8, 16))
    index.save(tmp_path / "palette.png", transparency=0)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "solid.png")
    spec, cache = training_spec(curriculum_of()), tmp_path / "cache"
    plain = ImageDataset(tmp_path / "*.png", SIZE, "Heads", cache_dir=cache)
    for _ in range(2):  # decoded, then from the cache
        images = ImageDataset(tmp_path / "*.png", SIZE, spec, cache_dir=cache).gather(torch.arange(3))
        assert images.shape == (3, 4, SIZE, SIZE) and torch.equal(images[:, :3], plain.gather(torch.arange(3)))
        palette, ramped, solid = images[:, 3].float()
        assert (palette[:, :3] <= 8).all() and (palette[:, 5:] >= 247).all() and (solid == 255).all()
        assert torch.allclose(images[1, 0].float(), ramped * 200 / 255, atol=2)
    assert ImageDataset(tmp_path / "*.png", SIZE, spec, cache_dir=None)[2].shape == (4, SIZE, SIZE)


def test_opaque_photos_are_refused_by_name_and_one_transparent_pixel_is_enough(cutouts: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(NUM_CHECKED):
        Image.new("RGB", (SIZE, SIZE), (i, 0, 0)).save(folder / f"{i:03d}.png")
    common = ["--curriculum", "SYNTH_TRIPLANE", "--max_steps", "1", "--no-use_logger", "--no-cache", "--device", "cpu"]

    def run(photos: Path, output: str, *more: str) -> None:
        train([*common, "--dataset_path", str(photos), "--output_dir", str(tmp_path / output), "--set", *SMALL, *more])

    with pytest.raises(UserError, match=r"random_back needs images .*, but the first 100 in .*photos are opaque"):
        run(folder, "opaque")
    run(folder, "on_black", "random_back=False")
    picture = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 254))
    picture.save(folder / "000.png")
    run(folder, "mixed")


@pytest.mark.parametrize("other", ["last_back", "white_back", "eval_last_back"])
def test_only_one_setting_decides_the_background(other: str) -> None:
    with pytest.raises(UserError, match=f"random_back and {other} both determine what is behind the object"):
        curriculum_of(f"{other}=True")
    assert not curriculum_of(f"{other}=True", "random_back=False").random_back


def test_views_do_not_fill_the_background_although_eval_last_back_is_not_set() -> None:
    photos = CURRICULUMS["CATS_TRIPLANE"]
    cut_out = photos.with_overrides(["random_back=True", "last_back=False"])
    assert photos.view_last_back and cut_out.eval_last_back is None and not cut_out.view_last_back
    assert Curriculum.from_dict(curriculum_of().to_dict()).with_overrides(["random_back=False"]).view_last_back is False


@pytest.mark.parametrize("is_white", [True, False])
def test_scored_views_lie_on_the_background_of_the_set(is_white: bool) -> None:
    curriculum = over_background(curriculum_of(), is_white)
    assert curriculum.white_back == is_white and not curriculum.random_back


def test_colors_do_not_change_the_other_random_numbers_and_differ_between_images() -> None:
    drawn, _ = inputs_of(curriculum_of())
    without, _ = inputs_of(curriculum_of("random_back=False"))
    assert without.backgrounds is None
    assert torch.equal(drawn.z, without.z) and torch.equal(drawn.neighbors, without.neighbors)
    assert torch.equal(drawn.noise.surface_jitter, without.noise.surface_jitter)
    assert torch.equal(drawn.ball_points, without.ball_points)
    colors = drawn.backgrounds
    assert colors.shape == (4, 2, 3) and len(colors.view(8, 3).unique(dim=0)) == 8
    many, _ = inputs_of(curriculum_of(), batch_size=256)
    levels = many.backgrounds.flatten()
    assert (
        levels.min() < -0.99
        and levels.max() > 0.99
        and levels.mean().abs() < 0.06
        and levels.std() == pytest.approx(0.577, abs=0.03)
    )


def test_two_processes_draw_the_colors_of_one() -> None:
    alone, _ = inputs_of(curriculum_of())
    parts = [inputs_of(curriculum_of(), Processes(rank, 2, torch.device("cpu")), batch_size=2)[0] for rank in range(2)]
    assert torch.equal(torch.cat([part.backgrounds for part in parts]), alone.backgrounds)
    assert all(torch.equal(a.backgrounds, b.backgrounds) for a, b in zip(alone.split(2), parts, strict=True))


@pytest.mark.parametrize("share_images", [True, False])
def test_both_networks_see_the_images_on_their_colors(share_images: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state = small_state(f"share_images={share_images}")
    trainer, seen = Trainer(state, RunOptions(Path(), ""), ALONE), []
    original = state.discriminator.forward

    def forward(images: torch.Tensor, fade_alpha: float):
        seen.append(images.detach())
        return original(images, fade_alpha)

    monkeypatch.setattr(state.discriminator, "forward", forward)
    real = torch.full((4, 4, SIZE, SIZE), -1.0)  # nothing but transparent pixels
    trainer._step(real, state.curriculum.stage_at(0))
    settings = trainer._settings()
    inputs_D = trainer._draw_inputs(settings, state.curriculum.stage_at(0), "G" if share_images else "D")
    real_of_D, fake_of_D, fake_of_G, real_of_G = seen
    for images in (real_of_D, real_of_G):
        assert torch.allclose(images, inputs_D.backgrounds[:, REAL, :, None, None].expand(4, 3, SIZE, SIZE), atol=1e-6)
    inputs_G = trainer._draw_inputs(settings, state.curriculum.stage_at(0), "G")
    for images, inputs in ((fake_of_D, inputs_D), (fake_of_G, inputs_G)):
        assert torch.allclose(images[:, :, 0, 0], inputs.backgrounds[:, GENERATED], atol=0.06)  # a corner is nearly free
