"""Published files are read as data: correctly if valid, rejected in one line if hostile or damaged."""

from __future__ import annotations

import ast
import io
import os
import pickle
import pickletools
import shutil
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoints import safe_pickle
from checkpoints.loading import load_generator
from checkpoints.published import (
    average_path,
    load_published_discriminator,
    load_published_training,
    module_state,
    read_options_curriculum,
    read_published_average,
    read_published_weights,
)
from checkpoints.safe_pickle import PickledObject
from checkpoints.torch_files import read_torch_file
from common.errors import UserError
from reference import load_meta, load_weights
from reference import published_files as published
from settings.registry import CURRICULUMS

# ------------------------------------------------------------------------------------------------ files made by hand


def write_zip(
    path: Path, data_pkl: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """A torch zip archive around a hand-made pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, value in (records or {}).items():
            archive.writestr(f"archive/data/{key}", value)
    return path


def write_legacy(path: Path, main_pickle: bytes) -> Path:
    """torch's legacy format around a hand-made pickle that uses no tensors."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    path.write_bytes(b"".join([*parts, main_pickle, pickle.dumps([], protocol=2)]))
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module: str, name: str, *arguments: str) -> bytes:
    """GLOBAL, a tuple of texts, REDUCE."""
    return f"c{module}\n{name}\n(".encode() + b"".join(text(argument) for argument in arguments) + b"tR"


def hostile_pickles(marker: Path) -> dict[str, tuple[bytes, str]]:
    """name -> (a pickle that makes ``marker`` if it is run, what the refusal must mention)."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    good = b"ctorch.nn.modules.container\nSequential\n"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return {
        "os.system": (b"\x80\x02" + call("os", "system", command) + b".", "os.system"),
        "posix.system": (b"\x80\x02" + call("posix", "system", command) + b".", "posix.system"),
        "builtins.eval": (b"\x80\x02" + call("builtins", "eval", code) + b".", "builtins.eval"),
        "python 2 eval": (b"\x80\x02" + call("__builtin__", "eval", code) + b".", "builtins.eval"),
        "subprocess": (b"\x80\x02" + call("subprocess", "getoutput", command) + b".", "subprocess.getoutput"),
        "stack global": (b"\x80\x04" + text("os") + text("system") + b"\x93" + text(command) + b"\x85R.", "os.system"),
        "inst": (b"(" + text(command) + b"ios\nsystem\n.", "os.system"),
        "inst of a known class": (b"(itorch.nn.modules.container\nSequential\n.", "INST"),
        "obj": (b"(cos\nsystem\n" + text(command) + b"o.", "os.system"),
        "obj of a known class": (b"(" + good + text(command) + b"o.", "OBJ"),
        "module called with a payload": (b"\x80\x02" + good + b"(" + call("os", "system", command) + b"tR.", "os.system"),
        "module called": (b"\x80\x02" + good + b"(" + text(command) + b"tR.", "Sequential"),
        "module made with arguments": (b"\x80\x02" + good + b"(" + text(command) + b"t\x81.", "with arguments"),
        "function in a known package": (b"\x80\x02" + call("torch.nn.modules.utils", "os", command) + b".", "utils.os"),
        "dotted name": (b"\x80\x04" + text("torch.nn.modules.module") + text("Module.os.system") + b"\x93.", "Module.os"),
        "lookalike package": (b"\x80\x02" + call("torch.nn.modules_evil", "Linear", command) + b".", "modules_evil"),
        "getattr chain": (
            b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("system") + b"tR.",
            "builtins.getattr",
        ),
        "build with __setstate__": (
            b"\x80\x02" + good + b")\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + text(command) + b"b.",
            "os.system",
        ),
        "build with text": (b"\x80\x02" + good + b")\x81" + text(command) + b"b.", "not a dictionary"),
        "build on a function": (b"\x80\x02" + tensor + b"N}" + text("__defaults__") + b"Ns\x86b.", "state of a GlobalName"),
        "build on a class": (b"\x80\x02" + good + b"N}" + text("__init__") + b"Ns\x86b.", "state of a GlobalName"),
        "call a tensor": (b"\x80\x02" + good + b")\x81" + b")R.", "call a PickledObject"),
        "os.system behind the memo": (b"\x80\x02cos\nsystem\nq\x000h\x00" + text(command) + b"\x85R.", "os.system"),
        "extension": (b"\x80\x02\x82\x01" + text(command) + b"\x85R.", "EXT1"),
        "persistent id": (b"\x80\x02" + text(command) + b"Q.", "unknown format"),
        "text persistent id": (b"Pstorage\n.", "PERSID"),
        "numpy": (b"\x80\x02" + call("numpy.core.multiarray", "_reconstruct", "x") + b".", "numpy"),
        "functools.partial": (b"\x80\x02" + call("functools", "partial", "x") + b".", "functools.partial"),
        "torch.load": (b"\x80\x02" + call("torch.serialization", "load", "x") + b".", "torch.serialization.load"),
    }


HOSTILE = sorted(hostile_pickles(Path("unused")))


@pytest.mark.parametrize("form", [write_zip, write_legacy])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: str, form: Any) -> None:
    marker = tmp_path / "ran"
    data, mention = hostile_pickles(marker)[name]
    path = form(tmp_path / "generator.pth", data)
    with pytest.raises(UserError) as caught:
        load_generator(path, CURRICULUMS["BFM"])
    message = str(caught.value)
    assert not marker.exists()
    assert mention in message and str(path) in message and "\n" not in message


def test_the_hostile_pickles_are_live(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing: Python's unpickler must execute these pickles."""
    for name in ("os.system", "builtins.eval", "stack global", "inst", "obj", "os.system behind the memo"):
        marker = tmp_path / "ran"
        pickle.loads(hostile_pickles(marker)[name][0])
        assert marker.exists(), name
        marker.unlink()


def test_hostile_average_beside_a_good_generator(tmp_path: Path, published_files: Path) -> None:
    shutil.copy(published_files / "generator.pth", tmp_path / "generator.pth")
    marker = tmp_path / "ran"
    write_zip(tmp_path / "ema.pth", hostile_pickles(marker)["os.system"][0])
    with pytest.raises(UserError, match=r"ema\.pth asks to run os\.system; refused"):
        load_generator(tmp_path / "generator.pth", CURRICULUMS["BFM"])
    assert not marker.exists()


class _RunsOnReduce:
    """A hostile object as torch.save writes it, inside an otherwise ordinary state dict."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_value_inside_a_state_dict(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "generator.pth"
    state = {"weight": torch.ones(3), "extra": _RunsOnReduce(f"touch {marker}")}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks to run (posix|nt)\.system; refused"):
        read_torch_file(path)
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------ bounds


def tensor_pickle(num_elements: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """One tensor over storage "0" of ``num_elements`` floats, with the given description."""

    def number(value: int) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(num_elements) + b"tQ"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride) + b"\x89NtR."
    )


def test_tensor_made_by_hand(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    path = write_zip(tmp_path / "a.pth", tensor_pickle(6, (2, 2), (3, 1), 1), {"0": values.numpy().tobytes()})
    assert torch.equal(read_torch_file(path), torch.tensor([[1.0, 2.0], [4.0, 5.0]]))


@pytest.mark.parametrize(
    "data",
    [
        tensor_pickle(6, (7,), (1,)),
        tensor_pickle(6, (2, 3), (4, 1)),
        tensor_pickle(6, (1,), (1,), 6),
        tensor_pickle(6, (0,), (1,), 7),
        tensor_pickle(6, (-1,), (1,)),
        tensor_pickle(6, (1,), (1,), -1),
        tensor_pickle(6, (2,), (-1,), 3),
        tensor_pickle(6, (10**9,), (0,)),  # repeats one element: small here, 4 GB in the first copy of it
        tensor_pickle(10**12, (10**12,), (1,)),
        tensor_pickle(2**70, (1,), (1,)),
        tensor_pickle(6, (1,) * 20, (1,) * 20),
    ],
)
def test_tensor_beyond_its_data_is_refused(tmp_path: Path, data: bytes) -> None:
    for path in (write_zip(tmp_path / "a.pth", data, {"0": b"\0" * 24}), write_legacy(tmp_path / "b.pth", data)):
        with pytest.raises(UserError):
            read_torch_file(path)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = write_zip(tmp_path / "zip.pth", b"\x80\x02N.", {"0": b"\0" * 10**7}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(bomb)
    deep = write_zip(tmp_path / "deep.pth", b"\x80\x02" + b"]" + b"\x85" * 200_000 + b".")
    with pytest.raises(UserError, match="deep"):
        read_torch_file(deep)
    key = write_zip(tmp_path / "key.pth", b"\x80\x02}]" + b"\x85" * 200_000 + b"Ns.")
    with pytest.raises(UserError, match="dictionary key"):  # hashing it would overflow the C stack
        read_torch_file(key)
    cycle = write_zip(tmp_path / "cycle.pth", b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(UserError, match="contains itself"):
        read_torch_file(cycle)
    numbers = b"".join(pickle.dumps(index, protocol=2)[2:-1] for index in range(1000))
    copies = write_zip(tmp_path / "copies.pth", b"\x80\x02]q\x00(" + numbers + b"e" + b"cbuiltins\nset\nh\x00\x85R" * 5000 + b".")
    with pytest.raises(UserError, match="copies too much"):
        read_torch_file(copies)
    memo = write_zip(tmp_path / "memo.pth", b"\x80\x02Nr\xff\xff\xff\xff.")  # CPython's unpickler allocates 64 GB for this one
    assert read_torch_file(memo) is None
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 1000)
    many = write_zip(tmp_path / "many.pth", b"\x80\x02" + b"N0" * 1000 + b"N.")
    with pytest.raises(UserError, match="instructions"):
        read_torch_file(many)


def test_module_with_parts_of_the_wrong_kind() -> None:
    good: dict[str, Any] = {"_parameters": {}, "_modules": {}, "_buffers": {"a": torch.ones(1)}}
    for change in ({"_non_persistent_buffers_set": 3}, {"_parameters": []}, {"_modules": {"0": "text"}}, {"_buffers": None}):
        with pytest.raises(UserError):
            module_state(PickledObject("torch.nn.modules.linear.Linear", {**good, **change}))


def test_module_that_holds_itself_many_times_is_refused() -> None:
    module = PickledObject("torch.nn.modules.linear.Linear", {"_parameters": {"weight": torch.ones(1)}, "_modules": {}})
    for _ in range(60):
        module = PickledObject(
            "torch.nn.modules.container.Sequential", {"_parameters": {}, "_modules": {"0": module, "1": module}}
        )
    with pytest.raises(UserError, match="parts"):
        module_state(module)


# ------------------------------------------------------------------------------------------------ damaged and wrong files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is text\n",
        b"PK\x03\x04 but no zip",
        b"\x80\x02}.",
        b"\0" * 100,
        b"PK\x05\x06" + b"\0" * 18,
        b"{}",
        b"\xff" * 9,
    ],
)
def test_files_that_are_not_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "generator.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"generator\.pth"):
        load_generator(path, CURRICULUMS["BFM"])
    with pytest.raises(UserError, match=r"generator\.pth"):
        read_torch_file(path)


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.pth", tmp_path / ("x" * 5000), tmp_path / "missing" / "a.pth"):
        with pytest.raises(UserError):
            read_torch_file(path)
        with pytest.raises(UserError):
            load_generator(path, CURRICULUMS["BFM"])


def test_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    with pytest.raises(UserError, match=r"not one that torch\.save wrote"):
        read_torch_file(tmp_path / "a.zip")


def _small_files() -> dict[str, bytes]:
    state = {
        "siren.a": torch.arange(4.0),
        "b": [1, 2.5, None, (True, "x"), {"k"}],
        "c": OrderedDict(d=torch.ones(2, dtype=torch.bool)),
    }
    files = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    return files


SMALL_FILES = _small_files()


@settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(form=st.sampled_from(sorted(SMALL_FILES)), position=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_gives_a_user_error_or_a_value(tmp_path: Path, form: str, position: float, bit: int, cut: bool) -> None:
    data = bytearray(SMALL_FILES[form])
    index = int(position * (len(data) - 1))
    if cut:
        del data[index:]
    else:
        data[index] ^= 1 << bit
    path = tmp_path / "damaged.pth"
    path.write_bytes(data)
    for read in (read_torch_file, lambda file: load_generator(file, CURRICULUMS["BFM"])):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.lists(st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes]) | st.binary(max_size=3), max_size=40)
)
def test_random_programs_give_a_user_error_or_a_value(tmp_path: Path, data: list[bytes]) -> None:
    path = write_zip(tmp_path / "random.pth", b"\x80\x02" + b"".join(data) + b".")
    try:
        read_torch_file(path)
    except UserError as error:
        assert "\n" not in str(error)


# ------------------------------------------------------------------------------------------------ good files


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_come_back_as_torch_load_gives_them(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(12.0)
    state = {
        "tensors": [torch.randn(3, 4).to(dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)],
        "integers": [torch.arange(5).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)],
        "bool": torch.tensor([True, False]),
        "views": (base[2:6], base.view(3, 4).t(), torch.empty(0), torch.tensor(3.0)),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": [1, -(2**40), 2.5, None, True, "text", b"bytes\x00\xff", (1, (2,)), {1, 2}, OrderedDict(a=1), {0: {"step": 3}}],
        "kinds": [torch.float16, torch.Size([1, 2])],
    }
    path = tmp_path / "plain.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    read, expected = read_torch_file(path), torch.load(path, weights_only=True)
    assert list(read) == list(expected)
    for key in ("tensors", "integers", "views"):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(read[key], expected[key], strict=True))
    assert torch.equal(read["bool"], expected["bool"]) and torch.equal(read["parameter"], expected["parameter"].detach())
    assert read["plain"] == expected["plain"] and read["kinds"] == [torch.float16, (1, 2)]


class _Embedding(nn.Module):
    """A module with a parameter and buffers of its own beside children, one of them shared and one absent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.BatchNorm1d(3))
        self.spatial_embeddings = nn.Parameter(torch.randn(1, 2, 3))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.absent = None
        self.device = torch.device("cuda", 0)  # as a module trained on a GPU remembers it
        self.register_parameter("nothing", None)
        self.again = self.first[0]


_Embedding.__module__, _Embedding.__qualname__, _Embedding.__name__ = "siren.siren", "EmbeddingPiGAN128", "EmbeddingPiGAN128"


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("zipped", [True, False])
def test_whole_module_flattens_as_its_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    import siren.siren

    monkeypatch.setattr(siren.siren, "EmbeddingPiGAN128", _Embedding, raising=False)
    module, path = _Embedding(), tmp_path / "module.pth"
    torch.save(module, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()  # from here on the class cannot be imported
    read = read_torch_file(path)
    assert read.class_path == "siren.siren.EmbeddingPiGAN128" and read.state["device"] == "cuda:0"
    flat, expected = module_state(read), module.state_dict()
    assert list(flat) == list(expected) and all(torch.equal(flat[name], expected[name]) for name in expected)
    assert next(iter(flat)) == "spatial_embeddings"


def test_data_parallel_prefix_is_dropped(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "module.b": torch.ones(1)}, tmp_path / "g.pth")
    assert list(read_published_weights(tmp_path / "g.pth").state) == ["a", "b"]
    torch.save({"freq_phase_layer.weight": torch.ones(1), "layers.0": torch.ones(2)}, tmp_path / "discriminator.pth")
    assert list(load_published_discriminator(tmp_path / "discriminator.pth")) == ["layers.0"]


def test_published_files(published_files: Path) -> None:
    folder, recorded = published_files, load_meta()["gen_params"]
    state = read_published_weights(folder / "generator.pth")
    whole = read_published_weights(folder / "whole_module/generator.pth")
    for weights in (state, whole):
        assert [[name, list(value.shape)] for name, value in weights.state.items()] == recorded
    assert whole.model == "SPATIALSIRENBASELINE" and whole.step == 5000
    shapes = {name: shape for name, shape in recorded}
    average = read_published_average(folder / "ema.pth", list(shapes), shapes)
    assert average.decay == 0.999 and average.num_updates == 5000
    # whole_module/ holds the averaged weights, generator.pth perturbed ones
    for name, value in load_weights().items():
        assert torch.equal(average.state[name], value) and torch.equal(whole.state[name], value)
    assert not torch.equal(average.state["siren.final_layer.weight"], state.state["siren.final_layer.weight"])


def test_published_files_name_the_published_classes(published_files: Path) -> None:
    average = read_torch_file(published_files / "ema.pth")
    module = read_torch_file(published_files / "whole_module/generator.pth")
    assert average.class_path == "torch_ema.ema.ExponentialMovingAverage"
    assert module.class_path == "generators.generators.ImplicitGenerator3d"
    assert module.state["_modules"]["siren"].class_path == "generators.siren.SPATIALSIRENBASELINE"
    assert not {"generators.generators", "generators.siren", "torch_ema.ema"} & sys.modules.keys()  # read without them


def test_published_generator_loads(published_files: Path) -> None:
    folder = published_files
    averaged = load_generator(folder / "generator.pth")
    own = load_generator(folder / "generator.pth", CURRICULUMS["BFM"], weights="generator")
    whole = load_generator(folder / "whole_module/generator.pth", CURRICULUMS["BFM"])
    assert averaged.curriculum == replace(CURRICULUMS["BFM"], hollow_check_interval=0)  # which the published code has not
    assert not averaged.generator.training
    for name, value in load_weights().items():
        found = [loaded.generator.state_dict()[name] for loaded in (averaged, whole, own)]
        assert torch.equal(found[0], value) and torch.equal(found[1], value) and not torch.equal(found[2], value)
    assert not any("own weights" in note for note in averaged.notes)
    assert any("ema.pth" in note and "own weights" in note for note in whole.notes)
    with pytest.raises(UserError, match="--curriculum"):
        load_generator(folder / "whole_module/generator.pth")  # no options.txt next to it
    # the file's network settings override those of the curriculum
    narrow = load_generator(folder / "generator.pth", CURRICULUMS["SYNTH_TINY"])
    assert narrow.curriculum.hidden_dim == 256 and narrow.curriculum.fov == CURRICULUMS["SYNTH_TINY"].fov
    assert any("has hidden_dim 256, which overrides 64 of curriculum SYNTH_TINY" in note for note in narrow.notes)
    tall = CURRICULUMS["BFM"].with_overrides(["model=TALLSIREN"])
    spatial = load_generator(folder / "whole_module/generator.pth", tall)
    assert spatial.curriculum.model == "SPATIALSIRENBASELINE"  # the same shapes, another scale
    assert any("has model SPATIALSIRENBASELINE, which overrides TALLSIREN" in note for note in spatial.notes)
    without = load_generator(folder / "whole_module/generator.pth", fallback=CURRICULUMS["CelebA"])
    assert not without.is_camera_known and averaged.is_camera_known
    assert any("does not name its curriculum" in note for note in without.notes)


@pytest.fixture
def pickled_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a whole module whose SIREN has a class path of our choice; within DataParallel if ``wrapper``."""

    def write(siren_module: str, siren_class: str, wrapper: bool = False) -> Path:
        module = published.ImplicitGenerator3d()
        module.load_state_dict(load_weights())
        with published.published_class_paths(), monkeypatch.context() as patch:
            renamed = type(siren_class, (published.SPATIALSIRENBASELINE,), {"__module__": siren_module})
            patch.setattr(sys.modules[siren_module], siren_class, renamed, raising=False)
            module.siren.__class__ = renamed
            torch.save(nn.DataParallel(module) if wrapper else module, tmp_path / "generator.pth")
        return tmp_path / "generator.pth"

    return write


def test_a_module_of_pigan_is_read_as_a_radiance_field(pickled_module: Callable[..., Path]) -> None:
    import siren.siren  # noqa: F401  the module whose name pi-GAN's classes have

    path = pickled_module("siren.siren", "TALLSIREN")
    for name in ("CelebA", "CATS64"):
        loaded = load_generator(path, CURRICULUMS[name])
        c = loaded.curriculum
        assert not c.pred_occ and not c.surface_sample and (c.num_steps_coarse, c.num_steps_fine) == (12, 12)
        assert c.model == "TALLSIREN" and c.h_stddev == CURRICULUMS[name].h_stddev
        assert any("pi-GAN module: loaded as a radiance field" in note for note in loaded.notes)
    own = load_generator(path, CURRICULUMS["PIGAN_CelebA"])
    assert own.curriculum == replace(CURRICULUMS["PIGAN_CelebA"], model="TALLSIREN")
    assert [note for note in own.notes if "which overrides" in note] == [
        f"{path} has model TALLSIREN, which overrides SPATIALSIRENBASELINE of curriculum PIGAN_CelebA"
    ]


WRAPPED = (
    "module.module.",
    "_orig_mod.",
    "inner _orig_mod",
    "DataParallel",
    "state_dict",
    "nested",
    "g_ema",
    "generator",
    "trainer",
)


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_around_a_generator_are_removed(tmp_path: Path, pickled_module: Callable[..., Path], kind: str) -> None:
    weights, path = load_weights(), tmp_path / "generator.pth"
    contents = {
        "module.module.": {f"module.module.{name}": value for name, value in weights.items()},
        "_orig_mod.": {f"_orig_mod.{name}": value for name, value in weights.items()},
        "inner _orig_mod": {name.replace("siren.", "siren._orig_mod.", 1): value for name, value in weights.items()},
        "state_dict": {"state_dict": weights, "epoch": 3},
        "nested": {"model": {"state_dict": {f"module.{name}": value for name, value in weights.items()}}, "args": {"lr": 1}},
        "g_ema": {"g_ema": weights, "g": {}, "d": {}},
        "generator": {"step": 1, "generator": weights, "discriminator": {}},
        "trainer": {f"model.generator.{name}": value for name, value in weights.items()} | {"model.disc.0": torch.zeros(1)},
    }
    if kind == "DataParallel":
        pickled_module("generators.siren", "SPATIALSIRENBASELINE", wrapper=True)
    else:
        torch.save(contents[kind], path)
    loaded = load_generator(path, CURRICULUMS["BFM"])
    for name, value in weights.items():
        assert torch.equal(loaded.generator.state_dict()[name], value)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page: the download was denied or requires a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer.* git lfs pull"),
        (b"\x1f\x8b" + bytes(30), "gzip; unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a 7z archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(30), "an HDF5 file"),
        (b"\x93NUMPY" + bytes(30), "a NumPy array"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "a PNG image"),
        (bytes(400), "all zeros"),
    ],
)
def test_errors_name_what_a_file_is_instead_of_a_checkpoint(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "generator.pth").write_bytes(content)
    with pytest.raises(UserError, match=told):
        load_generator(tmp_path / "generator.pth", CURRICULUMS["BFM"])


def test_errors_for_zips_that_are_not_checkpoints_name_the_fix(tmp_path: Path) -> None:
    for members, told in (
        ({"CelebA/generator.pth": b"x", "CelebA/ema.pth": b"x"}, r"unpack it and pass CelebA/generator\.pth"),
        ({"a.txt": b"x"}, "unpack it and pass the checkpoint inside"),
        ({"m/constants.pkl": b"x", "m/code/a.py": b"x"}, "a TorchScript program"),
    ):
        with zipfile.ZipFile(tmp_path / "generator.pth", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match=told):
            load_generator(tmp_path / "generator.pth", CURRICULUMS["BFM"])
    torch.save({"optimizer": {}, "epoch": 3}, tmp_path / "generator.pth")
    with pytest.raises(UserError, match=r"it contains optimizer, epoch; save the generator's own state dict"):
        load_generator(tmp_path / "generator.pth", CURRICULUMS["BFM"])


def test_average_that_does_not_fit(tmp_path: Path) -> None:
    shapes = {"a": (2,), "b": (3,)}
    for shadow, message in (
        ([torch.ones(2)], "averages 1 parameters"),
        ([torch.ones(2), torch.ones(4)], r"average of b is \(4,\)"),
    ):
        torch.save({"decay": 0.9, "num_updates": 1, "shadow_params": shadow}, tmp_path / "ema.pth")
        with pytest.raises(UserError, match=message):
            read_published_average(tmp_path / "ema.pth", list(shapes), shapes)
    torch.save({"decay": 0.9, "num_updates": 1, "shadow_params": [torch.zeros(2), torch.ones(3)]}, tmp_path / "ema.pth")
    assert torch.equal(read_published_average(tmp_path / "ema.pth", list(shapes), shapes).state["b"], torch.ones(3))


def test_path_of_the_average() -> None:
    assert average_path("/runs/generator_7/generator.pth") == Path("/runs/generator_7/ema.pth")
    assert average_path("runs/002000_generator.pth", "ema2") == Path("runs/002000_ema2.pth")
    assert average_path("runs/weights.pth") is None


def test_options(tmp_path: Path, published_files: Path) -> None:
    path = published_files / "options.txt"
    stated = ast.literal_eval(path.read_text().strip().splitlines()[-1])
    curriculum = read_options_curriculum(path)
    for key, value in stated.items():
        if isinstance(key, str):
            name = "view_last_back" if key == "eval_last_back" else key  # stored as None where it is the default
            found, bfm = getattr(curriculum, name), getattr(CURRICULUMS["BFM"], name)
            assert found == value == bfm, key
    assert curriculum.stages == CURRICULUMS["BFM"].stages and curriculum.end_step == 80_000
    marker = tmp_path / "ran"
    for line in (f"__import__('os').system('touch {marker}')", "", "{", "[1]", "{0: 3, 'fov': 12}", "(" * 5000, "{'fov': []}"):
        (tmp_path / "options.txt").write_text(f"Namespace()\n\n{line}")
        with pytest.raises(UserError, match=r"options\.txt"):
            read_options_curriculum(tmp_path / "options.txt")
    assert not marker.exists()


def test_published_training(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.0, 0.9))
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(network.state_dict(), tmp_path / "generator.pth")
    torch.save(network.state_dict(), tmp_path / "discriminator.pth")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer_G.pth")
    torch.save({"shadow_params": [torch.zeros(3, 2), torch.zeros(3)]}, tmp_path / "ema2.pth")
    found, notes = load_published_training(tmp_path)
    assert list(found["generator"]) == ["0.weight", "0.bias"] == list(found["ema2"]) and found["ema"] is None
    fresh = torch.optim.Adam(network.parameters())
    fresh.load_state_dict(found["optimizer_G"])
    assert fresh.param_groups[0]["betas"] == (0.0, 0.9)
    assert [note.split()[3] for note in notes] == ["ema.pth;", "optimizer_D.pth;"]
    (tmp_path / "generator.pth").unlink()
    with pytest.raises(UserError, match=r"generator\.pth"):
        load_published_training(tmp_path)
    torch.save([1], tmp_path / "generator.pth")
    with pytest.raises(UserError, match="network"):
        load_published_training(tmp_path)
