"""The decoded cache: every picture of a source once, at one size, as an .npy file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from loading.files import DatasetSpec, ImageSource, decode

_VERSION = 1  # raise it when the same file gives other pixels
_MAX_WORKERS = 16


def _decode_many(indices: Sequence[int], source: ImageSource, spec: DatasetSpec, size: int) -> list[np.ndarray | None]:
    return [decode(source, index, spec, size) for index in indices]


def _decode_all(source: ImageSource, spec: DatasetSpec, size: int, workers: int | None) -> Iterator[np.ndarray | None]:
    """Every picture in order, decoded by several processes where that pays, with progress shown."""
    num = len(source.names)
    blocks = [range(start, min(start + 64, num)) for start in range(0, num, 64)]
    work = partial(_decode_many, source=source, spec=spec, size=size)
    workers = min(workers if workers is not None else (os.cpu_count() or 1), _MAX_WORKERS, len(blocks))
    with tqdm(total=num, desc=f"decoding to {size} px", unit="image", disable=num < 500) as progress:
        pool = None
        # Starting processes takes seconds, and daemons (a loader's workers) may start none.
        if workers > 1 and num >= 2000 and not multiprocessing.current_process().daemon:
            pool = multiprocessing.get_context("spawn").Pool(workers)
        try:
            for results in pool.imap(work, blocks) if pool else map(work, blocks):
                yield from results
                progress.update(len(results))
        finally:
            if pool:
                pool.terminate()


def default_cache_dir() -> Path:
    """$GOF_CACHE, or gof in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("GOF_CACHE") or os.path.join(base, "gof"))


def _cache_key(source: ImageSource, spec: DatasetSpec, size: int) -> str:
    what = [_VERSION, source.zip_path, source.names, source.stamps, spec.resize, spec.center_crop, size]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _read_cache(path: Path, num: int, size: int) -> tuple[np.ndarray, list[int]] | None:
    """Pictures (N, size, size, 3) uint8, mapped, and indices of unreadable ones; None if there is no sound cache."""
    try:
        unreadable = json.loads(path.with_suffix(".json").read_text())["unreadable"]
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        sound = pixels.shape == (num - len(unreadable), size, size, 3) and pixels.dtype == np.uint8
        return (pixels, unreadable) if sound and all(isinstance(i, int) for i in unreadable) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def build_cache(
    source: ImageSource, spec: DatasetSpec, size: int, cache_dir: str | Path | None, num_workers: int | None = None
) -> tuple[np.ndarray, list[int]]:
    """Readable pictures (N, size, size, 3) uint8 and the indices of unreadable ones.

    Read from ``cache_dir`` where a sound cache of exactly these files lies there; decoded and written there otherwise, whole
    or not at all. None, or a folder that cannot be written: decoded into memory.
    """
    num = len(source.names)
    path = Path(cache_dir).expanduser() / f"{_cache_key(source, spec, size)}.npy" if cache_dir is not None else None
    if path is not None:
        found = _read_cache(path, num, size)
        if found is not None:
            return found
        try:
            return _write_cache(path, source, spec, size, num_workers)
        except OSError as error:
            print(f"notice: cannot write the picture cache {path.parent} ({error.strerror or error}); decoding into memory")
    pixels, unreadable = np.empty((num, size, size, 3), np.uint8), []
    _fill(pixels, unreadable, source, spec, size, num_workers)
    return pixels[: num - len(unreadable)], unreadable


def _fill(
    pixels: np.ndarray, unreadable: list[int], source: ImageSource, spec: DatasetSpec, size: int, num_workers: int | None
) -> None:
    """Decode into ``pixels``, readable pictures closed up at the front; note the others in ``unreadable``."""
    for index, picture in enumerate(_decode_all(source, spec, size, num_workers)):
        if picture is None:
            unreadable.append(index)
        else:
            pixels[index - len(unreadable)] = picture


def _write_cache(
    path: Path, source: ImageSource, spec: DatasetSpec, size: int, num_workers: int | None
) -> tuple[np.ndarray, list[int]]:
    """Decode into a new file beside ``path`` and rename it, so that no half-written cache is ever read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unfinished_", suffix=".npy")
    os.close(handle)
    unfinished, unreadable, num = Path(name), [], len(source.names)
    try:
        pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(num, size, size, 3))
        _fill(pixels, unreadable, source, spec, size, num_workers)
        if unreadable:
            pixels = _shortened(pixels, unfinished, num - len(unreadable))
        pixels.flush()
        listing = unfinished.with_suffix(".json")
        listing.write_text(json.dumps({"path": source.path, "unreadable": unreadable}))
        listing.replace(path.with_suffix(".json"))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
        unfinished.with_suffix(".json").unlink(missing_ok=True)
    found = _read_cache(path, num, size)
    if found is None:
        raise OSError(f"{path} could not be read back")
    return found


def _shortened(pixels: np.memmap, path: Path, num: int) -> np.memmap:
    """The file of ``pixels`` rewritten with its first ``num`` pictures."""
    shorter = path.with_name(path.name + ".shorter")
    try:
        copy = np.lib.format.open_memmap(shorter, mode="w+", dtype=np.uint8, shape=(num, *pixels.shape[1:]))
        for start in range(0, num, 1024):
            copy[start : min(start + 1024, num)] = pixels[start : min(start + 1024, num)]
        shorter.replace(path)
        return copy
    finally:
        shorter.unlink(missing_ok=True)
