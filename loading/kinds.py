"""Which files among photos are images that are read, and which are left out, with the reason.

The formats are a fixed list of Pillow's that are decoded in this process: never one that Pillow hands to another program
(EPS: Ghostscript). A file with an image's name is taken for one; any other is judged by its first bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, features

from common.file_kinds import HEIC_BRANDS, describe

_SAFE = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "JPEG2000", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "PCX", "PSD", "SGI", "QOI")
_USUAL_NAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_JPEG_NAMES = (".jfif", ".jpe", ".jif", ".mpo", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc")
_OTHER_NAMES = (".apng", ".dib", ".pnm", ".pbm", ".pfm", ".tga", ".pcx", ".psd", ".sgi", ".qoi")
_AVIF_NAMES = (".avif", ".avifs")
_HEIC_NAMES = (".heic", ".heif", ".hif")
_STARTS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"qoif",
    b"8BPS",  # PSD
)
_RAW_EXTENSIONS = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
_UNREAD_EXTENSIONS = (".ico", ".cur", ".icns", ".dds", ".xbm", ".xpm", ".fits", ".hdr", ".wmf", ".emf", ".ai", ".xcf", ".djvu")
NO_IMAGE = "no image"
HIDDEN = "hidden"


def _registered_formats() -> tuple[str, ...]:
    """Those of the safe formats that this Pillow and its plugins read."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _SAFE if name in Image.OPEN and (name != "AVIF" or features.check("avif")))


FORMATS = _registered_formats()
EXTENSIONS = _USUAL_NAMES + _JPEG_NAMES + _OTHER_NAMES
EXTENSIONS += (_AVIF_NAMES if "AVIF" in FORMATS else ()) + (_HEIC_NAMES if "HEIF" in FORMATS else ())


def reason_left_out(name: str, head: Callable[[], bytes]) -> str | None:
    """Why the file ``name`` is not among the images, in words that complete "it is ..."; None where it is one of them.

    ``head`` gives its first bytes; it is called only where the name does not tell.
    """
    base = name.rsplit("/", 1)[-1]
    if base.startswith(".") or name.startswith("__MACOSX/"):
        return HIDDEN
    extension = Path(base).suffix.lower()
    if extension in EXTENSIONS:
        return None
    if extension in _RAW_EXTENSIONS:
        return "a camera's raw file; convert it to JPEG or PNG"
    if extension in _UNREAD_EXTENSIONS:
        return "an image of a kind that is not read here; convert it to PNG"
    start = head()
    if is_image(start):
        return None
    return describe(start) or NO_IMAGE if start else NO_IMAGE


def is_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is an image in one of FORMATS; TGA and PCX have no beginning that tells."""
    if head[4:8] == b"ftyp":
        kind = "AVIF" if b"avif" in head[8:32] or b"avis" in head[8:32] else "HEIF" if head[8:12] in HEIC_BRANDS else None
        return kind in FORMATS
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
