"""Cases for image files, data sets, their caches, and sets with ground truth."""

from __future__ import annotations

import functools
import io
import json
import struct
import zipfile
import zlib
from typing import Any

import fuzz_bytes as fb
import numpy as np
from fuzz_worker import Case
from hypothesis import strategies as st
from PIL import Image

SUFFIXES = ("png", "jpg", "webp", "bmp", "gif", "tiff", "ppm", "JPEG", "tif")
PRESETS = ("Images", "CelebA", "BFM", "Cats")
PROGRAM = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file closefile\nshowpage\n"


@functools.cache
def sound_images() -> dict[str, bytes]:
    """Small images in each format and mode that matters."""
    image = Image.fromarray((np.arange(12 * 10 * 3) % 251).astype(np.uint8).reshape(12, 10, 3))
    found = {}
    options: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "PNG": [("RGB", {}), ("RGBA", {}), ("L", {}), ("P", {}), ("1", {}), ("I;16", {}), ("LA", {})],
        "JPEG": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True})],
        "WEBP": [("RGB", {}), ("RGBA", {"lossless": True})],
        "BMP": [("RGB", {}), ("1", {})],
        "GIF": [("P", {}), ("P", {"save_all": True, "append_images": [image.convert("P")]})],
        "TIFF": [("RGB", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
        + [("F", {})],
        "PPM": [("RGB", {}), ("L", {}), ("I", {})],
    }
    for kind, variants in options.items():
        for number, (mode, extra) in enumerate(variants):
            buffer = io.BytesIO()
            converted = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
            converted.save(buffer, kind, **extra)
            found[f"{kind}{number}"] = buffer.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return {**found, "turned": buffer.getvalue(), "EPS": PROGRAM.encode()}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, color: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG with arbitrary header values and correct checksums."""
    header = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@functools.cache
def zeros(megabytes: int) -> bytes:
    return zlib.compress(b"\0" * (megabytes << 20), 9)


SIDES = st.sampled_from((0, 1, 2, 7, 8, 100, 5000, 9459, 65535, 100_000, 2**24, 2**31 - 1, 2**32 - 1))


def bombs() -> st.SearchStrategy[bytes]:
    """Small files that claim a large size or expand to one."""
    texts = st.sampled_from(
        (b"", _chunk(b"zTXt", b"a\0\0" + zeros(64)), _chunk(b"iCCP", b"a\0\0" + zeros(64)), _chunk(b"tEXt", b""))
    )
    depths, tops = st.sampled_from((1, 8, 16, 24, 32)), st.sampled_from((1, 255, 65535, 10**9))
    pngs = st.builds(png, SIDES, SIDES, st.sampled_from((1, 8, 16)), st.sampled_from((0, 2, 3, 4, 6)), st.just(zeros(16)), texts)
    ppms = st.builds(ppm, st.sampled_from(("P6", "P5", "P3", "P1", "P4", "Pf")), SIDES, SIDES, tops)
    return st.one_of(pngs, pngs, ppms, st.builds(bmp, SIDES, SIDES, depths), st.builds(gif, SIDES, SIDES))


def ppm(kind: str, width: int, height: int, top: int) -> bytes:
    return f"{kind}\n{width} {height}\n{top}\n".encode() + b"\0" * 300


def bmp(width: int, height: int, depth: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, depth, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + header + b"\0" * 100


def gif(width: int, height: int) -> bytes:
    size = struct.pack("<HH", width % 65536, height % 65536)
    return b"GIF89a" + size + b"\x80\0\0" + b"\0" * 6 + b",\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0;"


def images() -> st.SearchStrategy[bytes]:
    names = st.tuples(*[st.sampled_from(sorted(sound_images()))] * 2)
    damaged = names.flatmap(lambda pair: fb.damaged(sound_images()[pair[0]], sound_images()[pair[1]]))
    return st.one_of(damaged, damaged, damaged, bombs(), names.map(lambda pair: sound_images()[pair[0]]), st.binary(max_size=60))


def names() -> st.SearchStrategy[str]:
    """File names: with any suffix, in folders, not UTF-8, hidden, with line breaks."""
    stems = st.sampled_from(
        ("a", "b", "deep/er/c", ".hidden", "new\nline", "\udcff\udcfe", "sp ace", "-x", "\x1b[31m", "ü", "a" * 200)
    )
    return st.tuples(stems, st.sampled_from(SUFFIXES)).map(".".join)


def special() -> st.SearchStrategy[Any]:
    links = ("link", "."), ("link", "/dev/zero"), ("link", "missing"), ("link", "../input"), ("link", "a.png")
    return st.sampled_from((("folder",), ("fifo",), ("holes", 1 << 36), *links))


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """A zip of images: unusual names, any compression, bombs, wrong sizes, overlapping members, encrypted ones."""
    members = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(fb.ODD_NAMES) | names().map(lambda name: name.encode("utf-8", "replace").decode()))
        if draw(st.booleans()):
            name += ".png"
        content = draw(images() | st.just(b"\0" * (8 << 20)))
        method = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
        members.append((name, content, method, draw(st.sampled_from((0, 0, fb.SYMLINK)))))
    data = fb.zip_bytes(members)
    change = draw(st.integers(0, 3))
    if members and change == 1:
        data = draw(fb.lying_zips(data))
    return draw(fb.damaged(data)) if data and change == 2 else data


@st.composite
def set_cases(draw: st.DrawFn) -> Case:
    """A folder, a zip, a single file or a glob."""
    kind = draw(st.sampled_from(("folder", "folder", "zip", "file", "glob")))
    size = draw(st.sampled_from((1, 8, 8, 8, 64)))
    preset, use_cache = draw(st.sampled_from(PRESETS)), draw(st.integers(0, 4)) == 0
    if kind == "zip":
        return Case("image.set", {"set.zip": draw(zips())}, ("set.zip", size, preset, use_cache))
    if kind == "file":
        name = draw(names())
        return Case("image.set", {name: draw(images() | special())}, (name, size, preset, use_cache))
    files: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 4))):
        files[draw(names())] = draw(st.one_of(images(), images(), images(), special()))
    if draw(st.booleans()):
        files["sound.png"] = sound_images()["PNG0"]
    if draw(st.integers(0, 5)) == 0:  # two loops: without care, 2^40 folders to walk
        files |= {"loop1": ("link", "."), "loop2": ("link", ".")}
    files = {name: entry for name, entry in files.items() if f"{name.split('/')[0]}" not in files or "/" not in name}
    path = (
        "."
        if kind == "folder"
        else draw(st.sampled_from(("*.png", "**/*", "[", "?.*", "*.jpg", "", "~nobody/x", "x" * 5000, "**")))
    )
    return Case("image.set", files, (path, size, preset, use_cache))


def cache_cases() -> st.SearchStrategy[Case]:
    """Wrong contents of a cache's files."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 8, 8, 3), np.uint8))
    sound = buffer.getvalue()
    listings = [
        json.dumps({"path": "x", "unreadable": value})
        for value in ([], [0], [5], [-1], [True], [0, 0], {}, "x", None, 3, [10**30])
    ]
    texts = st.sampled_from([*listings, "[" * 100_000, "{}", "", "null"]).map(str.encode) | st.binary(max_size=20)
    arrays = st.one_of(npy_files(), fb.damaged(sound), st.just(sound), st.binary(max_size=100))
    damage = st.lists(st.one_of(st.tuples(st.just(".json"), texts), st.tuples(st.just(".npy"), arrays)), min_size=1, max_size=2)
    files = {"a.png": sound_images()["PNG0"], "b.png": sound_images()["PNG2"]}
    return damage.map(lambda pairs: Case("image.cache", files, ([list(pair) for pair in pairs],)))


NPY_SHAPES = (
    *("(4, 4, 4)", "(2, 8, 8, 3)", "(1, 8, 8, 3)", "(-1, -1, -1)", "(1099511627776,) * 3", "(9223372036854775807, 2, 2)"),
    *("[4, 4, 4]"),
    *("(0, 0, 0)", "(4L, 4L, 4L)", "()", "(2.5,)", "(True, 1, 1)", "(10000, 10000, 10000)", "None"),
)
NPY_TYPES = (
    *("'<f4'", "'<f8'", "'>f8'", "'<f2'", "'<f16'", "'|u1'", "'|O'", "'<i8'", "[('a', '<f4')]", "'<U9999999999'", "'|V0'"),
    *("''", "3"),
)


@st.composite
def npy_files(draw: st.DrawFn, data: bytes = b"\0\0\0\0\0\0\xf0?" * 64) -> bytes:
    """An .npy file with an arbitrary header: shapes beyond the file, objects, structures, text that is not a header."""
    shape, kind = draw(st.sampled_from(NPY_SHAPES)), draw(st.sampled_from(NPY_TYPES))
    text = draw(
        st.just(f"{{'descr': {kind}, 'fortran_order': {draw(st.sampled_from(('False', 'True', '2')))}, 'shape': {shape}, }}")
        | st.sampled_from(
            ("{", "(" * 5000, "__import__('os').system('touch canary')", "{'descr': '<f4'}", "", "[" * 60_000, "'\n'''")
        )
    )
    version = draw(st.sampled_from((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff")))
    raw = text.encode()[:65_000] + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", draw(st.sampled_from((len(raw), len(raw), len(raw), 0, 65535))))
    return b"\x93NUMPY" + version + length + raw + data


@st.composite
def truth_cases(draw: st.DrawFn) -> Case:
    """A set with ground truth in which one part is invalid."""
    size = 4
    arrays: dict[str, np.ndarray] = {
        "depth": np.ones((size, size), np.float32),
        "normals": np.ones((3, size, size), np.float32),
        "mask": np.ones((size, size), bool),
        "yaw": np.float32(1),
        "pitch": np.float32(1),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    buffer_of_image = io.BytesIO()
    Image.new("RGB", (size, size), (9, 9, 9)).save(buffer_of_image, "PNG")
    good, image = buffer.getvalue(), buffer_of_image.getvalue()
    members = fb.read_members(good)
    kind = draw(st.sampled_from(("damage", "member", "bomb", "lie", "image", "special", "meta")))
    if kind == "damage":
        good = draw(fb.damaged(good))
    elif kind in ("member", "bomb"):
        place = draw(st.integers(0, len(members) - 1))
        content = draw(npy_files(b"\0" * (1 << 20) * (32 if kind == "bomb" else 0)))
        members[place] = (members[place][0], content, draw(st.sampled_from((0, 8, 12, 14))), 0)
        good = fb.zip_bytes(members)
    elif kind == "lie":
        good = draw(fb.lying_zips(good))
    elif kind == "image":
        image = draw(images())
    entry = draw(special()) if kind == "special" else good
    metas = (b"{}", b"[" * 100_000, b'{"camera": {"fov": 1e999}}', b'{"camera": {"fov": ' + b"9" * 400 + b"}}", b"\xff", b"")
    files = {"images/0.png": image, "ground_truth/0.npz": entry, "meta.json": draw(st.sampled_from(metas) | special())}
    return Case("image.truth", files)


CASES: dict[str, Any] = {
    "sets": set_cases,
    "caches": cache_cases,
    "ground truth": truth_cases,
}
