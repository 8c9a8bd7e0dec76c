"""Validation of settings: tables of types, ranges and choices, and checks for contradictions.

Each value is first checked on its own (:data:`NUMBERS`, :data:`COUNTS`, :data:`CHOICES`), then against the others. Every problem
is one line of text, without the curriculum's name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from curriculums import COMMON

MODELS = ("SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN128", "EmbeddingPiGAN256", "TRIPLANE")
SAMPLE_DISTS = ("gaussian", "uniform", "truncated_gaussian", "hybrid", "spherical_uniform", None)
DISCRIMINATORS = ("ProgressiveEncoderDiscriminator", "ResidualDiscriminator")
MAX_DISC_SIZE = 512  # pixels
LAST_DISC_SIZE = 4  # pixels, at the residual discriminator's last block
MAX_DISC_WIDTHS = (MAX_DISC_SIZE // LAST_DISC_SIZE).bit_length()
NUM_DISC_LEVELS = 9  # 512 px down to 2 px
MAX_BACKBONE_LEVELS, MAX_BACKBONE_WIDTH = 8, 1 << 12
MAX_SHOWN = 100  # characters of a value in a message
MAX_BATCH = 1 << 16
MAX_COUNT = 10**9
MAX_WIDTH = 1 << 20
MAX_SAMPLES = 1024  # per ray
MIN_BALL_RADIUS = 1e-3  # world units

TEXTS = ("name", "dataset")
FLAGS = tuple(key for key, value in COMMON.items() if isinstance(value, bool))


class Interval(NamedTuple):
    """A range of numbers, open or closed at either end. requirement: the text that follows "must" in an error message."""

    requirement: str
    low: float = -math.inf
    high: float = math.inf
    is_low_open: bool = False
    is_high_open: bool = False

    def contains(self, value: float) -> bool:
        above = value > self.low if self.is_low_open else value >= self.low
        return above and (value < self.high if self.is_high_open else value <= self.high)


POSITIVE = Interval("be positive", low=0, is_low_open=True)
NOT_NEGATIVE = Interval("not be negative", low=0)
NUMBERS: dict[str, Interval] = {
    "fov": Interval("be positive and less than 180 degrees", 0, 180, is_low_open=True, is_high_open=True),
    "ray_start": POSITIVE,
    "ray_end": POSITIVE,
    "h_stddev": NOT_NEGATIVE,
    "v_stddev": NOT_NEGATIVE,
    "h_mean": NOT_NEGATIVE,
    "v_mean": NOT_NEGATIVE,
    "tau": Interval("be greater than 0 and less than 1", 0, 1, is_low_open=True, is_high_open=True),
    "interval_max": POSITIVE,
    "interval_min": POSITIVE,
    "decay_beta": NOT_NEGATIVE,
    "r1_lambda": NOT_NEGATIVE,
    "r2_lambda": NOT_NEGATIVE,
    "z_lambda": NOT_NEGATIVE,
    "pos_lambda": NOT_NEGATIVE,
    "topk_v": Interval("be positive and at most 1", 0, 1, is_low_open=True),
    "opacprior_lambda_init": POSITIVE,
    "opacprior_growth_rate": NOT_NEGATIVE,
    "normal_lambda": NOT_NEGATIVE,
    "h_sample": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "mapping_lr_factor": POSITIVE,
    "grad_clip": POSITIVE,
    "augment_target": Interval("be less than 1 and not negative (it is a target for a mean of signs)", 0, 1, is_high_open=True),
    "init_ball_radius": NOT_NEGATIVE,
    "ball_hold_lambda": NOT_NEGATIVE,
    "ball_hold_floor": NOT_NEGATIVE,
    "plane_extent": NOT_NEGATIVE,
}
COUNTS: dict[str, tuple[int, int]] = {  # minimum and maximum, which keeps the settings of a file from exhausting the memory
    "end_step": (1, MAX_COUNT),
    "latent_dim": (1, MAX_WIDTH),
    "hidden_dim": (1, MAX_WIDTH),
    "num_layers": (1, 1000),
    "num_steps_coarse": (2, MAX_SAMPLES),
    "num_steps_surface": (0, MAX_SAMPLES),
    "num_steps_fine": (0, MAX_SAMPLES),
    "n_secant_steps": (0, 1000),
    "r1_interval": (1, MAX_COUNT),
    "topk_interval": (1, MAX_COUNT),
    "lr_warmup_steps": (0, MAX_COUNT),
    "fade_steps": (1, MAX_COUNT),
    "ball_hold_steps": (0, MAX_COUNT),
    "hollow_check_interval": (0, MAX_COUNT),
    "num_eval_imgs": (1, MAX_COUNT),
    "num_holdout": (0, MAX_COUNT),
    "w_dim": (1, 1 << 12),
    "plane_channels": (1, 256),
    "decoder_dim": (1, 1 << 10),
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "sample_dist": SAMPLE_DISTS,
    "model": MODELS,
    "generator": ("ImplicitGenerator3d",),
    "discriminator": DISCRIMINATORS,
    "clamp_mode": ("relu", "softplus"),
    "gan_loss": ("non_saturating", "relativistic"),  # as in training/losses.py
    "z_dist": ("gaussian", "uniform"),
    "root_method": ("secant", "bisection"),
    "lr_decay": ("constant", "cosine"),
    "plane_reduce": ("sum", "product"),
}


class Need(NamedTuple):
    """A condition for a setting to have an effect: another setting is in ``values``, or, if that is None, is not 0 or False."""

    setting: str
    values: tuple[str | bool, ...] | None = None

    def is_met(self, curriculum: Any) -> bool:
        value = getattr(curriculum, self.setting)
        return bool(value) if self.values is None else value in self.values


SIREN = Need("model", tuple(model for model in MODELS if model != "TRIPLANE"))
TRIPLANE = Need("model", ("TRIPLANE",))
NEEDS: dict[str, Need] = {
    "h_stddev": Need("sample_dist"),
    "v_stddev": Need("sample_dist"),
    "hidden_dim": SIREN,
    "mapping_dim": SIREN,
    "num_layers": SIREN,
    "w_dim": TRIPLANE,
    "backbone_channels": TRIPLANE,
    "plane_channels": TRIPLANE,
    "plane_extent": TRIPLANE,
    "plane_reduce": TRIPLANE,
    "decoder_dim": TRIPLANE,
    "disc_channels": Need("discriminator", ("ProgressiveEncoderDiscriminator",)),
    "fade_steps": Need("discriminator", ("ProgressiveEncoderDiscriminator",)),
    "disc_widths": Need("discriminator", ("ResidualDiscriminator",)),
    "num_steps_surface": Need("surface_sample"),
    "num_steps_fine": Need("hierarchical_sample"),
    "tau": Need("pred_occ"),
    "root_method": Need("pred_occ"),
    "n_secant_steps": Need("pred_occ"),
    "interval_max": Need("surface_sample"),
    "interval_min": Need("surface_sample"),
    "decay_beta": Need("surface_sample"),
    "interval_eval": Need("surface_sample"),
    "clamp_mode": Need("pred_occ", (False,)),
    "opacprior_lambda_init": Need("with_opacprior"),
    "opacprior_growth_rate": Need("with_opacprior"),
    "normal_lambda": Need("with_normal_loss"),
    "h_sample": Need("with_normal_loss"),
    "init_ball_stretch": Need("init_ball_radius"),
    "ball_hold_steps": Need("init_ball_radius"),
    "ball_hold_lambda": Need("init_ball_radius"),
    "ball_hold_floor": Need("init_ball_radius"),
}
WITHOUT_EFFECT = ("get_normal_with_pred_depth", "num_eval_imgs", "unique_lr")  # published keys that are kept for reference
STAGE_NUMBERS: dict[str, Interval] = {"gen_lr": POSITIVE, "disc_lr": POSITIVE}
STAGE_COUNTS: dict[str, tuple[int, int]] = {
    "start_step": (0, MAX_COUNT),
    "batch_size": (1, MAX_BATCH),
    "img_size": (1, MAX_BATCH),
    "batch_split": (1, MAX_BATCH),
}


def problems(curriculum: Any) -> Iterator[str]:
    """Yield the problems of a curriculum's settings. Only the first is reliable: later checks may assume that there is none."""
    values = vars(curriculum)
    yield from _problems_of_values(values)
    yield from _problems_of_lists(values)
    yield from _contradictions(curriculum)
    if curriculum.model == "TRIPLANE":
        yield from _triplane_problems(curriculum)
    yield from _stage_problems(curriculum)


def _problems_of_values(values: Mapping[str, Any]) -> Iterator[str]:
    for key in TEXTS:
        if not isinstance(values[key], str):
            yield f"{key} must be a string, not {shown(values[key])}"
    for key in FLAGS:
        if not isinstance(values[key], bool):
            yield f"{key} must be True or False, not {shown(values[key])}"
    if values["eval_last_back"] is not None and not isinstance(values["eval_last_back"], bool):
        yield f"eval_last_back must be True, False or None, not {shown(values['eval_last_back'])}"
    if values["interval_eval"] is not None and not (is_number(values["interval_eval"]) and values["interval_eval"] > 0):
        yield f"interval_eval must be None or a positive number, not {shown(values['interval_eval'])}"
    if values["mapping_dim"] is not None and not is_count(values["mapping_dim"], 1, MAX_WIDTH):
        yield f"mapping_dim must be None or a whole number from 1 to {MAX_WIDTH}, not {shown(values['mapping_dim'])}"
    yield from _out_of_range(values, NUMBERS, COUNTS)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            yield f"{key} must be one of {', '.join(map(str, choices))}, not {shown(values[key])}"


def _out_of_range(
    values: Mapping[str, Any], numbers: Mapping[str, Interval], counts: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    for key, interval in numbers.items():
        if not is_number(values[key]):
            yield f"{key} must be a finite number, not {shown(values[key])}"
        elif not interval.contains(values[key]):
            yield f"{key} must {interval.requirement}, not {shown(values[key])}"
    for key, (least, most) in counts.items():
        if not is_count(values[key], least, most):
            yield f"{key} must be a whole number from {least} to {most}, not {shown(values[key])}"


def _problems_of_lists(values: Mapping[str, Any]) -> Iterator[str]:
    betas, channels = values["betas"], values["disc_channels"]
    if not (isinstance(betas, tuple) and len(betas) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in betas)):
        yield f"betas must be two numbers in [0, 1), not {shown(betas)}"
    if not (is_widths(channels) and len(channels) == NUM_DISC_LEVELS):
        yield f"disc_channels must be {NUM_DISC_LEVELS} positive whole numbers (512 px down to 2 px), not {shown(channels)}"
    stretch = values["init_ball_stretch"]
    if not (isinstance(stretch, tuple) and len(stretch) == 3 and all(is_number(factor) and factor > 0 for factor in stretch)):
        yield f"init_ball_stretch must be three positive numbers (along x, y and z), not {shown(stretch)}"
    widths = values["disc_widths"]
    if not (is_widths(widths) and 1 <= len(widths) <= MAX_DISC_WIDTHS):
        yield f"disc_widths must be 1 to {MAX_DISC_WIDTHS} positive whole numbers (the last at 4 px), not {shown(widths)}"


def _contradictions(c: Any) -> Iterator[str]:
    if c.ray_end <= c.ray_start:
        yield f"ray_end ({c.ray_end}) must be greater than ray_start ({c.ray_start})"
    if c.interval_min > c.interval_max:
        yield f"interval_min ({c.interval_min}) must not exceed interval_max ({c.interval_max})"
    if c.surface_sample and c.interval_max > (c.ray_end - c.ray_start) / 2 + 1e-9:
        yield f"interval_max ({c.interval_max}) must not exceed half of ray_end - ray_start, {(c.ray_end - c.ray_start) / 2:.4g}"
    if c.hierarchical_sample and c.num_steps_fine and c.num_steps_coarse < 3:
        yield f"num_steps_coarse must be at least 3 with hierarchical_sample, not {c.num_steps_coarse}"
    if c.surface_sample and not c.pred_occ:
        yield "surface_sample needs pred_occ, because a radiance field has no surface; set surface_sample to False"
    if c.surface_sample and c.num_steps_surface < 2:
        yield f"num_steps_surface must be at least 2 with surface_sample, not {c.num_steps_surface}"
    if (c.with_opacprior or c.with_normal_loss or c.hollow_check_interval or c.init_ball_radius) and not c.pred_occ:
        yield "with_opacprior, with_normal_loss, hollow_check_interval and init_ball_radius need pred_occ"
    if c.white_back and (c.last_back or c.eval_last_back):
        which = "last_back" if c.last_back else "eval_last_back"
        yield f"white_back has no effect with {which}, which leaves no remaining weight; set one of them to False"
    if c.random_back and (c.white_back or c.last_back or c.eval_last_back):
        which = next(name for name in ("white_back", "last_back", "eval_last_back") if getattr(c, name))
        yield f"random_back and {which} both determine what is behind the object; set one of them to False"
    if c.hollow_check_interval:
        yield from _hollow_problems(c)
    axes = [c.init_ball_radius * factor for factor in c.init_ball_stretch]
    if c.init_ball_radius and not MIN_BALL_RADIUS <= min(axes) <= max(axes) < c.ray_room:
        fits = f"at least {MIN_BALL_RADIUS} and less than {c.ray_room:.4g}"
        found = ", ".join(f"{axis:.4g}" for axis in axes)
        yield f"init_ball_radius must be 0, or its products with init_ball_stretch {fits}, to fit within the rays, not {found}"


def _hollow_problems(c: Any) -> Iterator[str]:
    """Yield why hollow shapes cannot be detected: this requires frontal cameras, and poses that mirror about the equator."""
    remedy = "set hollow_check_interval to 0"
    if c.sample_dist == "spherical_uniform" or (c.sample_dist is not None and c.h_stddev >= math.pi / 2):
        yield f"hollow_check_interval needs frontal cameras (h_stddev below pi/2, no spherical_uniform); {remedy}"
    if abs(c.v_mean - math.pi / 2) > 1e-6:
        yield f"hollow_check_interval needs v_mean = pi/2, the only pitch about which poses can be mirrored; {remedy}"


def _triplane_problems(c: Any) -> Iterator[str]:
    channels = c.backbone_channels
    if not (is_widths(channels) and 1 <= len(channels) <= MAX_BACKBONE_LEVELS and max(channels) <= MAX_BACKBONE_WIDTH):
        yield f"backbone_channels must be 1 to 8 positive whole numbers (from 4 px up to the planes' size), not {shown(channels)}"
    if c.plane_channels % 16 or c.decoder_dim % 4:
        yield "plane_channels must be a multiple of 16, and decoder_dim a multiple of 4"
    if c.view_dependent or not c.pred_occ:
        yield "model TRIPLANE needs pred_occ and view_dependent=False"


def _stage_problems(c: Any) -> Iterator[str]:
    for number, stage in enumerate(c.stages):
        for problem in _out_of_range(vars(stage), STAGE_NUMBERS, STAGE_COUNTS):
            yield f"stages[{number}]: {problem}"
    if not c.stages or c.stages[0].start_step != 0:
        yield "the first stage must start at step 0"
    starts = [stage.start_step for stage in c.stages] + [c.end_step]
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        yield f"the start steps of stages must increase and be less than the end step, not {starts}"
    for stage in c.stages:
        where = f"stage from step {stage.start_step}:"
        if stage.batch_size % stage.batch_split:
            yield f"{where} batch_size {stage.batch_size} is not divisible by batch_split {stage.batch_split}"
        if stage.img_size & (stage.img_size - 1) or not 4 <= stage.img_size <= MAX_DISC_SIZE:
            yield f"{where} img_size {stage.img_size} has no discriminator block; use a power of two from 4 to {MAX_DISC_SIZE}"
        if c.discriminator == "ResidualDiscriminator" and stage.img_size < c.disc_base_size:
            yield (
                f"{where} img_size {stage.img_size} is less than {c.disc_base_size} px, the base size of {len(c.disc_widths)}"
                " disc_widths; remove the first of them"
            )


def ineffective_settings(curriculum: Any, stated: Iterable[str]) -> Iterator[str]:
    """Yield a message for each stated setting that has no effect because of another setting.

    This is not part of :func:`problems`: an ablation may disable a loss and inherit its weight, and old files have such settings.
    """
    for key in stated:
        if key in NEEDS and getattr(curriculum, key) and not NEEDS[key].is_met(curriculum):
            other = NEEDS[key].setting
            yield f"{key} has no effect, since {other} is {shown(getattr(curriculum, other))}; remove {key} or set {other}"


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a finite number, and not a bool."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def is_count(value: Any, least: int, most: int) -> bool:
    """Return whether ``value`` is an int in [least, most], and not a bool."""
    return type(value) is int and least <= value <= most


def is_widths(value: Any) -> bool:
    """Return whether ``value`` is a tuple of layer widths."""
    return isinstance(value, tuple) and all(is_count(width, 1, MAX_BATCH) for width in value)


def shown(value: Any) -> str:
    """Return a short, printable representation of any value, for messages."""
    try:
        text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, or endless nesting
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
