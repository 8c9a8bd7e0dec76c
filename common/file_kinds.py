"""Identify unexpected file types by their first bytes, with advice on what to do."""

from __future__ import annotations

_TAR_MAGIC_AT = 257
HEAD_BYTES = _TAR_MAGIC_AT + 5  # the number of leading bytes that :func:`describe` examines

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "compressed with gzip; unpack it (gunzip, or tar xf)"),
    (b"BZh", "compressed with bzip2; unpack it (bunzip2, or tar xf)"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it (unxz, or tar xf)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it (7z x)"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it (unrar x)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document; export its images"),
    (b"%!PS", "PostScript, which is a program; convert it to PNG"),
    (b"\xff\x0a", "a JPEG XL image; convert it to PNG"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image; convert it to PNG"),
    (b"v/1\x01", "an OpenEXR image; convert it to PNG"),
    (b"#?RADIANCE", "a Radiance HDR image; convert it to PNG"),
    (b"glTF", "a glTF mesh"),
    (b"ply\n", "a PLY mesh"),
    (b"\x1aE\xdf\xa3", "a video; extract its frames as images"),
)
PICKLE_PROTOCOLS = range(2, 6)
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def describe(head: bytes) -> str | None:
    """Describe the file that begins with ``head`` and what to do with it; None if its type is unknown.

    The text completes "NAME is ...".
    """
    if not head:
        return "empty; it was never completely written, or is still being copied"
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive; unpack it (tar xf)"
    for start, words in _STARTS:
        if head.startswith(start):
            return words
    if head[4:8] == b"ftyp":
        return _describe_iso(head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page: the download was denied or requires a login; download it again"
    if text.startswith((b"<svg", b"<?xml")) and b"svg" in text:
        return "a drawing (SVG); convert it to PNG"
    if head[:1] == b"\x80" and head[1:2] and head[1] in PICKLE_PROTOCOLS:
        return "a Python pickle, which is a program; save its tensors with torch.save"
    if not head.strip(b"\0"):
        return "all zeros; its download or copy was interrupted, so download it again"
    return None


def _describe_iso(head: bytes) -> str:
    """Describe a file in the container format shared by HEIC, AVIF and MP4."""
    if b"avif" in head[8:32] or b"avis" in head[8:32]:
        return "an AVIF image; install a newer Pillow (python -m pip install --upgrade pillow), or convert it to PNG"
    if head[8:12] in HEIC_BRANDS:
        return "a HEIC image; install support with python -m pip install pillow-heif, or convert it to JPEG"
    return "a video; extract its frames as images"
