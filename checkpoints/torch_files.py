"""Read files written by torch.save into tensors and plain containers, without importing or executing anything in them.

Both formats are supported: the zip archive (torch 1.6 and later) and the legacy stream of pickles. Tensors are returned
detached on the CPU. A tensor that claims more elements than its file contains is rejected, so memory stays within a small
multiple of the file size. Whole pickled modules and other objects are returned as
:class:`checkpoints.safe_pickle.PickledObject`.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from checkpoints.safe_pickle import GlobalName, PickleRefused, Vocabulary, checked_key, printable, read_pickle
from common.errors import UserError
from common.file_kinds import HEAD_BYTES, describe
from common.files import read_head

ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # a pickle of the legacy format's magic number
_MAX_DIMENSIONS = 16

_STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}

# Packages whose classes have instances in published files. These become PickledObject. Functions and everything else in the
# packages are rejected, hence the capital letter.
_KNOWN_MODULE = re.compile(
    r"(torch\.nn\.(modules|parallel)|generators|siren|discriminators|torch_ema)(\.[a-z_][a-z_0-9]*)*", re.ASCII
)
_KNOWN_CLASS = re.compile(r"_?[A-Z][A-Za-z0-9_]*", re.ASCII)


def read_torch_file(path: str | Path) -> Any:
    """Read the object that torch.save wrote to ``path``: containers, scalars, CPU tensors, PickledObject for modules.

    Raises UserError, in one line that names the file, if it is missing, damaged, not a torch file, or requests anything
    beyond data. Nothing in the file is ever executed.
    """
    path, head = Path(path), read_head(path, HEAD_BYTES)
    if not head.startswith((ZIP_START, LEGACY_START)):
        described = describe(head) or "neither a torch file nor a safetensors file"
        raise UserError(f"{path} is not a checkpoint: it is {described}")
    try:
        return _read_zip(path) if head.startswith(ZIP_START) else _read_legacy(path)
    except PickleRefused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged or was cut short ({printable(error)}); download or copy it again") from None
    except Exception as error:  # decoding damaged bytes can raise any exception; it does not indicate a bug here
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__}: {printable(error)})") from None


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size for member in members):
            raise PickleRefused("contains compressed members, which torch never writes; refused")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise PickleRefused("contains members larger than itself; refused")
        names = {member.filename: member.file_size for member in members}
        if len(names) != len(members):
            raise PickleRefused("contains two members with the same name; refused")
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise PickleRefused(_describe_zip(names))
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise PickleRefused("was written on a big-endian machine; save it again on a little-endian one")

        def load(key: str, dtype: torch.dtype, num_elements: int) -> Tensor:
            name = f"{folder}data/{key}"
            num_bytes = num_elements * dtype.itemsize
            if names.get(name, -1) < num_bytes:
                raise PickleRefused(f"lacks the data of a tensor ({printable(name)}); it is damaged or was cut short")
            return _tensor_from_bytes(archive.read(name)[:num_bytes], dtype)  # read() checks the CRC

        return read_pickle(io.BytesIO(archive.read(pickles[0])), _vocabulary(), _Storages(load))


def _describe_zip(names: Iterable[str]) -> str:
    """Describe a zip file that is not a checkpoint. The text completes "this file ..."."""
    inside = [name for name in names if name.endswith((".pth", ".pt", ".safetensors"))]
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, not weights; save the generator's state dict instead"
    what = printable(inside[0]) if inside else "the checkpoint inside, if there is one"
    return f"is a zip file, but not one that torch.save wrote; unpack it and pass {what}"


def _read_legacy(path: Path) -> Any:
    """Read the legacy format: magic number, version, machine, object, storage keys, and per key a count and its bytes."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    bytes_left = len(data)

    def reserve(key: str, dtype: torch.dtype, num_elements: int) -> Tensor:
        nonlocal bytes_left
        bytes_left -= num_elements * dtype.itemsize
        if bytes_left < 0:
            raise PickleRefused("claims more tensor data than it has bytes; it is damaged or was cut short")
        return torch.zeros(num_elements, dtype=dtype)

    no_names = Vocabulary()
    read_pickle(stream, no_names)  # the magic number
    if read_pickle(stream, no_names) != 1001:
        raise PickleRefused("has an unknown version of torch's legacy format")
    if read_pickle(stream, no_names).get("little_endian") is not True:
        raise PickleRefused("was written on a big-endian machine; save it again on a little-endian one")
    storages = _Storages(reserve)
    result = read_pickle(stream, _vocabulary(), storages)
    keys = read_pickle(stream, no_names)
    if not isinstance(keys, list) or len(keys) != len(storages.loaded) or set(keys) != set(storages.loaded):
        raise PickleRefused("lists different tensor data than its objects use; it is damaged")
    for key in keys:
        storage = storages.loaded[key]
        num_bytes = storage.numel() * storage.dtype.itemsize
        count, raw = stream.read(8), stream.read(num_bytes)
        if int.from_bytes(count, "little") != storage.numel() or len(raw) != num_bytes:
            raise PickleRefused("has tensor data of the wrong length; it is damaged or was cut short")
        storage.copy_(_tensor_from_bytes(raw, storage.dtype))
    return result


def _tensor_from_bytes(raw: bytes, dtype: torch.dtype) -> Tensor:
    if not raw:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # a byte other than 0 or 1 is not a valid bool
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(raw), dtype=dtype)


class _Storages:
    """Resolves a pickle's persistent ids ("storage", type, key, location, number of elements) to flat tensors."""

    def __init__(self, load: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self.load = load
        self.loaded: dict[str, Tensor] = {}

    def __call__(self, persistent_id: Any) -> Any:
        if not isinstance(persistent_id, tuple) or not persistent_id:
            _refuse_reference()
        if persistent_id[0] == "module" and len(persistent_id) == 4 and isinstance(persistent_id[1], GlobalName):
            return persistent_id[1]  # the legacy format stores a class's source code with it
        if persistent_id[0] != "storage" or len(persistent_id) not in (5, 6) or persistent_id[5:] not in ((), (None,)):
            _refuse_reference()
        kind, key, _, num_elements = persistent_id[1:5]
        if not isinstance(kind, GlobalName) or kind.path not in _STORAGE_DTYPES or not isinstance(key, str):
            _refuse_reference()
        dtype = _STORAGE_DTYPES[kind.path]
        _check_size(num_elements)
        if key not in self.loaded:
            self.loaded[key] = self.load(key, dtype, num_elements)
        storage = self.loaded[key]
        if storage.dtype != dtype or storage.numel() != num_elements:
            raise PickleRefused("describes the same tensor data in two ways; refused")
        return storage


def _refuse_reference() -> NoReturn:
    raise PickleRefused("refers to tensor data in an unknown format; refused")


def _check_size(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**62:
        raise PickleRefused("contains a tensor whose size is not a valid integer; refused")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_hooks_and_flags: Any) -> Tensor:
    """Return a view of ``storage`` that neither exceeds nor repeats it. Our own torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, Tensor) or type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise PickleRefused("describes a tensor in an unknown format; refused")
    if len(size) > _MAX_DIMENSIONS:
        raise PickleRefused(f"has a tensor of {len(size)} dimensions; refused")
    num_elements, last = 1, offset
    for value in (offset, *size, *stride):
        _check_size(value)
    for length, step in zip(size, stride, strict=True):
        num_elements *= length
        last += (length - 1) * step
    if num_elements > storage.numel() or (num_elements > 0 and last >= storage.numel()) or offset > storage.numel():
        raise PickleRefused("contains a tensor that extends beyond its data; refused")
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Any, *_hooks_and_flags: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise PickleRefused("describes a parameter in an unknown format; refused")
    return data


def _ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    pairs = arguments[0] if arguments else []
    return OrderedDict((checked_key(key), value) for key, value in pairs)


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple, set, frozenset):
        raise PickleRefused("describes a set in an unknown format; refused")
    return {checked_key(item) for item in items}


def _encode(text: Any, encoding: Any) -> bytes:
    """Decode bytes as pickle protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleRefused("describes bytes in an unknown format; refused")
    return text.encode("latin1")


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, (str, int)))


def _is_known_class(module: str, name: str) -> bool:
    return _KNOWN_MODULE.fullmatch(module) is not None and _KNOWN_CLASS.fullmatch(name) is not None


@functools.cache
def _vocabulary() -> Vocabulary:
    dtypes = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    return Vocabulary(
        calls={
            "torch._utils._rebuild_tensor": _rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
            "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
            "collections.OrderedDict": _ordered_dict,
            "builtins.set": _set,
            "_codecs.encode": _encode,
            "torch.Size": _size,
            "torch.device": _device,
        },
        constants={str(dtype): dtype for dtype in dtypes},
        tags=frozenset(_STORAGE_DTYPES),
        is_known_class=_is_known_class,
    )
