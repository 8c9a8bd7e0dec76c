"""Cache of decoded images: all images of a source at one size, in an .npy file that is read image by image.

The file is read rather than memory-mapped. If a disk or a network share disappears, reading raises an error that can be
handled, whereas accessing mapped memory crashes the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import print_notice
from common.files import atomic_file, remove_unfinished
from loading.decoding import decode_all
from loading.files import FORMATS, DatasetSpec, Decoded, ImageSource, decode

_VERSION = 2  # increment it when the same file decodes to different pixels
_HEADER_BYTES = 128
CACHE_NAME = re.compile(r"[0-9a-f]{24}\.npy")
MAX_CACHE_BYTES = 20 << 30  # of all data sets together
MAX_NAMED = 20  # missing images named in messages; a lost disk would flood the terminal


@dataclass
class Findings:
    """Results of decoding a source. ``unreadable``: image index -> reason, a text that completes "it is ...".

    ``remarks``: remark on readable images -> number of images that it applies to.
    """

    unreadable: dict[int, str] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {"unreadable": list(self.unreadable), "reasons": list(self.unreadable.values()), "remarks": dict(self.remarks)}

    @classmethod
    def from_json(cls, content: Any, num: int) -> Findings:
        """Parse the output of :meth:`to_json` for ``num`` images. Raises ValueError, KeyError or TypeError if invalid."""
        indices, reasons, remarks = content["unreadable"], content["reasons"], content["remarks"]
        if not all(type(i) is int and 0 <= i < num for i in indices) or len(set(indices)) < len(indices):
            raise ValueError("invalid image indices")
        if not all(type(text) is str for text in [*reasons, *remarks]) or not all(type(n) is int for n in remarks.values()):
            raise ValueError("invalid remarks on images")
        return cls(dict(zip(indices, reasons, strict=True)), Counter(remarks))


class CachedImages:
    """Images (N, size, size, C) uint8 in an .npy file: ``images[i]``, or ``images[indices]`` for several. C: 3, or 4 with alpha.

    An image that can no longer be read from the file is decoded again from its source. If its source is missing too, it is
    replaced by the next available image. Each case prints a one-line notice. Raises OSError if no image is left.
    """

    def __init__(self, path: Path, source: ImageSource, spec: DatasetSpec, size: int, unreadable: Iterable[int]) -> None:
        skip = set(unreadable)
        self._path = path
        self._source, self._spec, self._size = source, spec, size
        self._members = [i for i in range(len(source.names)) if i not in skip]
        self.shape = (len(self._members), size, size, spec.num_channels)
        self._is_lost = False  # True once the file could not be read and a notice was printed
        self._missing: set[int] = set()  # members that can no longer be decoded
        self._file: BinaryIO | None = None  # opened when it is first read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        if np.ndim(index):
            return np.stack([self._image(int(i)) for i in index]) if len(index) else np.empty((0, *self.shape[1:]), np.uint8)
        return self._image(int(index))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def _image(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        num_bytes = math.prod(self.shape[1:])
        try:
            data = self._read(num_bytes, _HEADER_BYTES + index * num_bytes)
            if len(data) != num_bytes:
                raise OSError("it is truncated")
            return np.frombuffer(data, np.uint8).reshape(self.shape[1:])
        except OSError as error:
            if not self._is_lost:
                self._is_lost = True
                reason = error.strerror or error
                print_notice(f"the image cache {self._path} can no longer be read ({reason}); decoding the images again")
            return self._from_source(index)

    def _read(self, num_bytes: int, offset: int) -> bytes:
        """Read ``num_bytes`` at ``offset``. Safe in threads and forked processes, which share the file's position."""
        if not hasattr(os, "pread"):  # Windows
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read(num_bytes)
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
        return os.pread(self._file.fileno(), num_bytes, offset)

    def _from_source(self, index: int) -> np.ndarray:
        for place in range(len(self)):
            member = self._members[(index + place) % len(self)]
            image = decode(self._source, member, self._spec, self._size).pixels
            if image is not None:
                return image
            if member not in self._missing:
                self._missing.add(member)
                if len(self._missing) <= MAX_NAMED:
                    name, silence = self._source.names[member], "; the rest is not listed" * (len(self._missing) == MAX_NAMED)
                    print_notice(f"{name} is missing or unreadable ({len(self._missing)} so far); using the next image{silence}")
        raise OSError(f"no image of {self._source.path} can be read any longer")


def _cache_key(source: ImageSource, spec: DatasetSpec, size: int) -> str:
    what = [_VERSION, FORMATS, source.zip_path, source.names, source.stamps, spec.resize, spec.center_crop, size]
    if spec.background or spec.nearest:  # keeps the keys of existing caches without these settings
        what += [spec.background, spec.nearest]
    if spec.keep_alpha:
        what += ["alpha"]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _read_cache(path: Path, source: ImageSource, spec: DatasetSpec, size: int) -> tuple[CachedImages, Findings] | None:
    """Open the cached images and findings; None if there is no valid cache."""
    try:
        found = Findings.from_json(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), len(source.names))
        expected = (len(source.names) - len(found.unreadable), size, size, spec.num_channels)
        with path.open("rb") as file:
            header, num_bytes = file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # an invalid cache is rebuilt
        return None
    if header != _npy_header(expected) or num_bytes != _HEADER_BYTES + math.prod(expected):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as recently used
    return CachedImages(path, source, spec, size, found.unreadable), found


def build_cache(
    source: ImageSource, spec: DatasetSpec, size: int, cache_dir: str | Path | None, num_workers: int | None = None
) -> tuple[np.ndarray | CachedImages, Findings]:
    """Return the readable images (N, size, size, C) uint8, and the findings of decoding them. C: 3, or 4 with alpha.

    Read them from ``cache_dir`` if it has a valid cache of exactly these files. Otherwise, decode them and write the cache
    atomically. If ``cache_dir`` is None or not writable, decode into memory.
    """
    path = Path(cache_dir).expanduser() / f"{_cache_key(source, spec, size)}.npy" if cache_dir is not None else None
    if path is not None:
        found = _read_cache(path, source, spec, size)
        if found is not None:
            return found
        try:
            return _write_cache(path, source, spec, size, num_workers)
        except OSError as error:
            print_notice(f"cannot write the image cache {path.parent} ({error.strerror or error}); decoding into memory")
    num, found = len(source.names), Findings()
    pixels = np.empty((num, size, size, spec.num_channels), np.uint8)
    for place, image in enumerate(_readable(decode_all(source, spec, size, num_workers), found)):
        pixels[place] = image
    return pixels[: num - len(found.unreadable)], found


def _readable(images: Iterable[Decoded], found: Findings) -> Iterator[np.ndarray]:
    """Yield the readable images; record reasons and remarks in ``found``."""
    for index, image in enumerate(images):
        if image.pixels is None:
            found.unreadable[index] = image.remark
        else:
            found.remarks.update([image.remark] if image.remark else [])
            yield image.pixels


def _write_cache(
    path: Path, source: ImageSource, spec: DatasetSpec, size: int, num_workers: int | None
) -> tuple[CachedImages, Findings]:
    """Decode the images into the cache ``path``. Raises OSError."""
    remove_unfinished(path.parent)
    found, num = Findings(), len(source.names)
    with atomic_file(path, sync=False) as file:
        file.write(bytes(_HEADER_BYTES))
        for image in _readable(decode_all(source, spec, size, num_workers), found):
            file.write(image.tobytes())
        file.seek(0)
        file.write(_npy_header((num - len(found.unreadable), size, size, spec.num_channels)))
        with atomic_file(path.with_suffix(".json"), sync=False) as listing:
            listing.write(json.dumps({"path": source.path, **found.to_json()}).encode())
    written = _read_cache(path, source, spec, size)
    if written is None:
        raise OSError(f"{path} could not be read back")
    _evict_caches(path)
    return written


def _evict_caches(newest: Path) -> None:
    """Evict the least recently used caches, except ``newest``, down to MAX_CACHE_BYTES in total; print where they are.

    Adding or removing images creates a new cache. Without a limit, old ones would accumulate.
    """
    caches = {}
    for path in newest.parent.glob("*.npy"):
        if CACHE_NAME.fullmatch(path.name) and path != newest:
            with contextlib.suppress(OSError):  # removed by another process
                status = path.stat()
                caches[path] = (status.st_mtime_ns, status.st_size)
    num_bytes = newest.stat().st_size + sum(size for _, size in caches.values())
    for path in sorted(caches, key=lambda path: caches[path]):
        if num_bytes <= MAX_CACHE_BYTES:
            break
        num_bytes -= caches[path][1]
        for part in (path, path.with_suffix(".json")):
            with contextlib.suppress(OSError):
                part.unlink()
    print_notice(
        f"decoded images are cached in {newest.parent}: {num_bytes / 2**30:.2f} GiB; the least recently used are removed above"
        f" {MAX_CACHE_BYTES >> 30} GiB; to clear the cache, remove the folder (set GOF_CACHE to use another folder)"
    )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a C-ordered uint8 array, version 1.0, padded to :data:`_HEADER_BYTES`: it is written last."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    start = np.lib.format.magic(1, 0) + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return start + text.ljust(_HEADER_BYTES - 11) + b"\n"
