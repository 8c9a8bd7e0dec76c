"""All settings of a run, frozen and validated on construction.

The curricula themselves are the dictionaries in :mod:`curriculums`. If a dictionary or file omits a setting, its value is that
in ``curriculums.COMMON``. :meth:`Curriculum.from_dict` reads those dictionaries, published ones (as in an ``options.txt``), and
the settings in checkpoints and run folders.

Angles are radians, except ``fov`` (degrees, full angle). Distances are along the unit ray. The camera is at distance 1 from the
origin, so the object is around t = 1.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from curriculums import COMMON
from settings.checks import LAST_DISC_SIZE, WITHOUT_EFFECT, ineffective_settings, is_number, problems, shown
from settings.published import reject_non_dictionary, to_current_format

MAX_NAME = 100  # characters


@dataclass(frozen=True)
class Stage:
    """Settings that apply from ``start_step`` until the next stage. Batch sizes are per process (GPU)."""

    start_step: int
    batch_size: int
    img_size: int
    gen_lr: float
    disc_lr: float
    batch_split: int = 1


@dataclass(frozen=True)
class Curriculum:
    """All settings of a run, described in ``docs/curriculums.md``. Invalid values raise :class:`common.errors.UserError`."""

    name: str
    dataset: str
    stages: tuple[Stage, ...]
    end_step: int

    # Cameras and rays
    fov: float
    ray_start: float
    ray_end: float
    h_stddev: float
    v_stddev: float
    h_mean: float
    v_mean: float
    sample_dist: str | None

    # Images
    num_holdout: int

    # Networks
    model: str
    generator: str
    discriminator: str
    latent_dim: int
    z_dist: str
    hidden_dim: int
    mapping_dim: int | None
    num_layers: int
    view_dependent: bool
    disc_channels: tuple[int, ...]
    disc_widths: tuple[int, ...]
    w_dim: int
    backbone_channels: tuple[int, ...]
    plane_channels: int
    plane_extent: float
    plane_reduce: str
    decoder_dim: int

    # Rendering
    pred_occ: bool
    surface_sample: bool
    hierarchical_sample: bool
    num_steps_coarse: int
    num_steps_surface: int
    num_steps_fine: int
    tau: float
    root_method: str
    n_secant_steps: int
    interval_max: float
    interval_min: float
    decay_beta: float
    interval_eval: float | None
    clamp_mode: str
    last_back: bool
    eval_last_back: bool | None
    white_back: bool
    random_back: bool

    # Losses
    gan_loss: str
    r1_lambda: float
    r2_lambda: float
    r1_interval: int
    z_lambda: float
    pos_lambda: float
    topk_interval: int
    topk_v: float
    with_opacprior: bool
    opacprior_lambda_init: float
    opacprior_growth_rate: float
    with_normal_loss: bool
    get_normal_with_pred_depth: bool
    normal_lambda: float
    h_sample: float

    # Optimization
    horizontal_flip: bool
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    augment_target: float
    share_images: bool
    lr_warmup_steps: int
    lr_decay: str
    mapping_lr_factor: float
    unique_lr: bool
    fade_steps: int

    # Initial shape
    init_ball_radius: float
    init_ball_stretch: tuple[float, float, float]
    ball_hold_steps: int
    ball_hold_lambda: float
    ball_hold_floor: float
    hollow_check_interval: int

    # Evaluation
    num_eval_imgs: int

    def __post_init__(self) -> None:
        problem = next(problems(self), None)
        if problem:
            raise UserError(f"curriculum {self.name}: {problem}")

    @property
    def is_siren(self) -> bool:
        """True if ``model`` is one of the SIRENs."""
        return self.model != "TRIPLANE"

    @property
    def ray_reach(self) -> float:
        """How far the central ray reaches from the origin, in front of it or behind."""
        return max(1 - self.ray_start, self.ray_end - 1)

    @property
    def ray_room(self) -> float:
        """Radius of the largest ball around the origin that lies between the ends of the central ray."""
        return min(1 - self.ray_start, self.ray_end - 1)

    @property
    def view_last_back(self) -> bool:
        """True if views give a ray's remaining weight to its last sample."""
        return not (self.white_back or self.random_back) if self.eval_last_back is None else self.eval_last_back

    @property
    def view_interval(self) -> float:
        """Delta, the half width of the interval around the surface, in views."""
        return self.interval_min if self.interval_eval is None else self.interval_eval

    @property
    def disc_base_size(self) -> int:
        """Image size in pixels at the residual discriminator's first block. Each further one of ``disc_widths`` halves it."""
        return LAST_DISC_SIZE << (len(self.disc_widths) - 1)

    def stage_at(self, step: int) -> Stage:
        """Return the stage that applies at ``step``."""
        return [stage for stage in self.stages if stage.start_step <= max(step, 0)][-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, as stored in checkpoints and read by :meth:`from_dict`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: Mapping[Any, Any], name: str | None = None, notes: list[str] | None = None) -> Curriculum:
        """Create a curriculum from the output of :meth:`to_dict`, or from a dictionary whose stages are keyed by step.

        Settings that it omits come from ``COMMON``. ``notes`` receives messages for the user about the keys of published
        dictionaries and old files (settings/published.py). Unknown or missing keys raise UserError.
        """
        if not isinstance(settings, Mapping):
            raise UserError(f"a curriculum must be a dictionary of settings, not {shown(settings)}")
        label = name or settings.get("name") or "(unnamed)"
        if not isinstance(label, str) or len(label) > MAX_NAME or not label.isprintable():
            raise UserError(f"a curriculum's name must be printable text of at most {MAX_NAME} characters, not {shown(label)}")
        settings = COMMON | to_current_format(label, settings, [] if notes is None else notes) | {"name": label}
        _reject_unknown(label, settings, [field.name for field in dataclasses.fields(cls)], "setting")
        _reject_missing(label, settings, ("dataset", "stages", "end_step"))
        settings["stages"] = _stages(label, settings["stages"])
        # Published dictionaries state what None stands for. With random_back, False is kept: it also holds without it.
        if settings["eval_last_back"] is (not settings["white_back"]) and not settings["random_back"]:
            settings["eval_last_back"] = None
        return cls(**_with_types(cls, settings))

    def with_overrides(self, assignments: Iterable[str]) -> Curriculum:
        """Apply ``key=value`` strings (Python literals). A stage's key (``img_size=16``) applies to every stage."""
        settings, assigned = self.to_dict(), []
        stage_keys = {field.name for field in dataclasses.fields(Stage)} - {"start_step"}
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise UserError(f"--set {shown(assignment)}: expected key=value")
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last three come from absurd input
                value = text
            if key in stage_keys:
                settings["stages"] = [{**stage, key: value} for stage in settings["stages"]]
            else:
                settings[key] = value
            assigned.append(key)
        for key in assigned:
            if key in WITHOUT_EFFECT:
                raise UserError(f"--set {key}: this published setting has no effect; remove it")
        curriculum = Curriculum.from_dict(settings, self.name)
        ineffective = next(ineffective_settings(curriculum, assigned), None)
        if ineffective:
            raise UserError(f"curriculum {self.name}, --set: {ineffective}")
        return curriculum


def _stages(label: str, stages: Any) -> tuple[Stage, ...]:
    if not isinstance(stages, (list, tuple)):
        raise UserError(f"curriculum {label}: stages must be a list of dictionaries, not {shown(stages)}")
    keys = [field.name for field in dataclasses.fields(Stage)]
    found = []
    for number, stage in enumerate(stages):
        where = f"{label}, stages[{number}]"
        reject_non_dictionary(label, stage)
        _reject_unknown(where, stage, keys, "stage setting")
        _reject_missing(where, stage, [key for key in keys if key != "batch_split"])
        found.append(Stage(**_with_types(Stage, stage)))
    return tuple(found)


def _reject_unknown(label: str, settings: Mapping[Any, Any], known: Iterable[str], kind: str) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key[:MAX_NAME], known, n=1) if isinstance(key, str) else []
            raise UserError(f"curriculum {label}: unknown {kind} {shown(key)}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _reject_missing(label: str, settings: Mapping[Any, Any], required: Iterable[str]) -> None:
    for key in required:
        if key not in settings:
            raise UserError(f"curriculum {label}: the setting {key!r} is missing")


def _with_types(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert ``settings`` to the types of a dataclass: lists to tuples, and ints to floats for float fields.

    torch does not accept an int above 2^63 as a float.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    return {key: _with_type(types[key], value) for key, value in settings.items()}


def _with_type(annotation: str, value: Any) -> Any:
    if annotation.startswith("tuple") and isinstance(value, (list, tuple)):
        return tuple(float(part) if "float" in annotation and is_number(part) else part for part in value)
    return float(value) if annotation == "float" and is_number(value) else value
