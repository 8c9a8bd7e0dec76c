"""A short soak test, and tests that its checks detect differences, losses, and each kind of damage."""

from __future__ import annotations

import json
import random
import resource
import signal
from pathlib import Path

import pytest
import torch

from checkpoints.files import latest_checkpoint, save_training_checkpoint
from soak.soak import QUICK, Event, Size, Soak, plan_events
from soak.soak_files import DAMAGES, GENERATOR, Audit, compare_runs, temporaries_in
from training.run.recorder import Recorder

SHORT = Size(
    num_kills=2,
    num_corruptions=1,
    num_full_disks=1,
    num_steps=120,  # many, so that there is room for all events where a busy machine is late with its kills
    interval=5,
    milestone_interval=7,
    num_images=24,
    ball_radius=0.0,
)
EVENTS = [
    Event(signal.SIGKILL, "save", damage="bit flipped in a tensor"),
    Event(signal.SIGTERM, "step"),
    Event(None, "starved", room=0.5),
]


def test_a_run_with_kills_full_disks_and_damage_equals_an_undisturbed_one(tmp_path):
    tally = Soak(tmp_path, SHORT, seed=1, disk="limit").run(EVENTS)
    assert tally.problems == []
    assert tally.identical
    assert tally.kills_by_signal == {"SIGKILL": 1, "SIGTERM": 1}
    assert (tally.corrupted, tally.full_disks, tally.bytes_lost) == (1, 1, 0)
    assert tally.most_steps_lost_to_a_kill <= SHORT.interval
    assert not temporaries_in(tmp_path / "disturbed")


def test_log_lines_are_written_when_there_is_space_again(tmp_path, capsys):
    recorder = Recorder(tmp_path, step=0, end_step=9, use_tensorboard=False)
    log = tmp_path / "log.jsonl"
    recorder.event(1, "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in (2, 3):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 5, before[1]))
            recorder.event(step, "no room")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(log.read_text().splitlines()) == 1
    recorder.event(4, "room")
    recorder.close()
    errors = capsys.readouterr().err
    assert errors.count("could be written") == 1 and errors.count("works again") == 1
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def write_run(folder: Path, steps: tuple[int, ...] = (5,)) -> Path:
    """The files of a run, in small."""
    folder.mkdir()
    for step in steps:
        weights = {"w": torch.arange(4096.0) + step, "zero": torch.zeros(2)}
        state = {"curriculum": {}, "step": step, "generator": weights, "discriminator": weights, "ema": weights}
        save_training_checkpoint(folder / f"checkpoint_{step:07d}.pt", state)
    (folder / GENERATOR).write_bytes(b"generator")
    lines = [{"step": step, "D/gan": step / 7, "images_per_second": random.random()} for step in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_equal_runs_compare_equal_whatever_their_times_and_repeated_lines(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    log = b / "log.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[2] + "\n")
    assert compare_runs(a, b) == (0, [])


def change_weight(folder: Path) -> None:
    path = folder / "checkpoint_0000005.pt"
    state = torch.load(path, weights_only=True)
    state["ema"]["zero"][1] = -0.0  # equal to 0 as a number, not bit for bit
    torch.save(state, path)


def edit_log(folder: Path, old: str, new: str) -> None:
    log = folder / "log.jsonl"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new, 1))


CHANGES = {
    "checkpoint_0000005.pt": change_weight,
    "log.jsonl: 2 of 5 entries differ, first 'step 2'": lambda folder: edit_log(folder, '"step": 3,', '"step": 2,'),
    "log.jsonl: 1 of 5 entries differ, first 'step 1'": lambda folder: edit_log(folder, "0.14285714285714285", "0.142857"),
    GENERATOR: lambda folder: (folder / GENERATOR).write_bytes(b"Generator"),
    "end with": lambda folder: (folder / "checkpoint_0000005.pt").rename(folder / "checkpoint_0000004.pt"),
}


@pytest.mark.parametrize("named", CHANGES)
def test_every_difference_is_detected(tmp_path, named):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    CHANGES[named](b)
    assert any(named in text for text in compare_runs(a, b)[1])


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_damage_is_skipped_by_training(tmp_path, kind):
    for seed in range(20):
        folder = write_run(tmp_path / str(seed), steps=(4, 5))
        (folder / GENERATOR).unlink()
        audit = Audit(folder)
        assert audit.inspect() == (0, []) and audit.newest_step == 5
        assert audit.damage_newest(kind, random.Random(seed)) == "checkpoint_0000005.pt"
        assert audit.inspect() == (0, []) and audit.newest_step == 4  # what is damaged on purpose is no loss
        notices = []
        assert latest_checkpoint(folder, notices.append) == folder / "checkpoint_0000004.pt"
        assert len(notices) == 1 and "checkpoint_0000005.pt is damaged" in notices[0]


def test_lost_files_are_detected(tmp_path):
    folder = write_run(tmp_path / "run", steps=(2, 3, 4, 5))
    (folder / GENERATOR).unlink()
    audit = Audit(folder)
    audit.inspect()
    guarding = Audit(folder, milestone_interval=2)
    guarding.inspect()
    paths = {step: folder / f"checkpoint_{step:07d}.pt" for step in (2, 3, 4, 5)}
    size = paths[2].stat().st_size
    paths[2].unlink()
    assert audit.inspect() == (0, [])  # the newest three are kept
    assert guarding.inspect() == (size, ["checkpoint_0000002.pt is gone"])  # and the milestones
    paths[3].unlink()
    assert audit.inspect() == (size, ["checkpoint_0000003.pt is gone"])
    DAMAGES["truncated"](paths[5], random.Random(0))
    assert audit.inspect()[1] == ["checkpoint_0000005.pt is damaged"]
    (folder / "checkpoint_0000006.pt").write_bytes(paths[4].read_bytes()[:1000])
    (folder / GENERATOR).write_bytes(b"half of a generator")
    num_bytes, lost = audit.inspect()
    assert num_bytes == 1000 + len(b"half of a generator")
    assert lost[0] == "checkpoint_0000006.pt was left half written" and GENERATOR in lost[1]


def test_a_plan_has_every_signal_moment_and_damage_and_follows_from_its_seed():
    events = plan_events(QUICK, random.Random(5))
    assert events == plan_events(QUICK, random.Random(5)) != plan_events(QUICK, random.Random(6))
    kills = [event for event in events if event.signal]
    assert len(kills) == QUICK.num_kills and len(events) == QUICK.num_kills + QUICK.num_full_disks
    assert {event.signal for event in kills} == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    assert {event.moment for event in kills} == {"save", "step", "start-up"}
    assert {event.damage for event in events} - {None} == set(DAMAGES)
