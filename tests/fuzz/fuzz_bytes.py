"""Strategies that damage bytes, and the zip archives, pickles and values that checkpoints are made of."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import torch
from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
INTERESTING = tuple(number.to_bytes(width, order) for number in NUMBERS for width in (1, 2, 4, 8) for order in ("little", "big")
                    if number < 256**width)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes, other: bytes = b"", most: int = 4) -> bytes:
    """``data`` truncated, with bits flipped, bytes overwritten, parts removed, repeated, or taken from ``other``."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        if not result:
            break
        # half of the damage goes to the beginning, where headers are, or the end, where zips have theirs
        reach = draw(st.sampled_from((len(result), min(64, len(result)), min(1024, len(result)))))
        place = draw(st.integers(0, reach - 1))
        if draw(st.booleans()):
            place = len(result) - 1 - place
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 1000)))
        kind = draw(st.sampled_from(("flip", "flip", "set", "set", "cut", "remove", "repeat", "take", "insert")))
        if kind == "flip":
            result[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            value = draw(st.sampled_from(INTERESTING))
            result[place : place + len(value)] = value
        elif kind == "cut":
            del result[place:]
        elif kind == "remove":
            del result[place : place + length]
        elif kind == "repeat":
            result[place:place] = result[place : place + length] * draw(st.sampled_from((1, 2, 50)))
        elif kind == "take" and other:
            start = draw(st.integers(0, len(other) - 1))
            result[place : place + length] = other[start : start + length]
        else:
            result[place:place] = draw(st.binary(max_size=16))
    return bytes(result)


# ------------------------------------------------------------------------------------------------ zip archives

ODD_NAMES = (
    *("../evil", "/etc/evil", "..\\evil", "C:\\evil", "archive/../data.pkl", "archive/data.pkl/", "archive//data.pkl", "", "."),
    *("archive/data/0", "archive/data/../data.pkl", "a" * 300, "arch\0ive/x", "other/data.pkl", "archive/byteorder"),
    *("\u202e.png",),
)


def zip_bytes(members: list[tuple[str, bytes, int, int]]) -> bytes:
    """An archive of (name, content, compression, external attributes); names may repeat."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content, compression, attributes in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.compress_type, info.external_attr = name, compression, attributes
            archive._didModify = True
            _write_member(archive, info, content)
    return buffer.getvalue()


def _write_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names are meant
        archive.writestr(info, content)


def read_members(data: bytes) -> list[tuple[str, bytes, int, int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info), zipfile.ZIP_STORED, 0) for info in archive.infolist()]


SYMLINK = 0o120777 << 16


@st.composite
def tampered_zips(draw: st.DrawFn, data: bytes) -> bytes:
    """The archive ``data`` with members changed, added, duplicated, renamed, compressed, removed; a valid zip."""
    members = read_members(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(members) - 1)) if members else 0
        name, content, compression, attributes = members[place] if members else ("archive/data.pkl", b"", 0, 0)
        kind = draw(
            st.sampled_from(("damage", "damage", "damage", "add", "double", "rename", "compress", "remove", "link", "bomb"))
        )
        if kind == "damage" and content:
            content = draw(damaged(content, most=2))
            members[place : place + 1] = [(name, content, compression, attributes)]
        elif kind in ("add", "double"):
            added = draw(st.sampled_from(ODD_NAMES)) if kind == "add" else name
            members.insert(draw(st.integers(0, len(members))), (added, draw(st.binary(max_size=64)), zipfile.ZIP_STORED, 0))
        elif kind == "rename":
            members[place : place + 1] = [(draw(st.sampled_from(ODD_NAMES)), content, compression, attributes)]
        elif kind == "compress":
            method = draw(st.sampled_from((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
            members[place : place + 1] = [(name, content, method, attributes)]
        elif kind == "remove" and members:
            del members[place]
        elif kind == "link":
            members.append((name, b"/etc/passwd", zipfile.ZIP_STORED, SYMLINK))
        elif kind == "bomb":
            members.append((name, b"\0" * (4 << 20), draw(st.sampled_from((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))), 0))
    return zip_bytes(members)


def lying_zip(data: bytes, member: int, **fields: int) -> bytes:
    """The archive ``data`` with a wrong directory entry: method, flags, CRC, stored size, size or offset."""
    layout = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "stored": (20, "<I"), "size": (24, "<I"),
              "offset": (42, "<I")}  # fmt: skip
    result = bytearray(data)
    places = [place for place in range(len(data) - 4) if data[place : place + 4] == b"PK\x01\x02"]
    for name, value in fields.items():
        offset, kind = layout[name]
        struct.pack_into(kind, result, places[member % len(places)] + offset, value % 256 ** struct.calcsize(kind))
    return bytes(result)


@st.composite
def lying_zips(draw: st.DrawFn, data: bytes) -> bytes:
    """Wrong sizes, offsets (overlapping members), methods and flags."""
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(("flags", "method", "crc", "stored", "size", "offset")))
        value = draw(st.sampled_from((0, 1, 8, 9, 12, 14, 64, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) | st.integers(0, len(data)))
        data = lying_zip(data, draw(st.integers(0, 100)), **{name: value})
    return data


# ------------------------------------------------------------------------------------------------ pickles

CANARIES = tuple(
    f"c{module}\n{name}\n".encode()
    for module, name in (
        *(("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "print")),
        *(("__builtin__", "eval"), ("builtins", "getattr"), ("builtins", "open"), ("subprocess", "Popen"), ("nt", "system")),
        *(("torch.nn.modules.module", "Module.__setattr__"), ("torch.nn.modules.container", "os"), ("torch.hub", "load")),
        *(("torch.storage", "_load_from_bytes"), ("numpy", "load"), ("functools", "partial"), ("copyreg", "_reconstructor")),
    )
)
KNOWN_NAMES = tuple(
    f"c{module}\n{name}\n".encode()
    for module, name in (
        *(("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_parameter")),
        *(("collections", "OrderedDict"), ("__builtin__", "set"), ("_codecs", "encode"), ("torch", "Size"), ("torch", "device")),
        *(("torch", "float32"), ("torch", "FloatStorage"), ("torch", "LongStorage"), ("torch.nn.modules.linear", "Linear")),
        *(("generators.generators", "ImplicitGenerator3d"), ("siren.siren", "SPATIALSIRENBASELINE")),
        *(("torch_ema.ema", "ExponentialMovingAverage"), ("torch.nn.modules.container", "ModuleList")),
    )
)


def text_opcode(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number_opcode(number: int) -> bytes:
    return pickle.dumps(number, protocol=2)[2:-1]


STORAGE = b"(" + text_opcode("storage") + b"ctorch\nFloatStorage\n" + text_opcode("0") + text_opcode("cpu") + b"K\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}tR"
PAYLOAD = text_opcode("open('canary', 'w')")
SNIPPETS = (
    *(b"}", b"]", b")", b"(", b"t", b"l", b"d", b"R", b"b", b"s", b"u", b"a", b"e", b"0", b"1", b"2", b"N", b"\x88", b"\x85"),
    *(b"\x86", b"\x87", b"\x81", b"\x90", b"\x8f", b"\x91", b"\x94", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"Q", b"o", b"\x93"),
    *(b"K\x05", b"M\xff\xff", b"J\xff\xff\xff\xff", b"G\x7f\xf0\0\0\0\0\0\0", b"L99999999999999999999L\n", b"I01\n", b"F1e999\n"),
    *(b"\x82\x01", b"\x83\x01\x00", b"\x84\xff\xff\xff\x7f", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"p99999\n", b"g0\n"),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8a\x05\xff\xff\xff\xff\x00", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"),
    *(b"\x95\xff\0\0\0\0\0\0\0",),
    *(STORAGE, TENSOR, PAYLOAD, PAYLOAD + b"\x85R", b"(" + PAYLOAD + b"ios\nsystem\n", b")\x81}b"),
    *(b"}(" + text_opcode("_modules"),),
    *(text_opcode("state"), text_opcode("latin1"), text_opcode("storage"), b"U\x03abc", b"C\x02\xff\x00", b"Pid\n", b"\x80\x05"),
)


def pickle_programs(max_size: int = 60) -> st.SearchStrategy[bytes]:
    """Pickles that decode: instructions with arguments, known and hostile names, calls, deep nesting, huge numbers."""
    repeated = st.tuples(st.sampled_from(SNIPPETS), st.sampled_from((1, 1, 1, 1, 1, 1, 3, 2000))).map(
        lambda pair: pair[0] * pair[1]
    )
    plain = st.sampled_from([code.code.encode("latin1") for code in pickletools.opcodes])
    parts = repeated | repeated | st.sampled_from(KNOWN_NAMES) | st.sampled_from(CANARIES) | plain | st.binary(max_size=3)
    protocols = st.sampled_from((b"\x80\x02", b"\x80\x02", b"\x80\x04", b""))
    return st.tuples(protocols, st.lists(parts, max_size=max_size)).map(lambda pair: pair[0] + b"".join(pair[1]) + b".")


def zip_around(program: bytes) -> bytes:
    """A torch archive with that pickle and 16 bytes of tensor data under the key 0."""
    records = {"data.pkl": program, "byteorder": b"little", "data/0": b"\0\0\x80?" * 4, "version": b"3\n"}
    return zip_bytes([(f"archive/{name}", content, zipfile.ZIP_STORED, 0) for name, content in records.items()])


def legacy_around(program: bytes) -> bytes:
    """torch's legacy format around that pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    data = struct.pack("<q", 4) + b"\0\0\x80?" * 4
    return b"".join([*parts, program, pickle.dumps(["0"], protocol=2), data])


# ------------------------------------------------------------------------------------------------ values

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 1 << 5000, 0.0, 0.5, -1.5, 1e308, 1e-320, float("nan")),
    *(float("inf"), float("-inf"), "", "x", "1", "\n", "\x1b[31m", "\ud800", "a" * 3000, b"", b"\xff", (), (1,), (0, 0), [], [1]),
    *([[]], {}, {"a": 1}, {0: 3}, {1: {2: 3}}, {"state": {}}, {"_modules": None}, {1, 2}, [None] * 200, {"weights": 1}),
)


def junk_values() -> st.SearchStrategy[Any]:
    """Values of every type that a checkpoint can hold, including unusual tensors."""
    return st.sampled_from(JUNK) | st.builds(make_tensor, st.sampled_from(TENSOR_KINDS))


TENSOR_KINDS = ("empty", "scalar", "nan", "int", "bool", "half", "double", "many", "vector", "bfloat", "big")


def make_tensor(kind: str) -> torch.Tensor:
    return {
        "empty": torch.empty(0),
        "scalar": torch.tensor(3.0),
        "nan": torch.full((2, 2), float("nan")),
        "int": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "half": torch.ones(4, 3, dtype=torch.float16),
        "double": torch.ones(1, dtype=torch.float64),
        "many": torch.ones((1,) * 15),
        "vector": torch.ones(2),
        "bfloat": torch.ones(4, dtype=torch.bfloat16),
        "big": torch.full((4,), 3e38),
    }[kind]


@st.composite
def with_junk(draw: st.DrawFn, value: Any, depth: int = 0) -> Any:
    """A copy of nested dictionaries, lists and tuples in which one item is replaced, removed, added or renamed."""
    if isinstance(value, dict) and value and (depth == 0 or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(list(value)))
        kind = draw(st.sampled_from(("change", "change", "change", "remove", "add", "rename", "cast")))
        changed = dict(value)
        if kind == "change":
            changed[key] = draw(with_junk(value[key], depth + 1))
        elif kind == "remove":
            del changed[key]
        elif kind == "add":
            changed[draw(st.sampled_from(("x", "", "\n", 5, None, "a" * 500, "truncation_mean.frequencies")))] = draw(
                junk_values()
            )
        elif kind == "rename":
            changed[draw(st.sampled_from(("x", 3, key)))] = changed.pop(key)
        elif isinstance(value[key], torch.Tensor):
            changed[key] = draw(st.sampled_from((_half, torch.Tensor.double, torch.Tensor.long, _flat, _negative, _infinite)))(
                value[key]
            )
        return changed
    if isinstance(value, (list, tuple)) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return type(value)([*value[:place], draw(with_junk(value[place], depth + 1)), *value[place + 1 :]])
    return draw(junk_values())


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half()


def _flat(value: torch.Tensor) -> torch.Tensor:
    return value.flatten()


def _negative(value: torch.Tensor) -> torch.Tensor:
    return value * -1


def _infinite(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("inf")) if value.is_floating_point() else value


def saved(value: Any, zipped: bool = True) -> bytes:
    """The bytes that torch.save writes, in the new or the legacy format."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()
