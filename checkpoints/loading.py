"""Load a generator from any supported file: this project's checkpoints and every published format.

The file formats are documented in :mod:`checkpoints.files` (ours) and :mod:`checkpoints.published`. A file is recognized by
its content, never by its name, and nothing in it is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import (
    TRUNCATION_PREFIX,
    check_finite,
    check_state,
    checked_training,
    is_safetensors,
    is_training,
    read_inference,
)
from checkpoints.published import (
    WeightsFile,
    average_path,
    curriculum_from,
    network_settings,
    read_options_curriculum,
    read_published_average,
    read_published_weights,
)
from checkpoints.safe_pickle import printable
from checkpoints.torch_files import read_torch_file
from common.errors import UserError
from common.files import require_file
from generators.generator import ImplicitGenerator3d, Styles
from settings.curriculum import Curriculum
from settings.published import PIGAN_DEFAULTS

ARCHITECTURE_KEYS = (
    *("generator", "model", "latent_dim", "hidden_dim", "mapping_dim", "num_layers", "view_dependent"),
    *("w_dim", "backbone_channels", "plane_channels", "plane_reduce", "decoder_dim", "init_ball_stretch"),
)
PIGAN_NUM_STEPS = 12  # coarse samples per ray, and the same number of fine samples, in most pi-GAN curricula
WEIGHTS = ("ema", "ema2", "generator")
PRETRAINED_DIR = Path(__file__).resolve().parent.parent / "pretrained"


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to render, in eval mode and on its device.

    notes: remarks about the weights to show the user.
    is_camera_known: False if neither the file nor the user specifies the camera it was trained with.
    """

    generator: ImplicitGenerator3d
    curriculum: Curriculum
    step: int | None = None
    notes: list[str] = field(default_factory=list)
    is_camera_known: bool = True


def resolve_generator_path(path: str | Path) -> Path:
    """Return ``path``, or the file under ``pretrained/`` if ``path`` is a bare name. Raises UserError if it does not exist."""
    path = Path(path)
    shipped = PRETRAINED_DIR / f"{path.name}.safetensors"
    try:
        if path.exists() and not path.is_dir():
            return require_file(path)
        if path.name == str(path) and shipped.is_file():  # even if a folder has the same name
            return shipped
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the generator file inside it")
    except OSError as error:  # name too long, no permission for a folder
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    known = ", ".join(sorted(file.stem for file in PRETRAINED_DIR.glob("*.safetensors")))
    raise UserError(f"there is no generator file {path}" + (f" (included with the project: {known})" if known else ""))


def load_generator(
    path: str | Path,
    curriculum: Curriculum | None = None,
    device: str | torch.device = "cpu",
    weights: str = "ema",
    fallback: Curriculum | None = None,
) -> LoadedGenerator:
    """Load a generator from one of our files (inference or training) or from the published code (state dict or whole module).

    curriculum: replaces the file's camera and rendering settings. For our files, its network settings must match the file's.
        For a published file, the network is inferred from the tensor shapes and class names. Required for a published file
        unless an ``options.txt`` is next to it.
    fallback: the curriculum for a published file that has neither. Without it, that is an error.
    weights: "ema" (published and recommended), "ema2", or "generator" (not averaged). An inference file has one set only.
    Raises UserError, in one line that names the file, if it cannot be loaded.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights {weights!r}: use one of {', '.join(WEIGHTS)}")
    path = resolve_generator_path(path)
    notes: list[str] = []
    content = _read_generator_file(path, weights)
    is_camera_known = bool(content.curriculum or curriculum or path.with_name("options.txt").is_file() or not fallback)
    used = _reconcile_curriculum(path, content, curriculum if is_camera_known else fallback, notes)
    if not is_camera_known:
        notes.append(f"{path} does not name its curriculum: network inferred from the file, other settings from {used.name}")
    shapes = _generator_shapes(path, used, len(content.state))
    state = {name: value for name, value in content.state.items() if not name.startswith(TRUNCATION_PREFIX)}
    _check_shapes(path, state, shapes)
    if content.is_published and weights != "generator":
        state = _published_average(path, weights, [name for name in state if name in shapes], shapes, notes) or state
    check_finite(path, state)
    with torch.random.fork_rng(devices=[]):  # loading a file must not advance the caller's random state
        generator = ImplicitGenerator3d(used)
    generator.load_state_dict(state, strict=True)
    generator.truncation_mean = _truncation_mean(path, content.state, generator, device)
    return LoadedGenerator(generator.to(device).eval(), used, content.step, notes, is_camera_known)


def _read_generator_file(path: Path, weights: str) -> WeightsFile:
    """Dispatch on the file's content, not on its name."""
    if is_safetensors(path):
        ours = read_inference(path)
        return WeightsFile(ours.tensors, ours.curriculum, ours.step)
    content = read_torch_file(path)
    if is_training(content):
        content = checked_training(path, content)
        if weights not in content:
            raise UserError(f"{path} has no {weights!r} weights")
        settings = curriculum_from(path, content["curriculum"])
        return WeightsFile(check_state(path, weights, content[weights]), settings, content["step"])
    return read_published_weights(path, content)


def _generator_shapes(path: Path, curriculum: Curriculum, num_tensors: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the generator's tensors, computed without allocating them: the widths may come from an untrusted file."""
    error = UserError(f"{path}: curriculum {curriculum.name} describes a larger network than the file holds")
    if curriculum.num_layers > num_tensors:
        raise error
    try:
        with torch.device("meta"):
            generator = ImplicitGenerator3d(curriculum)
    except (RuntimeError, TypeError, OverflowError):  # dimensions beyond 64 bits
        raise error from None
    return {name: tuple(value.shape) for name, value in generator.state_dict().items()}


def _reconcile_curriculum(path: Path, content: WeightsFile, chosen: Curriculum | None, notes: list[str]) -> Curriculum:
    """Return the user's curriculum, if given, with the file's network settings; otherwise the file's own curriculum."""
    own = content.curriculum
    if own is None and chosen is None:
        options = path.with_name("options.txt")
        if not options.is_file():
            raise UserError(f"{path} does not name its curriculum; pass --curriculum NAME, or put its options.txt next to it")
        notes.append(f"settings from {options}")
        chosen = read_options_curriculum(options, notes)
    if chosen is None:
        assert own is not None
        return own
    for key in ARCHITECTURE_KEYS if own is not None else ():
        if getattr(own, key) != getattr(chosen, key):
            both = f"{key} {getattr(own, key)!r}, but curriculum {chosen.name} has {getattr(chosen, key)!r}"
            raise UserError(f"{path} was trained with {both}; omit --curriculum or pass {own.name}")
    return _override_network_settings(path, content, chosen, notes) if content.is_published else chosen


def _override_network_settings(path: Path, content: WeightsFile, chosen: Curriculum, notes: list[str]) -> Curriculum:
    """Replace network settings of ``chosen`` that contradict a published file, with a note for each."""
    inferred = network_settings(content.state, content.model)
    other = {key: value for key, value in inferred.items() if getattr(chosen, key) != value}
    for key, value in other.items():
        notes.append(f"{path} has {key} {value}, which overrides {getattr(chosen, key)} of curriculum {chosen.name}")
    if content.is_radiance and chosen.pred_occ:
        other |= PIGAN_DEFAULTS | {"hollow_check_interval": 0, "init_ball_radius": 0.0}
        other |= {"num_steps_coarse": PIGAN_NUM_STEPS, "num_steps_fine": PIGAN_NUM_STEPS}
        notes.append(
            f"{path} is a pi-GAN module: loaded as a radiance field with {PIGAN_NUM_STEPS} + {PIGAN_NUM_STEPS} samples per ray,"
            f" not as the occupancy field of curriculum {chosen.name}"
        )
    try:
        return replace(chosen, **other) if other else chosen
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _published_average(
    path: Path, weights: str, order: list[str], shapes: Mapping[str, tuple[int, ...]], notes: list[str]
) -> Mapping[str, Tensor] | None:
    """Load the averaged weights next to a published generator. Return None, with a note, if there are none.

    Raises UserError if the file exists but is invalid.
    """
    averages = average_path(path, weights)
    if averages is None or not averages.exists():
        expected = averages.name if averages is not None else f"{weights}.pth"
        notes.append(f"no {expected} next to {path.name}: using the generator's own weights, not averaged ones")
        return None
    average = read_published_average(averages, order, shapes)
    _check_shapes(averages, average.state, shapes)
    check_finite(averages, average.state)
    return average.state


def _check_shapes(path: Path, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError for the first parameter that is missing, unexpected, or of the wrong shape or type."""
    remedy = "is --curriculum the one it was trained with?"
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{path} lacks the parameter {name}; {remedy}")
        if tuple(state[name].shape) != shape:
            raise UserError(f"{path}: {name} has shape {tuple(state[name].shape)}, but the generator needs {shape}; {remedy}")
        if not state[name].is_floating_point():
            raise UserError(f"{path}: {name} contains {state[name].dtype}, not floating-point numbers")
    for name in state:
        if name not in shapes:
            raise UserError(f"{path} has an unexpected parameter {printable(name)}; {remedy}")


def _truncation_mean(
    path: Path, state: Mapping[str, Tensor], generator: ImplicitGenerator3d, device: str | torch.device
) -> Styles | None:
    """Return the stored mean styles, or None; the generator then computes them, deterministically, when needed."""
    with torch.no_grad():
        expected = generator.styles(torch.zeros(1, generator.curriculum.latent_dim))
    parts = {part: state.get(TRUNCATION_PREFIX + part) for part in expected._fields}
    if all(value is None for value in parts.values()):
        return None
    for part, value in parts.items():
        shape = tuple(getattr(expected, part).shape)
        if value is None or tuple(value.shape) != shape or not value.is_floating_point() or not torch.isfinite(value).all():
            raise UserError(f"{path}: {TRUNCATION_PREFIX}{part} must be {shape} finite numbers")
    return type(expected)(*(value.float().to(device) for value in parts.values()))
