"""This project's own files: round trips, atomic writes, and one-line errors for damaged files."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import loading as checkpoints
from checkpoints.files import latest_checkpoint, load_training_checkpoint, save_inference, save_training_checkpoint
from checkpoints.loading import load_generator
from common.errors import UserError
from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS

SMALL = CURRICULUMS["SYNTH_TINY"].with_overrides(["hidden_dim=8", "num_layers=2", "latent_dim=4"])


def small_generator(curriculum: Curriculum = SMALL, seed: int = 0) -> ImplicitGenerator3d:
    torch.manual_seed(seed)
    return ImplicitGenerator3d(curriculum)


def training_state(step: int = 12_000) -> dict[str, Any]:
    generator = small_generator()
    optimizer = torch.optim.Adam(generator.parameters(), betas=(0.0, 0.9))
    generator.styles(torch.ones(1, SMALL.latent_dim)).frequencies.sum().backward()
    optimizer.step()
    return {
        "curriculum": SMALL.to_dict(),
        "step": step,
        "generator": generator.state_dict(),
        "discriminator": {"layers.0.weight": torch.ones(2)},
        "ema": small_generator(seed=1).state_dict(),
        "ema2": small_generator(seed=2).state_dict(),
        "optimizer_G": optimizer.state_dict(),
        "random": {"torch": torch.get_rng_state(), "python": (3, (1, 2, 3), None)},
    }


def assert_same_weights(generator: ImplicitGenerator3d, expected: ImplicitGenerator3d) -> None:
    found, wanted = generator.state_dict(), expected.state_dict()
    assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# ------------------------------------------------------------------------------------------------ inference files


@pytest.mark.parametrize("model", ["SPATIALSIRENBASELINE", "EmbeddingPiGAN256"])
def test_inference_round_trip(tmp_path: Path, model: str) -> None:
    generator, path = small_generator(SMALL.with_overrides([f"model={model}"])), tmp_path / "new" / "g.safetensors"
    save_inference(path, generator, 123, extra_metadata={"note": "n", "format": "not for the caller to say"})
    random_state = torch.get_rng_state()
    loaded = load_generator(path)
    assert torch.equal(torch.get_rng_state(), random_state), "loading must not change what is drawn next"
    assert (loaded.step, loaded.curriculum, loaded.notes) == (123, generator.curriculum, []) and not loaded.generator.training
    assert_same_weights(loaded.generator, generator)
    mean = loaded.generator.truncation_mean
    assert mean is not None and all(torch.equal(a, b) for a, b in zip(mean, generator.truncation_mean, strict=True))
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "gof-inference-1" and metadata["step"] == "123" and metadata["note"] == "n"
    assert Curriculum.from_dict(json.loads(metadata["curriculum"])) == generator.curriculum


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.safetensors" for index in range(4)]
    for path in paths:
        save_inference(path, small_generator(), 1, extra_metadata={"a": "1", "b": "2"})
    assert len({path.read_bytes() for path in paths}) == 1


def test_half_precision(tmp_path: Path) -> None:
    generator = small_generator()
    save_inference(tmp_path / "full.safetensors", generator, 1)
    save_inference(tmp_path / "half.safetensors", generator, 1, dtype=torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < (tmp_path / "full.safetensors").stat().st_size
    loaded = load_generator(tmp_path / "half.safetensors")
    for name, value in loaded.generator.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, generator.state_dict()[name].half().float())
    assert all(torch.equal(a, b) for a, b in zip(loaded.generator.truncation_mean, generator.truncation_mean, strict=True))
    with torch.no_grad():
        generator.siren.final_layer.bias.fill_(1e6)  # more than float16 holds
    with pytest.raises(UserError, match="not finite"):
        save_inference(tmp_path / "half.safetensors", generator, 1, dtype=torch.float16)
    load_generator(tmp_path / "half.safetensors")


def test_the_users_curriculum_replaces_that_of_the_file(tmp_path: Path) -> None:
    save_inference(tmp_path / "g.safetensors", small_generator(), 1)
    other = SMALL.with_overrides(["fov=20", "num_steps_coarse=24"])
    loaded = load_generator(tmp_path / "g.safetensors", other)
    assert loaded.curriculum == other == loaded.generator.curriculum
    for override in ("hidden_dim=16", "model=TALLSIREN", "num_layers=3", "latent_dim=5"):
        with pytest.raises(UserError, match=override.split("=")[0]):
            load_generator(tmp_path / "g.safetensors", SMALL.with_overrides([override]))


def test_bare_name_of_a_pretrained_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PRETRAINED_DIR", tmp_path)
    save_inference(tmp_path / "heads.safetensors", small_generator(), 7)
    assert load_generator("heads").step == 7
    with pytest.raises(UserError, match=r"no generator file haeds.*heads"):
        load_generator("haeds")


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str | None) -> None:
    """Change a safetensors file's tensors or metadata; a value of None removes the key."""
    with safetensors.safe_open(path, framework="pt") as file:
        merged = {**file.metadata(), **metadata, "sha256": None}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kept = {key: value for key, value in merged.items() if value is not None}
    path.write_bytes(safetensors.torch.save({**found, **(tensors or {})}, kept))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "gof-inference-9"}, "gof-inference-9"),
        ({"format": None}, "format"),
        ({"step": None}, "lacks step"),
        ({"step": "many"}, "metadata is damaged"),
        ({"curriculum": "{"}, "metadata is damaged"),
        ({"curriculum": "[]"}, "not a valid curriculum"),
        ({"curriculum": '{"dataset": "x"}'}, "'stages' is missing"),
        ({"curriculum": '{"dataset": "x", "end_step": 1, "stages": 3}'}, "stages must be a list"),
        ({"curriculum": json.dumps({**SMALL.to_dict(), "hidden_dim": 10**6})}, r"generator needs \(1000000, 3\)"),
        ({"curriculum": json.dumps({**SMALL.to_dict(), "hidden_dim": 10**30})}, "hidden_dim must be a whole number"),
        ({"curriculum": json.dumps({**SMALL.to_dict(), "num_layers": 1000})}, "larger network"),
        ({"curriculum": json.dumps({**SMALL.to_dict(), "num_layers": 1})}, "siren.mapping_network.network.6.weight has shape"),
        ({"curriculum": json.dumps({**SMALL.to_dict(), "num_layers": 3})}, "lacks the parameter siren.network.2"),
    ],
)
def test_wrong_metadata(tmp_path: Path, metadata: dict[str, str | None], message: str) -> None:
    path = tmp_path / "g.safetensors"
    save_inference(path, small_generator(), 1)
    rewrite(path, **metadata)
    with pytest.raises(UserError, match=message):
        load_generator(path)


def test_wrong_tensors(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    for name, value, message in (
        ("siren.final_layer.bias", torch.tensor([float("nan")]), "siren.final_layer.bias contains values that are not finite"),
        ("siren.final_layer.bias", torch.tensor([1]), "int64"),
        ("siren.final_layer.bias", torch.ones(2), r"siren.final_layer.bias has shape \(2,\), but the generator needs \(1,\)"),
        ("siren.more", torch.ones(2), "unexpected parameter siren.more"),
        ("truncation_mean.frequencies", torch.ones(1, 3), "truncation_mean.frequencies"),
        ("truncation_mean.phase_shifts", torch.full((1, 24), float("inf")), "truncation_mean.phase_shifts"),
    ):
        save_inference(path, small_generator(), 1)
        rewrite(path, {name: value})
        with pytest.raises(UserError, match=message):
            load_generator(path)


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    save_inference(tmp_path / "g.pth", small_generator(), 1)
    save_training_checkpoint(tmp_path / "g.safetensors", training_state())
    assert load_generator(tmp_path / "g.pth").step == 1 and load_generator(tmp_path / "g.safetensors").step == 12_000


# ------------------------------------------------------------------------------------------------ training checkpoints


def assert_equal_values(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal_values(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_equal_values(left, right)
    else:
        assert type(found) is type(expected) and found == expected


def test_training_round_trip(tmp_path: Path) -> None:
    state, path = training_state(), tmp_path / "checkpoint_0012000.pt"
    save_training_checkpoint(path, state)
    expected = {**state, "format": "gof-training-1"}
    assert_equal_values(load_training_checkpoint(path), expected)
    assert_equal_values(torch.load(path, weights_only=True), expected)
    optimizer = torch.optim.Adam(small_generator().parameters())
    optimizer.load_state_dict(load_training_checkpoint(path)["optimizer_G"])


def test_generator_of_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_0012000.pt"
    save_training_checkpoint(path, training_state())
    loaded = load_generator(path)
    assert loaded.step == 12_000 and loaded.curriculum == SMALL
    assert_same_weights(loaded.generator, small_generator(seed=1))
    assert_same_weights(load_generator(path, weights="ema2").generator, small_generator(seed=2))
    with pytest.raises(UserError, match="weights"):
        load_generator(path, weights="best")


def test_views_are_saved_without_the_rest_of_their_storage(tmp_path: Path) -> None:
    state = {**training_state(), "view": torch.zeros(10**6)[:3], "repeated": torch.ones(1).expand(4)}
    save_training_checkpoint(tmp_path / "checkpoint_1.pt", state)
    assert (tmp_path / "checkpoint_1.pt").stat().st_size < 200_000
    assert torch.equal(load_training_checkpoint(tmp_path / "checkpoint_1.pt")["repeated"], torch.ones(4))


def test_required_entries_of_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_1.pt"
    with pytest.raises(KeyError, match="ema"):
        save_training_checkpoint(path, {key: value for key, value in training_state().items() if key != "ema"})
    with pytest.raises(TypeError, match=r"state\['curriculum'\]"):
        save_training_checkpoint(path, {**training_state(), "curriculum": SMALL})
    assert not path.exists()
    good = {**training_state(), "format": "gof-training-1"}
    for change, message in (
        ({"format": "gof-training-9"}, "gof-training-9"),
        ({"ema": None}, "'ema'"),
        ({"ema": {"a": 1}}, "'ema'"),
        ({"step": "x"}, "step"),
    ):
        torch.save({**good, **change}, path)
        for load in (load_training_checkpoint, load_generator):
            with pytest.raises(UserError, match=message):
                load(path)
    torch.save({key: value for key, value in good.items() if key not in ("ema", "step")}, path)
    with pytest.raises(UserError, match="lacks step, ema"):
        load_training_checkpoint(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="not a training checkpoint"):
        load_training_checkpoint(path)
    torch.save({**good, "curriculum": {"fov": 3}}, path)
    with pytest.raises(UserError, match="'dataset' is missing"):
        load_generator(path)


def test_latest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "missing") is None
    for step in (900, 10_000, 9_000):
        save_training_checkpoint(tmp_path / f"checkpoint_{step:07d}.pt", training_state(step))
    (tmp_path / "checkpoint_last.pt").write_text("not one of ours")
    newest = tmp_path / "checkpoint_0010000.pt"
    notices: list[str] = []
    assert latest_checkpoint(tmp_path, notices.append) == newest and not notices
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2])
    assert latest_checkpoint(tmp_path, notices.append) == tmp_path / "checkpoint_0009000.pt"
    assert len(notices) == 1 and newest.name in notices[0]
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    newest.write_bytes(flipped)
    assert latest_checkpoint(tmp_path, notices.append) == tmp_path / "checkpoint_0009000.pt"


# ------------------------------------------------------------------------------------------------ all or nothing


class _FullDisk:
    """A file whose disk fills up half-way through the write."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: bytes) -> None:
        self.file.write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    inference, training = tmp_path / "g.safetensors", tmp_path / "checkpoint_1.pt"
    save_inference(inference, small_generator(), 1)
    save_training_checkpoint(training, training_state(1))
    before = {path: path.read_bytes() for path in (inference, training)}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        original = Path.open
        monkeypatch.setattr(Path, "open", lambda self, mode="r": _FullDisk(original(self, mode)))
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(UserError, match="No space left"):
        save_inference(inference, small_generator(seed=5), 2)
    with pytest.raises(UserError, match="No space left"):
        save_training_checkpoint(training, training_state(2))
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, "the old files, and no leftovers"


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        save_inference(tmp_path / "file" / "g.safetensors", small_generator(), 1)
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save_training_checkpoint(tmp_path / "folder.pt", training_state())


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    save_inference(folder / "g.safetensors", small_generator(), 1)
    save_training_checkpoint(folder / "c.pt", training_state())
    torch.save(small_generator().state_dict(), folder / "generator.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["g.safetensors", "c.pt", "generator.pth"]),
    where=st.integers(0, 2**31),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_damage_is_a_user_error(
    tmp_path: Path, whole_files: dict[str, bytes], name: str, where: int, bit: int, cut: bool
) -> None:
    data = bytearray(whole_files[name])
    # half of the damage goes to the first kilobyte: headers and pickles break in more ways than weights
    index = where // 2 % min(len(data), 1024 if where % 2 else len(data))
    if cut:
        del data[index:]
    else:
        data[index] ^= 1 << bit
    path = tmp_path / name
    path.write_bytes(data)
    try:
        loaded = load_generator(path, SMALL)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert not cut, "a file cut short must not load"
        if name == "g.safetensors":  # the checksum guards the weights; metadata such as the step may change
            assert_same_weights(loaded.generator, small_generator())


def test_loaded_generator_is_frozen(tmp_path: Path) -> None:
    save_inference(tmp_path / "g.safetensors", small_generator(), 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_generator(tmp_path / "g.safetensors").step = 2
