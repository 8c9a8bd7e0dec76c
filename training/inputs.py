"""The random inputs of a step, from the run's seed and the step's number alone.

No random state has to be saved: a resumed run draws what it would have drawn. Latents and poses are drawn for the batch of
all processes and shared out, so they do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib

import torch
from torch.nn import functional as F

from curriculums import Curriculum
from generators.cameras import CameraPoses, sample_camera_poses
from generators.generator import draw_latents
from generators.renderer import draw_noise
from training.distributed import Processes
from training.steps import GeneratorInputs, StepSettings


def seeded_generator(device: torch.device | str, *key: object) -> torch.Generator:
    """A generator whose stream belongs to ``key``; different keys, unrelated streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_inputs(
    curriculum: Curriculum, settings: StepSettings, batch_size: int, processes: Processes, *, seed: int, step: int, purpose: str
) -> GeneratorInputs:
    """This process's part, (batch_size, ...), of the inputs of ``step``. ``purpose``: "D" or "G"."""
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
    own = seeded_generator(device, seed, step, purpose, processes.rank)
    noise = draw_noise(batch_size, num_rays, settings.render, device, own)
    neighbours = None
    if purpose == "G" and curriculum.with_normal_loss and curriculum.normal_lambda:
        neighbours = F.normalize(torch.randn(batch_size, num_rays, 3, generator=own, device=device), dim=-1)
    poses = CameraPoses(*(angle[mine].to(device, non_blocking=True) for angle in poses))
    return GeneratorInputs(z.to(device, non_blocking=True), poses, noise, neighbours)
