"""Find images in a folder, glob or zip, and decode any mode and size to a square RGB image.

Gray, palette, CMYK and 16-bit images are converted to RGB. Transparent images are composited over the background color of
free space, black or white; with ``keep_alpha``, their opacity is kept as a fourth channel. The EXIF orientation is applied.
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

from common.errors import UserError, first_few, one_line
from common.file_kinds import HEAD_BYTES, describe
from common.output_folders import output_folder
from loading.kinds import EXTENSIONS, FORMATS, HIDDEN, NO_IMAGE, reason_left_out
from loading.opening import Unreadable, gray_values, open_image, value_range, why_unreadable

__all__ = ["EXTENSIONS", "FORMATS", "DatasetSpec", "Decoded", "ImageSource", "Split", "decode", "find_images", "part_of"]

MAX_FILE_BYTES = 1 << 28
MAX_RESIZED_PIXELS = 1 << 26
NUM_NAMED = 3
ENCRYPTED = 1  # flag bit of a zip member
COMPRESSIONS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption"}


@dataclass(frozen=True)
class DatasetSpec:
    """Preprocessing of a data set: resize the short side to ``resize`` pixels (None: keep it), crop the central square of
    ``center_crop`` pixels (None: the largest possible), then resize to the requested size. ``background``: gray level, 0 to
    255, behind transparent images. ``nearest``: resize as the published code resizes real images, bilinear to ``resize``,
    then nearest neighbor; otherwise antialiased. ``keep_alpha``: return opacity as a fourth channel, after colors over
    ``background``."""

    resize: int | None
    center_crop: int | None
    description: str
    background: int = 0
    nearest: bool = False
    keep_alpha: bool = False

    @property
    def num_channels(self) -> int:
        return 4 if self.keep_alpha else 3


@dataclass(frozen=True)
class ImageSource:
    """Location of images. ``names``: sorted member names of ``zip_path``, or file paths if it is None.

    ``left_out``: names of all other files there, each with the reason why it is excluded.
    """

    path: str
    zip_path: str | None
    names: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # per name: bytes, and mtime in ns (zip: checksum)
    left_out: tuple[tuple[str, str], ...] = ()


class Decoded(NamedTuple):
    """One decoded image: ``pixels`` (size, size, 3) uint8, or 4 channels with ``keep_alpha``; None if it cannot be read.

    ``remark``: the reason if it cannot be read, a text that completes "it is ..."; otherwise a remark on how it was read, or "".
    """

    pixels: np.ndarray | None
    remark: str = ""


class Split(NamedTuple):
    """One ``part`` (of PARTS) of a data set with ``num_holdout`` held-out images."""

    part: str = "all"
    num_holdout: int = 0


PARTS = ("all", "train", "holdout")
ALL_IMAGES = Split()


def part_of(source: ImageSource, split: Split) -> ImageSource:
    """Return the images of one part, in the order of ``source``.

    The held-out images are those with the smallest SHA-256 of the file name. This choice is independent of the folder or zip
    and of any seed, and hardly changes when images are added. Raises UserError if no images would be left.
    """
    if split.part == "all":
        return source
    if not 0 <= split.num_holdout < len(source.names):
        raise UserError(f"{source.path} holds {len(source.names)} images; {split.num_holdout} cannot be held out; use fewer")
    if split.part == "holdout" and not split.num_holdout:
        raise UserError("no images are held out: num_holdout is 0; hold some out, or use all images")

    def rank(place: int) -> tuple[str, str]:
        name = source.names[place]
        return hashlib.sha256(name.rsplit("/", 1)[-1].encode(errors="surrogateescape")).hexdigest(), name

    held_out = set(sorted(range(len(source.names)), key=rank)[: split.num_holdout])
    kept = [place for place in range(len(source.names)) if (place in held_out) == (split.part == "holdout")]
    return replace(source, names=tuple(source.names[i] for i in kept), stamps=tuple(source.stamps[i] for i in kept))


def find_images(path: str | Path) -> ImageSource:
    """Find images in a folder (recursively), a glob, a zip, or a single file. Raises UserError if there are none.

    Subfolders that this project wrote (a run's sample grids, a generator's images) are excluded.
    """
    text = str(path)
    try:
        place = Path(text).expanduser()
        source = _in_zip(text, place) if place.is_file() and zipfile.is_zipfile(place) else _in_files(text, place)
    except Exception as error:  # name too long, unknown home folder, damaged zip directory
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {text} ({type(error).__name__}: {error}); pass another path") from None
    if not source.names:
        found = "; ".join(words_left_out(source.left_out))
        raise UserError(f"{text} holds no images (such as {', '.join(EXTENSIONS[:4])})" + (f": {found}" if found else ""))
    return source


def words_left_out(left_out: Iterable[tuple[str, str]], also_no_images: bool = True) -> list[str]:
    """Return a line per reason: the number of files, the first few names, and the reason. Hidden files are not listed.

    also_no_images: False also skips text files, tables and the like, which are obviously not images.
    """
    unlisted = (HIDDEN,) if also_no_images else (HIDDEN, NO_IMAGE)
    groups = names_by_reason((name, reason) for name, reason in left_out if reason not in unlisted)
    return [f"{len(names)} left out ({first_few(names, NUM_NAMED)}): {reason}" for reason, names in groups.items()]


def names_by_reason(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group (path, reason) by reason. The names are without folders, for messages."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, reason in files:
        groups[reason].append(one_line(Path(path).name))
    return groups


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
    locked = [reason for reason in (_why_unsupported(infos[name]) for name in names) if reason]
    if locked and len(locked) == len(names):
        raise UserError(f"the images in {text} are {locked[0]}")
    stamps = tuple((infos[name].file_size, infos[name].CRC) for name in names)
    return ImageSource(text, str(place), tuple(names), stamps, tuple(left_out))


def _head_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the first bytes of a member; empty if it cannot be opened."""
    if _why_unsupported(info):
        return b""
    try:
        with archive.open(info) as file:
            return file.read(HEAD_BYTES)
    except Exception:  # zipfile raises many types of exceptions on damaged data
        return b""


def _why_unsupported(info: zipfile.ZipInfo) -> str | None:
    """Return why a zip member cannot be unpacked here, completing "it is ..."; None if it can."""
    if info.flag_bits & ENCRYPTED:
        return "encrypted; unpack the zip with its password and pass the folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = COMPRESSIONS.get(info.compress_type, f"method {info.compress_type}")
        return f"compressed with {method}, which is not supported here; unpack the zip and pass the folder"
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
            raise UserError(f"there is no folder, zip or image at {text}; pass an existing path")
    stamps = {}
    for name in sorted(files):
        with contextlib.suppress(OSError):  # removed since it was listed, or a broken link
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
                reason = reason_left_out(name, lambda: _head_of(name))  # noqa: B023 (called at once)
                if reason is None:
                    stamps[name] = (status.st_size, status.st_mtime_ns)
                else:
                    left_out.append((name, reason))
    if place.is_file() and left_out:
        _refuse_file(text, _head_of(str(place)))
    return ImageSource(text, None, tuple(stamps), tuple(stamps.values()), tuple(left_out))


def _refuse_file(text: str, head: bytes) -> None:
    """Raise UserError for a single file that is neither an image nor a zip."""
    if head.startswith(b"PK"):
        raise UserError(f"{text} is a truncated zip archive: its directory, at the end, is missing; download it again")
    described = describe(head)
    raise UserError(f"{text} is {described or 'not an image, a zip or a folder'}; pass a folder, a glob, a zip or an image")


def _head_of(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read(HEAD_BYTES)


def _files_below(folder: Path, left_out: list[tuple[str, str]]) -> list[str]:
    """Return all files below ``folder``. Links to folders are followed, but each folder is visited once: links can be cyclic."""
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
    """Return the files that match a pattern; ``**`` does not follow links."""
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
    """Convert any mode to upright RGB. Composite transparency over gray level ``background``; rescale more than 8 bits to 8."""
    ImageOps.exif_transpose(image, in_place=True)  # a copy would double the memory
    if image.mode.startswith("I") or image.mode == "F":
        values, (top, _) = gray_values(image), value_range(image)
        scaled = np.empty(values.shape, np.uint8)
        for rows in _strips(image):  # float64 of a whole image would take eight times its memory
            shares = np.nan_to_num(values[rows].astype(np.float64) / (top or 1), nan=0.0)
            scaled[rows] = (shares.clip(0, 1) * 255).round()
        return Image.fromarray(scaled).convert("RGB")
    if _has_alpha(image):
        laid = Image.new("RGB", image.size)
        for rows in _strips(image):
            part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
            below = Image.new("RGBA", part.size, (background, background, background, 255))
            laid.paste(Image.alpha_composite(below, part).convert("RGB"), (0, rows.start))
        return laid
    return image if image.mode == "RGB" else image.convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image:
    """Return the opacity of an upright image as mode L, 255 where it is opaque."""
    alpha = Image.new("L", image.size, 255)
    if _has_alpha(image):
        for rows in _strips(image):
            part = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
            alpha.paste(part.getchannel("A"), (0, rows.start))
    return alpha


def _has_alpha(image: Image.Image) -> bool:
    """Return whether the image has transparency. That of gray images of more than 8 bits is ignored."""
    is_deep = image.mode.startswith("I") or image.mode == "F"
    return not is_deep and ("A" in image.getbands() or "transparency" in image.info)


def _strips(image: Image.Image) -> list[slice]:
    """Split the rows into strips of about a million pixels."""
    step = max(1, (1 << 20) // max(1, image.width))
    return [slice(start, min(start + step, image.height)) for start in range(0, image.height, step)]


def to_square(image: Image.Image, spec: DatasetSpec, size: int) -> Image.Image:
    """Resize and crop an ``image`` of mode RGB or L as specified by ``spec``, to ``size`` pixels square."""
    if spec.resize is not None:
        scale = spec.resize / min(image.size)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        if width * height > MAX_RESIZED_PIXELS:  # for example an image one pixel wide
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
    """Resize by nearest neighbor, taking input pixel floor(i * side / size), as torchvision does for tensors (not Pillow)."""
    pixels = np.asarray(image)
    index = np.arange(size) * pixels.shape[0] // size
    return Image.fromarray(pixels[index][:, index])


def open_member(source: ImageSource, name: str) -> io.BytesIO:
    """Read the bytes of one image. Each process opens a zip separately."""
    if source.zip_path is None:
        with open(name, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    else:
        archive = _open_zip(os.getpid(), source.zip_path, os.stat(source.zip_path).st_mtime_ns)
        info = archive.getinfo(name)
        locked = _why_unsupported(info)
        if locked:
            raise Unreadable(locked)
        with archive.open(info) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Unreadable(f"more than {MAX_FILE_BYTES >> 20} MiB; make it smaller")
    return io.BytesIO(data)


@functools.lru_cache(maxsize=1)
def _open_zip(process: int, path: str, modified_ns: int) -> zipfile.ZipFile:
    """Open a zip and keep it open between images; reopen it in another process or when the file has changed."""
    return zipfile.ZipFile(path)


def decode(source: ImageSource, index: int, spec: DatasetSpec, size: int) -> Decoded:
    """Decode image ``index``. If it cannot be read, the result holds the reason."""
    head = b""
    try:
        file = open_member(source, source.names[index])
        head = file.getvalue()[:HEAD_BYTES]
        with warnings.catch_warnings(), open_image(file) as image:
            warnings.simplefilter("ignore")
            remark = value_range(image)[1] if image.mode in ("I", "F") else ""
            pixels = np.asarray(to_square(to_rgb(image, spec.background), spec, size))
            if spec.keep_alpha:
                pixels = np.dstack([pixels, np.asarray(to_square(alpha_of(image), spec, size))])
            return Decoded(pixels, remark)
    except Exception as error:  # decoders can raise any exception on a damaged file; the caller counts and reports it
        return Decoded(None, why_unreadable(error, head))
