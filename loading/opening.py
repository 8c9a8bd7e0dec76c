"""Opening one image, however large, and saying in words why one cannot be read."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import one_line
from common.file_kinds import HEAD_BYTES, describe
from loading.kinds import FORMATS, is_image

LARGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # the last two up to twice Pillow's limit, which they check themselves
MAX_LARGE_PIXELS = 1 << 29
MAX_PIXELS_PER_BYTE = 100  # of a large file; one that unfolds further is made to fill the memory
BYTES_PER_PIXEL = 12  # while one is decoded: itself, its conversion to RGB, and a copy of either
SHARE_OF_MEMORY = 4  # one image may take a quarter of what is free: several processes decode
UNDERSIZED_MAX = 2.0  # floats up to here mean [0, 1]: resampling overshoots, highlights exceed 1


class Unreadable(ValueError):
    """An image that is not read; the message says why, and what to do."""


def open_image(file: io.BytesIO) -> Image.Image:
    """The image in ``file``, not yet decoded. Raises whatever Pillow raises, and Unreadable for one too large.

    Beyond Pillow's limit of pixels a JPEG is decoded at a half, a quarter or an eighth of its size; another format whole, if
    there is the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return _open_large(file, str(error))


def _open_large(file: io.BytesIO, reason: str) -> Image.Image:
    """Image.open compares sizes with its limit; the formats' own classes do not."""
    start = file.getvalue()[:16]
    for name in LARGE_FORMATS:
        kind, accepts = Image.OPEN[name]
        if accepts is not None and accepts(start) is True:
            file.seek(0)
            image = kind(file, "")
            _make_fit(image, len(file.getvalue()))
            return image
    raise Unreadable(f"too large ({reason}); make it smaller")


def _make_fit(image: Image.Image, file_bytes: int) -> None:
    limit, (width, height) = Image.MAX_IMAGE_PIXELS or MAX_LARGE_PIXELS, image.size
    if image.format == "JPEG":
        factor = next((n for n in (2, 4, 8) if width * height <= limit * n * n), 8)
        image.draft(image.mode, (width // factor, height // factor))
    elif width * height > file_bytes * MAX_PIXELS_PER_BYTE:
        raise Unreadable(f"{file_bytes} bytes that claim {width} x {height} pixels; make it smaller, if it is an image at all")
    num_bytes, free = image.width * image.height * BYTES_PER_PIXEL, free_memory()
    if image.width * image.height > MAX_LARGE_PIXELS or (free is not None and num_bytes > free // SHARE_OF_MEMORY):
        raise Unreadable(
            f"too large: {width} x {height} pixels take {num_bytes / 2**30:.1f} GiB of memory to decode; make it smaller"
            + ("" if image.format == "JPEG" else ", or a JPEG, which can be read at a fraction of its size")
        )


def free_memory() -> int | None:
    """Bytes that this machine has left; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def gray_values(image: Image.Image) -> np.ndarray:
    """The values (H, W) of an image of one channel of more than 8 bits. Pillow takes unsigned 32-bit ones for signed."""
    values = np.asarray(image)
    return values.view(np.uint32) if image.mode == "I" and _tiff_integers(image) == (32, False) else values


def value_range(image: Image.Image) -> tuple[float, str]:
    """The value that means white in an image of one channel of more than 8 bits, and what the user should know about it.

    16-bit integers have a range by their format. 32-bit ones and floats have not: the least of the usual ranges [0, 1], [0, 255],
    [0, 65535] that holds the image, or else its own maximum.
    """
    if image.mode.startswith("I;16"):
        return 65535.0, ""
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 65535.0, ""
    bits, signed = _tiff_integers(image)
    if image.mode == "I" and bits == 16:
        return (32767.0 if signed else 65535.0), ""
    values = gray_values(image)
    most = float(values.max(initial=0, where=np.isfinite(values)))
    usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
    top = next((end for end in usual if most <= (UNDERSIZED_MAX if end == 1 else end)), most)
    kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
    return top, f"{kind}, which have no range of their own; read as [0, {top:g}]"


def _tiff_integers(image: Image.Image) -> tuple[int | None, bool]:
    """Bits per value and whether they are signed, where a TIFF says so."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None, False
    bits, kind = tags.get(258, (None,)), tags.get(339, (1,))
    return (bits[0] if isinstance(bits, tuple) else bits), (kind[0] if isinstance(kind, tuple) else kind) == 2


def why_unreadable(error: Exception, head: bytes) -> str:
    """In words that complete "it is ...": why reading an image that begins with ``head`` ended in ``error``."""
    described = describe(head[:HEAD_BYTES])
    if isinstance(error, UnidentifiedImageError) and is_image(head):
        return "damaged where it begins, or of a variant that is not read here; copy it again, or convert it to PNG"
    if isinstance(error, UnidentifiedImageError):
        return described or "no image of a kind that is read here; remove it, or convert it to PNG"
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "gone; it was moved or removed meanwhile"
    if isinstance(error, zipfile.BadZipFile):
        return f"damaged inside its zip ({one_line(error)[:100]}); make the zip anew"
    if isinstance(error, PermissionError):
        return "not yours to read; change its permissions"
    if isinstance(error, MemoryError):
        return "too large for the memory there is; make it smaller"
    if isinstance(error, Image.DecompressionBombError):
        size = one_line(error).split(",")[0]
        return f"too large ({size}); make it smaller, or a JPEG, which can be read at a fraction of its size"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return f"cut short ({one_line(error)[:100]}); copy or download it again"
    return f"damaged ({type(error).__name__}: {one_line(error)[:100]}); repair or remove it"
