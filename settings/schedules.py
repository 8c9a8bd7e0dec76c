"""What changes during training, as pure functions of the step. Source: docs/method.md, "Schedules"."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from settings.curriculum import Curriculum

DENSITY_NOISE_STEPS = 5000


def interval_at(curriculum: Curriculum, step: int) -> float:
    """Delta, the half width of the sampled interval around the surface: the shrinking that turns a volume into a surface."""
    return max(curriculum.interval_min, curriculum.interval_max * math.exp(-curriculum.decay_beta * step))


def density_noise_at(curriculum: Curriculum, step: int) -> float:
    """Standard deviation of the noise on a radiance field's densities; none on occupancies."""
    return 0.0 if curriculum.pred_occ else max(0.0, 1 - step / DENSITY_NOISE_STEPS)


def fade_alpha_at(curriculum: Curriculum, step: int) -> float:
    """How far D's new block has faded in since the images have their present size, in [0, 1]."""
    size = curriculum.stage_at(step).img_size
    before = [stage.start_step for stage in curriculum.stages if stage.start_step <= max(step, 0)]
    same_size = itertools.takewhile(lambda start: curriculum.stage_at(start).img_size == size, reversed(before))
    return min(1.0, (step - min(same_size)) / curriculum.fade_steps)


def topk_fraction_at(curriculum: Curriculum, step: int) -> float:
    """The best fraction of D's scores that G learns from."""
    return max(0.99 ** (step / curriculum.topk_interval), curriculum.topk_v)


def opacity_prior_weight_at(curriculum: Curriculum, step: int) -> float:
    if not curriculum.with_opacprior:
        return 0.0
    start = curriculum.opacprior_lambda_init
    return min(10 * start, start * math.exp(min(curriculum.opacprior_growth_rate * step, 10)))


def ball_hold_weight_at(curriculum: Curriculum, step: int) -> float:
    """How strongly a field that started from a ball is held to it: falls linearly to the floor. 0 where there is no ball."""
    if not curriculum.init_ball_radius:
        return 0.0
    share_left = max(0.0, 1 - step / max(curriculum.ball_hold_steps, 1)) if curriculum.ball_hold_steps else 0.0
    return max(curriculum.ball_hold_floor, curriculum.ball_hold_lambda * share_left)


class PenaltyWeights(NamedTuple):
    r1: float
    r2: float


def penalty_weights_at(curriculum: Curriculum, step: int) -> PenaltyWeights:
    """Weights of R1 and R2, which come every ``r1_interval`` steps ("lazy", StyleGAN2, appendix B), on average their lambdas.

    The clipped gradient of such a step is no longer than that of another, so a strong penalty counts for less than on average.
    """
    factor = curriculum.r1_interval if (step + 1) % curriculum.r1_interval == 0 else 0
    return PenaltyWeights(curriculum.r1_lambda * factor, curriculum.r2_lambda * factor)


class LearningRates(NamedTuple):
    gen_lr: float
    disc_lr: float


def learning_rates_at(curriculum: Curriculum, step: int) -> LearningRates:
    """The stage's, times a linear warm-up, times half a cosine down to 0 at the end where ``lr_decay`` says so."""
    stage = curriculum.stage_at(step)
    factor = min(1.0, (step + 1) / max(curriculum.lr_warmup_steps, 1))
    if curriculum.lr_decay == "cosine":
        factor *= 0.5 + 0.5 * math.cos(math.pi * min(step / curriculum.end_step, 1.0))
    return LearningRates(stage.gen_lr * factor, stage.disc_lr * factor)


def ema_decay_at(decay: float, num_updates: int) -> float:
    """Warm-up of a moving average."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
