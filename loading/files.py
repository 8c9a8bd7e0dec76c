"""Pictures on disk: finding them in a folder, glob or zip, and decoding any mode and size to a square of RGB.

Grey, palette, CMYK and 16-bit pictures become RGB; a transparent one is laid over black, which is what free space renders
to; a picture with an EXIF orientation is turned upright.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import cli

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class DatasetSpec:
    """How a data set's pictures become squares, in this order: the short side to ``resize`` pixels (None: as it is), the
    central square of ``center_crop`` pixels (None: the largest there is); then to the size asked for."""

    resize: int | None
    center_crop: int | None
    description: str


@dataclass(frozen=True)
class ImageSource:
    """Where pictures lie. ``names``: sorted member names of ``zip_path``, or file paths where that is None."""

    path: str
    zip_path: str | None
    names: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # per name: bytes, and mtime in ns (zip: checksum)


def find_images(path: str | Path) -> ImageSource:
    """Pictures in a folder (recursively), a glob, a zip, or a single file. Raises UserError where there are none."""
    text = str(path)
    place = Path(text).expanduser()
    if place.is_file() and zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            infos = {i.filename: i for i in archive.infolist() if not i.is_dir() and _is_image_name(i.filename)}
        names = sorted(infos)
        source = ImageSource(text, str(place), tuple(names), tuple((infos[n].file_size, infos[n].CRC) for n in names))
    else:
        if place.is_dir():
            files = [os.path.join(folder, name) for folder, _, found in os.walk(place, followlinks=True) for name in found]
        elif place.is_file():
            files = [str(place)]
        else:
            files = [name for name in glob.glob(os.path.expanduser(text), recursive=True) if os.path.isfile(name)]
            if not files:
                raise cli.UserError(f"there is no folder, zip or picture at {text}; give --dataset_path one that exists")
        stamps = {}
        for name in sorted(name for name in files if _is_image_name(name)):
            with contextlib.suppress(OSError):  # gone since it was listed
                stat = os.stat(name)
                stamps[name] = (stat.st_size, stat.st_mtime_ns)
        names = list(stamps)
        source = ImageSource(text, None, tuple(names), tuple(stamps.values()))
    if not names:
        raise cli.UserError(f"{text} holds no pictures ({', '.join(EXTENSIONS)})")
    return source


def _is_image_name(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(EXTENSIONS) and not base.startswith(".") and not name.startswith("__MACOSX/")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as upright RGB; transparency over black; 16-bit scaled to 8, not cut off."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def to_square(image: Image.Image, spec: DatasetSpec, size: int) -> Image.Image:
    """``image`` (RGB) resized and cropped as ``spec`` says, then antialiased to ``size`` pixels square."""
    if spec.resize is not None:
        scale = spec.resize / min(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
    side = min(spec.center_crop or min(image.size), *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if (image.width, image.height) == (size, size) == (side, side):
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def open_member(source: ImageSource, name: str) -> io.BytesIO:
    """The bytes of one picture. A zip is opened anew in every process that reads it."""
    if source.zip_path is None:
        return io.BytesIO(Path(name).read_bytes())
    return io.BytesIO(_open_zip(os.getpid(), source.zip_path, os.stat(source.zip_path).st_mtime_ns).read(name))


@functools.lru_cache(maxsize=1)
def _open_zip(process: int, path: str, modified_ns: int) -> zipfile.ZipFile:
    """Kept open between pictures; anew in another process, or when the file has changed."""
    return zipfile.ZipFile(path)


def decode(source: ImageSource, index: int, spec: DatasetSpec, size: int) -> np.ndarray | None:
    """Picture ``index`` as (size, size, 3) uint8, or None where it cannot be read (broken, no picture, absurdly large)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(open_member(source, source.names[index])) as image:
                return np.asarray(to_square(to_rgb(image), spec, size))
    except Exception:  # a broken file can raise anything in a decoder; the caller counts and names it
        return None
