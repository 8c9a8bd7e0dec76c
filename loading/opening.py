"""Open one image of any size, and explain why an image cannot be read."""

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
MAX_PIXELS_PER_BYTE = 100  # of a large file; a higher ratio indicates a decompression bomb
BYTES_PER_PIXEL = 12  # while decoding: the image, its conversion to RGB, and a copy of either
SHARE_OF_MEMORY = 4  # one image may take a quarter of the free memory, because several processes decode
UNDERSIZED_MAX = 2.0  # floats up to here mean [0, 1]: resampling overshoots, highlights exceed 1


class Unreadable(ValueError):
    """An image cannot be read; the message gives the reason and the fix."""


def open_image(file: io.BytesIO) -> Image.Image:
    """Open the image in ``file`` without decoding it. Raises Pillow's exceptions, and Unreadable if it is too large.

    Above Pillow's pixel limit, a JPEG is decoded at a half, a quarter or an eighth of its size; other formats at full size
    if there is enough memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return _open_large(file, str(error))


def _open_large(file: io.BytesIO, reason: str) -> Image.Image:
    """Open an image with its format's class, which does not check Pillow's pixel limit as Image.open does."""
    start = file.getvalue()[:16]
    for name in LARGE_FORMATS:
        kind, accepts = Image.OPEN[name]
        if accepts is not None and accepts(start) is True:
            file.seek(0)
            image = kind(file, "")
            _reduce_to_fit(image, len(file.getvalue()))
            return image
    raise Unreadable(f"too large ({reason}); make it smaller")


def _reduce_to_fit(image: Image.Image, file_bytes: int) -> None:
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
    """Return the available memory in bytes; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def gray_values(image: Image.Image) -> np.ndarray:
    """Return the values (H, W) of a single-channel image of more than 8 bits. Pillow misreads unsigned 32-bit as signed."""
    values = np.asarray(image)
    return values.view(np.uint32) if image.mode == "I" and _tiff_integers(image) == (32, False) else values


def value_range(image: Image.Image) -> tuple[float, str]:
    """Return the value of white in a single-channel image of more than 8 bits, and a remark for the user.

    The format defines the range of 16-bit integers. For 32-bit integers and floats, the range is the smallest of [0, 1],
    [0, 255] and [0, 65535] that contains the image, or up to its maximum if none does.
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
    return top, f"{kind}, which have no defined range; read as [0, {top:g}]"


def _tiff_integers(image: Image.Image) -> tuple[int | None, bool]:
    """Return a TIFF's bits per value (None if unknown) and whether they are signed."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None, False
    bits, kind = tags.get(258, (None,)), tags.get(339, (1,))
    return (bits[0] if isinstance(bits, tuple) else bits), (kind[0] if isinstance(kind, tuple) else kind) == 2


def why_unreadable(error: Exception, head: bytes) -> str:
    """Explain ``error``, raised on reading an image that begins with ``head``; the text completes "it is ..."."""
    described = describe(head[:HEAD_BYTES])
    if isinstance(error, UnidentifiedImageError) and is_image(head):
        return "damaged at the beginning, or an unsupported variant; copy it again, or convert it to PNG"
    if isinstance(error, UnidentifiedImageError):
        return described or "not an image in a supported format; remove it, or convert it to PNG"
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "missing; it was moved or removed in the meantime"
    if isinstance(error, zipfile.BadZipFile):
        return f"damaged inside its zip ({one_line(error)[:100]}); create the zip again"
    if isinstance(error, PermissionError):
        return "not readable by you; change its permissions"
    if isinstance(error, MemoryError):
        return "too large for the available memory; make it smaller"
    if isinstance(error, Image.DecompressionBombError):
        size = one_line(error).split(",")[0]
        return f"too large ({size}); make it smaller, or a JPEG, which can be read at a fraction of its size"
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return f"truncated ({one_line(error)[:100]}); copy or download it again"
    return f"damaged ({type(error).__name__}: {one_line(error)[:100]}); repair or remove it"
