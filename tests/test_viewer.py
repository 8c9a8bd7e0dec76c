"""The viewer: its rays against the scripts' images, its schedule, its page in a real browser."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import small_models
from browser import Browser
from checkpoints.files import save_inference
from checkpoints.loading import LoadedGenerator, load_generator
from generators.views import ViewSettings, make_pose, render_view
from settings.registry import CURRICULUMS
from viewing.address import MAX_SHOWN_SEED, LocalServer
from viewing.camera import BrowserCamera, camera_at, visible_block, window_half_side
from viewing.frames import Frame, FrameJob, FrameSettings
from viewing.looks import Look, field_of
from viewing.pool import MIN_PART_RAYS, RenderPool
from viewing.server import _number
from viewing.shapes import prior_cameras
from viewing.source import RunFolder, newest_generator
from viewing.worker import MIN_MOVING_SIZE, Session, TimeBudget, Worker
from visualization.generator_scripts import Subject, bind_field, mix_subjects, styles_from_seed
from visualization.images import to_uint8
from visualization.meshes import colored_mesh

SIZE = 32
CPU = torch.device("cpu")
BROWSER_SECONDS = 240  # machines that test much at once are slow


@pytest.fixture(scope="module")
def loaded(tiny_generator_path: Path) -> LoadedGenerator:
    return load_generator(tiny_generator_path)


def script_camera(loaded: LoadedGenerator, yaw: float, pitch: float, size: int) -> BrowserCamera:
    """The camera with the pixel centers of the other scripts, whose outermost ones are on the frame's edge."""
    slope = window_half_side(loaded.curriculum) * size / (size - 1)
    return camera_at(yaw, pitch, 1.0, 2 * math.atan(slope), height=size)


def whole_frame(loaded: LoadedGenerator, camera: BrowserCamera, settings: FrameSettings, look: Look | None = None) -> Frame:
    job = FrameJob(field_of(loaded, look or Look()), loaded.curriculum, camera, settings)
    frame = job.advance(job.num_rays, CPU)
    assert frame is not None
    return frame


# -- rays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", [False, True])
def test_a_frame_is_the_image_of_the_other_scripts(loaded: LoadedGenerator, surface: bool) -> None:
    yaw, pitch = math.pi / 2 + 0.4, math.pi / 2 - 0.2
    settings = FrameSettings(surface=surface, image_size=SIZE - 1)  # of the frame, whose edge halves the outer pixels
    frame = whole_frame(loaded, script_camera(loaded, yaw, pitch, SIZE), settings)
    view_settings = ViewSettings(image_size=SIZE, ray_step_multiplier=1, surface_only=surface)
    view = render_view(field_of(loaded, Look()), make_pose(yaw, pitch), loaded.curriculum, view_settings)
    block = frame.block
    assert (block.height, block.width) == (SIZE, SIZE)
    expected = to_uint8(view.image)[block.top : block.top + block.rows, block.left : block.left + block.columns]
    assert expected.std() > 10
    assert np.abs(frame.cropped().astype(int) - expected).max() <= 2


def test_a_frame_in_pieces_is_the_same(loaded: LoadedGenerator) -> None:
    camera = camera_at(1.2, 1.4, 1.3, 0.3, aspect=1.5, height=200)
    settings = FrameSettings(image_size=SIZE, with_depth=True)
    whole = whole_frame(loaded, camera, settings)
    job, frame, num_pieces = FrameJob(field_of(loaded, Look()), loaded.curriculum, camera, settings), None, 0
    while frame is None:
        frame, num_pieces = job.advance(100, CPU), num_pieces + 1
    assert num_pieces == math.ceil(job.num_rays / 100)
    assert np.abs(whole.pixels.astype(int) - frame.pixels).max() <= 1
    assert np.allclose(whole.depth, frame.depth, atol=1e-5)


def test_a_frame_of_several_threads_is_the_same(loaded: LoadedGenerator) -> None:
    camera = camera_at(1.2, 1.4, 1.3, 0.3, aspect=1.5, height=200)
    settings = FrameSettings(image_size=SIZE)
    whole = whole_frame(loaded, camera, settings)
    before = torch.get_num_threads()
    pool = RenderPool(3)
    job, frame = FrameJob(field_of(loaded, Look()), loaded.curriculum, camera, settings), None
    while frame is None:
        frame = job.advance(600, CPU, pool)
    threads = pool.map(lambda part: (part, threading.get_ident(), torch.get_num_threads()), slice(5, 5 + 2 * MIN_PART_RAYS))
    pool.close()
    assert np.abs(whole.pixels.astype(int) - frame.pixels).max() <= 1
    assert [part for part, _, _ in threads] == [slice(5, 5 + MIN_PART_RAYS), slice(5 + MIN_PART_RAYS, 5 + 2 * MIN_PART_RAYS)]
    assert all(ident != threading.get_ident() and num == 1 for _, ident, num in threads)
    assert torch.get_num_threads() == before


def test_depth_is_measured_along_the_line_of_sight(loaded: LoadedGenerator) -> None:
    """A ball of radius 0.07 (tests/small_models.py), from far away: its nearest point is that much nearer than the origin."""
    camera = camera_at(math.pi / 2, math.pi / 2, 2.0, 0.2, height=200)
    frame = whole_frame(loaded, camera, FrameSettings(image_size=65, with_depth=True))
    assert frame.depth.min() == pytest.approx(2 - small_models.BALL_RADIUS, abs=0.01)
    assert frame.depth[0, 0] == 100


def test_a_camera_to_the_side_shows_the_frame_at_the_other(loaded: LoadedGenerator) -> None:
    half_side = window_half_side(loaded.curriculum)
    straight = camera_at(math.pi / 2, math.pi / 2, 1.0, 0.6, height=200)
    x, y, z = straight.position
    beside = BrowserCamera((x + 0.1, y, z), straight.wxyz, straight.fov, straight.aspect, straight.height)
    a, b = visible_block(straight, half_side, SIZE), visible_block(beside, half_side, SIZE)
    assert b.columns == pytest.approx(a.columns, abs=1)
    shift = 0.1 / math.tan(0.3) / 2 * a.width
    assert a.left - b.left == pytest.approx(shift, abs=1.5)


def test_the_number_of_rays_does_not_depend_on_the_distance(loaded: LoadedGenerator) -> None:
    half_side = window_half_side(loaded.curriculum)
    for distance in (0.5, 1.0, 1.5):
        block = visible_block(camera_at(1.5, 1.5, distance, 0.25, 1.6, 1000), half_side, 64)
        assert block.rows * block.columns == pytest.approx(64 * 64, rel=0.06)


def test_a_frame_out_of_view_is_background(loaded: LoadedGenerator) -> None:
    toward = camera_at(math.pi / 2, math.pi / 2, 1.0, 0.25)
    x, y, z = toward.position
    away = BrowserCamera((x, y, -z), toward.wxyz, 0.25, 1.0, 100)
    assert (whole_frame(loaded, away, FrameSettings()).pixels == 255).all()


def test_poses_are_those_of_the_scripts() -> None:
    for yaw, pitch in ((1.1, 0.7), (-2.0, 2.4), (math.pi / 2, math.pi / 2)):
        assert camera_at(yaw, pitch, 1.7, 0.2).pose() == pytest.approx((yaw, pitch), abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"position": (math.nan, 0, 1)}, {"position": (0, 0, 0)}, {"wxyz": (0, 0, 0, 0)}, {"fov": 4.0}, {"aspect": math.inf}],
)
def test_impossible_cameras_are_rejected(change: dict[str, object]) -> None:
    good = {"position": (0.0, 0.0, 1.0), "wxyz": (1.0, 0.0, 0.0, 0.0), "fov": 0.2, "aspect": 1.0, "height": 100}
    assert BrowserCamera(**good).is_possible()
    assert not BrowserCamera(**(good | change)).is_possible()


# -- what is shown -------------------------------------------------------------------------------------------------


def test_a_mixed_head_is_that_of_style_mixing(loaded: LoadedGenerator) -> None:
    points = (torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.2
    own, other = (Subject(str(seed), styles_from_seed(loaded, seed, 0.7)) for seed in (3, 4))
    expected = bind_field(loaded, mix_subjects(loaded, own, other, (loaded.curriculum.num_layers + 1) // 2))
    logits = [field_of(loaded, look).occupancy_logits(points) for look in (Look(3, appearance_seed=4), Look(3), Look(4))]
    assert torch.equal(logits[0], expected.occupancy_logits(points))
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_a_latent_file_replaces_the_seed(loaded: LoadedGenerator) -> None:
    points = (torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.2
    latents = {"photo": Subject("photo", styles_from_seed(loaded, 9, 1.0))}
    found = field_of(loaded, Look(3, latent="photo"), latents).occupancy_logits(points)
    assert torch.equal(found, field_of(loaded, Look(9, 1.0)).occupancy_logits(points))
    assert torch.equal(
        field_of(loaded, Look(3), latents).occupancy_logits(points), field_of(loaded, Look(3)).occupancy_logits(points)
    )


def test_triplanes_are_shown_too() -> None:
    from generators.generator import ImplicitGenerator3d

    curriculum = CURRICULUMS["SYNTH_TINY"].with_overrides(["model=TRIPLANE", "view_dependent=False"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = LoadedGenerator(ImplicitGenerator3d(curriculum).eval(), curriculum)
    camera = camera_at(math.pi / 2, math.pi / 2, 1.0, 0.25)
    frames = [whole_frame(loaded, camera, FrameSettings(image_size=16), Look(0, 1.0, other)).cropped() for other in (None, 1)]
    assert not np.array_equal(*frames)


def test_the_mesh_is_the_ball(loaded: LoadedGenerator) -> None:
    mesh = colored_mesh(field_of(loaded, Look()), loaded.curriculum, 128, CPU)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(small_models.BALL_RADIUS, abs=0.01)
    assert mesh.visual.vertex_colors[:, :3].std() > 10


def test_the_prior_has_the_spread_of_training(loaded: LoadedGenerator) -> None:
    yaws = torch.tensor([camera.pose()[0] for camera in prior_cameras(loaded)])
    curriculum = loaded.curriculum  # uniform: half width h_stddev
    assert (yaws - curriculum.h_mean).abs().max() <= curriculum.h_stddev + 1e-5
    assert float(yaws.std()) == pytest.approx(curriculum.h_stddev / math.sqrt(3), rel=0.25)


# -- the schedule --------------------------------------------------------------------------------------------------


def test_sizes_follow_the_time_that_rays_take() -> None:
    budget, settings = TimeBudget(), FrameSettings(image_size=256)
    assert budget.moving_size(settings, 0.1) == MIN_MOVING_SIZE
    budget.record(settings, 64 * 64, 0.1)
    assert budget.moving_size(settings, 0.1) == 64
    assert budget.moving_size(settings, 0.4) == 128
    assert budget.moving_size(settings, 100.0) == 256
    assert budget.moving_size(FrameSettings(quantity="normals"), 0.1) == MIN_MOVING_SIZE


class RecordingScreen:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bool]] = []
        self.refined = threading.Event()
        self.problem: str | None = None

    def report(self, problem: str) -> None:
        self.problem = problem
        self.refined.set()

    def show(self, frame: Frame, is_refined: bool, seconds: float) -> None:
        self.frames.append((frame.image_size, is_refined))
        if is_refined:
            self.refined.set()


@pytest.fixture
def worker(loaded: LoadedGenerator) -> Iterator[Worker]:
    worker = Worker(loaded, CPU)
    worker.start(Look(), FrameSettings(image_size=96))
    yield worker
    worker.stop()


def new_session() -> Session:
    return Session(RecordingScreen(), camera_at(1.5, 1.5, 1.0, 0.25, height=400), Look(), FrameSettings(image_size=96))


def test_views_at_rest_are_refined_and_moving_ones_are_coarse(worker: Worker) -> None:
    sessions = [new_session(), new_session()]
    for session in sessions:
        worker.add(session)
    assert all(session.screen.refined.wait(60) for session in sessions)
    assert all(session.screen.frames[-1] == (96, True) for session in sessions)
    moving, resting = sessions
    moving.screen.refined.clear()
    before = len(resting.screen.frames)
    worker.change(moving, camera=camera_at(1.2, 1.5, 1.0, 0.25, height=400))
    assert moving.screen.refined.wait(60)
    assert len(resting.screen.frames) == before


def test_a_session_that_leaves_is_no_longer_rendered(worker: Worker) -> None:
    gone, staying = new_session(), new_session()
    worker.add(gone)
    assert gone.screen.refined.wait(60)
    worker.remove(gone)
    worker.remove(gone)
    before = len(gone.screen.frames)
    worker.change(gone, look=Look(5))
    worker.add(staying)
    assert staying.screen.refined.wait(60)
    assert len(gone.screen.frames) == before


def test_a_view_that_cannot_be_rendered_leaves_the_others(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory\nin many lines")

    first, second = new_session(), new_session()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_new_job", fail)
        worker.add(first)
        assert first.screen.refined.wait(60)
    assert first.screen.problem.startswith("out of memory") and "\n" not in first.screen.problem
    first.screen.refined.clear()
    worker.add(second)
    worker.change(first, look=Look(5))
    assert first.screen.refined.wait(60) and second.screen.refined.wait(60)
    assert first.screen.frames[-1] == second.screen.frames[-1] == (96, True)


def test_a_new_generator_reaches_everyone(worker: Worker, empty_generator_path: Path) -> None:
    session = new_session()
    worker.add(session)
    assert session.screen.refined.wait(60)
    session.screen.refined.clear()
    worker.replace_generator(load_generator(empty_generator_path))
    assert session.screen.refined.wait(60)


# -- a run's folder ------------------------------------------------------------------------------------------------


def test_a_partly_written_generator_is_retried(tmp_path: Path, tiny_generator_path: Path) -> None:
    folder = RunFolder(tmp_path, None, CPU, "float32")
    assert folder.poll() is None and folder.problem is None
    target = tmp_path / "generator.safetensors"
    data = tiny_generator_path.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    assert folder.poll() is None
    assert str(target) in folder.problem
    target.write_bytes(data)
    assert folder.poll() is not None and folder.problem is None
    assert folder.poll() is None
    save_inference(target, small_models.make_empty_generator(), step=7)
    assert folder.poll().step == 7


def test_checkpoints_stand_in_for_the_generator(tmp_path: Path) -> None:
    for step in (500, 12000, 900):
        (tmp_path / f"checkpoint_{step:07d}.pt").touch()
    assert newest_generator(tmp_path).name == "checkpoint_0012000.pt"
    (tmp_path / "generator.safetensors").touch()
    assert newest_generator(tmp_path).name == "generator.safetensors"


# -- the server ----------------------------------------------------------------------------------------------------


def test_what_a_browser_sends_is_checked() -> None:
    for value in ("../../etc/passwd", None, True, math.nan, -1, MAX_SHOWN_SEED + 1, [1]):
        assert _number(value, 5, 0, MAX_SHOWN_SEED) == 5
    assert _number(7, 5, 0, MAX_SHOWN_SEED) == 7


def test_no_browser_can_request_a_public_link() -> None:
    assert LocalServer.request_share_url(LocalServer.__new__(LocalServer)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "specify either"),
        (["heads", "--psi", "1.6"], "--psi from 0 to 1.5"),
        (["heads", "--seed", "2147483648"], "--seed up to"),
        (["heads", "--watch", "x"], "specify either"),
        (["--watch", "no/such"], "not a folder"),
    ],
)
def test_bad_commands_end_in_one_line(repo: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "view.py", *arguments], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def command(repo: Path) -> Iterator[str]:
    """The address of ``view.py heads``."""
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed")
    process = subprocess.Popen(
        [sys.executable, "view.py", "heads", "--image_size", "128"], cwd=repo, stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().split()[1]
    process.terminate()
    process.wait()


def head_pixels(browser: Browser) -> np.ndarray:
    """The middle of the page, (H, W, 3) uint8."""
    image = np.asarray(Image.open(BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB"))
    height, width = image.shape[:2]
    return image[height // 4 : 3 * height // 4, width // 4 : width // 2]


def wait_for_head(browser: Browser, other_than: np.ndarray | None = None) -> np.ndarray:
    """Wait for pixels with the colors of a head, equal twice in a row. Fails after BROWSER_SECONDS."""
    from selenium.common.exceptions import TimeoutException

    deadline, before = time.monotonic() + BROWSER_SECONDS, None
    while time.monotonic() < deadline:
        try:
            pixels = head_pixels(browser)
        except TimeoutException:  # the driver gives a busy browser 10 s for a screenshot
            continue
        is_new = other_than is None or np.abs(pixels.astype(int) - other_than).mean() > 3
        if pixels.std() > 25 and is_new and before is not None and np.array_equal(pixels, before):
            return pixels
        before = pixels
        time.sleep(1)
    raise AssertionError("no head appeared")


def test_a_real_browser_shows_a_head_that_a_drag_turns(command: str) -> None:
    assert command.startswith("http://127.0.0.1:")
    browser = Browser()
    try:
        browser.driver.set_window_size(900, 500)
        browser.driver.get(command)
        first = wait_for_head(browser)
        browser.drag(browser.driver.find_element("css selector", "canvas"), -150, 20)
        wait_for_head(browser, other_than=first)
        assert all(url.startswith((command, command.replace("http", "ws"))) for url in browser.requests())
    finally:
        browser.close()
