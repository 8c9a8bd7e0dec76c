"""Reconstruction of a photo: latent and pose, rendered from the photo's camera."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.latents import GeneratorName, Latent
from fields.interface import Field
from generators.cameras import Rays
from generators.generator import ImplicitGenerator3d
from generators.renderer import RenderSettings, render
from generators.styles import with_weights
from generators.views import RAYS_PER_CHUNK, surface_appearance
from inversion.camera import normals_in_photo, photo_rays
from inversion.losses import image_psnr_db
from inversion.search import Candidates, Progress, Scene, Search, SearchSettings
from inversion.tuning import TuneSettings, Tuning
from settings.curriculum import Curriculum

RAY_STEP_MULTIPLIER = 2  # times the curriculum's samples per ray, as in the render scripts


@dataclass(frozen=True)
class PhotoView:
    """A field seen from a photo's camera. ``image`` (3, S, S) in [0, 1]; ``depth`` (S, S), distance along the ray to the surface;
    ``normals`` (3, S, S), unit, the photo's axes (x right, y up, z to the camera); ``mask`` (S, S), True on the surface."""

    image: Tensor
    depth: Tensor
    normals: Tensor
    mask: Tensor
    psnr_db: float


@dataclass(frozen=True)
class Inversion:
    """Result of an inversion. ``found``: best candidate (B = 1); ``weights``: tuned, by name, or None; views before and after.

    ``was_interrupted``: True if Ctrl-C stopped the search or the tuning early.
    """

    found: Candidates
    weights: Mapping[str, Tensor] | None
    before: PhotoView
    after: PhotoView | None
    was_interrupted: bool

    @property
    def best_view(self) -> PhotoView:
        return self.after or self.before


def invert(
    scene: Scene,
    photo: Tensor,
    search_settings: SearchSettings,
    tune_settings: TuneSettings | None,
    seed: int,
    label: str,
) -> Inversion:
    """Find the latent and the camera of a photo (3, S, S) in [0, 1], then tune the weights if ``tune_settings`` are given.

    KeyboardInterrupt stops the current phase; the best result so far is kept.
    """
    search = Search(scene, photo, search_settings)
    was_interrupted = not _run_to_end(search.run(), search_settings.total_steps(), label, scene.curriculum)
    before = photo_view(scene.generator, scene, search.best, photo)
    if tune_settings is None or was_interrupted:
        return Inversion(search.best, None, before, None, was_interrupted)
    tuning = Tuning(scene, photo, search.best, tune_settings, search_settings, seed)
    was_interrupted = not _run_to_end(tuning.run(), tune_settings.num_steps, f"{label}, tuning", scene.curriculum)
    if tuning.weights is None:
        return Inversion(search.best, None, before, None, was_interrupted)
    after = photo_view(with_weights(scene.generator, tuning.weights), scene, search.best, photo)
    return Inversion(search.best, tuning.weights, before, after, was_interrupted)


def _run_to_end(steps: Iterator[Progress], total: int, label: str, curriculum: Curriculum) -> bool:
    """Run the steps with a progress bar. Return False if KeyboardInterrupt stopped them, else True."""
    with tqdm(total=total, desc=label, unit="step") as bar:
        try:
            for progress in steps:
                bar.set_postfix_str(_shown(progress, curriculum), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            return False
    return True


def _shown(progress: Progress, curriculum: Curriculum) -> str:
    pose = pose_text(progress.yaw, progress.pitch, curriculum)
    return f"loss {progress.objective:.4f}, {progress.psnr_db:.1f} dB at {progress.image_size} px, {pose}"


def pose_text(yaw: float, pitch: float, curriculum: Curriculum) -> str:
    """Describe a pose, in radians, by its degrees from the mean pose."""
    return f"yaw {math.degrees(yaw - curriculum.h_mean):+.1f}°, pitch {math.degrees(pitch - curriculum.v_mean):+.1f}°"


@torch.no_grad()
def photo_view(generator: ImplicitGenerator3d, scene: Scene, found: Candidates, photo: Tensor) -> PhotoView:
    """Render the found latent from the found camera, at the photo's size, with the background of training."""
    size = photo.shape[-1]
    field: Field = generator.field(scene.distribution.styles(found.coordinates, found.offsets))
    rays = photo_rays(found.poses(), found.crop(), size, size, scene.curriculum.fov)
    settings = RenderSettings.from_curriculum(scene.curriculum).multiply_steps(RAY_STEP_MULTIPLIER)
    columns = [_columns(field, part, settings) for part in rays.split(RAYS_PER_CHUNK)]
    rows = [torch.cat(column, dim=1)[0].unflatten(0, (size, size)) for column in zip(*columns, strict=True)]
    rgb, depth, mask, normals = rows
    image = rgb.permute(2, 0, 1)
    turned = normals_in_photo(normals.permute(2, 0, 1).unsqueeze(0), found.poses(), found.crop())[0]
    psnr = float(image_psnr_db(image.unsqueeze(0), photo.unsqueeze(0).to(image.device)))
    return PhotoView(image.cpu(), depth.cpu(), turned.cpu(), mask.cpu(), psnr)


def _columns(field: Field, rays: Rays, settings: RenderSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return colors (B, R, 3) in [0, 1], surface depth and hit mask (B, R), and normals (B, R, 3) of rays (B, R)."""
    output = render(field, rays, settings)
    normals, _ = surface_appearance(field, rays, output.surface)
    return output.rgb, output.surface.t, output.surface.hit_mask, normals


def latent_of(inversion: Inversion, scene: Scene, name: GeneratorName) -> Latent:
    """Content of an inversion's latent file."""
    found = inversion.found
    pitch, yaw = found.angles[0].tolist()
    photo = {"pitch": pitch, "yaw": yaw, **{key: float(value[0]) for key, value in found.crop()._asdict().items()}}
    styles = scene.distribution.styles(found.coordinates, found.offsets)
    return Latent(styles, photo, name, inversion.best_view.psnr_db, inversion.weights)
