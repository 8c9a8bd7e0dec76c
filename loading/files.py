"""Images on disk: finding them in a folder, glob or zip, and decoding any mode and size to a square of RGB.

Gray, palette, CMYK and 16-bit images become RGB; a transparent one is laid over what free space renders to, black or white;
an image with an EXIF orientation is turned upright.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
import stat
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError, one_line
from common.file_kinds import HEAD_BYTES, describe
from common.output_folders import output_folder
from loading.kinds import EXTENSIONS, FORMATS, HIDDEN, NO_IMAGE, reason_left_out
from loading.opening import Unreadable, gray_values, open_image, value_range, why_unreadable

__all__ = ["EXTENSIONS", "FORMATS", "DatasetSpec", "Decoded", "ImageSource", "Split", "decode", "find_images", "part_of"]

MAX_FILE_BYTES = 1 << 28
MAX_RESIZED_PIXELS = 1 << 26
NUM_NAMED = 3
ENCRYPTED = 1  # of a zip member's flags
COMPRESSIONS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}


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
    """Where images lie. ``names``: sorted member names of ``zip_path``, or file paths where that is None.

    ``left_out``: names of what else lies there, and why it is not among the images.
    """

    path: str
    zip_path: str | None
    names: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # per name: bytes, and mtime in ns (zip: checksum)
    left_out: tuple[tuple[str, str], ...] = ()


class Decoded(NamedTuple):
    """One image: ``pixels`` (size, size, 3) uint8, or None where it cannot be read.

    ``remark``: then why, in words that complete "it is ..."; else what the user should know about how it was read, or "".
    """

    pixels: np.ndarray | None
    remark: str = ""


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
        raise UserError("no images are held out: num_holdout is 0; hold some out, or use all images")

    def rank(place: int) -> tuple[str, str]:
        name = source.names[place]
        return hashlib.sha256(name.rsplit("/", 1)[-1].encode(errors="surrogateescape")).hexdigest(), name

    held_out = set(sorted(range(len(source.names)), key=rank)[: split.num_holdout])
    kept = [place for place in range(len(source.names)) if (place in held_out) == (split.part == "holdout")]
    return replace(source, names=tuple(source.names[i] for i in kept), stamps=tuple(source.stamps[i] for i in kept))


def find_images(path: str | Path) -> ImageSource:
    """Images in a folder (recursively), a glob, a zip, or a single file. Raises UserError where there are none.

    What this project itself wrote into a folder below (a run's sample grids, a generator's images) is left out.
    """
    text = str(path)
    try:
        place = Path(text).expanduser()
        source = _in_zip(text, place) if place.is_file() and zipfile.is_zipfile(place) else _in_files(text, place)
    except Exception as error:  # a name too long, a home that is nobody's, a zip whose directory is damaged
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {text} ({type(error).__name__}: {error}); name another") from None
    if not source.names:
        found = "; ".join(words_left_out(source.left_out))
        raise UserError(f"{text} holds no images (such as {', '.join(EXTENSIONS[:4])})" + (f": {found}" if found else ""))
    return source


def words_left_out(left_out: Iterable[tuple[str, str]], also_no_images: bool = True) -> list[str]:
    """A line for each reason: how many files, which (the first few), and what they are. Hidden files are not worth one.

    also_no_images: False leaves out texts, tables and the like, which nobody would take for images.
    """
    names_by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_out:
        names_by_reason[reason].append(one_line(Path(name).name))
    unworthy = (HIDDEN,) if also_no_images else (HIDDEN, NO_IMAGE)
    lines = []
    for reason, names in names_by_reason.items():
        if reason not in unworthy:
            named = ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
            lines.append(f"{len(names)} left out ({named}): {reason}")
    return lines


def _in_zip(text: str, place: Path) -> ImageSource:
    with zipfile.ZipFile(place) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        names, left_out = [], []
        for name in sorted(infos):
            reason = reason_left_out(name, lambda: _head_in_zip(archive, infos[name]))  # noqa: B023 (called at once)
            if reason is None:
                names.append(name)
            else:
                left_out.append((name, reason))
    locked = [reason for reason in (_why_locked(infos[name]) for name in names) if reason]
    if locked and len(locked) == len(names):
        raise UserError(f"the images in {text} are {locked[0]}")
    stamps = tuple((infos[name].file_size, infos[name].CRC) for name in names)
    return ImageSource(text, str(place), tuple(names), stamps, tuple(left_out))


def _head_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The first bytes of a member; none where it cannot be opened."""
    if _why_locked(info):
        return b""
    try:
        with archive.open(info) as file:
            return file.read(HEAD_BYTES)
    except Exception:  # damaged: zipfile fails in many ways
        return b""


def _why_locked(info: zipfile.ZipInfo) -> str | None:
    """Why a zip's member cannot be unpacked here, in words that complete "it is ..."; None where it can."""
    if info.flag_bits & ENCRYPTED:
        return "encrypted; unpack the zip with its password and name the folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = COMPRESSIONS.get(info.compress_type, f"method {info.compress_type}")
        return f"compressed with {method}, which is not unpacked here within bounds; unpack the zip and name the folder"
    return None


def _in_files(text: str, place: Path) -> ImageSource:
    left_out: list[tuple[str, str]] = []
    if place.is_dir():
        files = _files_below(place, left_out)
    elif place.is_file():
        files = [str(place)]
    else:
        files = _files_matching(place, left_out)
        if not files and not left_out:
            raise UserError(f"there is no folder, zip or image at {text}; name one that exists")
    stamps = {}
    for name in sorted(files):
        with contextlib.suppress(OSError):  # gone since it was listed, or a link to nowhere
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode):  # a pipe or a device would be read without end
                reason = reason_left_out(name, lambda: _head_of(name))  # noqa: B023 (called at once)
                if reason is None:
                    stamps[name] = (status.st_size, status.st_mtime_ns)
                else:
                    left_out.append((name, reason))
    if place.is_file() and left_out:
        _refuse_file(text, _head_of(str(place)))
    return ImageSource(text, None, tuple(stamps), tuple(stamps.values()), tuple(left_out))


def _refuse_file(text: str, head: bytes) -> None:
    """UserError for a single file that is neither an image nor a zip."""
    if head.startswith(b"PK"):
        raise UserError(f"{text} is a zip archive that was cut short: its directory, at the end, is missing; fetch it again")
    described = describe(head)
    raise UserError(f"{text} is {described or 'no image, no zip and no folder'}; name a folder, a glob, a zip or an image")


def _head_of(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read(HEAD_BYTES)


def _files_below(folder: Path, left_out: list[tuple[str, str]]) -> list[str]:
    """Links to folders are followed, but each folder is entered once: links can lead round in circles."""
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        own = output_folder(Path(here)) if Path(here) != folder else None
        if own:
            left_out.append((here, own))
        if own or (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [os.path.join(here, name) for name in names]
    return files


def _files_matching(pattern: Path, left_out: list[tuple[str, str]]) -> list[str]:
    """Files that a pattern names; ``**`` does not follow links."""
    relative = pattern.relative_to(pattern.anchor)
    if relative.name == "**":
        relative = relative / "*"
    found = [path for path in Path(pattern.anchor).glob(str(relative)) if path.is_file()]
    num_fixed = len(list(itertools.takewhile(lambda part: not set(part) & set("*?["), pattern.parts)))
    below = {folder for path in found for folder in path.parents if len(folder.parts) > num_fixed}
    owned = {folder: own for folder in below if (own := output_folder(folder))}
    left_out += [(str(folder), own) for folder, own in sorted(owned.items())]
    return [str(path) for path in found if not owned.keys() & set(path.parents)]


def to_rgb(image: Image.Image, background: int = 0) -> Image.Image:
    """Any mode as upright RGB; transparency over gray of level ``background``; more than 8 bits scaled to 8, not cut off."""
    ImageOps.exif_transpose(image, in_place=True)  # a copy would be one image more in memory
    if image.mode.startswith("I") or image.mode == "F":
        values, (top, _) = gray_values(image), value_range(image)
        scaled = np.empty(values.shape, np.uint8)
        for rows in _strips(image):  # float64 of a whole image would take eight times its memory
            shares = np.nan_to_num(values[rows].astype(np.float64) / (top or 1), nan=0.0)
            scaled[rows] = (shares.clip(0, 1) * 255).round()
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
            raise Unreadable(
                f"too long: {image.width} x {image.height} becomes {width} x {height} at a short side of {spec.resize}; crop it"
            )
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
        locked = _why_locked(info)
        if locked:
            raise Unreadable(locked)
        with archive.open(info) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Unreadable(f"more than {MAX_FILE_BYTES >> 20} MiB; make it smaller")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=1)
def _open_zip(process: int, path: str, modified_ns: int) -> zipfile.ZipFile:
    """Kept open between images; anew in another process, or when the file has changed."""
    return zipfile.ZipFile(path)


def decode(source: ImageSource, index: int, spec: DatasetSpec, size: int) -> Decoded:
    """Image ``index``, or why it cannot be read."""
    head = b""
    try:
        file = open_member(source, source.names[index])
        head = file.getvalue()[:HEAD_BYTES]
        with warnings.catch_warnings(), open_image(file) as image:
            warnings.simplefilter("ignore")
            remark = value_range(image)[1] if image.mode in ("I", "F") else ""
            return Decoded(np.asarray(to_square(to_rgb(image, spec.background), spec, size)), remark)
    except Exception as error:  # a broken file can raise anything in a decoder; the caller counts and names it
        return Decoded(None, why_unreadable(error, head))
