"""The random inputs of a step, determined by the run's seed and the step number alone.

No random state is saved: a resumed run draws the same numbers as an uninterrupted one. Latents and poses are drawn for the
global batch, and each process takes its part. The random numbers of a ray depend on the image's index in the global batch.
So nothing depends on the number of processes.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from distributed.processes import Processes
from generators.cameras import CameraPoses
from generators.generator import draw_latents
from generators.pose_prior import sample_prior_poses
from generators.renderer import RenderNoise, draw_noise
from settings.curriculum import Curriculum
from training.augmentation import NUM_UNIFORMS
from training.outward_start import NUM_HOLD_POINTS, draw_points
from training.steps import GeneratorInputs, StepSettings


def seeded_generator(device: torch.device | str, *key: object) -> torch.Generator:
    """Return a random generator seeded with ``key``. Different keys give unrelated streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_inputs(
    curriculum: Curriculum,
    settings: StepSettings,
    batch_size: int,
    processes: Processes,
    *,
    seed: int | tuple[int, int],
    step: int,
    purpose: str,
) -> GeneratorInputs:
    """Draw this process's part, (batch_size, ...), of the inputs of ``step``. ``purpose``: "D" or "G".

    ``seed``: the run's seed, or (seed, attempt) after a recovery, so that the retry differs.
    """
    random = seeded_generator("cpu", seed, step, purpose)
    total = batch_size * processes.world_size
    local = slice(processes.rank * batch_size, (processes.rank + 1) * batch_size)
    z = draw_latents(total, curriculum, random)[local]
    poses = sample_prior_poses(total, curriculum, random)
    device, num_rays = processes.device, settings.image_size**2
    with_neighbors = purpose == "G" and curriculum.with_normal_loss and bool(curriculum.normal_lambda)
    noises, directions, points, augmentations, backgrounds = [], [], [], [], []
    for index in range(local.start, local.stop):
        image_random = seeded_generator(device, seed, step, purpose, index)
        noises.append(draw_noise(1, num_rays, settings.render, device, image_random))
        if with_neighbors:
            directions.append(torch.randn(1, num_rays, 3, generator=image_random, device=device))
        if purpose == "G" and settings.lambda_ball_hold:
            points.append(draw_points(1, NUM_HOLD_POINTS, curriculum, image_random))
        if curriculum.augment_target:
            augmentations.append(torch.rand(1, 2, NUM_UNIFORMS, generator=image_random, device=device))
        if curriculum.random_back:
            backgrounds.append(torch.rand(1, 2, 3, generator=image_random, device=device) * 2 - 1)
    return GeneratorInputs(
        z=_to_device(z, device),
        poses=CameraPoses(_to_device(poses.pitch[local], device), _to_device(poses.yaw[local], device)),
        noise=RenderNoise.cat(noises),
        neighbors=F.normalize(torch.cat(directions), dim=-1) if directions else None,
        ball_points=torch.cat(points) if points else None,
        augmentation=torch.cat(augmentations) if augmentations else None,
        backgrounds=torch.cat(backgrounds) if backgrounds else None,
    )


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device``. Copies to a GPU are asynchronous, from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
