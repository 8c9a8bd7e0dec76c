"""The output folder: a single writer, verified checkpoints, and what is kept, truncated or moved."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints.files import damage_in, intact_checkpoints, load_training_checkpoint, save_training_checkpoint
from common.errors import UserError, print_notice
from common.files import WriteError, remove_unfinished
from training.run.console import steady_output
from training.run.recorder import append_line
from training.run.run_folder import (
    FolderLock,
    clean_up,
    disk_space_warning,
    remove_old_checkpoints,
    set_aside_newer,
    truncate_log,
)


def save(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint_{step:07d}.pt"
    weights = {"weight": torch.arange(20.0) + step}
    save_training_checkpoint(
        path, {"curriculum": {"name": "x"}, "step": step, "generator": weights, "discriminator": weights, "ema": weights}
    )
    return path


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*.pt"))


# ------------------------------------------------------------------------------------------------ proof


def test_every_changed_byte_is_noticed(tmp_path):
    path = save(tmp_path, 1)
    assert damage_in(path) is None
    data, changed = path.read_bytes(), tmp_path / "changed.pt"
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        changed.write_bytes(flipped)
        assert damage_in(changed) is not None, f"byte {position} of {len(data)}"


@pytest.mark.parametrize("harm", ["cut", "zeros", "grown", "empty"])
def test_truncated_and_overwritten_files_are_noticed(tmp_path, harm):
    path = save(tmp_path, 1)
    data = path.read_bytes()
    variants = {
        "cut": [data[:length] for length in range(1, len(data), 7)] + [data[:-72], data[:-1]],
        "zeros": [data[:start] + bytes(min(200, len(data) - start)) + data[start + 200 :] for start in range(0, len(data), 100)],
        "grown": [data + b"\n", data + bytes(100), data + data],
        "empty": [b""],
    }
    for variant in variants[harm]:
        path.write_bytes(variant)
        assert damage_in(path) is not None, len(variant)
        with pytest.raises(UserError):
            load_training_checkpoint(path)


def test_files_from_before_the_checksum_still_load(tmp_path):
    state = {**load_training_checkpoint(save(tmp_path, 7))}
    path = tmp_path / "checkpoint_0000008.pt"
    torch.save(state, path)
    assert damage_in(path) is None and load_training_checkpoint(path)["step"] == 7
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor([9.0]).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    notices: list[str] = []
    assert [p.name for p in intact_checkpoints(tmp_path, notices.append)] == ["checkpoint_0000007.pt"]
    assert len(notices) == 1 and "checkpoint_0000008.pt is damaged" in notices[0]


def test_the_same_state_gives_the_same_bytes(tmp_path):
    path = save(tmp_path, 5)
    again = tmp_path / "again.pt"
    save_training_checkpoint(again, load_training_checkpoint(path))
    assert again.read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------------------------------ one writer


def in_child(action: Callable[[], None]) -> int:
    """Fork a process that performs ``action`` and sleeps. Returns its id when the action is done."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return pid


def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path):
    held = []
    pid = in_child(lambda: held.append(FolderLock(tmp_path, print_notice)))
    try:
        with pytest.raises(UserError, match=f"in use by process {pid} on "):
            FolderLock(tmp_path, print_notice)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    lock = FolderLock(tmp_path, print_notice)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path, print_notice)
    lock.release()
    FolderLock(tmp_path, print_notice).release()


def test_only_partial_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / "samples").mkdir()
    left = [".checkpoint_0000009.pt.4711.tmp", ".generator.safetensors.1.tmp", "samples/.0000500.png.12.tmp", ".write_test_99"]
    kept = ["notes.tmp", ".hidden", "checkpoint_0000001.pt", ".lock", "samples/0000500.png"]
    for name in left + kept:
        (tmp_path / name).write_text("x")
    clean_up(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    assert remove_unfinished(tmp_path / "nowhere") == []


# ------------------------------------------------------------------------------------------------ what is kept


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    for step in range(1, 11):
        save(tmp_path, step)
    remove_old_checkpoints(tmp_path, 10, 2, milestone_interval=4)
    assert steps_in(tmp_path) == [4, 8, 9, 10]
    remove_old_checkpoints(tmp_path, 10, 1, milestone_interval=0)
    assert steps_in(tmp_path) == [10]


def test_older_checkpoints_are_kept_if_the_newest_is_damaged(tmp_path):
    for step in range(1, 5):
        path = save(tmp_path, step)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WriteError, match="older checkpoints are left alone"):
        remove_old_checkpoints(tmp_path, 4, 1, 0)
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_a_damaged_later_checkpoint_does_not_affect_cleanup(tmp_path):
    for step in (1, 2, 3, 9):
        path = save(tmp_path, step)
    path.write_bytes(path.read_bytes()[:-5])
    remove_old_checkpoints(tmp_path, 3, 2, 0)
    assert steps_in(tmp_path) == [2, 3, 9]


def test_newer_checkpoints_are_moved_to_superseded(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    moved = set_aside_newer(tmp_path, 1)
    assert steps_in(tmp_path) == [1] and steps_in(tmp_path / "superseded") == [2, 3] == steps_in(moved[0].parent)


def test_superseded_checkpoints_are_not_overwritten(tmp_path):
    for content in ("first", "second", "third"):
        (tmp_path / "checkpoint_0000002.pt").write_text(content)
        set_aside_newer(tmp_path, 1)
    kept = sorted((tmp_path / "superseded").iterdir())
    assert sorted(path.read_text() for path in kept) == ["first", "second", "third"]
    assert [path.name for path in kept] == ["checkpoint_0000002.2.pt", "checkpoint_0000002.3.pt", "checkpoint_0000002.pt"]


def test_the_log_is_truncated_at_the_resumed_step(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "D/gan": 1.0}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(lines) + '{"step": 5, "D/g')
    truncate_log(path, 4)
    assert path.read_text() == "".join(lines)
    truncate_log(path, 2)
    assert path.read_text() == "".join(lines[:2])
    event = '{"step": 4, "event": "went back"}\n'
    path.write_text(lines[0] + event + lines[3])
    truncate_log(path, 1)
    assert path.read_text() == lines[0] + event
    truncate_log(tmp_path / "none", 2)


def test_low_disk_space_is_reported(tmp_path):
    assert disk_space_warning(tmp_path, 1, 3) is None
    warning = disk_space_warning(tmp_path, 10**18, 3)
    assert warning and str(tmp_path) in warning
    assert disk_space_warning(tmp_path / "gone", 1, 3) is None


# ------------------------------------------------------------------------------------------------ full disks


def test_a_line_is_appended_completely_or_not_at_all(small_disk):
    path = small_disk / "log.jsonl"
    append_line(path, "first")
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(OSError):
        append_line(path, "x" * 9000)
    assert path.read_text() == "first\n"
    (small_disk / "filler").unlink()
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_messages_that_cannot_be_printed_do_not_raise(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        with pytest.raises(OSError):
            print("to a full disk", file=full)
        with steady_output():
            print_notice("to a full disk")
        with pytest.raises(OSError):
            full.flush()
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.close()
