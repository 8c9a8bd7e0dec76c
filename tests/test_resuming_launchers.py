"""A command restarted by its launcher, and a clock that was set back between two parts of a run."""

from __future__ import annotations

import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checkpoints.files import save_training_checkpoint
from train import checkpoint_to_resume, parse_arguments
from training.run.recorder import Recorder


def save(folder, step):
    save_training_checkpoint(
        folder / f"checkpoint_{step:07d}.pt", {"curriculum": {}, "step": step, "generator": {}, "discriminator": {}, "ema": {}}
    )


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_command_restarted_by_its_launcher_resumes(tmp_path, monkeypatch, variable):
    def chosen(resume):
        command = ["--curriculum", "SYNTH_TINY", "--output_dir", str(tmp_path), "--resume", resume]
        path = checkpoint_to_resume(parse_arguments(command), tmp_path)
        return path and path.name

    start = tmp_path / "start"
    start.mkdir()
    save(start, 10)
    from_start = str(start / "checkpoint_0000010.pt")
    monkeypatch.setenv(variable, "1")
    assert chosen("never") is None and chosen(from_start) == "checkpoint_0000010.pt"  # it did not come to a checkpoint
    save(tmp_path, 20)
    assert chosen("never") == chosen(from_start) == "checkpoint_0000020.pt"
    monkeypatch.setenv(variable, "0")
    assert chosen(from_start) == "checkpoint_0000010.pt"


def test_tensorboard_continues_after_the_clock_was_set_back(tmp_path, monkeypatch):
    scalars = {"D/gan": 1.0, "G/gan": 1.0, "schedule/interval": 0.1}
    clock = time.time
    for first, last, hours in ((0, 30, 0), (20, 50, 1)):
        monkeypatch.setattr(time, "time", lambda hours=hours: clock() - 3600 * hours)
        recorder = Recorder(tmp_path, first, 50, use_tensorboard=True)
        for step in range(first + 1, last + 1):
            recorder.log(step, {**scalars, "D/gan": 1.0 + hours})
        recorder.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("D/gan")
    assert [(event.step, event.value) for event in shown] == [(s, 1.0 if s <= 20 else 2.0) for s in range(1, 51)]
