"""Search for a photo's latent and camera by rendering.

1. Score a bank of random latents, each from a pose of a grid over the camera prior, at 16 px, without gradients. The bank is
   rendered once and serves every photo.
2. Refine the best, and their twins under the depth ambiguity: a relief seen from one side and its hollow counterpart seen from
   the other give nearly the same image, so a search may converge to the wrong one. A twin has the opposite pose.
3. Refine the best few of these at 32 px, and the best of these at the photo's full size.

The unknowns are coordinates along the principal directions of the generator's styles, in standard deviations; an offset outside
these directions; yaw and pitch; and a small crop (inversion/camera.py). Each has a prior in the objective.
B candidates, K principal directions, D numbers in the styles, S side of an image in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoints.loading import LoadedGenerator
from generators.cameras import CameraPoses
from generators.generator import ImplicitGenerator3d, draw_latents
from generators.pose_prior import pose_half_widths
from generators.renderer import RenderSettings, as_images, render
from generators.styles import StyleDistribution, style_distribution
from generators.views import RAYS_PER_CHUNK
from inversion.camera import Crop, no_crop, photo_rays
from inversion.losses import Features, feature_loss, gradient_loss, image_psnr_db, pyramid_loss
from settings.curriculum import Curriculum

BANK_SIZE = 16  # pixels
MIN_FEATURE_SIZE = 32  # pixels; networks extract little from smaller images
BANK_BATCH = 64


@dataclass(frozen=True)
class Stage:
    """``num_candidates`` refined at ``image_size`` pixels (None: the photo's own size), for ``share`` of all steps."""

    num_candidates: int
    image_size: int | None
    share: float


@dataclass(frozen=True)
class SearchSettings:
    """Weights and rates; see :func:`image_loss` and :func:`prior_loss`. ``crop_stddevs``: shift, roll (rad), log scale."""

    num_steps: int = 150
    image_size: int = 64
    num_bank: int = 512
    stages: tuple[Stage, ...] = (Stage(12, 16, 0.28), Stage(4, 32, 0.36), Stage(1, None, 0.36))
    lambda_gradient: float = 0.1
    lambda_feature: float = 1e-3
    lambda_style: float = 3e-4
    lambda_offset: float = 1e-2
    lambda_pose: float = 1.0
    lambda_crop: float = 1e-3
    crop_stddevs: tuple[float, float, float] = (0.05, 0.05, 0.05)
    style_rate: float = 0.08
    offset_rate: float = 0.01
    pose_rate: float = 0.02
    crop_rate: float = 0.004

    def steps_of(self, stage: Stage) -> int:
        return max(1, round(stage.share * self.num_steps))

    def total_steps(self) -> int:
        return sum(self.steps_of(stage) for stage in self.stages)


class Candidates(NamedTuple):
    """``coordinates`` (B, K), ``offsets`` (B, D), ``angles`` (B, 2) as (pitch, yaw) in radians, ``crops`` (B, 4) as in Crop."""

    coordinates: Tensor
    offsets: Tensor
    angles: Tensor
    crops: Tensor

    def poses(self) -> CameraPoses:
        return CameraPoses(*self.angles.unbind(dim=1))

    def crop(self) -> Crop:
        return Crop(*self.crops.unbind(dim=1))

    def rows(self, index: Tensor) -> Candidates:
        return Candidates(*(part[index].detach().clone() for part in self))


class Scene(NamedTuple):
    """State of a generator that all searches share."""

    generator: ImplicitGenerator3d
    curriculum: Curriculum
    distribution: StyleDistribution
    bank: Candidates
    bank_images: Tensor  # (N, 3, BANK_SIZE, BANK_SIZE) in [0, 1]
    features: Features | None

    @property
    def device(self) -> torch.device:
        return self.distribution.mean.device


class Progress(NamedTuple):
    """Best candidate after a step: objective, PSNR in dB at the stage's size, yaw and pitch in radians."""

    step: int
    objective: float
    psnr_db: float
    yaw: float
    pitch: float
    image_size: int


def open_scene(loaded: LoadedGenerator, settings: SearchSettings, seed: int, features: Features | None = None) -> Scene:
    """Measure the generator's styles and render the bank of ``seed``."""
    generator, curriculum = loaded.generator, loaded.curriculum
    generator.requires_grad_(False)
    distribution = style_distribution(generator)
    bank = draw_bank(generator, curriculum, distribution, settings.num_bank, seed)
    parts = torch.arange(settings.num_bank, device=distribution.mean.device).split(BANK_BATCH)
    with torch.no_grad():
        images = [
            render_candidates(generator, curriculum, distribution, bank.rows(part), BANK_SIZE, settings.image_size)
            for part in parts
        ]
    return Scene(generator, curriculum, distribution, bank, torch.cat(images), features)


def draw_bank(
    generator: ImplicitGenerator3d, curriculum: Curriculum, distribution: StyleDistribution, num: int, seed: int
) -> Candidates:
    """Draw ``num`` latents and as many poses, evenly spread over the camera prior's rectangle (Halton sequence)."""
    device = distribution.mean.device
    z = draw_latents(num, curriculum, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        coordinates = torch.cat([distribution.coordinates(generator.styles(part.to(device))) for part in z.split(1000)])
    mean = torch.tensor([curriculum.v_mean, curriculum.h_mean])
    half_widths = torch.tensor(pose_half_widths(curriculum))
    spread = torch.tensor([[_halton(i, 3), _halton(i, 2)] for i in range(num)])
    angles = (mean + (2 * spread - 1) * half_widths).to(device)
    offsets = torch.zeros(num, distribution.mean.shape[1], device=device)
    return Candidates(coordinates, offsets, angles, torch.stack(no_crop(num, device), dim=1))


def _halton(index: int, base: int) -> float:
    """Return element ``index`` of the van der Corput sequence in ``base``, in [0, 1)."""
    value, share = 0.0, 1.0
    index += 1
    while index:
        index, digit = divmod(index, base)
        share /= base
        value += digit * share
    return value


def render_candidates(
    generator: ImplicitGenerator3d,
    curriculum: Curriculum,
    distribution: StyleDistribution,
    candidates: Candidates,
    size: int,
    full_size: int,
) -> Tensor:
    """Render images (B, 3, size, size) in [0, 1] in the frame of a photo of ``full_size`` pixels, on training's background."""
    field = generator.field(distribution.styles(candidates.coordinates, candidates.offsets))
    rays = photo_rays(candidates.poses(), candidates.crop(), size, full_size, curriculum.fov)
    settings = RenderSettings.from_curriculum(curriculum)
    parts = rays.split(RAYS_PER_CHUNK // field.batch_size)
    return as_images(torch.cat([render(field, part, settings).rgb for part in parts], dim=1), size)


def image_loss(rendered: Tensor, photo: Tensor, features: Features | None, settings: SearchSettings) -> Tensor:
    """Pyramid and feature loss (B,); pyramid and gradient loss without a network or for small images."""
    if features is None or rendered.shape[-1] < MIN_FEATURE_SIZE:
        return pyramid_loss(rendered, photo) + settings.lambda_gradient * gradient_loss(rendered, photo)
    return pyramid_loss(rendered, photo) + settings.lambda_feature * feature_loss(rendered, photo, features)


def prior_loss(candidates: Candidates, curriculum: Curriculum, settings: SearchSettings) -> Tensor:
    """Deviation of candidates from the training distribution: styles, offsets, poses beyond the prior, crops. (B,)"""
    mean = candidates.angles.new_tensor([curriculum.v_mean, curriculum.h_mean])
    limits = candidates.angles.new_tensor(pose_half_widths(curriculum))
    beyond = ((candidates.angles - mean).abs() - limits).clamp_min(0)
    shift, roll, log_scale = settings.crop_stddevs
    stddevs = candidates.crops.new_tensor([shift, shift, roll, log_scale])
    return (
        settings.lambda_style * candidates.coordinates.square().mean(dim=1)
        + settings.lambda_offset * candidates.offsets.square().mean(dim=1)
        + settings.lambda_pose * beyond.square().sum(dim=1)
        + settings.lambda_crop * (candidates.crops / stddevs).square().mean(dim=1)
    )


def best_of_bank(scene: Scene, photo: Tensor, num: int, settings: SearchSettings) -> Candidates:
    """Select the ``num`` / 2 latents closest to the photo (1, 3, S, S), and their twins under the depth ambiguity."""
    small = torch.nn.functional.avg_pool2d(photo, photo.shape[-1] // BANK_SIZE).expand_as(scene.bank_images)
    errors = image_loss(scene.bank_images, small, None, settings)
    nearest = scene.bank.rows(errors.argsort()[: (num + 1) // 2])
    mean = nearest.angles.new_tensor([scene.curriculum.v_mean, scene.curriculum.h_mean])
    twins = nearest._replace(angles=2 * mean - nearest.angles)
    return Candidates(*(torch.cat(parts)[:num].clone() for parts in zip(nearest, twins, strict=True)))


class Search:
    """Search for one photo, step by step. The caller may stop after any step and use ``best``."""

    def __init__(self, scene: Scene, photo: Tensor, settings: SearchSettings) -> None:
        """photo: (3, S, S) in [0, 1]."""
        self.scene, self.settings = scene, settings
        self.photo = photo.unsqueeze(0).to(scene.device)
        self.best = scene.bank.rows(torch.zeros(1, dtype=torch.long, device=scene.device))
        self.num_steps_done = 0

    def run(self) -> Iterator[Progress]:
        """Refine, stage by stage; after each step ``best`` is the best candidate of the current stage."""
        candidates = best_of_bank(self.scene, self.photo, self.settings.stages[0].num_candidates, self.settings)
        self.best = candidates.rows(torch.zeros(1, dtype=torch.long, device=self.scene.device))
        for stage in self.settings.stages:
            candidates = candidates.rows(torch.arange(min(stage.num_candidates, len(candidates.angles))))
            size = min(stage.image_size or self.photo.shape[-1], self.photo.shape[-1])
            candidates = yield from self._refine(candidates, size, self.settings.steps_of(stage))

    def _refine(self, start: Candidates, size: int, num_steps: int) -> Iterator[Progress]:
        """Refine candidates at ``size`` pixels. Return the best state of each candidate, best first."""
        photo = torch.nn.functional.avg_pool2d(self.photo, self.photo.shape[-1] // size)
        parts = Candidates(*(part.requires_grad_(True) for part in start))
        s = self.settings
        rates = (s.style_rate, s.offset_rate, s.pose_rate, s.crop_rate)
        groups = [{"params": [part], "lr": rate} for part, rate in zip(parts, rates, strict=True)]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        best = parts.rows(torch.arange(len(parts.angles)))
        best_values = torch.full((len(parts.angles),), math.inf, device=photo.device)
        best_psnr = torch.zeros_like(best_values)
        for step in range(num_steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * falling_rate(step, num_steps)
            images = self._render(parts, size)
            target = photo.expand_as(images)
            values = image_loss(images, target, self.scene.features, s) + prior_loss(parts, self.scene.curriculum, s)
            optimizer.zero_grad()
            values.sum().backward()
            better = values.detach() < best_values
            best_values = torch.where(better, values.detach(), best_values)
            best_psnr = torch.where(better, image_psnr_db(images.detach(), target), best_psnr)
            best = Candidates(
                *(torch.where(better.unsqueeze(1), new.detach(), old) for new, old in zip(parts, best, strict=True))
            )
            optimizer.step()
            first = best_values.argmin().unsqueeze(0)
            self.best = best.rows(first)
            self.num_steps_done += 1
            pitch, yaw = self.best.angles[0].tolist()
            yield Progress(self.num_steps_done, float(best_values[first]), float(best_psnr[first]), yaw, pitch, size)
        return best.rows(best_values.argsort())

    def _render(self, candidates: Candidates, size: int) -> Tensor:
        scene = self.scene
        return render_candidates(scene.generator, scene.curriculum, scene.distribution, candidates, size, self.photo.shape[-1])


def falling_rate(step: int, num_steps: int) -> float:
    """Learning rate factor: half a cosine from 1 to 0.1."""
    return 0.1 + 0.45 * (1 + math.cos(math.pi * step / max(1, num_steps)))
