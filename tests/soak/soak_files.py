"""File checks of the soak test: whether files are intact, ways to damage them, and whether two runs are equal.

Checkpoints are judged here by the zip format's own CRC-32 and by SHA-256 over the bytes, not by the code under test.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.files import read_inference
from common.errors import UserError

KEPT_CHECKPOINTS = 3  # as the README promises
GENERATOR = "generator.safetensors"
TIMING_KEYS = re.compile(r"per_second|seconds|minutes|time")  # the only values in log.jsonl that may differ


def step_of(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def checkpoints_in(folder: Path) -> list[Path]:
    """Training checkpoints in order of increasing step, intact or not."""
    return sorted((path for path in folder.glob("checkpoint_*.pt") if path.is_file()), key=lambda path: step_of(path.name))


def newest_step_in(folder: Path) -> int:
    """Return the newest step by file name; 0 if there is no checkpoint."""
    return max((step_of(path.name) for path in checkpoints_in(folder)), default=0)


def temporaries_in(folder: Path) -> set[str]:
    """Partial files."""
    return {path.name for path in folder.iterdir() if path.name.endswith(".tmp")}


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
        return False


@dataclass
class Audit:
    """Watches the checkpoints of ``folder`` from one event to the next.

    whole: digest and size of each intact checkpoint. damaged_by_us: of each one damaged on purpose and not
    rewritten, its digest since then.
    """

    folder: Path
    milestone_interval: int = 0
    whole: dict[str, tuple[str, int]] = field(default_factory=dict)
    damaged_by_us: dict[str, str] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    @property
    def newest_step(self) -> int:
        """The step of the newest intact checkpoint; 0 if there is none."""
        return max((step_of(name) for name in self.whole), default=0)

    def inspect(self) -> tuple[int, list[str]]:
        """Return the number of bytes lost since the last call, and descriptions of the losses.

        Lost is a checkpoint that was whole and is damaged, changed or gone (unless newer whole ones make up the number that is
        kept and it is no milestone), and any file under a final name that is not whole.
        """
        paths = checkpoints_in(self.folder)
        digests = {path.name: digest_of(path) for path in paths}
        self.damaged_by_us = {name: value for name, value in self.damaged_by_us.items() if digests.get(name) == value}
        now = {
            path.name: (digests[path.name], path.stat().st_size)
            for path in paths
            if path.name not in self.damaged_by_us and is_whole(path)
        }
        newest_before, num_before = self.newest_step, len(self.whole)
        lost: dict[str, int] = {}
        for name, (digest, size) in self.whole.items():
            if name in now and now[name][0] != digest:
                lost[f"{name} changed"] = size
            elif name not in now and (self.folder / name).exists():
                lost[f"{name} is damaged"] = size
        for path in paths:
            if path.name not in {*now, *self.whole, *self.damaged_by_us, *self._reported}:
                lost[f"{path.name} was left half written"] = path.stat().st_size
        gone = {name: size for name, (_, size) in self.whole.items() if not (self.folder / name).exists()}
        newest_now = max((step_of(name) for name in now), default=0)
        too_few = len(now) < min(num_before, KEPT_CHECKPOINTS) or newest_now < newest_before
        for name, size in gone.items():
            if too_few or (self.milestone_interval and step_of(name) % self.milestone_interval == 0):
                lost[f"{name} is gone"] = size
        generator = self.folder / GENERATOR
        if generator.exists():
            try:
                read_inference(generator)
            except UserError as error:
                lost[str(error)] = generator.stat().st_size
        self._reported = {path.name for path in paths} - set(now)
        self.whole = now
        return sum(lost.values()), list(lost)

    def damage_newest(self, kind: str, rng: random.Random) -> str:
        """Damage the newest intact checkpoint and return its name."""
        name = max(self.whole, key=step_of)
        DAMAGES[kind](self.folder / name, rng)
        del self.whole[name]
        self.damaged_by_us[name] = digest_of(self.folder / name)
        return name


# -- ways to damage a file ---------------------------------------------------------------------------------------------


def _truncate(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(rng.randrange(1, path.stat().st_size))


def _flip_bit_in_tensor(path: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if re.search(r"/data/\d+$", info.filename) and info.file_size]
    info = rng.choices(records, weights=[info.file_size for info in records])[0]
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # of the local header: two lengths, then the name and what goes with it
        lengths = file.read(4)
        start = info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    _flip_bit(path, start + rng.randrange(info.file_size), rng)


def _flip_bit_anywhere(path: Path, rng: random.Random) -> None:
    _flip_bit(path, rng.randrange(path.stat().st_size), rng)


def _flip_bit(path: Path, place: int, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def _zero_tail(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    length = rng.randrange(size // 16, size // 2)
    with path.open("r+b") as file:
        file.seek(size - length)
        file.write(bytes(length))


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _truncate,
    "bit flipped in a tensor": _flip_bit_in_tensor,
    "tail zeroed": _zero_tail,
    "emptied": _empty,
    "bit flipped anywhere": _flip_bit_anywhere,
}


# -- two runs compared -------------------------------------------------------------------------------------------------


def flatten(value: Any, where: str = "") -> dict[str, bytes]:
    """Return the leaves of nested containers by path; tensors as type, shape and bytes, so that -0 and NaN count."""
    if isinstance(value, dict):
        items = [(f"{where}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return {where: f"{value.dtype} {tuple(value.shape)} ".encode() + raw}
    else:
        return {where: f"{type(value).__name__} {value!r}".encode()}
    leaves = {where: type(value).__name__.encode()}
    for path, item in items:
        leaves.update(flatten(item, path))
    return leaves


def _differences(what: str, expected: dict[str, bytes], found: dict[str, bytes]) -> tuple[int, list[str]]:
    """Return the number of bytes of ``expected`` that are missing or different in ``found``, and their names."""
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    num_bytes = sum(len(expected.get(name, b"")) for name in names)
    return num_bytes, [f"{what}: {len(names)} of {len(expected)} entries differ, first {names[0]!r}"] if names else []


def read_log(path: Path) -> tuple[dict[int, set[str]], int]:
    """The lines of log.jsonl per step without their times, as sets since a step trained again is logged again; and the number
    of lines that cannot be read."""
    lines: dict[int, set[str]] = {}
    num_torn = 0
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            kept = {key: value for key, value in line.items() if not TIMING_KEYS.search(key)}
            lines.setdefault(line["step"], set()).add(json.dumps(kept, sort_keys=True))
        except (ValueError, KeyError, TypeError, AttributeError):
            num_torn += 1
    return lines, num_torn


def compare_runs(reference: Path, disturbed: Path, starved: Collection[int] = ()) -> tuple[int, list[str]]:
    """Return the number of bytes of ``reference`` that are missing or different in ``disturbed``, and a list of differences.

    Compared are the training checkpoints that both have, the last among them (every entry), the generator file (byte for byte),
    the log (without its times) and every sample grid of the reference (byte for byte; grids of the steps ``starved``, at
    which the disk was full, may be missing: they are images of what the checkpoints hold).
    """
    names = [[path.name for path in checkpoints_in(folder)] for folder in (reference, disturbed)]
    if not names[0] or names[0][-1:] != names[1][-1:]:
        return 0, [f"the runs end with {names[0][-1:]} and {names[1][-1:]}"]
    pairs = {name: _contents(reference / name, disturbed / name) for name in names[0] if name in names[1]}
    logs = [read_log(folder / "log.jsonl")[0] for folder in (reference, disturbed)]
    pairs["log.jsonl"] = [{f"step {step}": "\n".join(sorted(lines)).encode() for step, lines in log.items()} for log in logs]
    files = [GENERATOR]
    for path in sorted((reference / "samples").glob("*.png")):
        name = f"samples/{path.name}"
        if step_of(path.name.removesuffix(".png")) not in starved or (disturbed / name).exists():
            files.append(name)
    pairs["files"] = [{n: (folder / n).read_bytes() for n in files if (folder / n).exists()} for folder in (reference, disturbed)]
    num_bytes, problems = 0, []
    for what, pair in pairs.items():
        lost, differing = _differences(what, *pair)
        num_bytes += lost
        problems += differing
    return num_bytes, problems


def _contents(*paths: Path) -> list[dict[str, bytes]]:
    return [flatten(torch.load(path, map_location="cpu", weights_only=True)) for path in paths]
