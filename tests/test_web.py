"""The exported page in a real browser, compared with the Python renderer."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import web.export
from browser import Browser
from checkpoints.latents import PHOTO_KEYS, GeneratorName, Latent
from checkpoints.loading import LoadedGenerator, load_generator
from common.errors import UserError
from generators.generator import ImplicitGenerator3d, latent_from_seed
from generators.styles import flatten_styles, with_weights
from generators.views import View, ViewSettings, make_pose, render_view
from settings.registry import CURRICULUMS
from visualization.generator_scripts import field_from_seed, styles_from_seed
from visualization.images import to_uint8, view_image
from web.export import (
    check_exportable,
    export_page,
    generator_tensors,
    is_quantized,
    pack_tensors,
    page_script,
    page_style,
    quantize,
    worker_script,
)

SIZE = 32
PSI = 0.7
POSES = ((0.0, 0.0), (0.45, 0.1), (-0.6, -0.2))  # yaw and pitch from the mean, radians
EXACT_SIZE = 64
MIN_PSNR_DB = 40.0
MAX_NORMAL_DEGREES = 2.0
MAX_PAGE_BYTES = 2 * 2**20


class Shown(NamedTuple):
    """A view as the page draws it: ``pixels`` (H, W, 3) uint8, ``t`` (H, W) with -1 where there is no surface; top row first."""

    pixels: np.ndarray
    t: np.ndarray
    num_points: int


@pytest.fixture(scope="module")
def generators() -> dict[str, LoadedGenerator]:
    return {name: load_generator(name) for name in ("heads_siren", "cats")}


@pytest.fixture(scope="module")
def page(generators: dict[str, LoadedGenerator], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web.export, "TURNTABLE_FRAMES", 2)  # it is the slow part
        path.write_text(export_page(generators))
    return path


@pytest.fixture
def short_turntable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.export, "TURNTABLE_FRAMES", 2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser: Browser, page: Path) -> Browser:
    """The page, opened with few pixels."""
    browser.open(page, f"?size={SIZE}")
    return browser


def set_state(browser: Browser, **state: Any) -> None:
    """Seeds are passed as text, because JavaScript's numbers are exact only up to 2^53."""
    browser.run(
        "void gof.controls.change(Object.fromEntries(Object.entries(arguments[0])"
        ".map(([key, value]) => [key, /seed/i.test(key) ? BigInt(value) : value])))",
        {key: str(value) if "seed" in key.lower() else value for key, value in state.items()},
    )


def show(browser: Browser, **state: Any) -> Shown:
    """What the page shows at rest for a given state."""
    set_state(browser, **state)
    return shown_at_rest(browser)


def shown_at_rest(browser: Browser) -> Shown:
    found = browser.run(
        "gof.viewer.settled().then(() => {"
        "  const { renderer, front } = gof.viewer;"
        "  const { t, numPoints } = renderer.readRoots(front);"
        "  return { pixels: btoa(String.fromCharCode(...renderer.readPixels(front))), t: [...t], numPoints };"
        "})"
    )
    pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(SIZE, SIZE, 4)
    t = np.array(found["t"], np.float32).reshape(SIZE, SIZE)
    return Shown(pixels[::-1, :, :3].copy(), t[::-1].copy(), found["numPoints"])


START = {"model": "heads_siren", "seed": 0, "secondSeed": 1, "shape": 0, "color": 0, "psi": PSI}
START |= {"yaw": 0, "pitch": 0, "zoom": 1, "mode": "image"}


def reference(loaded: LoadedGenerator, yaw: float, pitch: float, seed: int = 0, size: int = SIZE) -> View:
    c = loaded.curriculum
    field = field_from_seed(loaded, seed, PSI)
    return render_view(field, make_pose(c.h_mean + yaw, c.v_mean + pitch), c, ViewSettings(size, surface_only=True))


def psnr_db(pixels: np.ndarray, truth: np.ndarray) -> float:
    error = np.square(pixels.astype(float) - truth.astype(float)).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def pixels_of(view: View, quantity: str, loaded: LoadedGenerator) -> np.ndarray:
    return to_uint8(view_image(view, quantity, loaded.curriculum.ray_start, loaded.curriculum.ray_end))


def direction_errors_degrees(pixels: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Angles (N,) between normals as colors (N, 3) uint8 and unit normals (N, 3)."""
    shown = pixels.astype(float) / 127.5 - 1
    cosines = (shown * normals).sum(axis=-1) / np.linalg.norm(shown, axis=-1)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


@pytest.mark.parametrize("name", ["heads_siren", "cats"])
@pytest.mark.parametrize(("yaw", "pitch"), POSES)
def test_shows_what_python_shows(
    opened: Browser, generators: dict[str, LoadedGenerator], name: str, yaw: float, pitch: float
) -> None:
    loaded = with_rounded_weights(generators[name])
    view = reference(loaded, yaw, pitch)
    shown = show(opened, **{**START, "model": name, "yaw": yaw, "pitch": pitch})
    hit = view.hit_mask.numpy()
    assert (hit != (shown.t > 0)).mean() <= 0.002
    both = hit & (shown.t > 0)
    assert np.abs(shown.t - view.surface_depth.numpy())[both].max() < 1e-4
    assert psnr_db(shown.pixels, pixels_of(view, "image", loaded)) >= MIN_PSNR_DB
    for mode, quantity in (("surface", "surface_image"), ("depth", "surface_depth"), ("normals", "normals")):
        shown = show(opened, mode=mode)
        assert psnr_db(shown.pixels, pixels_of(view, quantity, loaded)) >= MIN_PSNR_DB, mode
    normals = view.normals.permute(1, 2, 0).numpy()
    assert np.median(direction_errors_degrees(shown.pixels[both], normals[both])) < MAX_NORMAL_DEGREES


@pytest.mark.parametrize("name", ["heads_siren", "cats"])
@pytest.mark.parametrize(("yaw", "pitch"), POSES)
def test_shows_the_generator_as_it_is_before_rounding(
    opened: Browser, generators: dict[str, LoadedGenerator], name: str, yaw: float, pitch: float
) -> None:
    """All pixels, also those of grazing rays, in which rounded weights may find another surface."""
    loaded = generators[name]
    set_state(opened, **{**START, "model": name, "yaw": yaw, "pitch": pitch})
    shown = opened.run(
        "gof.viewer.settled().then(() => gof.viewer.capture(arguments[0]))"
        ".then(({ pixels }) => btoa(String.fromCharCode(...pixels)))",
        EXACT_SIZE,
    )
    pixels = np.frombuffer(base64.b64decode(shown), np.uint8).reshape(EXACT_SIZE, EXACT_SIZE, 4)[::-1, :, :3]
    truth = pixels_of(reference(loaded, yaw, pitch, size=EXACT_SIZE), "image", loaded)
    assert psnr_db(pixels, truth) >= MIN_PSNR_DB


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 7, 2**63 - 1])
@pytest.mark.parametrize(("latent_dim", "z_dist"), [(64, "gaussian"), (20, "gaussian"), (7, "gaussian"), (9, "uniform")])
def test_seeds_give_the_latents_of_pytorch(opened: Browser, seed: int, latent_dim: int, z_dist: str) -> None:
    drawn = opened.run("[...latentFromSeed(BigInt(arguments[0]), arguments[1], arguments[2])]", str(seed), latent_dim, z_dist)
    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides([f"latent_dim={latent_dim}", f"z_dist={z_dist}"])
    assert np.abs(np.array(drawn) - latent_from_seed(seed, curriculum)[0].numpy()).max() < 2e-6


def test_styles_equal_those_of_python(opened: Browser, generators: dict[str, LoadedGenerator]) -> None:
    expected = flatten_styles(styles_from_seed(with_rounded_weights(generators["cats"]), 3, PSI))[0].numpy()
    found = opened.run(
        "[...gof.viewer.generators.get('cats').styles({ seed: 3n, secondSeed: 4n, shape: 0, color: 0, psi: arguments[0] })]", PSI
    )
    assert np.abs(np.array(found) - expected).max() < 1e-5


def test_seed_psi_and_mixing_change_what_they_should(opened: Browser) -> None:
    first = show(opened, **START)
    second = show(opened, **{**START, "seed": 1})
    assert psnr_db(first.pixels, second.pixels) < MIN_PSNR_DB
    mean = show(opened, **{**START, "psi": 0})
    assert (mean.pixels == show(opened, **{**START, "psi": 0, "seed": 1}).pixels).all()
    assert psnr_db(first.pixels, mean.pixels) < MIN_PSNR_DB

    start = {**START, "secondSeed": 5}  # of another skin and shirt
    second = show(opened, **{**START, "seed": 5})
    recolored = show(opened, **{**start, "color": 1})
    reshaped = show(opened, **{**start, "shape": 1})
    for mixed, same, other in ((recolored, first, second), (reshaped, second, first)):
        assert psnr_db(mixed.pixels, same.pixels) < 30  # plainly another appearance
        both = (mixed.t > 0) & (same.t > 0) & (other.t > 0)
        assert np.abs(mixed.t - same.t)[both].mean() < np.abs(mixed.t - other.t)[both].mean()  # closer to its geometry
    assert (show(opened, **{**start, "shape": 1, "color": 1}).pixels == second.pixels).all()


def test_mouse_keys_and_buttons(opened: Browser) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    show(opened, **START)
    canvas = opened.element("canvas")
    opened.drag(canvas, 60, 30)
    state = opened.run("(({ yaw, pitch }) => ({ yaw, pitch }))(gof.viewer.state)")
    width = opened.run("gof.viewer.canvas.clientWidth")
    assert state["yaw"] == pytest.approx(math.pi * 60 / width, rel=0.05)
    assert state["pitch"] == pytest.approx(-math.pi * 30 / width, rel=0.05)
    opened.wheel(canvas, 100)
    assert opened.run("gof.viewer.state.zoom") > 1

    canvas.send_keys(keys.HOME)
    assert opened.run("[gof.viewer.state.yaw, gof.viewer.state.pitch, gof.viewer.state.zoom]") == [0, 0, 1]
    canvas.send_keys(keys.ARROW_LEFT, "3")
    assert opened.run("gof.viewer.state.yaw") < 0
    assert opened.run("gof.viewer.state.mode") == "normals"

    field = opened.element("seed")
    field.clear()
    field.send_keys("12")
    assert opened.run("String(gof.viewer.state.seed)") == "12"
    field.send_keys("x")
    assert opened.run("[document.getElementById('seed').checkValidity(), String(gof.viewer.state.seed)]") == [False, "12"]
    opened.element("another").click()
    seed = opened.run("String(gof.viewer.state.seed)")
    assert seed != "12"
    assert f"seed {seed}" in opened.run("gof.viewer.settled().then(() => document.getElementById('caption').textContent)")


def test_one_finger_turns_and_two_zoom(opened: Browser) -> None:
    show(opened, **START)
    scrolled = opened.run("window.scrollY")
    left, top, width = opened.run("(({ x, y, width }) => [x, y, width])(gof.viewer.canvas.getBoundingClientRect())")
    middle, start = top + width / 2, left + width / 2
    opened.touch([(start, middle), (start + 30, middle + 10), (start + 60, middle + 30)])
    yaw, pitch, zoom = opened.run("[gof.viewer.state.yaw, gof.viewer.state.pitch, gof.viewer.state.zoom]")
    assert (yaw, pitch, zoom) == pytest.approx((math.pi * 60 / width, -math.pi * 30 / width, 1), rel=0.05)
    opened.touch([(start - 40, middle), (start - 50, middle)], [(start + 40, middle), (start + 50, middle)])
    assert opened.run("gof.viewer.state.zoom") == pytest.approx(80 / 100, rel=0.02)  # the fingers spread: closer
    assert opened.run("gof.viewer.state.yaw") == pytest.approx(yaw)
    assert opened.run("window.scrollY") == scrolled  # the page itself has not moved


def luminance(color: str) -> float:
    """Relative luminance of a CSS color rgb(r, g, b), as defined by WCAG 2."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", color)[:3]]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(opened: Browser, scheme: str) -> None:
    opened.prefer(scheme)
    try:
        shown = opened.run(
            "[...document.querySelectorAll('h1, header p, figcaption, label, legend, button, output, input[type=text], footer')]"
            ".filter((element) => element.checkVisibility() && !element.disabled).map((element) => { let behind = element;"
            " while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)' && behind.parentElement)"
            " behind = behind.parentElement;"
            " return [element.tagName, getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]; })"
        )
        paper = luminance(opened.run("getComputedStyle(document.body).backgroundColor"))
    finally:
        opened.prefer("")
    assert paper > 0.8 if scheme == "light" else paper < 0.05
    assert len(shown) > 15
    for name, ink, behind in shown:
        bright, dim = sorted((luminance(ink), luminance(behind)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ink, behind)  # the ratio that WCAG 2 AA asks for


def test_the_caption_of_a_swaying_view_names_no_pose(opened: Browser) -> None:
    show(opened, **START)
    caption = "document.getElementById('caption').textContent"
    assert opened.run(caption) == "heads_siren, seed 0, front"
    opened.element("sway").click()
    opened.run("(async () => { while (gof.viewer.state.yaw <= 0) await delay(10); })()")
    assert opened.run(caption).startswith("heads_siren, seed 0, swaying")
    opened.element("sway").click()
    assert "swaying" not in opened.run(caption)
    opened.element("reset").click()
    assert opened.run(caption) == "heads_siren, seed 0, front"


def test_saves_what_it_shows(opened: Browser) -> None:
    shown = show(opened, **START)
    found = opened.run("gof.viewer.toBlob().then((blob) => blob.arrayBuffer()).then((buffer) => [...new Uint8Array(buffer)])")
    saved = np.array(Image.open(BytesIO(bytes(found))).convert("RGB"))
    assert (saved == shown.pixels).all()


def test_saves_while_it_sways(opened: Browser) -> None:
    show(opened, **START)
    opened.run("gof.viewer.sway(true)")
    assert opened.run("gof.viewer.toBlob().then((blob) => blob.size)") > 100
    opened.run("gof.viewer.sway(false)")


def test_a_lost_context_comes_back(opened: Browser) -> None:
    before = show(opened, **START)
    caption = opened.run(
        "new Promise((resolve) => {"
        "  const canvas = gof.viewer.canvas;"
        "  window.loss = gof.viewer.gl.getExtension('WEBGL_lose_context');"
        "  canvas.addEventListener('webglcontextlost', () => setTimeout("
        "    () => resolve(document.getElementById('caption').textContent)), { once: true });"
        "  window.loss.loseContext();"
        "})"
    )
    assert "graphics card was reset" in caption
    opened.run(
        "new Promise((resolve) => {"
        "  gof.viewer.canvas.addEventListener('webglcontextrestored', resolve, { once: true });"
        "  window.loss.restoreContext();"
        "})"
    )
    after = show(opened, **START)
    assert (after.pixels == before.pixels).all()
    assert "seed 0" in opened.run("document.getElementById('caption').textContent")


def test_makes_no_network_requests_and_logs_nothing(opened: Browser, page: Path) -> None:
    """Covers all tests before this one."""
    errors = [message for message in opened.console() if "CONTEXT_LOST_WEBGL" not in message]
    assert errors == []
    assert {url.split("?")[0] for url in opened.requests()} == {page.as_uri()}


def test_a_photos_latent_stands_beside_the_generator(
    browser: Browser, generators: dict[str, LoadedGenerator], tmp_path: Path, short_turntable: None
) -> None:
    """Its styles are those of seed 3, in another color: weights tuned to the photo."""
    loaded = generators["heads_siren"]
    tuned = {"siren.color_layer_linear.0.bias": torch.tensor([1.0, 0.0, -1.0])}
    styles = styles_from_seed(loaded, 3, 1.0)
    latent = Latent(styles, dict.fromkeys(PHOTO_KEYS, 0.0), GeneratorName("heads_siren", ""), 30.0, tuned)
    page = tmp_path / "photo.html"
    page.write_text(export_page({"heads_siren": loaded}, {"me": latent}))
    browser.open(page, f"?size={SIZE}&model=me")
    shown = shown_at_rest(browser)
    c = loaded.curriculum
    field = with_weights(loaded.generator, tuned).field(styles)
    view = render_view(field, make_pose(c.h_mean, c.v_mean), c, ViewSettings(SIZE, surface_only=True))
    assert psnr_db(shown.pixels, pixels_of(view, "image", loaded)) >= MIN_PSNR_DB
    assert "me, the photo" in browser.element("controls").find_element("xpath", "//figcaption").text
    set_state(browser, seed=3, psi=1)
    assert (shown_at_rest(browser).pixels == shown.pixels).all()


SMALL_TRIPLANE = ("latent_dim=16", "w_dim=16", "backbone_channels=(12,8,8)", "decoder_dim=8")


def make_triplane(base: str, *overrides: str) -> LoadedGenerator:
    """Tri-planes, turned, whose logits have a part of their own beside the ball's."""
    curriculum = CURRICULUMS[base].with_overrides(overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ImplicitGenerator3d(curriculum).eval()
        with torch.no_grad():
            generator.triplane.decoder.output_weight[0].normal_()
            generator.triplane.orientation.copy_(torch.tensor([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]))
    return LoadedGenerator(generator, curriculum)


def restored(stored: bytes, shape: torch.Size) -> torch.Tensor:
    """The rounded tensor that `quantize` stored, read bit by bit."""
    scales = np.frombuffer(stored[: 2 * shape[0]], "<f2").astype(np.float64)
    stream = np.unpackbits(np.frombuffer(stored[2 * shape[0] :], np.uint8), bitorder="little")
    integers = stream[: 12 * shape.numel()].reshape(-1, 12) @ (1 << np.arange(12)) - 2047
    return torch.from_numpy(integers.reshape(shape[0], -1) * scales[:, None]).reshape(shape)


def with_rounded_weights(loaded: LoadedGenerator) -> LoadedGenerator:
    """The generator that the page holds. Only weights of tri-planes are rounded."""
    tensors = generator_tensors(loaded.generator)
    rounded = {
        name: restored(quantize(value), value.shape).float() for name, value in tensors.items() if is_quantized(name, value)
    }
    assert bool(rounded) == (loaded.curriculum.model == "TRIPLANE")
    generator = with_weights(loaded.generator, rounded)
    generator.truncation_mean = loaded.generator.truncation_mean or loaded.generator.compute_truncation_mean()
    return LoadedGenerator(generator, loaded.curriculum)


def test_triplanes_show_what_python_shows(browser: Browser, tmp_path: Path, short_turntable: None) -> None:
    generators = {
        "sum": make_triplane("SYNTH_TRIPLANE", *SMALL_TRIPLANE, "init_ball_stretch=(0.7,1.3,1)"),
        "product": make_triplane("SYNTH_TRIPLANE", *SMALL_TRIPLANE, "plane_reduce=product"),
        "full": make_triplane("CATS_TRIPLANE"),
    }
    page = tmp_path / "planes.html"
    page.write_text(export_page(generators))
    assert page.stat().st_size < MAX_PAGE_BYTES
    browser.open(page, f"?size={SIZE}")
    for name, loaded in generators.items():
        view = reference(loaded, 0.4, 0.1, seed=2)
        shown = show(browser, **{**START, "model": name, "seed": 2, "yaw": 0.4, "pitch": 0.1})
        assert psnr_db(shown.pixels, pixels_of(view, "image", loaded)) >= MIN_PSNR_DB
        view = reference(with_rounded_weights(loaded), 0.4, 0.1, seed=2)
        assert psnr_db(shown.pixels, pixels_of(view, "image", loaded)) >= MIN_PSNR_DB
        both = view.hit_mask.numpy() & (shown.t > 0)
        assert np.abs(shown.t - view.surface_depth.numpy())[both].max() < 1e-4
        shown = show(browser, mode="normals")
        normals = view.normals.permute(1, 2, 0).numpy()
        assert np.median(direction_errors_degrees(shown.pixels[both], normals[both])) < MAX_NORMAL_DEGREES
    assert browser.run("gof.viewer.generator.planeMaker.worker instanceof Worker && typeof TriplaneBackbone === 'undefined'")
    start = {**START, "model": "product"}
    second = show(browser, **{**start, "seed": 1})
    assert (show(browser, **{**start, "shape": 1, "color": 1}).pixels == second.pixels).all()
    assert (show(browser, **{**start, "shape": 1}).pixels != second.pixels).any()


def test_weights_in_textures_and_unrolled_products_give_the_same_image(
    browser: Browser, page: Path, generators: dict[str, LoadedGenerator]
) -> None:
    browser.open(page, f"?size={SIZE}&weights=textures&products=unrolled")
    view = reference(generators["heads_siren"], 0.0, 0.0)
    shown = show(browser, **START)
    assert psnr_db(shown.pixels, pixels_of(view, "image", generators["heads_siren"])) >= MIN_PSNR_DB
    assert "textures unrolled" in browser.run("gof.viewer.renderer.field.program.key")


@pytest.mark.parametrize("damage", ["changed", "cut off", "not base64"])
def test_damaged_weights_are_named(browser: Browser, page: Path, tmp_path: Path, damage: str) -> None:
    text = page.read_text()
    start = text.index('id="weights-heads_siren">') + len('id="weights-heads_siren">')
    place = start + 1000
    if damage == "changed":
        text = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    elif damage == "cut off":
        text = text[:place] + text[place + 400 :]
    else:
        text = text[:place] + "*" + text[place + 1 :]
    damaged = tmp_path / "damaged.html"
    damaged.write_text(text)
    browser.open(damaged)
    assert "weights in this page are damaged" in browser.element("problem").text
    assert browser.element("turntable").is_displayed()
    assert not browser.element("canvas").is_displayed()


def test_a_field_that_cannot_be_computed_is_reported(browser: Browser, page: Path) -> None:
    browser.open(page, f"?size={SIZE}&model=cats")
    browser.run("gof.viewer.settled()")
    browser.run("void (TriplaneProgram.prototype.fold = () => Promise.reject(new Error('out of memory')))")
    browser.run("(gof.controls.change({ seed: 5n }), gof.viewer.settled())")
    assert "cannot draw (out of memory)" in browser.element("problem").text


def test_without_webgl2_a_message_and_a_recorded_turn_are_shown(browser: Browser, page: Path) -> None:
    script = browser.before_each_page("HTMLCanvasElement.prototype.getContext = () => null;")
    browser.open(page)
    browser.no_longer_before_each_page(script)
    assert "does not support WebGL 2" in browser.element("problem").text
    assert browser.run(
        "document.getElementById('turntable').decode().then(() => document.getElementById('turntable').naturalWidth)"
    )
    assert not browser.element("controls").is_displayed()


def test_weights_are_stored_bit_identically() -> None:
    exact = torch.tensor([[0.5, -1.25], [3.0, 0.0]])
    rough = torch.tensor([1 / 3, 1e-9])
    data, packing = pack_tensors({"exact": exact, "rough": rough})
    assert [(entry["dtype"], entry["offset"]) for entry in packing["tensors"]] == [("float16", 0), ("float32", 8)]
    assert (np.frombuffer(data[:8], "<f2") == exact.flatten().numpy()).all()
    assert (np.frombuffer(data[8:], "<f4") == rough.numpy()).all()


def test_rounds_the_large_weights_of_triplanes() -> None:
    weight = torch.randn(6, 10, 3, 9, generator=torch.Generator().manual_seed(0))
    weight[2] *= 100
    weight[4] = 0
    name = "triplane.backbone.blocks.0.0.weight"
    data, packing = pack_tensors({name: weight, "triplane.decoder.hidden_weight": weight, "bias": torch.ones(3)})
    assert [entry["dtype"] for entry in packing["tensors"]] == ["int12", "float32", "float16"]
    end = packing["tensors"][1]["offset"]
    assert end == 2 * len(weight) + math.ceil(weight.numel() * 12 / 8)
    steps = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 2047
    error = restored(data[:end], weight.shape) - weight
    assert (error.abs() <= steps).all()  # half a step, and the scale's own rounding
    assert float(error.abs().max() / steps.max()) > 0.4


@pytest.mark.parametrize(("yaw", "pitch"), POSES)
def test_rounded_weights_change_the_image_little(generators: dict[str, LoadedGenerator], yaw: float, pitch: float) -> None:
    loaded = generators["cats"]
    exact, rounded = (reference(chosen, yaw, pitch) for chosen in (loaded, with_rounded_weights(loaded)))
    both = (exact.hit_mask & rounded.hit_mask).numpy()
    assert (exact.hit_mask != rounded.hit_mask).float().mean() <= 0.005  # grazing rays
    assert psnr_db(pixels_of(rounded, "image", loaded)[both], pixels_of(exact, "image", loaded)[both]) >= MIN_PSNR_DB


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hidden_dim=132"], "4 layers of 132"),
        (["num_layers=5"], "5 layers of 64"),
        (["model=EmbeddingPiGAN128"], "no shader"),
        (["model=TRIPLANE", "view_dependent=False", "decoder_dim=132"], "decoder of 132"),
        (["model=TRIPLANE", "view_dependent=False", "decoder_dim=128", "plane_channels=32"], "32 x 128 weights"),
        (["pred_occ=False", "surface_sample=False", "with_opacprior=False", "with_normal_loss=False"], "radiance field"),
    ],
)
def test_generators_beyond_the_limits_are_rejected(overrides: list[str], words: str) -> None:
    base = CURRICULUMS["SYNTH_TINY"].with_overrides(["init_ball_radius=0", "hollow_check_interval=0"])
    with pytest.raises(UserError, match=words) as refusal:
        check_exportable("mine", base.with_overrides(overrides))
    assert "view.py" in str(refusal.value)


def test_the_shipped_page_is_small_and_up_to_date(repo: Path) -> None:
    """If this fails: python export_web.py cats heads --output docs/demo.html"""
    page = repo / "docs" / "demo.html"
    text = page.read_text()
    assert page.stat().st_size < 2 * MAX_PAGE_BYTES  # two generators
    assert page_script() in text and worker_script() in text and page_style() in text
    for name in ("heads", "cats"):
        loaded = load_generator(name)
        data = pack_tensors(generator_tensors(loaded.generator)).data
        assert f'id="weights-{name}">{base64.b64encode(data).decode()}</script>' in text
