"""Each script on the generator of one combination, run by its own main function, and what its outputs must be."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
import trimesh
from matrix_combinations import Combination
from matrix_generators import make_generator
from PIL import Image

import cal_weighted_var
import dataset
import eval_metrics
import export_web
import extract_shapes
import invert
import oracle
import render_meshimg
import render_multiview_images
import render_video
import render_video_interpolation
import style_mixing
import train
from checkpoints.files import save_inference
from checkpoints.loading import LoadedGenerator, load_generator
from common.program import run_script
from fields.interface import Field
from generators.cameras import sample_camera_poses
from generators.views import ViewSettings, make_pose, render_view
from metrics.sampling import generated_images
from settings.curriculum import Curriculum
from small_models import BALL_RADIUS
from tools import directions, eval_geometry
from viewing.camera import camera_at
from viewing.frames import FrameJob, FrameSettings
from viewing.looks import Look, field_of
from viewing.shapes import prior_cameras
from visualization.generator_scripts import field_from_seed
from visualization.images import QUANTITIES
from visualization.meshes import colored_mesh
from visualization.trajectories import ellipse, multiview

SIZE = 16  # pixels of a view
VIEW = ["--image_size", str(SIZE), "--ray_step_multiplier", "1", "--device", "cpu"]
CORNER = 2  # pixels at a side of each corner, which the ball does not reach: it ends at 0.07 / 0.105 of the half side
DIM, BRIGHT = 0.35, 0.65  # of a background in [0, 1]: the tiny fields leave some occupancy along empty rays


class Wrong(AssertionError):
    """An output is not what the combination should give."""


class Outcome(NamedTuple):
    """What a script left: ``messages`` are its lines on stderr, without progress bars."""

    status: int
    messages: list[str]
    stdout: str
    warnings: list[str]


@dataclass
class Case:
    """One combination on disk: ``folder`` is empty but for what the scripts write."""

    combination: Combination
    folder: Path
    photos: Path
    heads: Path

    @cached_property
    def path(self) -> Path:
        save_inference(self.folder / "tiny.safetensors", make_generator(self.combination), step=1)
        return self.folder / "tiny.safetensors"

    @cached_property
    def loaded(self) -> LoadedGenerator:
        return load_generator(self.path)

    @property
    def curriculum(self) -> Curriculum:
        return self.loaded.curriculum

    @property
    def has_surface(self) -> bool:
        return self.combination.field != "radiance"

    def field(self, seed: int = 0, psi: float = 0.7) -> Field:
        return field_from_seed(self.loaded, seed, psi)

    def run(self, main: Callable[[list[str]], None], *arguments: object) -> Outcome:
        """Run a script to success. Raises Wrong if it fails or warns."""
        done = run(main, *arguments)
        require(done.status == 0, f"status {done.status}: {' | '.join(done.messages[-3:])}")
        require(not done.warnings, f"warnings: {done.warnings}")
        return done

    def refused(self, main: Callable[[list[str]], None], reason: str, *arguments: object) -> None:
        """Run a script that must refuse the combination in one line that contains ``reason``."""
        check_refusal(run(main, *arguments), reason)


def run(main: Callable[[list[str]], None], *arguments: object) -> Outcome:
    """Run an entry script as a shell does, in this process."""
    stdout, stderr, status, program = io.StringIO(), io.StringIO(), None, sys.argv
    sys.argv = [f"{main.__module__}.py"]
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                run_script(partial(main, [str(argument) for argument in arguments]))
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = program
    messages = [line for line in stderr.getvalue().split("\n") if line.strip() and "\r" not in line]
    return Outcome(status, messages, stdout.getvalue(), [str(warning.message)[:200] for warning in caught])


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Wrong(text)


def check_refusal(done: Outcome, reason: str) -> None:
    """Raise Wrong unless a script ended with status 2 and one line that names ``reason``."""
    require(done.status == 2, f"status {done.status} instead of a refusal: {done.messages}")
    require(len(done.messages) == 1 and reason in done.messages[0], f"not one line about {reason!r}: {done.messages}")


# -- rendered images ---------------------------------------------------------------------------------------------------


class OracleField:
    """A product's field for tests/oracle.py, which renders it by itself."""

    def __init__(self, field: Field) -> None:
        self._field = field

    def logits(self, points: torch.Tensor) -> torch.Tensor:
        return self._field.occupancy_logits(points.float()).double()

    def colors(self, points: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return self._field.logits_and_colors(points.float(), directions.float())[1].double()


@torch.no_grad()
def oracle_image(field: Field, curriculum: Curriculum, yaw: float, size: int) -> np.ndarray:
    """Render a view (3, size, size) in [-1, 1] from the mean pitch, in float64, a ray at a time."""
    settings = replace(curriculum, last_back=curriculum.view_last_back)
    renderer = oracle.OracleRenderer(OracleField(field), settings, curriculum.interval_min, None)
    rendered = renderer.render(torch.tensor([curriculum.v_mean]), torch.tensor([yaw]), size)
    return rendered.images[0].numpy()


def check_image(image: np.ndarray, what: str) -> None:
    """Raise Wrong unless an image (3, H, W) in [-1, 1] is finite, in range and not constant."""
    require(bool(np.isfinite(image).all()), f"{what}: not finite")
    require(np.abs(image).max() <= 1 + 1e-4, f"{what}: out of range, {np.abs(image).max()}")
    require(image.std() > 0.02, f"{what}: constant")


def check_background(image: np.ndarray, combination: Combination, what: str) -> None:
    """Raise Wrong if the rays that the ball does not reach (3, H, W in [0, 1]) have another color than the background."""
    empty = np.concatenate([image[:, :CORNER], image[:, -CORNER:]], axis=1)
    empty = np.concatenate([empty[..., :CORNER], empty[..., -CORNER:]], axis=2)
    if combination.background == "white":
        require(empty.min() > BRIGHT, f"{what}: a white background is {empty.min():.2f}")
    if combination.background in ("black", "random"):
        require(empty.max() < DIM, f"{what}: a black background is {empty.max():.2f}")


def read_png(path: Path) -> np.ndarray:
    """Return an image file as (3, H, W) in [0, 1]."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255


def check_view(view: dict[str, np.ndarray], case: Case, what: str) -> None:
    """Raise Wrong unless the arrays of a view agree with each other and with the combination."""
    c = case.curriculum
    check_image(view["image"], what)
    check_background((view["image"] + 1) / 2, case.combination, what)
    hit = view["hit_mask"]
    for name in ("depth", "depth_over_far", "surface_depth"):
        values = view[name]
        inside = (values >= c.ray_start - 1e-5) & (values <= c.ray_end + 1e-5)
        require(bool(inside.all()), f"{what}: {name} is beyond the ray")
    if not case.has_surface:
        require(
            not hit.any() and np.all(view["surface_depth"] == np.float32(c.ray_end)), f"{what}: a radiance field hit a surface"
        )
        require(not view["normals"].any() and np.all(view["surface_image"] == -1), f"{what}: normals without a surface")
        return
    require(0.1 < hit.mean() < 0.9, f"{what}: the ball covers {hit.mean():.2f} of the image")
    lengths = np.linalg.norm(view["normals"], axis=0)
    require(np.allclose(lengths[hit], 1, atol=1e-4) and not lengths[~hit].any(), f"{what}: normals are not unit vectors")
    middle = view["surface_depth"][SIZE // 2, SIZE // 2]
    require(abs(middle - (1 - BALL_RADIUS)) < 0.03, f"{what}: the ball's front is at {middle:.3f}")
    error = np.abs(view["image"] - view["surface_image"])[:, hit].mean()
    require(error < 0.35, f"{what}: volume and surface differ by {error:.2f} on the ball")


def check_multiview(case: Case) -> None:
    out = case.folder / "imgs"
    case.run(render_multiview_images.main, case.path, "--seeds_end", 1, "--output_dir", out, "--save_raw", *VIEW)
    settings, poses = ViewSettings(SIZE, 1), multiview(case.curriculum)
    for i, pose in enumerate(poses):
        with np.load(out / f"raw_0_{i}.npz") as content:
            raw = dict(content)
        check_view(raw, case, f"view {i}")
        own = render_view(case.field(), make_pose(pose.yaw, pose.pitch), case.curriculum, settings)
        for name, value in vars(own).items():
            require(
                np.array_equal(raw[name], np.asarray(value)) or name in ("yaw", "pitch"), f"view {i}: {name} is not render_view's"
            )
        files = {quantity: read_png(out / f"{quantity}_0_{i}.png") for quantity in QUANTITIES}
        require(np.abs(files["image"] * 2 - 1 - raw["image"]).max() < 0.01, f"view {i}: the file is not the view")
        for name in ("surface_image", "normals", "surface_depth"):
            require(bool((files[name][:, ~raw["hit_mask"]] == 1).all()), f"view {i}: {name} is not white without a surface")
    check_against_oracle(case, poses[1].yaw)


def check_against_oracle(case: Case, yaw: float) -> None:
    """Raise Wrong if a view differs from the same view rendered from docs/method.md alone."""
    size = 8
    view = render_view(case.field(), make_pose(yaw, case.curriculum.v_mean), case.curriculum, ViewSettings(size, 1))
    difference = np.abs(view.image.numpy() - oracle_image(case.field(), case.curriculum, yaw, size)).max(axis=0)
    require((difference > 0.01).sum() <= 2, f"{(difference > 0.01).sum()} of {size * size} pixels differ from the oracle's")


def check_surface_only(case: Case) -> None:
    out, options = case.folder / "preview", ["--seeds_end", 1, "--save_raw", "--surface_only", *VIEW]
    if not case.has_surface:
        case.refused(render_multiview_images.main, "a radiance field has no surface", case.path, *options, "--output_dir", out)
        require(not out.exists(), "a refused preview made its folder")
        return
    case.run(render_multiview_images.main, case.path, *options, "--output_dir", out)
    with np.load(out / "raw_0_2.npz") as content:
        raw = dict(content)
    check_image(raw["image"], "preview")
    check_background((raw["image"] + 1) / 2, case.combination, "preview")
    pose = make_pose(raw["yaw"].item(), raw["pitch"].item())
    volume = render_view(case.field(), pose, case.curriculum, ViewSettings(SIZE, 1))
    difference = np.abs(raw["image"] - volume.surface_image.numpy())[:, raw["hit_mask"]].max()
    require(difference < 1e-4, f"the preview is not the color at the root: {difference}")


def frames_of(path: Path) -> np.ndarray:
    """Decode a video: (N, H, W, 3) uint8."""
    return np.asarray(iio.imread(path, plugin="FFMPEG"))


def check_video(case: Case) -> None:
    out = case.folder / "vids"
    wanted = ["--quantities", "image", "depth", "mask"]
    case.run(render_video.main, case.path, "--num_frames", 3, "--output_dir", out, *wanted, *VIEW)
    pose = ellipse(3, case.curriculum)[1]
    own = render_view(case.field(), make_pose(pose.yaw, pose.pitch), case.curriculum, ViewSettings(SIZE, 1)).image.numpy()
    frame = read_png(out / "0_frames" / "001.png") * 2 - 1
    require(np.abs(frame - own).max() < 0.01, "a frame is not render_view's")
    for name in ("0.mp4", "0_depth.mp4", "0_mask.mp4"):
        require(frames_of(out / name).shape == (3, SIZE, SIZE, 3), f"{name} has {frames_of(out / name).shape}")


def check_interpolation(case: Case) -> None:
    for trajectory in ("front", "orbit"):
        out = case.folder / f"between_{trajectory}"
        options = ["--seeds", 0, 1, "--num_frames", 2, "--trajectory", trajectory, "--quantities", "image", "normals"]
        case.run(render_video_interpolation.main, case.path, *options, "--output_dir", out, *VIEW)
        frames = sorted((out / f"interpolation_0_1_{trajectory}_frames").iterdir())
        require(len(frames) == 4, f"{trajectory}: {len(frames)} frames")
        for path in frames:
            check_image(read_png(path) * 2 - 1, f"{trajectory}, {path.name}")


def check_mixing(case: Case) -> None:
    out = case.folder / "mixed"
    is_triplane = case.combination.model == "TRIPLANE"
    split = [] if is_triplane else ["--split", case.curriculum.num_layers]  # of a SIREN, all but the color layer
    options = ["--rows", 0, "--columns", 1, 2, *split, "--image_size", SIZE, "--output_dir", out, "--device", "cpu"]
    case.run(style_mixing.main, case.path, *options)
    image, step = read_png(out / "mix_image.png"), SIZE + 2
    require(image.shape == (3, 2 * step - 2, 3 * step - 2), f"the grid is {image.shape}")
    for row, column in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        cell = image[:, row * step : row * step + SIZE, column * step : column * step + SIZE]
        check_image(cell * 2 - 1, f"cell {row}, {column}")
        check_background(cell, case.combination, f"cell {row}, {column}")
    normals = read_png(out / "mix_normals.png")[:, step:]
    if not case.has_surface:
        require(bool((normals == 1).all()), "a radiance field has normals")
    elif not is_triplane:
        cells = [normals[:, :, i * step : i * step + SIZE] for i in range(3)]
        require(all(np.array_equal(cells[0], cell) for cell in cells), "mixing colors changed the surface")


def check_viewer(case: Case) -> None:
    field = field_of(case.loaded, Look(appearance_seed=1))
    c = case.curriculum
    camera = camera_at(c.h_mean, c.v_mean, 1.0, math.radians(c.fov))
    for quantity in ("image", "normals", "depth"):
        for surface in (False, True):
            settings = FrameSettings(quantity, surface, image_size=SIZE, with_depth=True)
            job = FrameJob(field, c, camera, settings)
            frame = job.advance(job.num_rays, "cpu")
            image = frame.cropped().transpose(2, 0, 1) / 255
            what = f"viewer: {quantity}{' of the surface' if surface else ''}"
            if case.has_surface or quantity != "normals":
                check_image(image * 2 - 1, what)
            if quantity == "image":
                check_background(image, case.combination, what)
            require(bool(np.isfinite(frame.depth).all()), f"{what}: depth is not finite")
    require(colored_mesh(field, case.loaded.curriculum, 32) is not None, "the viewer has no mesh")  # as coarse as in check_shapes


# -- poses -------------------------------------------------------------------------------------------------------------


def training_poses(c: Curriculum, num: int = 2000) -> np.ndarray:
    """Draw poses (num, 2), pitch and yaw, as steps of training do: a batch at a time."""
    random, names = torch.Generator().manual_seed(5), ("h_mean", "v_mean", "h_stddev", "v_stddev", "sample_dist")
    settings = {name: getattr(c, name) for name in names}
    batches = [torch.stack(sample_camera_poses(2, **settings, generator=random), dim=1) for _ in range(num // 2)]
    return torch.cat(batches).numpy()


def pose_limits(c: Curriculum) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest pitch and yaw that the distribution allows (4.5 sigma of a normal one)."""
    mean, spread = np.array([c.v_mean, c.h_mean]), np.array([c.v_stddev, c.h_stddev])
    if c.sample_dist == "spherical_uniform":
        v = np.clip(np.array([c.v_mean - c.v_stddev, c.v_mean + c.v_stddev]) / np.pi, 0, 1)
        pitch = np.arccos(1 - 2 * v)
        return np.array([pitch[0], c.h_mean - c.h_stddev]), np.array([pitch[1], c.h_mean + c.h_stddev])
    reach = {None: 0.0, "uniform": 1.0, "truncated_gaussian": 2.0, "hybrid": 4.5, "gaussian": 4.5}[c.sample_dist]
    return mean - reach * spread, mean + reach * spread


def check_poses(case: Case) -> None:
    """The poses of training are in range; the description of the prior says so."""
    c = case.curriculum
    poses = training_poses(c)
    low, high = pose_limits(c)
    require(bool((poses >= low - 1e-5).all() and (poses <= high + 1e-5).all()), "training's poses are out of range")
    (case.folder / "c.json").write_text(json.dumps(c.to_dict()))
    out = ["--output", case.folder / "sheet.png", "--prior_output", case.folder / "prior.png", "--image_size", 16]
    done = case.run(dataset.main, "--check", case.photos, "--curriculum", case.folder / "c.json", *out)
    line = next(line for line in done.stdout.splitlines() if line.startswith("camera prior"))
    told = [
        float(text)
        for text in line.replace(",", " ").replace("..", " ").split()
        if text.lstrip("+-").isdecimal() and text[0] in "+-"
    ]
    yaw, pitch = (np.degrees(np.quantile(poses[:, i], [0.02, 0.98]) - math.pi / 2) for i in (1, 0))
    spread, own = np.array([camera.pose() for camera in prior_cameras(case.loaded)]).std(axis=0), poses.std(axis=0)[::-1]
    require(np.allclose(spread, own, rtol=0.35, atol=1e-3), f"the viewer's cameras spread by {spread}, training's by {own}")
    require(np.allclose(told, [*yaw, *pitch], atol=5), f"the prior is told as {told}, drawn as {np.round([*yaw, *pitch])}")


# -- shapes ------------------------------------------------------------------------------------------------------------


def check_shapes(case: Case) -> None:
    out, num = case.folder / "shapes", 32
    options = ["--seeds", 0, "--voxel_resolution", num, "--output_dir", out, "--device", "cpu"]
    case.run(extract_shapes.main, case.path, *options, "--cube_size", 0.24)
    voxels = np.load(out / f"0_{num}_voxel.npy", allow_pickle=False)
    require(voxels.shape == (num,) * 3 and bool(((voxels >= 0) & (voxels <= 1)).all()), "voxels are no occupancies")
    mesh = trimesh.load(out / f"0_{num}.ply")
    radii = np.linalg.norm(mesh.vertices, axis=1)
    require(abs(np.median(radii) - BALL_RADIUS) < 0.015, f"the mesh has radius {np.median(radii):.3f}")
    require(mesh.is_watertight, "the mesh has holes")
    if case.has_surface:
        logits = case.field().occupancy_logits(torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)[None])
        require(float(logits.detach().abs().median()) < 0.2, "the vertices are not on the surface")
    done = case.run(render_meshimg.main, "--input_dir", out, "--output_dir", case.folder / "meshes", "--image_size", SIZE)
    require("rendering with" in done.stdout, "no renderer is named")
    check_image(read_png(case.folder / "meshes" / f"0_{num}_views.png") * 2 - 1, "mesh views")


# -- scores ------------------------------------------------------------------------------------------------------------


def read_scores(path: Path) -> dict[str, object]:
    """Read a record of scores. Raises Wrong if it holds a number that is not finite."""

    def refuse(text: str) -> None:
        raise Wrong(f"{path.name} holds {text}")

    return json.loads(path.read_text(), parse_constant=refuse)


def check_metrics(case: Case) -> None:
    out = case.folder / "scores.json"
    options = ["--num_images", 8, "--num_real", "all", "--image_size", SIZE, "--metrics", "fd", "swd", "--device", "cpu"]
    case.run(eval_metrics.main, case.path, "--dataset_path", case.photos, "--output_json", out, *options)
    record = read_scores(out)
    require(not record["failed"] and {"fd", "swd"} <= set(record["metrics"]), f"scores: {record['metrics']} {record['failed']}")
    rendering, c = record["protocol"]["rendering"], case.curriculum
    for key in ("pred_occ", "surface_sample", "last_back", "white_back", "clamp_mode"):
        require(rendering[key] == getattr(c, key), f"{key} of scored images is {rendering[key]}")
    images = generated_images(case.loaded, 3, SIZE)
    for image in images.numpy():
        check_image(image / 127.5 - 1, "scored image")
        if case.combination.background != "last":
            check_background(image / 255, case.combination, "scored image")


def check_variance(case: Case) -> None:
    out = case.folder / "variance.json"
    options = ["--seeds_end", 2, "--image_size", SIZE, "--output_json", out, "--device", "cpu"]
    case.run(cal_weighted_var.main, case.path, *options)
    record = read_scores(out)
    value = record["metrics"]["weighted_variance_1e4"]
    require(0 < value < 1e4 * 0.12**2, f"a variance of {value}")
    require(("none" in record["protocol"]["masking"]) != case.has_surface, record["protocol"]["masking"])


def check_geometry(case: Case) -> None:
    out = case.folder / "geometry.json"
    arguments = [
        case.path,
        "--dataset_path",
        case.heads,
        "--num_images",
        4,
        "--num_truth",
        8,
        "--predictor_steps",
        3,
        "--output_json",
        out,
    ]
    arguments += ["--predictor_cache", case.heads / "predictors", "--device", "cpu"]
    if not case.has_surface:
        case.refused(eval_geometry.main, "a radiance field without a surface", *arguments)
        return
    case.run(eval_geometry.main, *arguments)
    record = read_scores(out)
    require(record["score"]["num_views_compared"] > 0, f"{record['score']}")


def check_directions(case: Case) -> None:
    out = case.folder / "directions"
    if not case.has_surface:
        case.refused(directions.main, "is a radiance field without a surface", case.path, "--output_dir", out)
        require(not out.exists(), "a refused command made its folder")
        return
    case.run(directions.main, case.path, "--num_directions", 2, "--image_size", SIZE, "--output_dir", out)
    (path,) = out.glob("*.safetensors")
    moved = ["--direction", f"{path}:0:2", "--seeds_end", 1, "--output_dir", case.folder / "moved", "--save_raw", *VIEW]
    case.run(render_multiview_images.main, case.path, *moved)
    with np.load(case.folder / "moved" / "raw_0_2.npz") as content:
        image = content["image"]
    pose = make_pose(case.curriculum.h_mean, case.curriculum.v_mean)
    own = render_view(case.field(), pose, case.curriculum, ViewSettings(SIZE, 1)).image.numpy()
    require(np.abs(image - own).max() > 1e-4, "a direction changes nothing")


# -- the page, photos and training -------------------------------------------------------------------------------------


def check_page(case: Case) -> None:
    out, model = case.folder / "page.html", case.combination.model
    if model.startswith("Embedding") or not case.has_surface:
        reason = f"is a {model}, for which the page has no shader" if model.startswith("Embedding") else "is a radiance field"
        case.refused(export_web.main, reason, case.path, "--output", out)
        require(not out.exists(), "a refused page was written")
        return
    case.run(export_web.main, case.path, "--output", out)
    settings = page_settings_in(out.read_text())
    low, high = pose_limits(case.curriculum)
    reach = np.array([settings["pitchLimit"], settings["yawLimit"]])
    middle = np.array([settings["meanPitch"], settings["meanYaw"]])
    require(bool((middle - reach >= low - 1e-4).all() and (middle + reach <= high + 1e-4).all()), f"limits {reach} of the page")
    inside = np.abs(training_poses(case.curriculum) - middle) <= reach + 1e-6
    require(inside.mean() > 0.9, f"{inside.mean():.0%} of training's poses are within the page's limits")
    white = float(case.combination.background == "white")
    require(settings["background"] == white, f"background {settings['background']} of the page")
    require(settings["fillsWithFarEnd"] == (case.combination.background == "last"), "the page fills free space otherwise")


def page_settings_in(html: str) -> dict[str, object]:
    """Return the settings of the first generator in a page."""
    start = html.index('{"latentDim"') if '{"latentDim"' in html else html.index('{"latentDim":')
    return json.JSONDecoder().raw_decode(html[start:])[0]


def check_inversion(case: Case) -> None:
    out = case.folder / "inverted"
    photo = case.photos / "0.png"
    options = ["--image_size", 16, "--view_size", SIZE, "--num_steps", 3, "--tune", "--tune_steps", 2, "--output_dir", out]
    done = run(invert.main, photo, "--generator", case.path, *options, "--device", "cpu")
    require(done.status == 0 and not done.warnings, f"status {done.status}: {done.messages[-3:]} {done.warnings}")
    sheet = read_png(out / "0.png")
    check_image(sheet[:, :SIZE, :SIZE] * 2 - 1, "the photo on the sheet")
    check_background(sheet[:, :SIZE, :SIZE], case.combination, "the photo on the sheet")
    check_image(sheet[:, :SIZE, SIZE + 2 : 2 * SIZE + 2] * 2 - 1, "the reconstruction")
    require(frames_of(out / "0.mp4").shape[1:] == (SIZE, SIZE, 3), "the turn has other frames")
    has_mesh, is_told = (out / "0.glb").exists(), any("has no surface, so no mesh was written" in line for line in done.messages)
    require(has_mesh != is_told, f"mesh {has_mesh}, told that there is none {is_told}: {done.messages}")
    latent = ["--latent", out / "0_latent.safetensors", "--output_dir", case.folder / "of_photo", *VIEW]
    case.run(render_multiview_images.main, case.path, *latent)
    check_image(read_png(case.folder / "of_photo" / "image_0_latent_2.png") * 2 - 1, "a view of the latent")


def check_training(case: Case) -> None:
    out = case.folder / "run"
    (case.folder / "c.json").write_text(json.dumps(case.curriculum.to_dict()))
    arguments = [
        "--curriculum",
        case.folder / "c.json",
        "--dataset_path",
        case.photos,
        "--output_dir",
        out,
        "--dataset",
        "Images",
    ]
    arguments += ["--log_interval", 1, "--sample_interval", 2, "--model_save_interval", 2, "--eval_freq", 4, "--eval_images", 8]
    case.run(train.main, *arguments, "--device", "cpu", "--no-use_logger", "--max_steps", 2)
    case.run(train.main, *arguments, "--device", "cpu", "--no-use_logger", "--max_steps", 4)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    require([line["step"] for line in lines][-1] == 4, f"logged {[line['step'] for line in lines]}")
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    require(all(map(math.isfinite, numbers)), "a loss is not finite")
    terms = {name for line in lines for name in line}
    require(("G/opacity_prior" in terms) == case.has_surface and ("G/normal" in terms) == case.has_surface, f"losses: {terms}")
    require(len(list((out / "samples").glob("*.png"))) == 2, "sample grids are missing")
    scores = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    require(len(scores) == 2 and all("swd" in line for line in scores), f"evaluations: {scores}")
    trained = load_generator(out / "generator.safetensors")
    require(
        trained.curriculum == replace(case.curriculum, dataset="Images") and trained.step == 4,
        "the trained generator has other settings",
    )


CHECKS: dict[str, Callable[[Case], None]] = {
    "poses": check_poses,
    "multiview": check_multiview,
    "surface_only": check_surface_only,
    "video": check_video,
    "interpolation": check_interpolation,
    "mixing": check_mixing,
    "viewer": check_viewer,
    "shapes": check_shapes,
    "metrics": check_metrics,
    "variance": check_variance,
    "geometry": check_geometry,
    "directions": check_directions,
    "page": check_page,
    "inversion": check_inversion,
    "training": check_training,
}
# The values that a script's code depends on. A check runs if those of any of its tuples are new.
FACTORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "poses": (("sample_dist",),),
    "multiview": (("model", "field", "background"),),
    "surface_only": (("field", "background"),),
    "video": (("model",), ("field",)),
    "interpolation": (("model",), ("field",)),
    "mixing": (("model",), ("field", "background")),
    "viewer": (("model",), ("field", "background")),
    "shapes": (("model", "field"),),
    "metrics": (("model",), ("field", "background")),
    "variance": (("model", "field"),),
    "geometry": (("model",), ("field", "background")),
    "directions": (("model",), ("field",)),
    "page": (("model", "field"), ("sample_dist",), ("background",)),
    "inversion": (("model",), ("field", "background"), ("sample_dist",)),
    "training": (("model", "field"), ("sample_dist",), ("background",)),
}


def check_refused(combination: Combination, folder: Path, photos: Path, generator: Path) -> None:
    """Every script must refuse a curriculum of this combination by name, and write nothing."""
    settings = valid_twin(combination).curriculum().to_dict()
    for key, _, text in (assignment.partition("=") for assignment in combination.settings()):
        if key in settings:  # not those of stages
            with contextlib.suppress(ValueError):  # a name
                settings[key] = text
                settings[key] = ast.literal_eval(text)
    (folder / "refused.json").write_text(json.dumps(settings))
    arguments: list[tuple[Callable[[list[str]], None], Sequence[object]]] = [
        (train.main, ["--dataset_path", photos, "--output_dir", folder / "out"]),
        (render_multiview_images.main, [generator, "--output_dir", folder / "out"]),
        (extract_shapes.main, [generator, "--output_dir", folder / "out"]),
        (cal_weighted_var.main, [generator, "--output_json", folder / "v.json"]),
        (dataset.main, ["--check", photos, "--output", folder / "sheet.png"]),
    ]
    for main, given in arguments:
        check_refusal(run(main, *given, "--curriculum", folder / "refused.json"), combination.refusal)
    require([path.name for path in folder.iterdir()] == ["refused.json"], f"left behind: {list(folder.iterdir())}")


def valid_twin(combination: Combination) -> Combination:
    """Return the valid combination that is closest to a refused one."""
    field = "occupancy" if combination.model == "TRIPLANE" and combination.field == "radiance" else combination.field
    return replace(
        combination, field=field, background="white" if combination.background == "white and last" else combination.background
    )
