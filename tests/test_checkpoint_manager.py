"""Saving a run's state: other files in the folder, and a disk that loses data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from checkpoints.files import damage_in, list_checkpoints
from settings.registry import get_curriculum
from training.run import checkpoint_manager
from training.run.checkpoint_manager import CheckpointManager, NotSaved
from training.run.run_state import RunState

SMALL = ["hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"]


class ForgetfulDisk(RunState):
    """A state whose first ``num_lost`` checkpoints are truncated after they are written."""

    num_lost = 0

    def save(self, output_dir: Path, world_size: int) -> Path:
        path = super().save(output_dir, world_size)
        if self.num_lost:
            self.num_lost -= 1
            path.write_bytes(path.read_bytes()[:-100])
        return path


@pytest.fixture
def state() -> ForgetfulDisk:
    return ForgetfulDisk(get_curriculum("SYNTH_TINY").with_overrides(SMALL), 0, torch.device("cpu"), None)


@pytest.fixture
def manager(state, tmp_path, monkeypatch) -> CheckpointManager:
    """A manager that keeps one checkpoint in ``tmp_path``, which holds steps 1 and 2, and retries once at the end."""
    monkeypatch.setattr(checkpoint_manager, "PAUSES_AT_END", (0.0,))
    manager = CheckpointManager(state, tmp_path, interval=1, milestone_interval=0, num_kept=2, world_size=1)
    for state.step in (1, 2):
        manager.save(pytest.fail)
    state.step = 3
    return manager


def steps_in(folder: Path) -> list[int]:
    return sorted(step for step, _ in list_checkpoints(folder))


def test_a_damaged_later_checkpoint_does_not_disturb_the_end_of_a_run(state, manager, tmp_path):
    ahead = tmp_path / "checkpoint_0000009.pt"
    ahead.write_bytes((tmp_path / "checkpoint_0000002.pt").read_bytes()[:-100])
    manager.save_last(pytest.fail)
    assert steps_in(tmp_path) == [2, 3, 9]


def test_a_checkpoint_damaged_on_disk_is_written_again(state, manager, tmp_path):
    state.num_lost, said = 1, []
    manager.save_last(said.append)
    assert len(said) == 1 and "cannot be read back as it was written" in said[0]
    assert steps_in(tmp_path) == [2, 3] and damage_in(tmp_path / "checkpoint_0000003.pt") is None


def test_a_checkpoint_that_stays_damaged_is_not_reported_as_saved(state, manager, tmp_path):
    state.num_lost = 2
    with pytest.raises(NotSaved, match=r"step 3 could not be saved: .*; the newest intact checkpoint is .*0000002\.pt"):
        manager.save_last(lambda text: None)
    assert steps_in(tmp_path) == [1, 2, 3]
