"""Shared code of the scripts that render a trained generator: arguments, loading, and the fields of seeds and latents."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.latents import GeneratorName, load_directions, load_latent
from checkpoints.loading import LoadedGenerator, load_generator, resolve_generator_path
from common.arguments import PRECISIONS, add_device_argument, finite_float, image_side, int_between, positive_int, resolve_device
from common.errors import UserError
from common.files import make_output_dir
from common.output_folders import claim_folder
from common.psnr import psnr_db
from fields.interface import Field
from generators.cameras import CameraPoses, mean_direction
from generators.generator import Styles, latent_from_seed
from generators.styles import flatten_styles, mix_styles, style_layer_of, unflatten_styles, with_weights
from generators.view_cache import CachedField, build_cache, view_rays
from generators.views import LockedDirections, View, ViewSettings, make_pose, render_view
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from visualization.trajectories import TrajectoryPose

MIN_PRODUCTS_TO_CACHE = 1 << 16  # per point: querying a smaller network is as fast as a cache lookup
MIN_RAYS_TO_CACHE = 1 << 17  # total of all views: building a cache costs as much as about 40,000 rays
MIN_CACHE_PSNR_DB = 47.0  # of trial pixels; full images were up to 2 dB worse. A less accurate cache is not used


def add_loading_arguments(parser: argparse.ArgumentParser, psi: float) -> None:
    """Add PATH, --curriculum, --psi, --max_batch_size and --device."""
    parser.add_argument("path", metavar="PATH", help="a generator file of this project, or a published generator.pth")
    parser.add_argument("--curriculum", help="name or .json file; required if the generator file contains no settings")
    parser.add_argument("--psi", type=finite_float, default=psi, help="truncation: 1 is the full variety, 0 the mean")
    parser.add_argument(
        "--max_batch_size", type=positive_int, help="accepted for compatibility, no effect: memory is always bounded"
    )
    add_device_argument(parser)


def add_generator_arguments(parser: argparse.ArgumentParser, output_dir: str, psi: float = 0.7) -> None:
    """Add :func:`add_loading_arguments`, --output_dir and --precision, with this script's defaults."""
    add_loading_arguments(parser, psi)
    parser.add_argument("--output_dir", default=output_dir, help="output folder; created if missing")
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="tf32",
        help="precision of the field's matrix products on a GPU; sums are float32",
    )


def add_latent_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --latent and --direction."""
    parser.add_argument(
        "--latent", nargs="+", default=[], metavar="FILE", help="latent files of invert.py, in addition to or instead of seeds"
    )
    parser.add_argument(
        "--direction",
        nargs="+",
        default=[],
        metavar="FILE:K:AMOUNT",
        help="move each latent along direction K of a file of tools/directions.py, by AMOUNT standard deviations",
    )


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --image_size, --ray_step_multiplier, --lock_view_dependence, --surface_only, --plain and --save_raw."""
    parser.add_argument("--image_size", type=image_side, default=256, help="side of an image in pixels")
    parser.add_argument(
        "--ray_step_multiplier", type=int_between(1, 1000), default=2, help="multiplier of the curriculum's samples per ray"
    )
    parser.add_argument("--lock_view_dependence", action="store_true", help="use the colors seen from the mean view direction")
    parser.add_argument("--surface_only", action="store_true", help="a fast preview: one color per ray, at the surface")
    parser.add_argument("--plain", action="store_true", help="do not cache the field between views of a latent: slow but exact")
    parser.add_argument("--save_raw", action="store_true", help="also write raw_SEED_I.npz: the view's arrays and its pose")


def view_settings(args: argparse.Namespace) -> ViewSettings:
    """Return the settings of :func:`add_view_arguments`."""
    return ViewSettings(
        image_size=args.image_size,
        ray_step_multiplier=args.ray_step_multiplier,
        lock_view_dependence=args.lock_view_dependence,
        surface_only=args.surface_only,
    )


def note_ignored_options(args: argparse.Namespace) -> None:
    """Print a note on stderr for each published option that is accepted and ignored."""
    for option in ("max_batch_size", "old_batch_size"):
        if getattr(args, option, None) is not None:
            print(f"note: --{option.removeprefix('old_')} has no effect: memory is always bounded", file=sys.stderr)


def open_generator(
    args: argparse.Namespace, fallback: Curriculum | None = None, owns_folder: bool = True
) -> tuple[LoadedGenerator, Path]:
    """Check the arguments of :func:`add_generator_arguments`, load the generator, create the output folder. Raises UserError.

    fallback: see :func:`checkpoints.loading.load_generator`. owns_folder: True if the folder is for one generator only.
    """
    device = resolve_device(args.device)
    note_ignored_options(args)
    loaded = load_with_notes(args.path, args.curriculum, device, fallback, args.precision)
    check_surface_only(getattr(args, "surface_only", False), loaded.curriculum)
    output_dir = make_output_dir(args.output_dir)
    if owns_folder:
        claim_for_generator(output_dir, loaded, args.path)
    return loaded, output_dir


def claim_for_generator(output_dir: Path, loaded: LoadedGenerator, given_path: str) -> None:
    """Reserve a folder for the files of one generator, given by name or path. Raises UserError if it holds another's files."""
    path = resolve_generator_path(given_path).resolve()
    note = claim_folder(output_dir, f"{path.parent.name}/{path.name}", GeneratorName.of(loaded.generator, path).digest)
    if note:
        print(f"note: {note}", file=sys.stderr)


def check_surface_only(surface_only: bool, curriculum: Curriculum) -> None:
    """Raise UserError if --surface_only is given for a radiance field."""
    if surface_only and not curriculum.pred_occ:
        raise UserError("--surface_only needs an occupancy field; a radiance field has no surface, so omit the option")


def load_with_notes(
    path: Path | str,
    curriculum: str | None,
    device: torch.device,
    fallback: Curriculum | None = None,
    precision: str = "float32",
) -> LoadedGenerator:
    """Load a generator from a file or by the name of an included one, and print notes on its weights to stderr.

    ``curriculum``: a name or .json file, if the file contains no settings. ``fallback``: see
    :func:`checkpoints.loading.load_generator`. ``precision``: a key of :data:`common.arguments.PRECISIONS`, applied globally
    to matrix products on a GPU; on a CPU they are always float32. Raises UserError.
    """
    torch.set_float32_matmul_precision(PRECISIONS[precision] if device.type == "cuda" else "highest")
    loaded = load_generator(path, get_curriculum(curriculum) if curriculum else None, device, fallback=fallback)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    return loaded


@dataclass(frozen=True)
class Subject:
    """One latent to render: its styles, and the generator weights if they were tuned to a photo.

    ``label``: the seed, or the latent file's name without its extension, used in output file names.
    """

    label: str
    styles: Styles
    weights: Mapping[str, Tensor] | None = None

    def lerp(self, other: Subject, weight: float) -> Subject:
        """Interpolate from ``self`` (weight 0) to ``other`` (weight 1). Both must have weights of the same names, or neither."""
        styles = self.styles.lerp(other.styles, weight)
        if self.weights is None or other.weights is None:
            return Subject(self.label, styles)
        return Subject(
            self.label, styles, {name: torch.lerp(value, other.weights[name], weight) for name, value in self.weights.items()}
        )


def styles_from_seed(loaded: LoadedGenerator, seed: int, psi: float) -> Styles:
    """Compute the styles (1, ...) of a seed's latent, identical on every device and in every call."""
    curriculum = loaded.curriculum
    z = latent_from_seed(seed, curriculum)
    with torch.no_grad():
        return loaded.generator.styles(z.to(loaded.generator.device), psi)


def field_from_seed(loaded: LoadedGenerator, seed: int, psi: float) -> Field:
    """Return the field of a seed's latent, bound once: query it for any number of views."""
    return bind_field(loaded, Subject(str(seed), styles_from_seed(loaded, seed, psi)))


@torch.no_grad()
def bind_field(loaded: LoadedGenerator, subject: Subject) -> Field:
    generator = loaded.generator if subject.weights is None else with_weights(loaded.generator, subject.weights)
    return generator.field(subject.styles)


def mix_subjects(loaded: LoadedGenerator, row: Subject, column: Subject, split: int) -> Subject:
    """Combine the first ``split`` layers of the row with the others of the column: styles, and tuned weights if there are any."""
    styles = mix_styles(row.styles, column.styles, split, loaded.curriculum)
    if row.weights is None and column.weights is None:
        return Subject(row.label, styles)
    own: Mapping[str, Tensor] = loaded.generator.state_dict()
    names = {*(row.weights or {}), *(column.weights or {})}
    weights = {}
    for name in names:
        source = row if style_layer_of(name, loaded.curriculum) < split else column
        weights[name] = (source.weights or own).get(name, own[name])
    return Subject(row.label, styles, weights)


def given_seeds(args: argparse.Namespace, seeds: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """Return ``seeds`` if given; otherwise ``default``, or no seeds if --latent is given."""
    if seeds is not None:
        return seeds
    return [] if args.latent else default


def open_subjects(
    loaded: LoadedGenerator,
    path: str,
    seeds: Sequence[int],
    psi: float,
    latent_files: Sequence[str] = (),
    directions: Sequence[str] = (),
) -> list[Callable[[], Subject]]:
    """Return a factory per subject: ``seeds`` with truncation ``psi``, then latent files, all moved along ``directions``.

    ``path``: the generator's, as given by the user. ``directions``: FILE:K:AMOUNT each. Files are read immediately, while the
    styles of seeds are computed by the factories, since there may be many. Raises UserError for latents or directions of another
    generator, and for duplicate file names.
    """
    name = GeneratorName.of(loaded.generator, path)
    latents = {_label_of(file): load_latent(file, loaded.generator, name) for file in latent_files}
    if len(latents) < len(latent_files):
        raise UserError("two files of --latent have the same name, so their outputs would collide; rename one")
    step = sum(_direction_step(loaded, text, name) for text in directions)

    def of_seed(seed: int) -> Subject:
        return Subject(str(seed), _moved(styles_from_seed(loaded, seed, psi), step))

    def of_latent(label: str) -> Subject:
        return Subject(label, _moved(latents[label].styles, step), latents[label].weights)

    return [partial(of_seed, seed) for seed in seeds] + [partial(of_latent, label) for label in latents]


def _label_of(path: str) -> str:
    """Return a latent file's name without its extension; prefix a bare number, which would look like a seed."""
    stem = Path(path).name.removesuffix(".safetensors")
    return f"latent_{stem}" if stem.isdecimal() else stem


def _direction_step(loaded: LoadedGenerator, text: str, name: GeneratorName) -> Tensor:
    """Return the offset (1, D) of flat styles given by FILE:K:AMOUNT. Raises UserError for invalid text."""
    path, _, rest = text.rpartition(":")
    path, _, index_text = path.rpartition(":")
    try:
        index, amount = int(index_text), float(rest)
    except ValueError:
        path, index, amount = "", -1, math.nan
    if not path or not math.isfinite(amount):
        raise UserError(f"--direction {text}: write FILE:K:AMOUNT, such as directions.safetensors:0:1.5")
    directions = load_directions(path, loaded.generator, name)
    if not 0 <= index < len(directions.sigma):
        raise UserError(f"--direction {text}: {path} has directions 0 to {len(directions.sigma) - 1}")
    return amount * directions.sigma[index] * directions.directions[index : index + 1]


def _moved(styles: Styles, step: Tensor | int) -> Styles:
    """Add a step (1, D) to styles; without directions (step 0), return them bitwise unchanged."""
    return unflatten_styles(flatten_styles(styles) + step, styles) if isinstance(step, Tensor) else styles


def share_between_views(loaded: LoadedGenerator, field: Field, poses: Sequence[TrajectoryPose], settings: ViewSettings) -> Field:
    """Return a field that caches queries common to these views (generators/view_cache.py), if that is faster."""
    num_rays = len(poses) * settings.image_size**2
    curriculum = loaded.curriculum
    num_products = curriculum.num_layers * curriculum.hidden_dim**2 if curriculum.is_siren else 0
    if not curriculum.pred_occ or num_rays < MIN_RAYS_TO_CACHE or num_products < MIN_PRODUCTS_TO_CACHE:
        return field
    if settings.lock_view_dependence:
        field = LockedDirections(field, mean_direction(curriculum.h_mean, curriculum.v_mean))
    device = loaded.generator.device
    pitches, yaws = (torch.tensor([getattr(pose, name) for pose in poses], device=device) for name in ("pitch", "yaw"))
    rays = view_rays(CameraPoses(pitches, yaws), [pose.fov_degrees for pose in poses])
    volume = replace(settings, surface_only=False)  # a preview is compared with volume rendering
    cache = build_cache(field, rays, volume.render_settings(curriculum))
    if cache.trial_psnr_db >= MIN_CACHE_PSNR_DB:
        return cache
    print(
        f"note: caching between views would limit this latent to {cache.trial_psnr_db:.0f} dB PSNR; its views are not cached",
        file=sys.stderr,
    )
    return field


def render_pose(loaded: LoadedGenerator, field: Field, pose: TrajectoryPose, settings: ViewSettings) -> View:
    """Render a field from a trajectory pose, with its field of view."""
    settings = replace(settings, fov_degrees=pose.fov_degrees)
    if isinstance(field, CachedField):  # its colors are locked already
        settings = replace(settings, lock_view_dependence=False)
    device = loaded.generator.device
    return render_view(field, make_pose(pose.yaw, pose.pitch, device), loaded.curriculum, settings)


def report_preview(loaded: LoadedGenerator, field: Field, pose: TrajectoryPose, view: View, settings: ViewSettings) -> None:
    """With ``surface_only``, print the PSNR of a view against its volume rendering."""
    if settings.surface_only:
        volume = render_pose(loaded, field, pose, replace(settings, surface_only=False))
        error = float((view.image - volume.image).square().mean())
        print(f"surface only: {psnr_db(error, peak=2):.1f} dB PSNR against the volume rendering, first view")
