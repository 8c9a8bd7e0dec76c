"""Training schedules as pure functions of the step. Source: docs/method.md, "Schedules"."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from settings.curriculum import Curriculum

DENSITY_NOISE_STEPS = 5000


def interval_at(curriculum: Curriculum, step: int) -> float:
    """Return Delta, the half width of the sampled interval around the surface, which shrinks during training."""
    return max(curriculum.interval_min, curriculum.interval_max * math.exp(-curriculum.decay_beta * step))


def density_noise_at(curriculum: Curriculum, step: int) -> float:
    """Return the standard deviation of the noise on a radiance field's densities; 0 for occupancy fields."""
    return 0.0 if curriculum.pred_occ else max(0.0, 1 - step / DENSITY_NOISE_STEPS)


def fade_alpha_at(curriculum: Curriculum, step: int) -> float:
    """Return the blend weight of D's new block since the last change of image size, in [0, 1]."""
    size = curriculum.stage_at(step).img_size
    before = [stage.start_step for stage in curriculum.stages if stage.start_step <= max(step, 0)]
    same_size = itertools.takewhile(lambda start: curriculum.stage_at(start).img_size == size, reversed(before))
    return min(1.0, (step - min(same_size)) / curriculum.fade_steps)


def topk_fraction_at(curriculum: Curriculum, step: int) -> float:
    """Return the fraction of images, those with D's highest scores, that G learns from."""
    return max(0.99 ** (step / curriculum.topk_interval), curriculum.topk_v)


def opacity_prior_weight_at(curriculum: Curriculum, step: int) -> float:
    """Return the weight of the opacity prior, which grows exponentially, at most tenfold; 0 if it is disabled."""
    if not curriculum.with_opacprior:
        return 0.0
    start = curriculum.opacprior_lambda_init
    return min(10 * start, start * math.exp(min(curriculum.opacprior_growth_rate * step, 10)))


def ball_hold_weight_at(curriculum: Curriculum, step: int) -> float:
    """Return the weight that holds a field to its initial ball, which decays linearly to the floor; 0 without a ball."""
    if not curriculum.init_ball_radius:
        return 0.0
    fraction_left = max(0.0, 1 - step / max(curriculum.ball_hold_steps, 1)) if curriculum.ball_hold_steps else 0.0
    return max(curriculum.ball_hold_floor, curriculum.ball_hold_lambda * fraction_left)


class PenaltyWeights(NamedTuple):
    """Weights of the gradient penalties R1 and R2."""

    r1: float
    r2: float


def penalty_weights_at(curriculum: Curriculum, step: int) -> PenaltyWeights:
    """Return the weights of R1 and R2, which apply every ``r1_interval`` steps and average to their lambdas over steps.

    Gradient clipping limits such a step like any other, so a strong penalty has less effect than its average weight suggests.
    Source: lazy regularization, StyleGAN2, appendix B.
    """
    factor = curriculum.r1_interval if (step + 1) % curriculum.r1_interval == 0 else 0
    return PenaltyWeights(curriculum.r1_lambda * factor, curriculum.r2_lambda * factor)


class LearningRates(NamedTuple):
    """Learning rates of G and D."""

    gen_lr: float
    disc_lr: float


def learning_rates_at(curriculum: Curriculum, step: int) -> LearningRates:
    """Return the stage's rates times a linear warm-up and, if ``lr_decay`` is ``cosine``, a half cosine down to 0 at the end."""
    stage = curriculum.stage_at(step)
    factor = min(1.0, (step + 1) / max(curriculum.lr_warmup_steps, 1))
    if curriculum.lr_decay == "cosine":
        factor *= 0.5 + 0.5 * math.cos(math.pi * min(step / curriculum.end_step, 1.0))
    return LearningRates(stage.gen_lr * factor, stage.disc_lr * factor)


def ema_decay_at(decay: float, num_updates: int) -> float:
    """Return the decay of a moving average, with a warm-up."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
