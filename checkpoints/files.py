"""Read and write this project's own two checkpoint formats.

- Inference file, ``NAME.safetensors``: the averaged generator's weights, the truncation means, and in its metadata the
  curriculum, the step and a SHA-256 of the tensors. A few MB; this is the file to share.
- Training checkpoint, ``checkpoint_0012000.pt``: everything a run needs to resume, as plain containers and tensors
  (``torch.load(path, weights_only=True)`` reads it). It ends with its own SHA-256, stored as the zip file's comment. The
  checksum covers every byte, and because it is in the same file it can never be out of step with the checkpoint.

Both are written to a temporary file, flushed to disk and then renamed, so a failed write leaves any existing file intact.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from checkpoints.published import curriculum_from
from checkpoints.safe_pickle import printable
from checkpoints.torch_files import LEGACY_START, ZIP_START, read_torch_file
from common.errors import UserError, print_notice
from common.files import read_head, require_file, write_atomically
from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum

INFERENCE_FORMAT = "gof-inference-1"
TRAINING_FORMAT = "gof-training-1"
REQUIRED_TRAINING_KEYS = ("curriculum", "step", "generator", "discriminator", "ema")
TRUNCATION_PREFIX = "truncation_mean."
SEAL = re.compile(rb"sha256=([0-9a-f]{64})\n")  # the last bytes of a training checkpoint: SHA-256 of all bytes before them
SEAL_BYTES = 72
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22  # the last record of a zip; it ends with the length of the comment that follows


@dataclass(frozen=True)
class InferenceFile:
    """Contents of an inference file. ``tensors`` includes the truncation means, under :data:`TRUNCATION_PREFIX`."""

    tensors: dict[str, Tensor]
    curriculum: Curriculum
    step: int
    metadata: dict[str, str]


def save_inference(
    path: str | Path,
    generator: ImplicitGenerator3d,
    step: int,
    dtype: torch.dtype = torch.float32,
    extra_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an inference file. Compute the truncation means if the generator has none yet.

    dtype: of the stored weights; torch.float16 halves the file (the truncation means stay float32).
    Raises UserError if a weight is not finite (or overflows ``dtype``) or the file cannot be written.
    """
    mean = generator.truncation_mean or generator.compute_truncation_mean()
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in generator.state_dict().items()}
    for part, value in mean._asdict().items():
        tensors[TRUNCATION_PREFIX + part] = value.detach().to("cpu", torch.float32).contiguous()
    check_finite(path, tensors)
    metadata = {
        **(extra_metadata or {}),
        "format": INFERENCE_FORMAT,
        "curriculum": json.dumps(generator.curriculum.to_dict()),
        "step": str(step),
    }
    write_safetensors(path, tensors, metadata)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors with their SHA-256 in the metadata. Equal content gives equal bytes."""
    metadata = {**metadata, "sha256": tensor_digest(tensors)}
    write_atomically(path, _sort_metadata(safetensors.torch.save(dict(tensors), metadata)))


def _sort_metadata(data: bytes) -> bytes:
    """Sort the metadata keys: safetensors writes them in an order that varies, but equal weights should give equal bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode(errors="replace"))
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_training_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write everything a run needs to resume: REQUIRED_TRAINING_KEYS and any further keys of the caller.

    state: containers (dict, list, tuple), str, int, float, bool, None, bytes, tensors. Tensors are moved to the CPU.
    Raises UserError if the file cannot be written, KeyError or TypeError if ``state`` is not as described.
    """
    missing = [key for key in REQUIRED_TRAINING_KEYS if key not in state]
    if missing:
        raise KeyError(f"a training checkpoint needs {', '.join(missing)}")
    buffer = BytesIO()  # torch.save directly to a full disk can fail without raising an exception
    torch.save(_plain({**state, "format": TRAINING_FORMAT}, "state"), buffer)
    _seal(buffer)
    write_atomically(path, buffer.getbuffer())


def _seal(buffer: BytesIO) -> None:
    """Append the SHA-256 of ``buffer``, a zip file without a comment, as the zip comment."""
    with buffer.getbuffer() as data:
        if bytes(data[-ZIP_END_BYTES:][:4]) != ZIP_END:
            raise ValueError("torch.save wrote a zip file that does not end as expected")
        data[-2:] = SEAL_BYTES.to_bytes(2, "little")
        digest = hashlib.sha256(data).hexdigest()
    buffer.seek(0, os.SEEK_END)
    buffer.write(f"sha256={digest}\n".encode())


def _plain(value: Any, where: str) -> Any:
    """Return a copy with tensors on the CPU and only types that can be read without importing a class."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        shares_more = value.untyped_storage().nbytes() != value.numel() * value.element_size()
        return value.clone() if shares_more else value  # torch.save would write the whole storage of a view
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if type(value) is str:
        return sys.intern(value)  # pickle records which strings are the same object; equal state should give equal bytes
    if value is None or type(value) in (int, float, bool, bytes):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def load_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint written by :func:`save_training_checkpoint`, with tensors on the CPU.

    Raises UserError for any other file, and for a damaged one: every byte is verified.
    """
    path = Path(path)
    content = read_torch_file(path)  # names the kind of any other file; verifies the zip members' checksums
    damage = damage_in(path)
    if damage:
        raise UserError(f"{path} is damaged: {damage}")
    return checked_training(path, content)


def is_training(content: Any) -> bool:
    """Return whether a file's content claims to be a training checkpoint of this project, of any version."""
    return isinstance(content, dict) and isinstance(content.get("format"), str)


def checked_training(path: Path, content: Any) -> dict[str, Any]:
    """Validate ``content`` of ``path`` as a complete training checkpoint and return it. Raises UserError."""
    if not is_training(content):
        raise UserError(f"{path} is not a training checkpoint of this project")
    if content["format"] != TRAINING_FORMAT:
        raise UserError(f"{path} has the format {printable(content['format'])!r}; this version reads {TRAINING_FORMAT!r}")
    missing = [key for key in REQUIRED_TRAINING_KEYS if key not in content]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it is not a complete training checkpoint")
    if type(content["step"]) is not int or content["step"] < 0:
        raise UserError(f"{path}: its step is not a non-negative integer")
    for key in ("generator", "discriminator", "ema"):
        check_state(path, key, content[key])
    return content


def check_state(path: Path, key: str, state: Any) -> Mapping[str, Tensor]:
    """Validate that ``state``, the entry ``key`` of ``path``, maps names to tensors, and return it. Raises UserError."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: its entry {key!r} is not a dictionary of named tensors")
    return state


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Steps and paths of the training checkpoints in ``folder``, judged by file name, newest first."""
    found: list[tuple[int, Path]] = []
    for path in Path(folder).glob("checkpoint_*.pt"):
        match = re.fullmatch(r"checkpoint_(\d+)\.pt", path.name, re.ASCII)
        if match and path.is_file():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def intact_checkpoints(folder: str | Path, notice: Callable[[str], None] = print_notice) -> Iterator[Path]:
    """Yield the intact training checkpoints in ``folder``, newest first. Damaged ones are skipped with a notice."""
    for _, path in list_checkpoints(folder):
        damage = damage_in(path)
        if damage is None:
            yield path
        else:
            notice(f"{path} is damaged ({damage}); trying the previous checkpoint")


def latest_checkpoint(output_dir: str | Path, notice: Callable[[str], None] = print_notice) -> Path | None:
    """Return the intact training checkpoint of the highest step, or None. Damaged ones are skipped with a notice."""
    return next(intact_checkpoints(output_dir, notice), None)


def damage_in(path: Path) -> str | None:
    """Describe how a training checkpoint is damaged; None if it is intact.

    For older files without a SHA-256 at the end, only the CRCs of the zip members are checked.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - SEAL_BYTES))
            end = file.read()
            seal = SEAL.fullmatch(end)
            if seal is None:
                record = end[-ZIP_END_BYTES:]
                if not record.startswith(ZIP_END) or record[-2:] != b"\0\0":
                    return "its end is missing or was modified"
                return None if _members_are_intact(path) else "one of its members does not match its checksum"
            file.seek(0)
            digest, remaining = hashlib.sha256(), size - SEAL_BYTES
            while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
                digest.update(block)
                remaining -= len(block)
            return None if digest.hexdigest().encode() == seal[1] else "its bytes do not match their SHA-256"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _members_are_intact(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and any(name.endswith("/data.pkl") for name in archive.namelist())
    except Exception:  # zipfile raises many types of exceptions on a damaged file
        return False


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts as safetensors files do, with a length and JSON, and not as a torch file."""
    start = read_head(path, len(LEGACY_START))
    return start[8:9] == b"{" and not start.startswith((ZIP_START, LEGACY_START[:4]))


def read_inference(path: str | Path) -> InferenceFile:
    """Read an inference file onto the CPU. Raises UserError for any other file."""
    path = require_file(path)
    tensors, metadata = read_safetensors(path, INFERENCE_FORMAT, ("curriculum", "step"))
    try:
        settings, step = json.loads(metadata["curriculum"]), int(metadata["step"])
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its metadata is damaged") from None
    return InferenceFile(tensors, curriculum_from(path, settings), step, metadata)


def read_safetensors(path: Path, file_format: str, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read CPU tensors and metadata of a ``file_format`` file whose metadata must have ``keys``. Raises UserError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises exceptions of its own, of the OS and of torch
        raise UserError(f"{path} is damaged or not a safetensors file ({printable(error)})") from None
    if metadata.get("format") != file_format:
        found = printable(metadata.get("format"))
        raise UserError(f"{path} has the format {found!r}; this version reads {file_format!r}")
    missing = [key for key in keys if key not in metadata]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)} in its metadata")
    if "sha256" in metadata and metadata["sha256"] != tensor_digest(tensors):
        raise UserError(f"{path} is damaged: its tensors do not match their checksum")
    return tensors, metadata


def check_finite(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Raise UserError for the first tensor that contains NaN or infinity."""
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} contains values that are not finite (NaN or infinity); its training run diverged")
