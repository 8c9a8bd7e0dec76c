"""Conversion of GOF's and pi-GAN's published dictionaries, and of old files, to the current settings.

:func:`to_current_format` converts any of them to keys of :class:`settings.curriculum.Curriculum`, and reports how it treats keys
that have no counterpart here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import UserError
from settings.checks import CHOICES, STAGE_COUNTS, STAGE_NUMBERS, shown

OLD_MAPPING_LR_FACTOR = 0.05
MAX_STEP_DIGITS = 12

# Defaults of pi-GAN dictionaries for omitted keys, where they differ from those of GOF in COMMON.
PIGAN_DEFAULTS = {
    "pred_occ": False,
    "surface_sample": False,
    "num_steps_surface": 0,
    "with_opacprior": False,
    "with_normal_loss": False,
    "topk_v": 1.0,
    "eval_last_back": False,
}
PUBLISHED_WIDTHS = {"EmbeddingPiGAN128": {"hidden_dim": 128, "mapping_dim": 256}}  # of model classes with fixed widths
# Keys of the published code that have no effect here, and why.
FOREIGN_KEYS = {
    "dataset_path": "use --dataset_path instead",
    "learnable_dist": "the distribution of poses is not learned",
    "nerf_noise": "the noise of a radiance field depends on the step",
    "fill_mode": "use white_back and eval_last_back instead",
}
DATASETS_WITHOUT_FLIP = ("CARLA",)  # pi-GAN's loader for these does not flip images


def stage_step(key: Any) -> int | None:
    """Return the step if a dictionary's key is that of a stage (an int or, in JSON, a string of digits), else None."""
    if type(key) is int:
        return key
    is_digits = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= MAX_STEP_DIGITS
    return int(key) if is_digits else None


def to_current_format(label: str, settings: Mapping[Any, Any], notes: list[str]) -> dict[Any, Any]:
    """Convert ``settings`` to current keys, and stages keyed by step to ``stages`` and ``end_step``.

    ``notes`` receives a line for each key that was converted or ignored. Raises UserError if a stage is not a dictionary.
    """
    result = _with_listed_stages(label, settings, notes)
    if "num_steps" in result:
        result = _from_pigan(result, notes)
    if "stages" not in settings and result.get("model") in PUBLISHED_WIDTHS:
        result = PUBLISHED_WIDTHS[result["model"]] | result
    for key in [key for key in result if key in FOREIGN_KEYS]:
        notes.append(f"{key} is ignored: {FOREIGN_KEYS[key]}")
        del result[key]
    if "stages" in settings and "mapping_lr_factor" not in settings and settings.get("unique_lr") is False:
        notes.append(f"unique_lr is False in a file without mapping_lr_factor: using mapping_lr_factor {OLD_MAPPING_LR_FACTOR}")
        result["mapping_lr_factor"] = OLD_MAPPING_LR_FACTOR
    return result


def without_unknown_keys(settings: Mapping[Any, Any], known: Iterable[str], notes: list[str]) -> dict[Any, Any]:
    """Remove unknown keys from the ``settings`` of another program's file, with a note."""
    known = {*known, *FOREIGN_KEYS, "num_steps"}
    known_of_stage = {*STAGE_COUNTS, *STAGE_NUMBERS, "num_steps"}
    result, unknown = {}, []
    for key, value in settings.items():
        if stage_step(key) is not None and isinstance(value, Mapping):
            unknown += [part for part in value if part not in known_of_stage]
            result[key] = {part: value[part] for part in value if part in known_of_stage}
        elif key in known:
            result[key] = value
        else:
            unknown.append(key)
    if unknown:
        notes.append(f"unknown settings are ignored: {', '.join(dict.fromkeys(map(shown, unknown)))}")
    return result


def reject_non_dictionary(label: str, stage: Any) -> None:
    """Raise UserError if a stage is not a dictionary."""
    if not isinstance(stage, Mapping):
        raise UserError(f"curriculum {label}: a stage must be a dictionary of settings, not {shown(stage)}")


def _with_listed_stages(label: str, settings: Mapping[Any, Any], notes: list[str]) -> dict[Any, Any]:
    """Convert stages keyed by step, if any, to ``stages``, ``end_step`` and ``num_steps``."""
    keys = sorted((key for key in settings if stage_step(key) is not None), key=int)
    rest = {key: value for key, value in settings.items() if stage_step(key) is None}
    if not keys:
        return rest
    for key in keys:
        reject_non_dictionary(label, settings[key])
    stages = [{"start_step": int(key)} | dict(settings[key]) for key in keys]
    if len(stages[-1]) == 1:
        rest["end_step"] = stages.pop()["start_step"]
    counts = [stage.pop("num_steps") for stage in stages if "num_steps" in stage]  # pi-GAN's
    if counts:
        rest["num_steps"] = counts[-1]
    if any(count != counts[-1] for count in counts):
        notes.append(f"num_steps is {shown(counts[-1])} in all stages, the value of the last stage")
    rest["stages"] = stages
    return rest


def _from_pigan(settings: dict[Any, Any], notes: list[str]) -> dict[Any, Any]:
    """Convert a dictionary with pi-GAN's ``num_steps``, the number of coarse and of fine samples, with pi-GAN's defaults."""
    num_steps = settings.pop("num_steps")
    if "num_steps_coarse" in settings:
        notes.append("num_steps is ignored: num_steps_coarse replaces it")
        return settings
    result = PIGAN_DEFAULTS | {"num_steps_coarse": num_steps, "num_steps_fine": num_steps} | settings
    if settings.get("dataset") in DATASETS_WITHOUT_FLIP:
        result.setdefault("horizontal_flip", False)
    notes.append(f"read as a pi-GAN dictionary: num_steps {shown(num_steps)}, pred_occ {shown(result['pred_occ'])}")
    theirs, known = result.get("discriminator"), CHOICES["discriminator"]
    if theirs is not None and theirs not in known:
        notes.append(f"discriminator {shown(theirs)} is not available; training uses {known[0]} instead")
        result["discriminator"] = known[0]
    return result
