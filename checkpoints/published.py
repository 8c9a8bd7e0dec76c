"""Read the files of the published GOF and pi-GAN code as named tensors.

Source: docs/method.md, "Published checkpoint formats".

``generator.pth``, ``discriminator.pth``: a state dict or a whole pickled module. ``ema.pth``, ``ema2.pth``: a torch_ema object
with the averages in the order of the generator's parameters. ``optimizer_*.pth``: state dicts.
``options.txt``: its last line is the curriculum as a Python dictionary. All but the last are read by
:mod:`checkpoints.torch_files`.
"""

from __future__ import annotations

import ast
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints.safe_pickle import PickledObject, printable
from checkpoints.torch_files import read_torch_file
from common.errors import UserError, first_few
from common.files import read_small_text
from settings.checks import MODELS
from settings.curriculum import Curriculum
from settings.published import without_unknown_keys
from siren.siren import EMBEDDING_RESOLUTION

WRAPPER_NAMES = ("module", "_orig_mod")  # attribute names of the wrapped network in DataParallel and torch.compile
WRAPPER_CLASSES = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
CONTAINER_KEYS = ("state_dict", "model_state_dict", "generator_state_dict", "params_ema", "g_ema", "G_ema", "ema")
CONTAINER_KEYS += ("generator", "netG", "net_g", "G", "model", "net", "params")
SIREN_NAME = "siren.network."  # a prefix before it is the generator's name in a trainer; the trainer's other networks are dropped
PIGAN_SIREN_MODULE = "siren.siren."  # the module of pi-GAN's SIRENs; GOF's are in generators.siren
MAX_NESTING, MAX_KEYS_SHOWN = 4, 6
WARMED_UP = 10**6  # updates; enough to end the warm-up of every average
_MAX_ENTRIES = 100_000  # nested shared children could otherwise expand exponentially


@dataclass(frozen=True)
class WeightsFile:
    """A network's tensors by state-dict name, and further information from its file.

    curriculum: None if the file has none. step: the training step, if known. The others are those of published files.
    model: class name of the SIREN, if a whole module was pickled and the class is known. is_radiance: True if the class path
    is pi-GAN's, so that the last layer predicts density, not occupancy.
    """

    state: Mapping[str, Tensor]
    curriculum: Curriculum | None = None
    step: int | None = None
    model: str | None = None
    is_published: bool = False
    is_radiance: bool = False


@dataclass(frozen=True)
class PublishedAverage:
    """A moving average of the generator, under the names of its parameters."""

    state: OrderedDict[str, Tensor]
    decay: float | None = None
    num_updates: int | None = None


def module_state(module: PickledObject) -> OrderedDict[str, Tensor]:
    """Return the state dict of a pickled torch module, in the order of nn.Module.state_dict(). Raises UserError."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    num_visited = 0

    def visit(part: Any, prefix: str) -> None:
        nonlocal num_visited
        num_visited += 1
        if not _is_module(part):
            raise UserError(f"the pickled module's part {printable(prefix.rstrip('.')) or '(whole)'} is not a torch module")
        skipped = part.state.get("_non_persistent_buffers_set", set())
        if not isinstance(skipped, (set, frozenset)):
            raise UserError("the pickled module lists its buffers in an unknown format; refused")
        tensors = list(part.state["_parameters"].items())
        tensors += [(name, value) for name, value in part.state.get("_buffers", {}).items() if name not in skipped]
        for name, value in tensors:
            if value is not None:
                state[f"{prefix}{name}"] = value
        if len(state) + num_visited > _MAX_ENTRIES:
            raise UserError(f"the pickled module has more than {_MAX_ENTRIES} parts; refused")
        for name, child in part.state["_modules"].items():
            if child is not None:
                visit(child, f"{prefix}{name}.")

    visit(module, "")
    return state


def _is_module(value: Any) -> bool:
    if not isinstance(value, PickledObject):
        return False
    parts = (value.state.get("_parameters"), value.state.get("_modules"), value.state.get("_buffers", {}))
    return all(isinstance(part, dict) for part in parts)


def _checked_state(path: Path, state: Mapping[Any, Any]) -> OrderedDict[str, Tensor]:
    """Validate that ``state`` maps names to tensors; strip prefixes of wrappers (DataParallel, torch.compile, a trainer)."""
    if not state:
        raise UserError(f"{path} holds no weights")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            keys = first_few([printable(key, 40) for key in state], MAX_KEYS_SHOWN)
            raise UserError(
                f"{path} is not a network's state dict: {printable(name)} is a {type(value).__name__}, not a tensor; it contains"
                f" {keys}; save the generator's own state dict in a file"
            )
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES) for name in state}
    outer = next((short.partition(SIREN_NAME)[0] for short in names.values() if f".{SIREN_NAME}" in short), "")
    names = {name: short.removeprefix(outer) for name, short in names.items() if short.startswith(outer)}
    if len(set(names.values())) < len(names):
        return OrderedDict(state)
    return OrderedDict((short, state[name]) for name, short in names.items())


def _within_container(content: Any) -> Any:
    """Return the network from a training script's dictionary, if it is under one of CONTAINER_KEYS."""
    for _ in range(MAX_NESTING):
        if not isinstance(content, dict) or all(isinstance(value, Tensor) for value in content.values()):
            return content
        key = next((key for key in CONTAINER_KEYS if isinstance(content.get(key), (dict, PickledObject))), None)
        if key is None:
            return content
        content = content[key]
    return content


def _without_wrapper(content: Any) -> Any:
    """Return the module inside DataParallel and similar wrappers."""
    for _ in range(MAX_NESTING):
        if not _is_module(content) or content.class_name not in WRAPPER_CLASSES:
            break
        parts = content.state["_modules"]
        content = next((parts[name] for name in WRAPPER_NAMES if name in parts), None)
    return content


def read_published_weights(path: str | Path, content: Any = None) -> WeightsFile:
    """Read a published network from a state dict or a whole pickled module, with or without the usual wrappers.

    content: the result of :func:`read_torch_file` for ``path``, if it was already read. Raises UserError.
    """
    path = Path(path)
    content = _without_wrapper(_within_container(read_torch_file(path) if content is None else content))
    if isinstance(content, dict):
        return WeightsFile(_checked_state(path, content), is_published=True)
    if not _is_module(content):
        kind = content.class_path if isinstance(content, PickledObject) else type(content).__name__
        raise UserError(f"{path} holds a {printable(kind)}, not a network's weights; pass a generator file")
    try:
        state = _checked_state(path, module_state(content))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    siren, step = content.state["_modules"].get("siren"), content.state.get("step")
    is_known = isinstance(siren, PickledObject) and siren.class_name in MODELS
    return WeightsFile(
        state,
        step=step if type(step) is int and step >= 0 else None,
        model=siren.class_name if is_known else None,
        is_published=True,
        is_radiance=is_known and siren.class_path.startswith(PIGAN_SIREN_MODULE),
    )


def network_settings(state: Mapping[str, Tensor], model: str | None) -> dict[str, Any]:
    """Infer curriculum settings from the shapes of a SIREN's tensors and its pickled class name ``model``.

    The state dicts of SPATIALSIRENBASELINE and TALLSIREN look the same: without a class name, ``model`` is omitted.
    """
    found: dict[str, Any] = {"model": model} if model else {}
    layers = [name for name in state if re.fullmatch(r"siren\.network\.\d+\.layer\.weight", name)]
    first, mapping = state.get("siren.network.0.layer.weight"), state.get("siren.mapping_network.network.0.weight")
    if first is None or mapping is None or first.dim() != 2 or mapping.dim() != 2:
        return found
    found |= {"num_layers": len(layers), "hidden_dim": first.shape[0], "latent_dim": mapping.shape[1]}
    found["mapping_dim"] = mapping.shape[0] if mapping.shape[0] != first.shape[0] else None
    grid = state.get("siren.spatial_embeddings")
    for name, resolution in EMBEDDING_RESOLUTION.items():
        if grid is not None and grid.dim() == 5 and grid.shape[2] == resolution:
            found["model"] = name
    return found


def read_published_average(path: str | Path, order: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> PublishedAverage:
    """Read a moving average from a torch_ema object, its state dict, or a state dict keyed by parameter name.

    order: the generator's parameter names, in the order of its parameters(). shapes: their shapes.
    Raises UserError if the number or the shapes of the averages do not match.
    """
    path = Path(path)
    content = read_torch_file(path)
    values = content.state if isinstance(content, PickledObject) else content
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not a moving average")
    if "shadow_params" not in values:
        if isinstance(content, PickledObject):
            raise UserError(f"{path} holds a {printable(content.class_path)} without shadow_params, not a moving average")
        return PublishedAverage(_checked_state(path, values))
    averages = values["shadow_params"]
    if not isinstance(averages, (list, tuple)) or not all(isinstance(average, Tensor) for average in averages):
        raise UserError(f"{path}: shadow_params is not a list of tensors")
    if len(averages) != len(order):
        raise UserError(f"{path} averages {len(averages)} parameters, but the generator has {len(order)}")
    for name, average in zip(order, averages, strict=True):
        if tuple(average.shape) != tuple(shapes[name]):
            raise UserError(
                f"{path}: the average of {printable(name)} is {tuple(average.shape)}, the generator's {tuple(shapes[name])}"
            )
    decay, num_updates = values.get("decay"), values.get("num_updates")
    return PublishedAverage(
        OrderedDict(zip(order, averages, strict=True)),
        decay if type(decay) is float else None,
        num_updates if type(num_updates) is int else None,
    )


def load_published_discriminator(path: str | Path) -> OrderedDict[str, Tensor]:
    """Load the discriminator's tensors by name, without freq_phase_layer, which the published code never uses."""
    state = read_published_weights(path).state
    kept = [(name, value) for name, value in state.items() if not name.startswith("freq_phase_layer.")]
    return OrderedDict(kept)


def average_path(generator_path: str | Path, which: str = "ema") -> Path | None:
    """Path of a published generator's averaged weights: the part of the name before "generator", plus "ema.pth"."""
    path = Path(generator_path)
    before, found, _ = path.name.rpartition("generator")
    return path.with_name(f"{before}{which}.pth") if found else None


def read_options_curriculum(path: str | Path, notes: list[str] | None = None) -> Curriculum:
    """Read the curriculum from the last line of a published ``options.txt``. Raises UserError.

    notes: receives a remark on each ignored key.
    """
    path = Path(path)
    notes = [] if notes is None else notes
    try:
        lines = read_small_text(path).strip().splitlines()
        settings = ast.literal_eval(lines[-1])
    except (ValueError, SyntaxError, IndexError, MemoryError, RecursionError):
        raise UserError(f"{path}: its last line is not a curriculum; pass --curriculum NAME") from None
    if isinstance(settings, dict):
        settings = without_unknown_keys(settings, [field.name for field in fields(Curriculum)], notes)
    try:
        return curriculum_from(path, settings, notes)
    except UserError as error:
        raise UserError(f"{error}; pass --curriculum NAME") from None


def curriculum_from(path: Path, settings: Any, notes: list[str] | None = None) -> Curriculum:
    """Build the curriculum from ``settings``, read from ``path``. Raises UserError if they are invalid in any way."""
    try:
        return Curriculum.from_dict(settings, settings.get("name") or settings.get("dataset"), notes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (AttributeError, TypeError, ValueError, KeyError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: its settings are not a valid curriculum ({type(error).__name__}: {printable(error)})") from None


def load_published_training(folder: str | Path, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Read a published run from ``folder`` to continue training (``train.py --load_dir DIR``).

    Returns its networks, averages and optimizers under the keys of a training checkpoint (RunState.save), None for each
    missing file, and notes on these. prefix: precedes "generator.pth" and the other names. Only generator.pth is required.
    Raises UserError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--load_dir {folder} is not a folder")
    paths = {path.name.removeprefix(prefix): path for path in folder.iterdir() if path.name.startswith(prefix)}
    if "generator.pth" not in paths:
        raise UserError(f"--load_dir {folder} has no {prefix}generator.pth")
    generator = read_published_weights(paths["generator.pth"]).state
    shapes = {name: tuple(value.shape) for name, value in generator.items()}
    state: dict[str, Any] = {"generator": generator}
    for name in ("ema", "ema2"):
        path = paths.get(f"{name}.pth")
        average = read_published_average(path, list(shapes), shapes) if path else None
        state[name] = average.state if average else None
        if average:  # without a number of updates, assume that the warm-up is over
            state[f"{name}_num_updates"] = WARMED_UP if average.num_updates is None else average.num_updates
    readers = {"discriminator": load_published_discriminator, "optimizer_G": _read_optimizer, "optimizer_D": _read_optimizer}
    for name, read in readers.items():
        path = paths.get(f"{name}.pth")
        state[name] = read(path) if path else None
    missing = [name for name, value in state.items() if value is None]
    return state, [f"{folder} has no {prefix}{name}.pth; it is initialized from scratch" for name in missing]


def _read_optimizer(path: Path) -> dict[str, Any]:
    content = read_torch_file(path)
    if not isinstance(content, dict) or "param_groups" not in content:
        raise UserError(f"{path} does not contain the state dict that its name implies")
    return content
