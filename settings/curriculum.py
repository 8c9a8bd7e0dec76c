"""Curricula: all settings of a run, the published ones and our own, validated when made.

A :class:`Curriculum` is frozen. Its defaults are the values the published runs have in common, so an entry of
:data:`CURRICULUMS` states only what is its own. To add one, add an entry. ``Curriculum.from_dict`` also reads the
published dictionaries (stage settings under integer keys, the last key being the end), as found in an ``options.txt``.

Angles are radians, except ``fov`` (degrees, full angle). Distances are along the unit ray: the camera sits at
distance 1 from the origin, so the object lies around t = 1.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError

MODELS = ("SPATIALSIRENBASELINE", "TALLSIREN", "EmbeddingPiGAN128", "EmbeddingPiGAN256")
SAMPLE_DISTS = ("gaussian", "uniform", "truncated_gaussian", "hybrid", "spherical_uniform", None)
MAX_DISC_SIZE = 512
MAX_NAME = 100  # characters


@dataclass(frozen=True)
class Stage:
    """Settings that hold from ``start_step`` until the next stage. Batch sizes are per process (GPU)."""

    start_step: int
    batch_size: int
    img_size: int
    gen_lr: float
    disc_lr: float
    batch_split: int = 1


@dataclass(frozen=True)
class Curriculum:
    """Every setting of a run; see the module docstring. Invalid values raise :class:`common.errors.UserError`."""

    name: str
    dataset: str
    stages: tuple[Stage, ...]
    end_step: int

    # Cameras and rays
    fov: float = 12.0
    ray_start: float = 0.88
    ray_end: float = 1.12
    h_stddev: float = 0.3
    v_stddev: float = 0.155
    h_mean: float = math.pi / 2
    v_mean: float = math.pi / 2
    sample_dist: str | None = "gaussian"

    # Networks
    model: str = "SPATIALSIRENBASELINE"
    generator: str = "ImplicitGenerator3d"
    discriminator: str = "ProgressiveEncoderDiscriminator"
    latent_dim: int = 256
    z_dist: str = "gaussian"
    hidden_dim: int = 256
    mapping_dim: int | None = None  # width of the mapping network; None: that of the field
    num_layers: int = 8
    view_dependent: bool = True  # False: colours depend on the point alone, the same from all sides
    disc_channels: tuple[int, ...] = (16, 32, 64, 128, 256, 400, 400, 400, 400)

    # Rendering
    pred_occ: bool = True  # True: alpha = sigmoid(logit) (GOF). False: radiance field (pi-GAN).
    surface_sample: bool = True
    hierarchical_sample: bool = True
    num_steps_coarse: int = 9
    num_steps_surface: int = 9
    num_steps_fine: int = 6
    tau: float = 0.5
    root_method: str = "secant"
    n_secant_steps: int = 4
    interval_max: float = 0.12
    interval_min: float = 0.03
    decay_beta: float = 1e-5
    clamp_mode: str = "relu"
    last_back: bool = False
    eval_last_back: bool | None = None  # of images shown and scored by eye; None: unless the background is white
    white_back: bool = False  # what no sample takes is white; transparent photos are laid over white

    # Losses
    gan_loss: str = "non_saturating"  # or "relativistic": D tells which of a pair is real, not whether an image is
    r1_lambda: float = 1.0
    r2_lambda: float = 0.0  # R1's counterpart on generated images
    r1_interval: int = 1  # steps from one R1 (and R2) to the next, which weighs that many times as much (before grad_clip)
    z_lambda: float = 0.0
    pos_lambda: float = 15.0
    topk_interval: int = 2000
    topk_v: float = 0.6
    with_opacprior: bool = True
    opacprior_lambda_init: float = 0.05
    opacprior_growth_rate: float = 0.5e-5
    with_normal_loss: bool = True
    get_normal_with_pred_depth: bool = True  # published key; the surface point is always the predicted root
    normal_lambda: float = 0.05
    h_sample: float = 0.01

    # Optimisation
    betas: tuple[float, float] = (0.0, 0.9)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    # how sure of real images D may be before it sees changed ones: the mean sign of its scores, or with a relativistic loss of
    # their lead over generated ones (0.6: ahead in 80 % of pairs); about 0.6 for small sets, 0: off
    augment_target: float = 0.0
    share_images: bool = False  # G learns from the images that D has just learned from; False: from others, generated anew
    lr_warmup_steps: int = 0  # over which the rates rise from 0, from the curriculum's step 0 on
    lr_decay: str = "constant"  # or "cosine": the rates fall to 0 at end_step
    unique_lr: bool = True  # True: one rate for all of G, as the published results have it. False: mapping at 5%.
    fade_steps: int = 10000
    init_ball_radius: float = 0.0  # > 0: fit the field to a ball of this radius before adversarial training
    ball_hold_steps: int = 0  # the field is held to that ball, less and less until this step; 0: not at all
    ball_hold_lambda: float = 0.1
    ball_hold_floor: float = 0.0  # what remains of that for the rest of the run
    hollow_check_interval: int = 0  # steps between looks at which way the shapes bulge, to turn hollow ones outward; 0: never

    # Evaluation
    num_eval_imgs: int = 8000  # what the published runs scored themselves with; eval_metrics.py takes --num_images

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise UserError(f"curriculum {self.name}: {problem}")

    @property
    def view_last_back(self) -> bool:
        """Whether views give a ray's missing weight to its last sample."""
        return not self.white_back if self.eval_last_back is None else self.eval_last_back

    def stage_at(self, step: int) -> Stage:
        """The stage that holds at ``step``."""
        return [stage for stage in self.stages if stage.start_step <= max(step, 0)][-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only: what checkpoints hold and :meth:`from_dict` reads."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping[Any, Any], name: str | None = None) -> Curriculum:
        """From :meth:`to_dict`'s output or a published dictionary. Unknown or missing keys raise UserError."""
        if not isinstance(settings, Mapping):
            raise UserError(f"a curriculum is a dictionary of settings, not {_shown(settings)}")
        settings = dict(settings)
        label = name or settings.get("name") or "(unnamed)"
        if not isinstance(label, str) or len(label) > MAX_NAME or not label.isprintable():
            raise UserError(f"a curriculum's name is a short text, not {_shown(label)}")
        stage_keys = sorted(key for key in settings if type(key) is int)
        if stage_keys:
            if settings.get("model") == "EmbeddingPiGAN128":  # its published class has its own widths
                settings = {"hidden_dim": 128, "mapping_dim": 256, **settings}
            _reject_non_dictionaries(label, [settings[key] for key in stage_keys])
            stage_dicts = [{"start_step": key, **settings.pop(key)} for key in stage_keys]
            end = stage_dicts.pop() if set(stage_dicts[-1]) == {"start_step"} else None
            settings["stages"] = stage_dicts
            if end is not None:
                settings["end_step"] = end["start_step"]
        settings["name"] = label
        _reject_unknown(label, settings, {f.name for f in dataclasses.fields(cls)}, "setting")
        _reject_missing(label, settings, ("dataset", "stages", "end_step"))
        if not isinstance(settings["stages"], (list, tuple)):
            raise UserError(f"curriculum {label}: stages must be a list of dictionaries, not {_shown(settings['stages'])}")
        stages = []
        stage_fields = {f.name for f in dataclasses.fields(Stage)}
        stage_dicts = [dataclasses.asdict(stage) if isinstance(stage, Stage) else stage for stage in settings["stages"]]
        _reject_non_dictionaries(label, stage_dicts)
        for number, stage in enumerate(stage_dicts):
            where = f"{label}, stages[{number}]"
            _reject_unknown(where, stage, stage_fields, "stage setting")
            _reject_missing(where, stage, [f.name for f in dataclasses.fields(Stage) if f.name != "batch_split"])
            stages.append(Stage(**_with_floats(Stage, stage)))
        settings["stages"] = tuple(stages)
        for key in ("betas", "disc_channels"):
            if isinstance(settings.get(key), list):
                settings[key] = tuple(settings[key])
        if isinstance(settings.get("betas"), tuple) and all(map(_is_number, settings["betas"])):
            settings["betas"] = tuple(map(float, settings["betas"]))  # published files say (0, 0.9)
        return cls(**_with_floats(cls, settings))

    def with_overrides(self, assignments: Iterable[str]) -> Curriculum:
        """Apply ``key=value`` strings (Python literals). A stage's key (``img_size=16``) applies to every stage."""
        settings = self.to_dict()
        stage_keys = {f.name for f in dataclasses.fields(Stage)} - {"start_step"}
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise UserError(f"--set {_shown(assignment)}: write key=value")
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three: of absurd text
                value = text
            if key in stage_keys:
                settings["stages"] = [{**stage, key: value} for stage in settings["stages"]]
            else:
                settings[key] = value
        return Curriculum.from_dict(settings, self.name)


def _reject_unknown(label: str, settings: Mapping[str, Any], known: set[str], kind: str) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key[:MAX_NAME], known, n=1) if isinstance(key, str) else []
            raise UserError(
                f"curriculum {label}: unknown {kind} {_shown(key)}" + (f"; did you mean {near[0]!r}?" if near else "")
            )


def _reject_missing(label: str, settings: Mapping[str, Any], required: Iterable[str]) -> None:
    for key in required:
        if key not in settings:
            raise UserError(f"curriculum {label}: the setting {key!r} is missing")


def _reject_non_dictionaries(label: str, stages: Iterable[Any]) -> None:
    for stage in stages:
        if not isinstance(stage, Mapping):
            raise UserError(f"curriculum {label}: a stage must be a dictionary of settings, not {_shown(stage)}")


def _with_floats(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` for a dataclass, with whole numbers as floats where it has floats: torch takes no whole number above 2^63."""
    floats = {f.name for f in dataclasses.fields(kind) if f.type == "float"}
    return {key: float(value) if key in floats and _is_number(value) else value for key, value in settings.items()}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _shown(value: Any) -> str:
    """A value for a message: short, printable, whatever it is."""
    try:
        text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a nest without end
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


_POSITIVE = ("fov", "interval_max", "interval_min", "h_sample", "grad_clip", "ray_start", "ray_end", "opacprior_lambda_init")
_NON_NEGATIVE = (
    *("h_stddev", "v_stddev", "decay_beta", "r1_lambda", "r2_lambda", "z_lambda", "pos_lambda", "normal_lambda"),
    *("augment_target", "weight_decay", "opacprior_growth_rate", "init_ball_radius", "ball_hold_lambda", "ball_hold_floor"),
    *("h_mean", "v_mean"),
)
_COUNTS = (
    "latent_dim",
    "hidden_dim",
    "num_layers",
    "num_steps_coarse",
    "r1_interval",
    "topk_interval",
    "fade_steps",
    "end_step",
    "num_eval_imgs",
)
_COUNTS_OR_ZERO = (
    *("num_steps_surface", "num_steps_fine", "n_secant_steps", "ball_hold_steps", "hollow_check_interval", "lr_warmup_steps"),
)
_MOST = {  # what no run wants more of; a file's settings must not fill the memory
    **{"latent_dim": 1 << 20, "hidden_dim": 1 << 20, "num_layers": 1000, "n_secant_steps": 1000},
    **dict.fromkeys(("num_steps_coarse", "num_steps_surface", "num_steps_fine"), 1024),
}
MAX_COUNT = 10**9
MIN_BALL_RADIUS = 1e-3  # world units
MAX_BATCH = 1 << 16
_CHOICES: dict[str, tuple[Any, ...]] = {
    "sample_dist": SAMPLE_DISTS,
    "model": MODELS,
    "generator": ("ImplicitGenerator3d",),
    "discriminator": ("ProgressiveEncoderDiscriminator",),
    "clamp_mode": ("relu", "softplus"),
    "gan_loss": ("non_saturating", "relativistic"),  # those of training/losses.py
    "z_dist": ("gaussian", "uniform"),
    "root_method": ("secant", "bisection"),
    "lr_decay": ("constant", "cosine"),
}


def _problems(c: Curriculum) -> Iterable[str]:
    """What is impossible about the settings, in words. The first is what counts: later ones may rely on it."""
    if not isinstance(c.name, str) or not isinstance(c.dataset, str):
        yield f"name and dataset must be texts, not {_shown(c.name)} and {_shown(c.dataset)}"
    for f in dataclasses.fields(c):
        if f.type == "bool" and not isinstance(getattr(c, f.name), bool):
            yield f"{f.name} must be True or False, not {_shown(getattr(c, f.name))}"
    if c.mapping_dim is not None and not _is_count(c.mapping_dim, 1, _MOST["hidden_dim"]):
        yield f"mapping_dim must be None or a whole number from 1 to {_MOST['hidden_dim']}, not {_shown(c.mapping_dim)}"
    if c.eval_last_back not in (True, False, None) or type(c.eval_last_back) is int:
        yield f"eval_last_back must be True, False or None, not {_shown(c.eval_last_back)}"
    if c.white_back and (c.last_back or c.eval_last_back):
        which = "last_back" if c.last_back else "eval_last_back"
        yield f"white_back has no effect with {which}, which gives missing weight to the last sample; set one of them to False"
    for key in (*_POSITIVE, *_NON_NEGATIVE, "tau", "topk_v"):
        if not _is_number(getattr(c, key)):
            yield f"{key} must be a finite number, not {_shown(getattr(c, key))}"
    for key in _POSITIVE:
        if getattr(c, key) <= 0:
            yield f"{key} must be positive, not {_shown(getattr(c, key))}"
    for key in _NON_NEGATIVE:
        if getattr(c, key) < 0:
            yield f"{key} must not be negative, not {_shown(getattr(c, key))}"
    for keys, least in ((_COUNTS, 1), (_COUNTS_OR_ZERO, 0)):
        for key in keys:
            most = _MOST.get(key, MAX_COUNT)
            if not _is_count(getattr(c, key), least, most):
                yield f"{key} must be a whole number of at least {least} and at most {most}, not {_shown(getattr(c, key))}"
    for key, choices in _CHOICES.items():
        if getattr(c, key) not in choices:
            yield f"{key} must be one of {', '.join(map(str, choices))}, not {_shown(getattr(c, key))}"
    if not 0 < c.fov < 180:
        yield f"fov must lie between 0 and 180 degrees, not {_shown(c.fov)}"
    if c.ray_end <= c.ray_start:
        yield f"ray_end ({c.ray_end}) must be greater than ray_start ({c.ray_start})"
    if c.interval_min > c.interval_max:
        yield f"interval_min ({c.interval_min}) must not exceed interval_max ({c.interval_max})"
    if c.surface_sample and c.interval_max > (c.ray_end - c.ray_start) / 2 + 1e-9:
        yield f"interval_max ({c.interval_max}) must not exceed half the ray, {(c.ray_end - c.ray_start) / 2:.4g}"
    if not 0 < c.tau < 1:
        yield f"tau must lie between 0 and 1, not {_shown(c.tau)}"
    if c.augment_target >= 1:
        yield f"augment_target must be less than 1, not {_shown(c.augment_target)}: a mean of signs is no greater"
    if not 0 < c.topk_v <= 1:
        yield f"topk_v must lie in (0, 1], not {_shown(c.topk_v)}"
    if c.num_steps_coarse < 2:
        yield f"num_steps_coarse must be at least 2, not {c.num_steps_coarse}"
    if c.hierarchical_sample and c.num_steps_fine and c.num_steps_coarse < 3:
        yield f"num_steps_coarse must be at least 3 with hierarchical_sample, not {c.num_steps_coarse}"
    if c.surface_sample and not c.pred_occ:
        yield "surface_sample needs pred_occ: a radiance field has no surface to find"
    if c.surface_sample and c.num_steps_surface < 2:
        yield f"num_steps_surface must be at least 2 with surface_sample, not {c.num_steps_surface}"
    if (c.with_opacprior or c.with_normal_loss or c.hollow_check_interval or c.init_ball_radius) and not c.pred_occ:
        yield "with_opacprior, with_normal_loss, hollow_check_interval and init_ball_radius need pred_occ"
    if c.hollow_check_interval:
        yield from _hollow_problems(c)
    room = min(1 - c.ray_start, c.ray_end - 1)
    if c.init_ball_radius and not MIN_BALL_RADIUS <= c.init_ball_radius < room:
        yield f"init_ball_radius must be 0 or at least {MIN_BALL_RADIUS} and less than {room:.4g}, where the rays begin or end"
    if not (isinstance(c.betas, tuple) and len(c.betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in c.betas)):
        yield f"betas must be two numbers in [0, 1), not {_shown(c.betas)}"
    if not (
        isinstance(c.disc_channels, tuple)
        and len(c.disc_channels) == 9
        and all(_is_count(n, 1, MAX_BATCH) for n in c.disc_channels)
    ):
        yield f"disc_channels must be 9 positive whole numbers (512 px down to 2 px), not {_shown(c.disc_channels)}"
    yield from _stage_problems(c)


def _hollow_problems(c: Curriculum) -> Iterable[str]:
    """Why shapes cannot be watched: which way they bulge has a meaning only from the front, and a turn only about the equator."""
    remedy = "set hollow_check_interval to 0"
    if c.sample_dist == "spherical_uniform" or (c.sample_dist is not None and c.h_stddev >= math.pi / 2):
        yield f"hollow_check_interval needs cameras that stay in front (h_stddev below pi/2, no spherical_uniform); {remedy}"
    if abs(c.v_mean - math.pi / 2) > 1e-6:
        yield f"hollow_check_interval needs v_mean = pi/2, about which alone poses mirror into poses; {remedy}"


def _stage_problems(c: Curriculum) -> Iterable[str]:
    if not all(_is_count(stage.start_step, 0, MAX_COUNT) for stage in c.stages):
        yield f"a stage's start_step must be a whole number from 0 to {MAX_COUNT}"
    if not c.stages or c.stages[0].start_step != 0:
        yield "the first stage must start at step 0"
    starts = [stage.start_step for stage in c.stages] + [c.end_step]
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        yield f"stages must start at rising steps and before the end, not at {starts}"
    for stage in c.stages:
        where = f"stage from step {stage.start_step}:"
        for key in ("batch_size", "img_size", "batch_split"):
            value = getattr(stage, key)
            if not _is_count(value, 1, MAX_BATCH):
                yield f"{where} {key} must be a whole number of at least 1 and at most {MAX_BATCH}, not {_shown(value)}"
        for key in ("gen_lr", "disc_lr"):
            if not _is_number(getattr(stage, key)) or getattr(stage, key) <= 0:
                yield f"{where} {key} must be positive, not {_shown(getattr(stage, key))}"
        if stage.batch_size % stage.batch_split:
            yield f"{where} batch_size {stage.batch_size} is not divisible by batch_split {stage.batch_split}"
        if stage.img_size & (stage.img_size - 1) or not 4 <= stage.img_size <= MAX_DISC_SIZE:
            yield f"{where} img_size {stage.img_size} has no discriminator layer; use a power of two from 4 to {MAX_DISC_SIZE}"
