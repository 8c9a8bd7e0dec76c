"""Runs that are killed, or lose disk space or images: real processes, real signals, a real full disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.batches
import training.trainer
from checkpoints.files import damage_in, list_checkpoints, load_training_checkpoint
from common.errors import UserError
from train import main as train
from training.run import checkpoint_manager
from training.run.checkpoint_manager import NotSaved
from training.run.recorder import Recorder

SMALL = [
    *("hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=4", "num_steps_surface=2", "num_steps_fine=2"),
]
ONE_STAGE = [*SMALL, "batch_size=2", "img_size=8"]
SLOW_DISK = """
import os, time
sync = os.fsync
os.fsync = lambda descriptor: (time.sleep(1), sync(descriptor))
import train
from common.program import run_script
run_script(train.main)
"""
UNDER_NOHUP = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
import train
from common.program import run_script
run_script(train.main)
"""
PATIENCE = 120.0  # seconds for a loaded machine


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes below, so that results are bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def command(photos: Path, output: Path, *more: str, settings: list[str] = ONE_STAGE) -> list[str]:
    return [
        *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"),
        *("--no-use_logger", "--log_interval", "1", "--sample_interval", "0", "--no-cache", *more, "--set", *settings),
    ]


@contextlib.contextmanager
def running(repo: Path, arguments: list[str], script: Sequence[str] = ("train.py",)) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    own = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as from a terminal, where the tests run under nohup too
    process = subprocess.Popen(
        [sys.executable, *script, *arguments],
        cwd=repo, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGHUP, own)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, pause: float = 0.05) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(pause)


def steps_in(folder: Path) -> list[int]:
    return sorted(step for step, _ in list_checkpoints(folder))


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def checkpoint(folder: Path, step: int) -> bytes:
    return (folder / f"checkpoint_{step:07d}.pt").read_bytes()


# ------------------------------------------------------------------------------------------------ killed


def test_a_run_resumes_byte_identically_after_sigkill(photos, tmp_path, repo):
    output, other = tmp_path / "killed", tmp_path / "undisturbed"
    every = ("--model_save_interval", "2", "--milestone_interval", "4")
    with running(repo, command(photos, output, *every)) as process:
        wait_until(lambda: len(steps_in(output)) >= 2, process)
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            train(command(photos, output, *every))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    newest = steps_in(output)[-1]
    (output / ".checkpoint_0000099.pt.4711.tmp").write_text("half of one")
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": newest + 1, "D/gan": 0.0}) + '\n{"step": ')
    end = newest + 3
    train(command(photos, output, *every, "--max_steps", str(end)))
    train(command(photos, other, *every, "--max_steps", str(end)))
    assert checkpoint(output, end) == checkpoint(other, end)
    assert logged_steps(output) == list(range(1, end + 1))
    expected = sorted({*range(4, end, 4), *[*range(2, end, 2), end][-3:]})
    assert steps_in(output) == steps_in(other) == expected
    assert not list(output.glob(".*.tmp"))


def test_a_second_signal_during_a_save_exits_at_once_and_leaves_files_intact(photos, tmp_path, repo):
    output = tmp_path / "out"
    arguments = command(photos, output, "--model_save_interval", "1", "--keep", "1")
    with running(repo, arguments, ("-c", SLOW_DISK)) as process:
        wait_until(lambda: bool(steps_in(output)), process)
        wait_until(lambda: bool(list(output.glob(".checkpoint_*.tmp"))), process)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(timeout=PATIENCE) == -signal.SIGTERM
    present = list_checkpoints(output)
    assert present and all(damage_in(path) is None for _, path in present)
    assert list(output.glob(".checkpoint_*.tmp"))
    train(command(photos, output, "--max_steps", str(present[0][0] + 1)))
    assert not list(output.glob(".*.tmp"))


@pytest.mark.parametrize(("script", "status"), [(("train.py",), 129), (("-c", UNDER_NOHUP), 143)])
def test_a_closing_terminal_stops_a_run_but_not_under_nohup(photos, tmp_path, repo, script, status):
    output = tmp_path / "out"
    with running(repo, command(photos, output), script=script) as process:
        wait_until(lambda: (output / "log.jsonl").exists(), process)
        process.send_signal(signal.SIGHUP)
        if status == 143:
            seen = len(logged_steps(output))
            wait_until(lambda: len(logged_steps(output)) > seen + 2, process)
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == status
    assert steps_in(output)[-1] == logged_steps(output)[-1]


def test_a_stop_by_slurms_signal_saves_and_says_so(photos, tmp_path, repo):
    with running(repo, command(photos, tmp_path / "out")) as process:
        wait_until((tmp_path / "out" / "log.jsonl").exists, process)
        process.send_signal(signal.SIGUSR1)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGUSR1 and "signal SIGUSR1" in output, errors
    assert steps_in(tmp_path / "out") == [logged_steps(tmp_path / "out")[-1]]


def test_deterministic_changes_nothing_on_a_cpu_and_ends_with_the_run(photos, tmp_path):
    for name, more in (("plain", ()), ("asked", ("--deterministic",))):
        train(command(photos, tmp_path / name, "--max_steps", "2", *more))
    assert checkpoint(tmp_path / "plain", 2) == checkpoint(tmp_path / "asked", 2)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_deterministic_runs_on_a_gpu_resume_byte_identically(photos, tmp_path):
    for name, limits in (("whole", ("6",)), ("cut", ("2", "5", "6"))):
        for limit in limits:
            train([*command(photos, tmp_path / name, "--max_steps", limit, "--device", "cuda", "--deterministic")])
    assert checkpoint(tmp_path / "whole", 6) == checkpoint(tmp_path / "cut", 6)


# ------------------------------------------------------------------------------------------------ --resume


def test_resume_never_auto_and_path(photos, tmp_path, capsys):
    output = tmp_path / "out"
    train(command(photos, output, "--resume", "never", "--max_steps", "3", "--model_save_interval", "1"))
    before = {step: checkpoint(output, step) for step in (1, 2, 3)}
    with pytest.raises(UserError, match=r"already holds checkpoint_0000003\.pt") as refused:
        train(command(photos, output, "--resume", "never", "--max_steps", "9"))
    assert refused.value.exit_status == 2 and {step: checkpoint(output, step) for step in (1, 2, 3)} == before
    path = output / "checkpoint_0000001.pt"
    capsys.readouterr()
    train(command(photos, output, "--resume", str(path), "--max_steps", "2"))
    assert "moved 2 checkpoints after step 1 to" in capsys.readouterr().err
    assert steps_in(output) == [1, 2] and steps_in(output / "superseded") == [2, 3] and logged_steps(output) == [1, 2]
    assert checkpoint(output, 2) == before[2]
    path.write_bytes(before[1][:-9])
    with pytest.raises(UserError, match=r"--resume .*checkpoint_0000001\.pt: the file is damaged"):
        train(command(photos, output, "--resume", str(path)))
    with pytest.raises(UserError, match="No such file"):
        train(command(photos, output, "--resume", str(output / "nowhere.pt")))


def test_a_damaged_checkpoint_is_skipped_and_none_left_is_an_error(photos, tmp_path, capsys):
    train(command(photos, tmp_path / "out", "--max_steps", "3", "--model_save_interval", "1"))
    newest = tmp_path / "out" / "checkpoint_0000003.pt"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:1000] + bytes(500) + whole[1500:])
    capsys.readouterr()
    train(command(photos, tmp_path / "out", "--max_steps", "3"))
    lines = capsys.readouterr().err.splitlines()
    assert sum("checkpoint_0000003.pt is damaged" in line for line in lines) == 1
    assert sum("resuming from" in line and "step 2" in line for line in lines) == 1
    assert newest.read_bytes() == whole  # done again, to the last byte
    for _, path in list_checkpoints(tmp_path / "out"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        train(command(photos, tmp_path / "out", "--max_steps", "4"))


def test_another_number_of_processes_is_refused_by_name(photos, tmp_path):
    train(command(photos, tmp_path, "--max_steps", "1"))
    from settings.registry import CURRICULUMS
    from training.run.run_state import RunState

    state = RunState(CURRICULUMS["SYNTH_TINY"].with_overrides(ONE_STAGE), 0, torch.device("cpu"), None)
    with pytest.raises(UserError, match=r"1 process\(es\), 1 x 2 images per step, but this run has 4, 4 x 2"):
        state.resume(tmp_path / "checkpoint_0000001.pt", world_size=4)


# ------------------------------------------------------------------------------------------------ the disk


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
    return filler


def test_a_full_disk_ends_no_run_and_loses_no_checkpoint(photos, tmp_path, small_disk, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint_manager, "PAUSES_AT_END", (0.0,))
    output = small_disk / "out"
    train(command(photos, output, "--max_steps", "1", "--use_logger"))
    first = checkpoint(output, 1)
    filler = fill(small_disk)
    on = ("--max_steps", "4", "--model_save_interval", "1")
    resumed = command(photos, output, *on)
    with pytest.raises(UserError) as at_start:  # not even run.json
        train(resumed)
    assert at_start.value.exit_status == 2 and "No space left" in str(at_start.value)
    filler.unlink()

    original, fillers = training.trainer.Trainer._record, []

    def full_after_step_2(self, *arguments):
        if self.state.step == 2:
            fillers.append(fill(small_disk))
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.trainer.Trainer, "_record", full_after_step_2)
        with pytest.raises(NotSaved, match=r"newest intact checkpoint is .*checkpoint_0000001\.pt") as end:
            train(command(photos, output, *on, "--use_logger", "--sample_interval", "2"))
    assert end.value.exit_status == 3
    errors = capsys.readouterr().err
    for words in ("no checkpoint at step 2", "sample grid of step 2 failed", "writing TensorBoard logs failed"):
        assert errors.count(words) == 1, (words, errors)
    assert checkpoint(output, 1) == first and steps_in(output) == [1]
    fillers[0].unlink()
    train(resumed)
    train(command(photos, tmp_path / "other", *on))
    assert checkpoint(output, 4) == checkpoint(tmp_path / "other", 4)
    assert logged_steps(output) == [1, 2, 3, 4]


def test_a_failed_checkpoint_is_retried_when_there_is_space(photos, small_disk, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint_manager, "FIRST_RETRY", 0.0)
    original, fillers = training.trainer.Trainer._record, []

    def full_for_a_while(self, *arguments):
        if self.state.step == 2:
            fillers.append(fill(small_disk))
        if self.state.step == 4:
            fillers[0].unlink()
        original(self, *arguments)

    monkeypatch.setattr(training.trainer.Trainer, "_record", full_for_a_while)
    train(command(photos, small_disk / "out", "--max_steps", "6", "--model_save_interval", "2"))
    assert steps_in(small_disk / "out") == [4, 6]
    errors = capsys.readouterr().err
    assert "no checkpoint at step 2" in errors and "no checkpoint at step 3" in errors  # it did not wait for step 4
    assert "no checkpoint at step 4" not in errors


def test_log_lines_wait_for_disk_space(small_disk, capsys):
    recorder = Recorder(small_disk, 0, 10, use_tensorboard=False)
    filler = fill(small_disk)
    for step in (1, 2):
        recorder.event(step, "long", text="x" * 9000)
    filler.unlink()
    recorder.event(3, "short")
    recorder.close()
    errors = capsys.readouterr().err
    assert errors.count("log.jsonl failed (OSError") == 1 and errors.count("log.jsonl works again") == 1
    assert logged_steps(small_disk) == [1, 2, 3]


def test_a_read_only_folder_is_refused_before_any_work(photos, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system") as refused:
        train(command(photos, small_disk))
    assert refused.value.exit_status == 2


def test_failing_displays_and_measurements_do_not_end_a_run(photos, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    output.mkdir()
    for name in ("tensorboard", "samples"):
        (output / name).write_text("in the way")

    def fails(*_: object) -> None:
        raise LookupError("a defect in a measurement")

    monkeypatch.setattr("training.evaluation.surface_metrics", fails)
    train(command(photos, output, "--max_steps", "4", "--eval_freq", "1", "--use_logger", "--sample_interval", "1"))
    errors = capsys.readouterr().err
    for words in (
        "writing TensorBoard logs failed",
        "sample grid of step 1 failed",
        "evaluation at step 1, surfaces, failed (LookupError",
    ):
        assert errors.count(words) == 1, (words, errors)
    assert errors.count(" failed (") == 3 and steps_in(output) == [4]


# ------------------------------------------------------------------------------------------------ the images


def two_stages() -> list[str]:
    stage = "'batch_size':2,'gen_lr':1e-4,'disc_lr':1e-4"
    return [*SMALL, f"stages=({{'start_step':0,'img_size':8,{stage}}},{{'start_step':3,'img_size':16,{stage}}})"]


def test_images_that_disappear_during_a_run_are_skipped_and_counted(photos, tmp_path, monkeypatch, capsys):
    original = training.trainer.Trainer._record

    def lose_some(self, *arguments):
        if self.state.step == 2:
            (photos / "1.png").unlink()
            (photos / "2.png").write_bytes(b"broken")
            (photos / "3.png").write_bytes(b"broken")
        original(self, *arguments)

    monkeypatch.setattr(training.trainer.Trainer, "_record", lose_some)
    train(command(photos, tmp_path / "out", "--max_steps", "5", settings=two_stages()))
    errors = capsys.readouterr().err
    assert "2 unreadable images in" in errors and "2.png" in errors and "has 3 images, but had 6" in errors
    assert load_training_checkpoint(tmp_path / "out" / "checkpoint_0000005.pt")["num_images"] == 3


def test_a_run_whose_images_are_all_gone_writes_a_checkpoint(photos, tmp_path, monkeypatch):
    original = training.trainer.Trainer._record

    def lose_all(self, *arguments):
        if self.state.step == 2:
            shutil.rmtree(photos)
        original(self, *arguments)

    monkeypatch.setattr(training.trainer.Trainer, "_record", lose_all)
    with pytest.raises(UserError, match="there is no folder, zip or image") as end:
        train(command(photos, tmp_path / "out", settings=two_stages()))
    assert end.value.exit_status == 2 and steps_in(tmp_path / "out") == [3]


def test_a_failed_reader_is_restarted_at_its_position(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.batches, "RESTART_PAUSES", (0.0, 0.0))
    train(command(photos, tmp_path / "whole", "--max_steps", "8"))
    from dataset import ImageDataset

    original, calls = ImageDataset.gather, []

    def fails(self, indices, when):
        calls.append(1)
        if when(len(calls)):
            raise OSError("the share went away")
        return original(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDataset, "gather", lambda self, indices: fails(self, indices, lambda call: call == 3))
        train(command(photos, tmp_path / "out", "--max_steps", "8"))
    assert capsys.readouterr().err.count("the share went away); restarting the reader") == 1
    assert checkpoint(tmp_path / "out", 8) == checkpoint(tmp_path / "whole", 8)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ImageDataset, "gather", lambda self, indices: fails(self, indices, lambda call: call > 6))
        with pytest.raises(UserError, match="can no longer be read"):
            train(command(photos, tmp_path / "ended", "--max_steps", "80"))
    assert steps_in(tmp_path / "ended")
