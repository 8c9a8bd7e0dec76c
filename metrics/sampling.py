"""Images for metrics: generated images of seeded latents and poses, rendered without noise, and real images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.loading import LoadedGenerator
from distributed.processes import Processes
from fields.interface import Field
from generators.cameras import CameraPoses, camera_rays
from generators.generator import draw_latents
from generators.pose_prior import draw_poses
from generators.renderer import RenderSettings, as_images, render
from generators.views import RAYS_PER_CHUNK
from loading.files import ALL_IMAGES, DatasetSpec, Split
from settings.curriculum import Curriculum

ALONE = Processes(0, 1, torch.device("cpu"))


def pose_of_seed(seed: int, curriculum: Curriculum) -> CameraPoses:
    """Return the (1,) pose of a seed, sampled from the curriculum's distribution by the same generator after the latent."""
    generator = torch.Generator().manual_seed(seed)
    draw_latents(1, curriculum, generator)
    return draw_poses(1, curriculum, generator)


class SharedWorkFailed(RuntimeError):
    """A process failed to render its share. The process's own error is the cause."""


@torch.no_grad()
def sample_fields(
    loaded: LoadedGenerator, num: int, *, psi: float, seed: int, batch_size: int, what: str, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Field, CameraPoses]]:
    """Yield fields of ``num`` latents with their poses, in batches, on the generator's device.

    The latents and poses do not depend on the batch size. ``what`` labels the progress bar. Process ``rank`` of
    ``world_size`` gets the batches rank, rank + world_size, ... Batches are never divided, since the last bits of an image
    may depend on the rest of its batch.
    """
    curriculum, device = loaded.curriculum, loaded.generator.device
    latents = draw_latents(num, curriculum, torch.Generator().manual_seed(seed))
    poses = draw_poses(num, curriculum, torch.Generator().manual_seed(seed + 1))
    starts = range(0, num, batch_size)[rank::world_size]
    total = sum(min(batch_size, num - start) for start in starts)
    with tqdm(total=total, desc=what, unit="image", leave=False, disable=rank > 0) as progress:
        for start in starts:
            part = slice(start, start + batch_size)
            field = loaded.generator.field_of_latents(latents[part].to(device), psi)
            yield field, poses.part(part).to(device)
            progress.update(field.batch_size)


def image_settings(curriculum: Curriculum) -> RenderSettings:
    """Return the settings of scored images: the interval of views, no density noise, ``last_back`` as in training."""
    return RenderSettings.from_curriculum(curriculum)


@torch.no_grad()
def render_images(field: Field, poses: CameraPoses, curriculum: Curriculum, image_size: int) -> Tensor:
    """Render images (B, 3, H, W) uint8, on the CPU, with :func:`image_settings`."""
    settings = image_settings(curriculum)
    rays = camera_rays(poses, image_size, curriculum.fov)
    parts = rays.split(RAYS_PER_CHUNK // field.batch_size)
    rgb = torch.cat([render(field, part, settings).rgb for part in parts], dim=1)
    pixels = (rgb * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    return as_images(pixels, image_size).contiguous()


def generated_images(
    loaded: LoadedGenerator,
    num: int,
    image_size: int,
    *,
    psi: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    processes: Processes = ALONE,
) -> Tensor | None:
    """Render ``num`` images of random latents and poses: (num, 3, image_size, image_size) uint8, never compressed.

    With several ``processes``, each renders a share; the main process returns all images, the others None. If one process
    fails, all raise SharedWorkFailed.
    """
    own, failure = torch.empty((0, 3, image_size, image_size), dtype=torch.uint8), None
    try:
        batches = sample_fields(
            loaded,
            num,
            psi=psi,
            seed=seed,
            batch_size=batch_size,
            what="generated images",
            rank=processes.rank,
            world_size=processes.world_size,
        )
        images = [render_images(field, poses, loaded.curriculum, image_size) for field, poses in batches]
        own = torch.cat(images) if images else own
    except Exception as error:  # of any kind: the other processes must not wait for these images
        failure = error
    if processes.any(failure is not None):
        reason = (
            "not enough memory" if isinstance(failure, MemoryError) else failure or "another process could not render its share"
        )
        raise SharedWorkFailed(str(reason)) from failure
    parts = processes.gather(own)
    if not processes.is_main:
        return None
    ordered = own.new_empty((num, *own.shape[1:]))
    queues = [iter(part.split(batch_size)) for part in parts]
    for i, batch in enumerate(ordered.split(batch_size)):
        batch.copy_(next(queues[i % len(queues)]))
    return ordered


def real_images(
    path: str | Path,
    preset: str | DatasetSpec,
    num: int | None,
    image_size: int,
    seed: int = 0,
    use_cache: bool = True,
    split: Split = ALL_IMAGES,
) -> Tensor:
    """Return at most ``num`` random images of ``path``, or of its part ``split``; all images if ``num`` is None.

    Returns (N, 3, image_size, image_size) uint8. Raises UserError if there are no images, or too many are unreadable.
    """
    from dataset import ImageDataset

    dataset = ImageDataset(path, image_size, preset, "default" if use_cache else None, split=split)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return torch.stack([dataset[int(index)] for index in tqdm(order[:num], desc="real images", unit="image", leave=False)])
