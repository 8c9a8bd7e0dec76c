"""Images on disk: finding them in a folder, glob or zip, and decoding any mode and size to a square of RGB.

Gray, palette, CMYK and 16-bit images become RGB; a transparent one is laid over what free space renders to, black or white;
an image with an EXIF orientation is turned upright.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import stat
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # by content; Pillow hands others to programs (EPS: Ghostscript)
MAX_FILE_BYTES = 1 << 28
MAX_RESIZED_PIXELS = 1 << 26


@dataclass(frozen=True)
class DatasetSpec:
    """How a data set's images become squares, in this order: the short side to ``resize`` pixels (None: as it is), the
    central square of ``center_crop`` pixels (None: the largest there is); then to the size asked for. ``background``: the gray
    level from 0 to 255 that transparent ones are laid over. ``nearest``: as the published code's real images are resized,
    bilinear to ``resize``, then to the nearest pixel; otherwise antialiased."""

    resize: int | None
    center_crop: int | None
    description: str
    background: int = 0
    nearest: bool = False


@dataclass(frozen=True)
class ImageSource:
    """Where images lie. ``names``: sorted member names of ``zip_path``, or file paths where that is None."""

    path: str
    zip_path: str | None
    names: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # per name: bytes, and mtime in ns (zip: checksum)


class Split(NamedTuple):
    """``part`` of a data set of which ``num_holdout`` images are held out: one of PARTS."""

    part: str = "all"
    num_holdout: int = 0


PARTS = ("all", "train", "holdout")
ALL_IMAGES = Split()


def part_of(source: ImageSource, split: Split) -> ImageSource:
    """The images of one part, in the order of ``source``.

    Held out are those whose file names have the smallest SHA-256: a choice that hangs neither on the folder or zip around them
    nor on a seed, and hardly changes when images are added. Raises UserError where no images would be left.
    """
    if split.part == "all":
        return source
    if not 0 <= split.num_holdout < len(source.names):
        raise UserError(f"{source.path} holds {len(source.names)} images; of them {split.num_holdout} cannot be held out")
    if split.part == "holdout" and not split.num_holdout:
        raise UserError("no images are held out: the curriculum's num_holdout, or --num_holdout, is 0; use --split all")

    def rank(place: int) -> tuple[str, str]:
        name = source.names[place]
        return hashlib.sha256(name.rsplit("/", 1)[-1].encode(errors="surrogateescape")).hexdigest(), name

    held_out = set(sorted(range(len(source.names)), key=rank)[: split.num_holdout])
    kept = [place for place in range(len(source.names)) if (place in held_out) == (split.part == "holdout")]
    return replace(source, names=tuple(source.names[i] for i in kept), stamps=tuple(source.stamps[i] for i in kept))


def find_images(path: str | Path) -> ImageSource:
    """Images in a folder (recursively), a glob, a zip, or a single file. Raises UserError where there are none."""
    text = str(path)
    try:
        place = Path(text).expanduser()
        source = _in_zip(text, place) if place.is_file() and zipfile.is_zipfile(place) else _in_files(text, place)
    except Exception as error:  # a name too long, a home that is nobody's, a zip whose directory is damaged
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {text} ({type(error).__name__}: {error}); name another") from None
    if not source.names:
        raise UserError(f"{text} holds no images ({', '.join(EXTENSIONS)})")
    return source


def _in_zip(text: str, place: Path) -> ImageSource:
    with zipfile.ZipFile(place) as archive:
        infos = {i.filename: i for i in archive.infolist() if not i.is_dir() and _is_image_name(i.filename)}
    names = sorted(infos)
    return ImageSource(text, str(place), tuple(names), tuple((infos[n].file_size, infos[n].CRC) for n in names))


def _in_files(text: str, place: Path) -> ImageSource:
    if place.is_dir():
        files = _files_below(place)
    elif place.is_file():
        files = [str(place)]
    else:
        files = _files_matching(place)
        if not files:
            raise UserError(f"there is no folder, zip or image at {text}; name one that exists")
    stamps = {}
    for name in sorted(name for name in files if _is_image_name(name)):
        with contextlib.suppress(OSError):  # gone since it was listed, or a link to nowhere
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode):  # a pipe or a device would be read without end
                stamps[name] = (status.st_size, status.st_mtime_ns)
    return ImageSource(text, None, tuple(stamps), tuple(stamps.values()))


def _files_below(folder: Path) -> list[str]:
    """Links to folders are followed, but each folder is entered once: links can lead round in circles."""
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [os.path.join(here, name) for name in names]
    return files


def _files_matching(pattern: Path) -> list[str]:
    """Files that a pattern names; ``**`` does not follow links."""
    relative = pattern.relative_to(pattern.anchor)
    if relative.name == "**":
        relative = relative / "*"
    return [str(found) for found in Path(pattern.anchor).glob(str(relative)) if found.is_file()]


def _is_image_name(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".") and not name.startswith("__MACOSX/")


def to_rgb(image: Image.Image, background: int = 0) -> Image.Image:
    """Any mode as upright RGB; transparency over gray of level ``background``; 16-bit scaled to 8, not cut off."""
    ImageOps.exif_transpose(image, in_place=True)  # a copy would be one image more in memory
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        scaled = np.empty(values.shape, np.uint8)
        for rows in _strips(image):  # float64 of a whole image would take eight times its memory
            scaled[rows] = (values[rows].astype(np.float64).clip(0, top) * (255 / top)).round()
        return Image.fromarray(scaled).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        laid = Image.new("RGB", image.size)
        for rows in _strips(image):
            part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
            below = Image.new("RGBA", part.size, (background, background, background, 255))
            laid.paste(Image.alpha_composite(below, part).convert("RGB"), (0, rows.start))
        return laid
    return image if image.mode == "RGB" else image.convert("RGB")


def _strips(image: Image.Image) -> list[slice]:
    """Rows of about a million pixels each."""
    step = max(1, (1 << 20) // max(1, image.width))
    return [slice(start, min(start + step, image.height)) for start in range(0, image.height, step)]


def to_square(image: Image.Image, spec: DatasetSpec, size: int) -> Image.Image:
    """``image`` (RGB) resized and cropped as ``spec`` says, to ``size`` pixels square."""
    if spec.resize is not None:
        scale = spec.resize / min(image.size)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        if width * height > MAX_RESIZED_PIXELS:  # a line of pixels, made 320 wide
            raise ValueError(f"{image.width} x {image.height} becomes too large when its short side is {spec.resize}")
        image = image.resize((width, height), Image.Resampling.BILINEAR if spec.nearest else Image.Resampling.BICUBIC)
    side = min(spec.center_crop or min(image.size), *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if (image.width, image.height) == (size, size) == (side, side):
        return image
    if spec.nearest:
        return _nearest(image.crop((left, top, left + side, top + side)), size)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _nearest(image: Image.Image, size: int) -> Image.Image:
    """Of each output pixel, the input pixel at floor(i * side / size): torchvision's choice for tensors, not Pillow's."""
    pixels = np.asarray(image)
    index = np.arange(size) * pixels.shape[0] // size
    return Image.fromarray(pixels[index][:, index])


def open_member(source: ImageSource, name: str) -> io.BytesIO:
    """The bytes of one image. A zip is opened anew in every process that reads it."""
    if source.zip_path is None:
        with open(name, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    else:
        archive = _open_zip(os.getpid(), source.zip_path, os.stat(source.zip_path).st_mtime_ns)
        info = archive.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed in a way that Python's zipfile unpacks without bounds")
        with archive.open(info) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=1)
def _open_zip(process: int, path: str, modified_ns: int) -> zipfile.ZipFile:
    """Kept open between images; anew in another process, or when the file has changed."""
    return zipfile.ZipFile(path)


def decode(source: ImageSource, index: int, spec: DatasetSpec, size: int) -> np.ndarray | None:
    """Image ``index`` as (size, size, 3) uint8, or None where it cannot be read (broken, no image, absurdly large)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(open_member(source, source.names[index]), formats=FORMATS) as image:
                return np.asarray(to_square(to_rgb(image, spec.background), spec, size))
    except Exception:  # a broken file can raise anything in a decoder; the caller counts and names it
        return None
