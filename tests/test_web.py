"""The page with the generator inside, in a real browser, against the Python renderer."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from browser import Browser
from checkpoints.loading import LoadedGenerator, load_generator
from generators.generator import latent_from_seed
from generators.views import View, ViewSettings, make_pose, render_view
from visualization.generator_scripts import field_from_seed
from visualization.images import to_uint8, view_picture
from web.export import export_page

SIZE = 32
PSI = 0.7
POSES = ((0.0, 0.0), (0.45, 0.1), (-0.6, -0.2))  # yaw and pitch from the mean, radians
MIN_PSNR_DB = 40.0
MAX_NORMAL_DEGREES = 2.0


class Shown(NamedTuple):
    """A view as the page draws it: ``pixels`` (H, W, 3) uint8, ``t`` (H, W) with -1 where there is no surface; top row first."""

    pixels: np.ndarray
    t: np.ndarray
    num_points: int


@pytest.fixture(scope="module")
def generators() -> dict[str, LoadedGenerator]:
    return {name: load_generator(name) for name in ("heads", "cats")}


@pytest.fixture(scope="module")
def page(generators: dict[str, LoadedGenerator], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "page.html"
    path.write_text(export_page(generators))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser: Browser, page: Path) -> Browser:
    """The page, drawing few pixels."""
    browser.open(page, f"?size={SIZE}")
    return browser


def set_state(browser: Browser, **state: Any) -> None:
    """Seeds go as text, because JavaScript's numbers end at 2^53."""
    browser.run(
        "void gof.controls.change(Object.fromEntries(Object.entries(arguments[0])"
        ".map(([key, value]) => [key, /seed/i.test(key) ? BigInt(value) : value])))",
        {key: str(value) if "seed" in key.lower() else value for key, value in state.items()},
    )


def show(browser: Browser, **state: Any) -> Shown:
    """What the page shows of a state, at rest."""
    set_state(browser, **state)
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


START = {"model": "heads", "seed": 0, "secondSeed": 1, "shape": 0, "color": 0, "psi": PSI, "yaw": 0, "pitch": 0, "zoom": 1}


def reference(loaded: LoadedGenerator, yaw: float, pitch: float, seed: int = 0, size: int = SIZE) -> View:
    c = loaded.curriculum
    field = field_from_seed(loaded, seed, PSI)
    return render_view(field, make_pose(c.h_mean + yaw, c.v_mean + pitch), c, ViewSettings(size, surface_only=True))


def psnr_db(pixels: np.ndarray, truth: np.ndarray) -> float:
    error = np.square(pixels.astype(float) - truth.astype(float)).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def pixels_of(view: View, quantity: str, loaded: LoadedGenerator) -> np.ndarray:
    return to_uint8(view_picture(view, quantity, loaded.curriculum.ray_start, loaded.curriculum.ray_end))


@pytest.mark.parametrize("name", ["heads", "cats"])
@pytest.mark.parametrize(("yaw", "pitch"), POSES)
def test_shows_what_python_shows(
    opened: Browser, generators: dict[str, LoadedGenerator], name: str, yaw: float, pitch: float
) -> None:
    loaded = generators[name]
    view = reference(loaded, yaw, pitch)
    shown = show(opened, **{**START, "model": name, "yaw": yaw, "pitch": pitch, "mode": "image"})
    assert psnr_db(shown.pixels, pixels_of(view, "image", loaded)) >= MIN_PSNR_DB
    hit = view.hit_mask.numpy()
    assert (hit != (shown.t > 0)).mean() <= 0.002
    both = hit & (shown.t > 0)
    assert np.abs(shown.t - view.surface_depth.numpy())[both].max() < 1e-3
