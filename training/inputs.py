"""The random inputs of a step, from the run's seed and the step's number alone.

No random state has to be saved: a resumed run draws what it would have drawn. Latents and poses are drawn for the batch of
all processes and shared out, a ray's random numbers belong to the image's place in that batch: nothing depends on how many
processes share a batch.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from distributed.processes import Processes
from generators.cameras import CameraPoses, sample_camera_poses
from generators.generator import draw_latents
from generators.renderer import RenderNoise, draw_noise
from settings.curriculum import Curriculum
from training.augmentation import NUM_UNIFORMS
from training.outward_start import NUM_HOLD_POINTS, draw_points
from training.steps import GeneratorInputs, StepSettings


def seeded_generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose stream belongs to ``key``; different keys, unrelated streams."""
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
    """This process's part, (batch_size, ...), of the inputs of ``step``. ``purpose``: "D" or "G".

    ``seed``: the run's, or (seed, attempt) once the run had to go back to a checkpoint, so that the retry differs.
    """
    random = seeded_generator("cpu", seed, step, purpose)
    total = batch_size * processes.world_size
    mine = slice(processes.rank * batch_size, (processes.rank + 1) * batch_size)
    z = draw_latents(total, curriculum.latent_dim, curriculum.z_dist, random)[mine]
    poses = sample_camera_poses(
        total,
        h_mean=curriculum.h_mean,
        v_mean=curriculum.v_mean,
        h_stddev=curriculum.h_stddev,
        v_stddev=curriculum.v_stddev,
        sample_dist=curriculum.sample_dist,
        generator=random,
    )
    device, num_rays = processes.device, settings.image_size**2
    with_neighbors = purpose == "G" and curriculum.with_normal_loss and bool(curriculum.normal_lambda)
    noises, directions, points, changes = [], [], [], []
    for place in range(mine.start, mine.stop):
        own = seeded_generator(device, seed, step, purpose, place)
        noises.append(draw_noise(1, num_rays, settings.render, device, own))
        if with_neighbors:
            directions.append(torch.randn(1, num_rays, 3, generator=own, device=device))
        if purpose == "G" and settings.lambda_ball_hold:
            points.append(draw_points(1, NUM_HOLD_POINTS, curriculum, own))
        if curriculum.augment_target:
            changes.append(torch.rand(1, 2, NUM_UNIFORMS, generator=own, device=device))
    noise = RenderNoise(*(None if column[0] is None else torch.cat(column) for column in zip(*noises, strict=True)))
    neighbors = F.normalize(torch.cat(directions), dim=-1) if directions else None
    rest = (torch.cat(column) if column else None for column in (points, changes))
    poses = CameraPoses(*(_send(angle[mine], device) for angle in poses))
    return GeneratorInputs(_send(z, device), poses, noise, neighbors, *rest)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; a GPU fetches it from pinned memory when it gets there, and nothing waits."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
