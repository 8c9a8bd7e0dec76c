"""Checkpoint cases: every format that this project reads; damaged and hostile files are derived from valid ones."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

import fuzz_bytes as fb
import safetensors.torch
import torch
from fuzz_targets import SMALL
from fuzz_worker import Case
from hypothesis import strategies as st

from checkpoints.files import load_training_checkpoint, read_inference
from checkpoints.safe_pickle import PickledObject
from training.run.run_state import RunState

SOUND_OPTIONS = ("\nNamespace(x=1)\n" + repr({**SMALL.to_dict(), "stages": SMALL.to_dict()["stages"]}) + "\n").encode()
PUBLISHED_OPTIONS = (
    b"Namespace()\n\n"
    b"{0: {'batch_size': 16, 'img_size': 32, 'batch_split': 1, 'gen_lr': 5e-05, 'disc_lr': 0.0002}, 100: {},"
    b" 'dataset': 'BFM', 'fov': 12, 'ray_start': 0.88, 'ray_end': 1.12, 'betas': (0, 0.9), 'sample_dist': None}\n"
)


def _module(kind: str, tensors: dict[str, torch.Tensor]) -> PickledObject:
    """A module as it is pickled, from dotted names."""
    state: dict[str, Any] = {"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}}
    children: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = value
        else:
            state["_parameters"][name] = value
    for name, parts in children.items():
        inner = "siren.siren.SPATIALSIRENBASELINE" if name == "siren" else "torch.nn.modules.container.ModuleList"
        state["_modules"][name] = _module(inner, parts)
    return PickledObject(kind, state)


class _Recorder:
    """Writes values as a pickle that names classes only by path, so the classes need not exist."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def encode(self, value: Any) -> bytes:
        if isinstance(value, PickledObject):
            module, _, name = value.class_path.rpartition(".")
            return f"c{module}\n{name}\n".encode() + b")\x81" + self.encode(value.state) + b"b"
        if isinstance(value, torch.Tensor):
            return self._encode_tensor(value)
        if isinstance(value, dict):
            return b"}(" + b"".join(self.encode(key) + self.encode(item) for key, item in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.encode, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.encode, value)) + b"t"
        if isinstance(value, set):
            return b"c__builtin__\nset\n" + self.encode(list(value)) + b"\x85R"
        if isinstance(value, str):
            return fb.text_opcode(value)
        return fb.number_opcode(value)

    def _encode_tensor(self, value: torch.Tensor) -> bytes:
        kinds = {
            torch.float16: "Half",
            torch.float64: "Double",
            torch.int64: "Long",
            torch.bool: "Bool",
            torch.bfloat16: "BFloat16",
        }
        kind, key = kinds.get(value.dtype, "Float"), str(len(self.tensors))
        self.tensors.append(value.contiguous())
        storage = b"(" + fb.text_opcode("storage") + f"ctorch\n{kind}Storage\n".encode() + fb.text_opcode(key)
        storage += fb.text_opcode("cpu") + fb.number_opcode(value.numel()) + b"tQ"
        shape = self.encode(tuple(value.shape)) + self.encode(tuple(value.contiguous().stride()))
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"\x89}tR"

    def archive(self, value: Any) -> bytes:
        program = b"\x80\x02" + self.encode(value) + b"."
        members = [("archive/data.pkl", program), ("archive/byteorder", b"little")]
        members += [
            (f"archive/data/{key}", tensor.flatten().view(torch.uint8).numpy().tobytes())
            for key, tensor in enumerate(self.tensors)
        ]
        return fb.zip_bytes([(name, content, 0, 0) for name, content in members])


def published_module_bytes(value: PickledObject) -> bytes:
    return _Recorder().archive(value)


@functools.cache
def values() -> dict[str, Any]:
    """Contents of small valid files: those of a published folder, and our own training checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        state = RunState(SMALL, 0, torch.device("cpu"), None)
        for optimizer in (state.optimizer_G, state.optimizer_D):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        path = state.save(Path(folder), world_size=1)
        state.save_generator(Path(folder))
        training = load_training_checkpoint(path)
        inference = read_inference(Path(folder) / "generator.safetensors")
        files = {"checkpoint": path.read_bytes(), "inference": (Path(folder) / "generator.safetensors").read_bytes()}
    generator = dict(training["generator"])
    average = {"decay": 0.999, "num_updates": 5, "shadow_params": list(generator.values()), "collected_params": []}
    return {
        "files": files,
        "training": training,
        "tensors": inference.tensors,
        "metadata": inference.metadata,
        "generator": generator,
        "discriminator": dict(training["discriminator"]),
        "module": _module("generators.generators.ImplicitGenerator3d", generator),
        "ema": average,
        "ema_object": PickledObject("torch_ema.ema.ExponentialMovingAverage", average),
        "optimizer": training["optimizer_G"],
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0},
    }


@functools.cache
def sound_files() -> dict[str, bytes]:
    """The same as files."""
    known = values()
    return {
        "state": fb.saved(known["generator"]),
        "state_legacy": fb.saved(known["generator"], zipped=False),
        "module": published_module_bytes(known["module"]),
        "ema": fb.saved(known["ema"]),
        "ema_object": published_module_bytes(known["ema_object"]),
        "ema_legacy": fb.saved(known["ema"], zipped=False),
        "discriminator": fb.saved(known["discriminator"]),
        "optimizer": fb.saved(known["optimizer"]),
        "scaler": fb.saved(known["scaler"]),
        "checkpoint": known["files"]["checkpoint"],
        "inference": known["files"]["inference"],
    }


# ------------------------------------------------------------------------------------------------ files


def object_junk(value: PickledObject) -> st.SearchStrategy[PickledObject]:
    """A pickled object with an error in its state, or in that of a part."""

    @st.composite
    def change(draw: st.DrawFn, part: PickledObject) -> PickledObject:
        children = part.state.get("_modules", {})
        if children and draw(st.booleans()):
            name = draw(st.sampled_from(sorted(children)))
            changed = {**children, name: draw(change(children[name]))}
            return PickledObject(part.class_path, {**part.state, "_modules": changed})
        state = draw(fb.with_junk(part.state))
        name = draw(st.sampled_from((part.class_path, part.class_path, "siren.siren.X", "os.system", "builtins.eval")))
        return PickledObject(name, state if isinstance(state, dict) else {"_parameters": state})

    return change(value)


@st.composite
def changed_contents(draw: st.DrawFn) -> bytes:
    """The values of a valid file with an error in them, saved in either format."""
    known = values()
    kind = draw(st.sampled_from(("generator", "training", "module", "ema", "ema_object", "optimizer", "scaler", "discriminator")))
    try:
        if isinstance(known[kind], PickledObject):
            return published_module_bytes(draw(object_junk(known[kind])))
        return fb.saved(draw(fb.with_junk(known[kind])), draw(st.booleans()))
    except (TypeError, ValueError, RuntimeError, UnicodeError):  # junk that no pickle can hold
        return sound_files()["state"]


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A safetensors file with a modified JSON header, of correct or wrong length."""
    data = sound_files()["inference"]
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    settings = json.loads(header["__metadata__"]["curriculum"])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        kind = draw(st.sampled_from(("curriculum", "metadata", "dtype", "shape", "offsets", "remove")))
        if kind == "curriculum" and isinstance(header.get("__metadata__"), dict):
            changed = draw(fb.with_junk(settings))
            text = draw(st.sampled_from((_json(changed), "[" * 100_000, "{}", "[]", "null", "1" * 5000, '{"stages": [1]}')))
            header["__metadata__"] = {**header["__metadata__"], "curriculum": text, "sha256": "0"}
            if draw(st.booleans()):
                del header["__metadata__"]["sha256"]
        elif kind == "metadata":
            header["__metadata__"] = draw(
                st.dictionaries(st.sampled_from(("format", "step", "curriculum", "x")), _metadata_texts())
            )
        elif kind == "remove":
            del header[name]
        elif not isinstance(header[name], dict) or name == "__metadata__":
            header[draw(st.sampled_from((name, "x", "", "\u202e", "a" * 1000)))] = draw(st.sampled_from((1, None, [], {}, "x")))
        elif kind == "dtype":
            header[name] = {**header[name], "dtype": draw(st.sampled_from(DTYPES))}
        elif kind == "shape":
            shape = draw(st.lists(st.sampled_from((0, 1, 2, 4, -1, 2**32, 2**63, 2**64)), max_size=5))
            header[name] = {**header[name], "shape": shape}
        else:
            offsets = draw(st.lists(st.sampled_from((0, 4, 64, len(body), 2**40, -1, 2**64)), max_size=3))
            header[name] = {**header[name], "data_offsets": offsets}
        if not header:
            break
    text = draw(st.just(_json(header).encode()) | st.just(_json(header).encode() + b" " * 7))
    stated = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**63, 2**31, len(text) + 1)))
    return struct.pack("<Q", stated) + text + body


ODD_DTYPES = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "uint16",
    "uint64",
    "complex64",
    "bool",
    "int8",
    "float64",
    "bfloat16",
)


@st.composite
def cast_safetensors(draw: st.DrawFn) -> bytes:
    """A valid inference file with one or all tensors in another type."""
    known = values()
    dtype = getattr(torch, draw(st.sampled_from(ODD_DTYPES)), torch.float16)
    names = draw(st.just(list(known["tensors"])) | st.sampled_from(sorted(known["tensors"])).map(lambda name: [name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the imaginary part is lost
        tensors = {name: value.to(dtype) if name in names else value for name, value in known["tensors"].items()}
    metadata = {key: value for key, value in known["metadata"].items() if key != "sha256" or draw(st.booleans())}
    return safetensors.torch.save(tensors, metadata)


DTYPES = ("F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "U16", "U64", "F4", "C64", "I4", "x", "")


def _json(value: Any) -> str:
    return json.dumps(value, default=repr, skipkeys=True)


def _metadata_texts() -> st.SearchStrategy[str]:
    texts = (
        "gof-inference-1",
        "gof-inference-2",
        "1",
        "-1",
        "1e9",
        "",
        "9" * 5000,
        "{}",
        "\n",
        "\x1b[2J",
        json.dumps(SMALL.to_dict()),
    )
    return st.sampled_from(texts)


def torch_files() -> st.SearchStrategy[bytes]:
    """Any file that might be passed as a checkpoint."""
    names = sorted(sound_files())
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    zips = st.sampled_from([name for name in names if sound_files()[name][:2] == b"PK"])
    return st.one_of(
        pairs.flatmap(lambda pair: fb.damaged(sound_files()[pair[0]], sound_files()[pair[1]])),
        zips.flatmap(lambda name: fb.tampered_zips(sound_files()[name])),
        zips.flatmap(lambda name: fb.lying_zips(sound_files()[name])),
        changed_contents(),
        changed_contents(),
        safetensors_files(),
        cast_safetensors(),
        fb.pickle_programs().map(fb.zip_around),
        fb.pickle_programs().map(fb.legacy_around),
        st.sampled_from(names).map(lambda name: sound_files()[name]),
        st.binary(max_size=200),
    )


def special_entries() -> st.SearchStrategy[Any]:
    """Things that are not files, or that never end."""
    return st.sampled_from(
        (("folder",), ("link", "/dev/zero"), ("link", "missing"), ("fifo",), ("link", "."), ("holes", 1 << 34))
    )


def entries() -> st.SearchStrategy[Any]:
    return st.one_of(*[torch_files()] * 12, special_entries())


# ------------------------------------------------------------------------------------------------ cases

NAMES = ("generator.pth", "g.safetensors", "checkpoint_0000001.pt", "x.bin")


@st.composite
def generator_cases(draw: st.DrawFn) -> Case:
    """A generator file, perhaps with an average and options beside it."""
    name = draw(st.sampled_from(NAMES))
    files = {name: draw(entries() | st.just(sound_files()["state"]))}
    if draw(st.booleans()):
        files["ema.pth"] = draw(entries())
    if draw(st.booleans()):
        files["options.txt"] = draw(options_texts())
    curriculum = draw(st.sampled_from((None, "SMALL", "SMALL", "BFM")))
    return Case("checkpoint.generator", files, (name, curriculum, draw(st.sampled_from(("ema", "ema2", "generator")))))


def reader_cases() -> st.SearchStrategy[Case]:
    """One file for one reader."""

    def make(target: str, name: str, entry: Any) -> Case:
        return Case(target, {name: entry}, (name,))

    targets = st.sampled_from(("checkpoint.torch_file", "checkpoint.training", "checkpoint.weights"))
    return st.builds(make, targets, st.sampled_from(("w.pth", "w.safetensors")), entries())


def options_texts() -> st.SearchStrategy[bytes]:
    bases = st.sampled_from((SOUND_OPTIONS, PUBLISHED_OPTIONS))
    deep = (
        "(" * 300,
        "-" * 3000 + "1",
        "[" * 100_000,
        "1" + "+1" * 50_000,
        "{'a':" * 500,
        "~" * 100_000,
        "9" * 5000,
        "0x" + "f" * 5000,
    )
    hostile = (
        "__import__('os').system('touch canary')",
        "open('canary', 'w')",
        "(lambda: 0)()",
        "[x for x in ()]",
        "f'{1}'",
        "b''",
    )
    literal = fb.with_junk({**SMALL.to_dict()}).map(lambda value: repr(value).encode("utf-8", "surrogatepass"))
    return st.one_of(
        bases,
        bases.flatmap(fb.damaged),
        st.sampled_from([text.encode() for text in (*deep, *hostile, "", "\n\n", "\0")]),
        literal,
        st.binary(max_size=50),
        st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )


def options_cases() -> st.SearchStrategy[Case]:
    return options_texts().map(lambda text: Case("checkpoint.options", {"options.txt": text}, ("options.txt",)))


RUN_FILES = {
    **{"generator.pth": "state", "discriminator.pth": "discriminator", "ema.pth": "ema", "ema2.pth": "ema_object"},
    **{"optimizer_G.pth": "optimizer", "optimizer_D.pth": "optimizer", "scaler.pth": "scaler"},
}


@st.composite
def published_run_cases(draw: st.DrawFn) -> Case:
    """A published run's folder with one or two invalid files."""
    prefix = draw(st.sampled_from(("", "", "000100_")))
    files: dict[str, Any] = {f"{prefix}{name}": sound_files()[kind] for name, kind in RUN_FILES.items()}
    for _ in range(draw(st.integers(1, 2))):
        files[draw(st.sampled_from(sorted(files)))] = draw(entries())
    if draw(st.booleans()):
        return Case("checkpoint.published_run", files, (prefix,))
    return Case("checkpoint.start_from", {name.removeprefix(prefix): entry for name, entry in files.items()}, (".",))


def resume_cases() -> st.SearchStrategy[Case]:
    """Training checkpoints that are damaged or contain an error, some of them with a correct checksum."""

    def make(entry: Any, older: Any, goes_on: bool) -> Case:
        files = {"checkpoint_0000002.pt": entry, "checkpoint_0000001.pt": older}
        return Case("checkpoint.resume", files) if goes_on else Case("checkpoint.start_from", files, (".",))

    sound = st.just(sound_files()["checkpoint"])
    return st.builds(make, training_files() | training_files() | entries(), sound | torch_files(), st.booleans())


@st.composite
def training_files(draw: st.DrawFn) -> bytes:
    from checkpoints.files import save_training_checkpoint

    content = draw(fb.with_junk(values()["training"]))
    if draw(st.booleans()) and isinstance(content, dict):
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint_0000002.pt"
                save_training_checkpoint(path, content)
                return path.read_bytes()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError):
            pass
    try:
        return fb.saved(content)
    except (TypeError, ValueError, RuntimeError, UnicodeError):
        return sound_files()["checkpoint"]


CASES: dict[str, Any] = {
    "generator files": generator_cases,
    "readers": reader_cases,
    "options.txt": options_cases,
    "published runs": published_run_cases,
    "training checkpoints": resume_cases,
}
