"""Poses predicted by the pose head of a run's discriminator, for real images and for generated images of known pose.

The head was trained on generated images with poses from the run's camera prior, so its predictions for real images are
biased toward that prior. Set the estimated prior, train briefly and estimate again (docs/own_photos.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import check_finite, latest_checkpoint, load_training_checkpoint
from checkpoints.loading import load_generator
from common.errors import UserError
from common.files import require_file
from discriminators.base import Discriminator
from discriminators.build import build_discriminator
from metrics.sampling import render_images, sample_fields
from settings.curriculum import Curriculum
from settings.schedules import fade_alpha_at

BATCH_SIZE = 8


@dataclass(frozen=True)
class PoseHead:
    """The discriminator of a checkpoint at ``step``, for images of ``image_size`` px, with its curriculum."""

    discriminator: Discriminator
    curriculum: Curriculum
    path: Path
    step: int

    @property
    def image_size(self) -> int:
        return self.curriculum.stage_at(self.step - 1).img_size

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 128) -> Tensor:
        """Predict yaw and pitch (N, 2), relative to the mean pose, of images (N, 3, H, H) in [-1, 1], on the CPU."""
        device = next(self.discriminator.parameters()).device
        fade_alpha = fade_alpha_at(self.curriculum, self.step - 1)
        poses = torch.cat([self.discriminator(batch.to(device), fade_alpha).pose.cpu() for batch in images.split(batch_size)])
        return poses.flip(1) - torch.tensor([self.curriculum.h_mean, self.curriculum.v_mean])

    def read_generated(self, num: int, seed: int) -> tuple[Tensor, Tensor]:
        """Predict the poses of ``num`` generated images; return predictions and true poses, (N, 2) each, as :meth:`read`.

        Uses the generator's current weights, which the head was trained with, instead of the averaged weights.
        """
        device = next(self.discriminator.parameters()).device
        loaded = load_generator(self.path, device=device, weights="generator")
        means = torch.tensor([self.curriculum.h_mean, self.curriculum.v_mean])
        readings, truth = [], []
        for field, poses in sample_fields(loaded, num, psi=1.0, seed=seed, batch_size=BATCH_SIZE, what="generated images"):
            images = render_images(field, poses, self.curriculum, self.image_size)
            readings.append(self.read(images.float() / 127.5 - 1))
            truth.append(torch.stack([poses.yaw.cpu(), poses.pitch.cpu()], dim=1) - means)
        return torch.cat(readings), torch.cat(truth)


def load_pose_head(path: str | Path, device: torch.device) -> PoseHead:
    """Load the pose head of a training checkpoint, or of the newest intact one in a run's folder. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        found = latest_checkpoint(path)
        if found is None:
            raise UserError(f"{path} holds no intact training checkpoint (checkpoint_0001000.pt); name the folder of a run")
        path = found
    content = load_training_checkpoint(require_file(path))
    curriculum = Curriculum.from_dict(content["curriculum"])
    if content["step"] == 0:
        raise UserError(f"{path} was saved before the first step, so its discriminator is untrained; name a later checkpoint")
    if curriculum.sample_dist is None or not curriculum.pos_lambda or min(curriculum.h_stddev, curriculum.v_stddev) == 0:
        raise UserError(f"{path}: the run used a fixed pose or no pose loss (pos_lambda), so its discriminator predicts no poses")
    discriminator = _discriminator(path, curriculum, content["discriminator"])
    return PoseHead(discriminator.to(device).eval(), curriculum, path, content["step"])


def _discriminator(path: Path, curriculum: Curriculum, state: Mapping[str, Tensor]) -> Discriminator:
    """Build the network on the meta device, then assign the file's tensors: its widths may come from an untrusted file."""
    check_finite(path, state)
    try:
        with torch.device("meta"):
            discriminator = build_discriminator(curriculum)
        discriminator.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    except (RuntimeError, TypeError, OverflowError):
        raise UserError(f"{path}: the discriminator's weights do not match the checkpoint's curriculum") from None
    return discriminator
