"""Images to train on: a folder (searched recursively), a glob or a zip of images, of any mode and size.

    python dataset.py --check PATH --dataset Images --image_size 64 --output contact.png --curriculum CelebA

This checks PATH before a run depends on it, and shows the range of the curriculum's camera poses. Each named data set is one
entry in DATASETS. Images are decoded once (loading/cache.py), so that fetching a batch is a gather. Training reads them
through BatchStream (loading/batches.py).
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.interrupts  # noqa: F401

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.arguments import ArgumentParser, add_settings_argument
from common.cache_folder import cache_folder
from common.errors import UserError, first_few, one_line
from common.files import write_atomically
from common.program import run_script
from heads.camera_prior import write_camera_prior
from loading.batches import BatchStream, batch_at, epoch_order
from loading.cache import MAX_NAMED, build_cache
from loading.files import (
    ALL_IMAGES,
    DatasetSpec,
    ImageSource,
    Split,
    find_images,
    names_by_reason,
    open_member,
    part_of,
    words_left_out,
)
from loading.opening import open_image
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from visualization.images import png_bytes

__all__ = [
    "DATASETS",
    "BatchStream",
    "DatasetSpec",
    "ImageDataset",
    "Split",
    "batch_at",
    "build_cache",
    "epoch_order",
    "find_images",
    "get_dataset_spec",
    "part_of",
    "spec_over",
    "training_spec",
]

MAX_SIZE = 8192  # pixels, of a square
MAX_UNREADABLE = 0.05  # of all images
NUM_REASONS, NUM_NAMED = 3, 5  # reasons listed in an error message, and names per reason

# Adding a data set is one entry here; a curriculum's `dataset` names it.
DATASETS: dict[str, DatasetSpec] = {
    "CelebA": DatasetSpec(320, 256, "aligned CelebA photos, 178 x 218 (GOF's crop)"),
    "BFM": DatasetSpec(None, 170, "renders of the Basel Face Model (GOF's crop)"),
    "Cats": DatasetSpec(None, None, "cat faces, whole images"),
    "CARLA": DatasetSpec(None, None, "pi-GAN's renders of cars, whole images"),
    "Heads": DatasetSpec(None, None, "the built-in procedural heads (tools/synthetic_heads.py), whole images"),
    "Images": DatasetSpec(None, None, "any photos: the central square"),
}


def get_dataset_spec(preset: str) -> DatasetSpec:
    """Return a preset by name. Raises UserError if it is unknown."""
    if preset not in DATASETS:
        raise UserError(f"unknown dataset {preset!r} (known: {', '.join(DATASETS)})")
    return DATASETS[preset]


def training_spec(curriculum: Curriculum) -> DatasetSpec:
    """Return the preset of ``curriculum`` for training: with opacity as a fourth channel if its background is random."""
    return replace(spec_over(curriculum.dataset, curriculum), keep_alpha=curriculum.random_back)


def spec_over(preset: str, curriculum: Curriculum, nearest: bool = False) -> DatasetSpec:
    """Return a preset that composites transparent images over the ``curriculum``'s background color. Raises UserError.

    ``nearest``: resize real images as the published code does for its metrics.
    """
    return replace(get_dataset_spec(preset), background=255 if curriculum.white_back else 0, nearest=nearest)


class ImageDataset(torch.utils.data.Dataset):
    """Readable images of ``path``, square at ``size`` pixels.

    ``preset``: a name in DATASETS, or a DatasetSpec. ``cache_dir``: ``"default"``, a folder, or None to decode into memory
    without a cache file. ``split``: the part of the images to use. Unreadable images are skipped and listed in
    ``unreadable`` with the reason. A fraction above ``max_unreadable`` (and more than one image) raises UserError, as does
    a path without images. ``remarks``: remark on how images were read -> number of images. Images have C = 3 channels, or 4 if
    the DatasetSpec keeps alpha.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        preset: str | DatasetSpec = "Images",
        cache_dir: str | Path | None = "default",
        max_unreadable: float = MAX_UNREADABLE,
        num_workers: int | None = None,
        split: Split = ALL_IMAGES,
    ) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise UserError(f"image size {size}: must be from 1 to {MAX_SIZE}")
        self.source, self.size = part_of(find_images(path), split), size
        spec = get_dataset_spec(preset) if isinstance(preset, str) else preset
        where = cache_folder() if cache_dir == "default" else cache_dir
        self.pixels, found = build_cache(self.source, spec, size, where, num_workers)
        self.unreadable = {self.source.names[i]: reason for i, reason in found.unreadable.items()}
        self.remarks = found.remarks
        self.names = [name for i, name in enumerate(self.source.names) if i not in found.unreadable]
        raise_if_unreadable(self.unreadable, len(self.source.names), str(path), max_unreadable)

    @property
    def unreadable_names(self) -> list[str]:
        return list(self.unreadable)

    @property
    def num_unreadable(self) -> int:
        return len(self.unreadable)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image (C, size, size) uint8."""
        return torch.from_numpy(np.array(self.pixels[index])).permute(2, 0, 1).contiguous()

    def gather(self, indices: Tensor) -> Tensor:
        """Return images (B, C, size, size) uint8 at ``indices`` (B,)."""
        return torch.from_numpy(np.ascontiguousarray(self.pixels[indices.numpy()])).permute(0, 3, 1, 2)

    def notes(self, left_out: bool = True) -> list[str]:
        """Return remarks on the images for the user, one per line. ``left_out``: include excluded files."""
        lines = words_left_out(self.source.left_out, also_no_images=False) if left_out else []
        return lines + [f"{count} images hold {remark}" for remark, count in self.remarks.items()]


def raise_if_unreadable(reasons: Mapping[str, str], num: int, path: str, max_unreadable: float) -> None:
    """Raise UserError, with the first names and reasons, if too many of ``num`` images, or all, could not be read."""
    if not reasons or not (len(reasons) == num or len(reasons) > max(1, max_unreadable * num)):
        return
    groups = sorted(names_by_reason(reasons.items()).items(), key=lambda group: -len(group[1]))[:NUM_REASONS]
    details = " | ".join(f"{first_few(names, NUM_NAMED)}: {reason}" for reason, names in groups)
    raise UserError(f"{len(reasons)} of {num} images in {path} cannot be read: {details}")


def check(path: str, preset: str, size: int, output: str | Path, curriculum: Curriculum | None = None) -> None:
    """Print a summary of ``path`` and write a contact sheet of up to 64 evenly spaced images, as training sees them."""
    source, spec = find_images(path), spec_over(preset, curriculum) if curriculum else get_dataset_spec(preset)
    check_output_path(path, source, output)
    dataset = ImageDataset(path, size, spec, max_unreadable=1.0)
    sizes, hashes = _survey(source)
    print(f"{path}: {len(source.names)} images, {len(dataset)} readable, {dataset.num_unreadable} not")
    for name, reason in list(dataset.unreadable.items())[:MAX_NAMED]:
        print(f"  unreadable: {one_line(name)}: it is {reason}")
    for line in (*words_left_out(source.left_out), *dataset.notes(left_out=False)):
        print(f"  {line}")
    for (width, height), count in sizes.most_common(8):
        print(f"  {width} x {height}: {count}")
    if len(sizes) > 8:
        print(f"  and {len(sizes) - 8} other sizes")
    smallest = min((min(wh) for wh in sizes), default=0)
    if smallest < size:
        print(f"  the smallest side is {smallest} px: images below {size} px are upsampled")
    copies = [names for names in hashes.values() if len(names) > 1]
    print(f"  exact duplicates: {sum(len(names) - 1 for names in copies)}")
    for names in copies[:5]:
        print(f"    {' = '.join(map(one_line, names[:4]))}")
    print(f"  squares at {size} px as {preset}: {spec.description}")
    shown = dataset.gather(torch.linspace(0, len(dataset) - 1, min(64, len(dataset))).round().long())
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    sheet = np.zeros((rows * size, columns * size, 3), np.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * size, i % columns * size
        sheet[top : top + size, left : left + size] = image.permute(1, 2, 0).numpy()
    try:
        write_atomically(output, png_bytes(sheet))
    except UserError as error:
        raise UserError(f"{error}; choose another file with --output") from None
    print(f"  {len(shown)} of them: {output}")


def check_output_path(path: str, source: ImageSource, output: str | Path) -> None:
    """Raise UserError if ``output`` would overwrite an image or archive of ``path``, or add an image to it."""
    place, target = Path(path).expanduser(), Path(output).expanduser()
    if target.suffix.lower() != ".png":
        raise UserError(f"{output} is written as a PNG image: pass a name that ends in .png")
    target = target.resolve()
    own = target in {Path(name).resolve() for name in source.names if Path(name).name == target.name and not source.zip_path}
    if own or (place.is_dir() and target.is_relative_to(place.resolve())):
        raise UserError(f"{output} would be among the images of {path} and be trained on; choose a path outside")


def _survey(source: ImageSource) -> tuple[Counter[tuple[int, int]], dict[str, list[str]]]:
    """Count the image sizes (width, height), and group the names by file hash."""
    sizes: Counter[tuple[int, int]] = Counter()
    hashes: dict[str, list[str]] = {}
    for name in source.names:
        try:
            file = open_member(source, name)
            hashes.setdefault(hashlib.sha256(file.getvalue()).hexdigest(), []).append(name)
            with open_image(file) as image:
                sizes[image.size] += 1
        except Exception:  # already reported as unreadable
            continue
    return sizes, hashes


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("Summarize a folder, glob or zip of images, and show it as training sees it.")
    parser.add_argument("--check", required=True, metavar="PATH", help="folder (searched recursively), glob or zip")
    parser.add_argument("--dataset", help=f"preset: {', '.join(DATASETS)} (default: the curriculum's, else Images)")
    parser.add_argument("--image_size", type=int, default=64, help="pixels")
    parser.add_argument("--output", default="contact.png", help="the contact sheet to write")
    parser.add_argument("--curriculum", help="also show the range of its camera poses (a name or a .json file)")
    add_settings_argument(parser, "override settings of the curriculum")
    parser.add_argument("--prior_output", default="camera_prior.png", help="with --curriculum: the image of the prior")
    args = parser.parse_args(argv)
    if args.set and args.curriculum is None:
        raise UserError("--set overrides settings of a curriculum: pass one with --curriculum")
    curriculum = get_curriculum(args.curriculum).with_overrides(args.set) if args.curriculum else None
    if curriculum is not None:
        check_output_path(args.check, find_images(args.check), args.prior_output)
    preset = args.dataset or (curriculum.dataset if curriculum else "Images")
    check(args.check, preset, args.image_size, args.output, curriculum)
    if curriculum is not None:
        print(write_camera_prior(curriculum, args.prior_output))
        print(f"  a head at quantiles of the pose prior: {args.prior_output}; your images should span about the same range")


if __name__ == "__main__":
    run_script(main)
