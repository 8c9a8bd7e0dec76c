"""Images and losses of one optimization step, as functions of the networks, the inputs and the settings.

All random numbers are arguments. ``Trainer._step`` (training/trainer.py) calls these functions in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from discriminators.base import Discriminator, DiscriminatorOutput
from fields.interface import Field
from generators.cameras import CameraPoses, Rays, camera_rays
from generators.generator import ImplicitGenerator3d
from generators.renderer import RenderNoise, RenderOutput, RenderSettings, as_images, ray_points, render
from generators.root_finding import Surface
from settings import schedules
from settings.curriculum import Curriculum
from training import losses
from training.augmentation import GENERATED, REAL, augment
from training.outward_start import Ball, ball_hold_loss


class GeneratorInputs(NamedTuple):
    """Random inputs of a step.

    ``z`` (B, latent_dim): latents. ``poses`` (B,): camera poses. ``noise``: the renderer's random numbers. ``neighbors``
    (B, R, 3): unit directions to the neighbors of the normal loss. ``ball_points`` (B, N, 3): points at which the field is
    held to a ball. ``augmentation`` (B, 2, NUM_UNIFORMS) in [0, 1): random numbers to augment generated and real images.
    ``backgrounds`` (B, 2, 3) in [-1, 1]: colors behind generated and real images. The last four are None if unused.
    """

    z: Tensor
    poses: CameraPoses
    noise: RenderNoise
    neighbors: Tensor | None = None
    ball_points: Tensor | None = None
    augmentation: Tensor | None = None
    backgrounds: Tensor | None = None

    def split(self, num_parts: int) -> list[GeneratorInputs]:
        """Split the batch into equal parts, in order."""
        size = len(self.z) // num_parts
        return [self.part(slice(i * size, (i + 1) * size)) for i in range(num_parts)]

    def part(self, s: slice) -> GeneratorInputs:
        """Return the inputs of the images in slice ``s``."""
        return GeneratorInputs(
            z=self.z[s],
            poses=self.poses.part(s),
            noise=self.noise.part(s),
            neighbors=None if self.neighbors is None else self.neighbors[s],
            ball_points=None if self.ball_points is None else self.ball_points[s],
            augmentation=None if self.augmentation is None else self.augmentation[s],
            backgrounds=None if self.backgrounds is None else self.backgrounds[s],
        )


@dataclass(frozen=True)
class StepSettings:
    """Settings of one step. :meth:`at` determines them, and :meth:`with_values_of` replaces the scheduled values.

    ``augment_p`` (): probability of each augmentation; None: no augmentation. ``lambda_ball_hold``: weight of the ball hold.
    """

    image_size: int
    render: RenderSettings
    fade_alpha: float | Tensor
    topk_fraction: float
    lambda_r1: float
    lambda_r2: float
    lambda_opacity_prior: float | Tensor
    lambda_ball_hold: float | Tensor
    augment_p: Tensor | None = None

    @classmethod
    def at(cls, curriculum: Curriculum, step: int, *, is_held: bool = True) -> StepSettings:
        """Evaluate the curriculum's schedules at ``step``.

        ``is_held``: False for a run that started from a trained shape, which is held to the ball by no more than the
        curriculum's floor.
        """
        noise = schedules.density_noise_at(curriculum, step)
        settings = RenderSettings.from_curriculum(curriculum, schedules.interval_at(curriculum, step))
        penalties = schedules.penalty_weights_at(curriculum, step)
        ball_hold = schedules.ball_hold_weight_at(curriculum, step)
        return cls(
            image_size=curriculum.stage_at(step).img_size,
            render=replace(settings, density_noise=noise),
            fade_alpha=schedules.fade_alpha_at(curriculum, step),
            topk_fraction=schedules.topk_fraction_at(curriculum, step),
            lambda_r1=penalties.r1,
            lambda_r2=penalties.r2,
            lambda_opacity_prior=schedules.opacity_prior_weight_at(curriculum, step),
            lambda_ball_hold=ball_hold if is_held else min(ball_hold, curriculum.ball_hold_floor),
        )

    def with_values_of(self, schedule: Schedule) -> StepSettings:
        """Return these settings with the values of ``schedule``, except for a fade and a noise that are over."""
        noise = schedule.density_noise if self.render.density_noise else 0.0
        return replace(
            self,
            render=replace(self.render, interval=schedule.interval, density_noise=noise),
            fade_alpha=schedule.fade_alpha if self.fade_alpha < 1 else 1.0,
            lambda_opacity_prior=schedule.lambda_opacity_prior,
            lambda_ball_hold=schedule.lambda_ball_hold,
            augment_p=schedule.augment_p,
        )


class Schedule(NamedTuple):
    """Values that can change at every step. In a CUDA graph, they are scalar tensors.

    ``interval``, ``density_noise``: as in :class:`RenderSettings`. ``fade_alpha``, ``lambda_opacity_prior``,
    ``lambda_ball_hold``, ``augment_p``: as in :class:`StepSettings`. ``rates_G``, ``rates_D``: learning rates of the optimizers'
    groups. ``average_rates``: 1 - decay of the averages.
    """

    interval: float | Tensor
    density_noise: float | Tensor
    fade_alpha: float | Tensor
    lambda_opacity_prior: float | Tensor
    lambda_ball_hold: float | Tensor
    augment_p: Tensor | None
    rates_G: list[float | Tensor]
    rates_D: list[float | Tensor]
    average_rates: list[float | Tensor]


class StepInputs(NamedTuple):
    """All inputs of a step.

    ``real`` (B, C, H, W) in [-1, 1]: real images. ``inputs_D``, ``inputs_G``: random inputs; the first is None if both networks
    train on the same generated images.
    """

    real: Tensor
    inputs_D: GeneratorInputs | None
    inputs_G: GeneratorInputs
    schedule: Schedule


class StepResult(NamedTuple):
    """Losses of D or G. ``total``: the loss to backpropagate. ``terms``: unweighted losses and other logged scalars, detached."""

    total: Tensor
    terms: dict[str, Tensor]


class Generated(NamedTuple):
    """Generated ``images`` (B, 3, H, W) in [-1, 1], with their field, rays and rendered ``output``."""

    images: Tensor
    field: Field
    rays: Rays
    output: RenderOutput


def generate(generator: ImplicitGenerator3d, inputs: GeneratorInputs, settings: StepSettings) -> Generated:
    """Generate the images of ``inputs``."""
    field = generator.field_of_latents(inputs.z)
    rays = camera_rays(inputs.poses, settings.image_size, generator.curriculum.fov)
    output = render(field, rays, settings.render, inputs.noise)
    images = as_images(output.rgb, settings.image_size) * 2 - 1
    if inputs.backgrounds is not None:
        alpha = as_images(output.weights.sum(dim=-1, keepdim=True), settings.image_size)
        images = over_color(images, alpha, inputs.backgrounds[:, GENERATED])
    return Generated(images, field, rays, output)


def over_color(images: Tensor, alpha: Tensor, colors: Tensor) -> Tensor:
    """Replace the black behind images (B, 3, H, W) by colors (B, 3), both in [-1, 1]. alpha: opacity (B, 1, H, W) in [0, 1]."""
    return images + (1 - alpha) * (colors[:, :, None, None] + 1)


def over_backgrounds(real: Tensor, inputs: GeneratorInputs) -> Tensor:
    """Composite real images (B, 4, H, W), whose opacity is the last channel in [-1, 1], over the backgrounds of ``inputs``.

    Without backgrounds, return ``real`` (B, 3, H, W) unchanged.
    """
    if inputs.backgrounds is None:
        return real
    return over_color(real[:, :3], (real[:, 3:] + 1) / 2, inputs.backgrounds[:, REAL])


def judge(
    discriminator: Discriminator,
    images: Tensor,
    kind: int,
    inputs: GeneratorInputs,
    settings: StepSettings,
    amp_dtype: torch.dtype | None = None,
) -> DiscriminatorOutput:
    """Return D's output for ``images`` (B, 3, H, W) in [-1, 1], augmented if augmentation is on. ``kind``: GENERATED or REAL."""
    with torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None):
        if settings.augment_p is not None:
            images = augment(images, inputs.augmentation[:, kind], settings.augment_p)
        return discriminator(images, settings.fade_alpha)


def discriminator_losses(
    discriminator: Discriminator,
    curriculum: Curriculum,
    real: Tensor,
    fake: Tensor,
    inputs: GeneratorInputs,
    settings: StepSettings,
    amp_dtype: torch.dtype | None = None,
) -> StepResult:
    """D's losses on ``real`` and ``fake`` images, (B, 3, H, W) in [-1, 1] each. ``inputs``: the inputs that gave ``fake``."""
    c, gan_loss = curriculum, losses.GAN_LOSSES[curriculum.gan_loss]
    real = real.detach().requires_grad_(settings.lambda_r1 > 0)
    fake = fake.detach().requires_grad_(settings.lambda_r2 > 0)
    output_real = judge(discriminator, real, REAL, inputs, settings, amp_dtype)
    output_fake = judge(discriminator, fake, GENERATED, inputs, settings, amp_dtype)
    weighted = {"gan": (1.0, gan_loss.of_D(output_real.score, output_fake.score))}
    if settings.lambda_r1:
        weighted["r1"] = (0.5 * settings.lambda_r1, losses.zero_centered_penalty_loss(output_real.score, real))
    if settings.lambda_r2:
        weighted["r2"] = (0.5 * settings.lambda_r2, losses.zero_centered_penalty_loss(output_fake.score, fake))
    weighted |= _prediction_losses(output_fake, inputs, c)
    scalars = {"score_real": output_real.score.detach().mean(), "score_fake": output_fake.score.detach().mean()}
    if settings.augment_p is not None:
        margins = output_real.score - output_fake.score if gan_loss.is_relative else output_real.score
        scalars["real_sign"] = margins.detach().sign().mean()
    return _result(weighted, scalars)


def generator_losses(
    generated: Generated,
    discriminator: Discriminator,
    curriculum: Curriculum,
    real: Tensor | None,
    inputs: GeneratorInputs,
    settings: StepSettings,
    amp_dtype: torch.dtype | None = None,
    image_weights: Tensor | None = None,
) -> StepResult:
    """G's losses on the images ``generated`` from ``inputs``.

    ``real`` (B, 3, H, W) in [-1, 1]: real images for a relativistic loss; top-k always uses the scores of generated images.
    ``image_weights`` (B,): top-k weights of the whole batch, if ``inputs`` is only a part of it. Raises ValueError if a
    relativistic loss has no ``real``.
    """
    c, gan_loss = curriculum, losses.GAN_LOSSES[curriculum.gan_loss]
    if gan_loss.is_relative and real is None:
        raise ValueError("a relativistic loss needs real images; pass real")
    images, field, rays, output = generated
    output_D = judge(discriminator, images, GENERATED, inputs, settings, amp_dtype)
    real_scores = None
    if gan_loss.is_relative:
        with torch.no_grad():
            real_scores = judge(discriminator, real, REAL, inputs, settings, amp_dtype).score
    if image_weights is None:
        image_weights = losses.topk_image_weights(output_D.score, settings.topk_fraction)
    weighted = {"gan": (1.0, gan_loss.of_G(output_D.score, real_scores, image_weights))}
    weighted |= _prediction_losses(output_D, inputs, c)
    if c.with_opacprior:
        weighted["opacity_prior"] = (settings.lambda_opacity_prior, losses.opacity_prior_loss(output.alphas))
    if inputs.neighbors is not None:
        weighted["normal"] = (c.normal_lambda, _normal_loss(field, rays, output.surface, inputs.neighbors, c.h_sample))
    if inputs.ball_points is not None:
        held = ball_hold_loss(field.occupancy_logits(inputs.ball_points), inputs.ball_points, Ball.of(c))
        weighted["ball_hold"] = (settings.lambda_ball_hold, held)
    return _result(weighted, {"hit_rate": output.surface.hit_mask.float().mean()})


def _prediction_losses(
    output: DiscriminatorOutput, inputs: GeneratorInputs, curriculum: Curriculum
) -> dict[str, tuple[float, Tensor]]:
    """Return the weighted errors of the pose and the latent that D predicts for the images of ``inputs``."""
    weighted = {}
    if curriculum.pos_lambda:
        weighted["pose"] = (curriculum.pos_lambda, losses.pose_loss(output.pose, inputs.poses))
    if curriculum.z_lambda:
        weighted["latent"] = (curriculum.z_lambda, losses.latent_loss(output.latent, inputs.z))
    return weighted


def _result(weighted: dict[str, tuple[float, Tensor]], scalars: dict[str, Tensor]) -> StepResult:
    """Sum the ``weighted`` losses. The terms are the unweighted losses and the other ``scalars``."""
    total = torch.stack([weight * value for weight, value in weighted.values()]).sum()
    terms = {name: value.detach() for name, (_, value) in weighted.items()}
    return StepResult(total, terms | scalars)


def _normal_loss(field: Field, rays: Rays, surface: Surface, neighbors: Tensor, h_sample: float) -> Tensor:
    """Compare the normals at the surface points of rays (B, R) with those at ``h_sample`` from them along ``neighbors``."""
    if surface.t.device.type == "cpu":  # on a GPU, counting the hits would require a synchronization
        rays, surface, neighbors = _rays_that_hit(rays, surface, neighbors)
    points = ray_points(rays, surface.t.unsqueeze(-1))
    normals = field.normals(torch.cat([points, points + h_sample * neighbors], dim=1))
    at_surface, beside = normals.chunk(2, dim=1)
    return losses.normal_smoothness_loss(at_surface, beside, surface.hit_mask)


def _rays_that_hit(rays: Rays, surface: Surface, neighbors: Tensor) -> tuple[Rays, Surface, Tensor]:
    """Move the rays (B, R) that hit to the front, and keep as many (B, K) as the image with the most hits needs."""
    num = max(1, int(surface.hit_mask.sum(dim=1).max()))
    order = surface.hit_mask.byte().argsort(dim=1, descending=True, stable=True)[:, :num]
    wide = order.unsqueeze(-1).expand(*order.shape, 3)
    kept = Surface(surface.t.gather(1, order), surface.hit_mask.gather(1, order))
    return Rays(rays.origins.gather(1, wide), rays.directions.gather(1, wide)), kept, neighbors.gather(1, wide)
