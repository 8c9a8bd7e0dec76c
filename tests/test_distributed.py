"""Several processes: the gradient, metrics, data and images of one process; peers that die; launchers; traffic.

Ranks are forked from a server that has imported everything, so most tests start no interpreter.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import virtual_hosts
from checkpoints.files import load_training_checkpoint
from common.errors import UserError
from common.program import run_script
from dataset import batch_at
from distributed.peers import PeerLost
from distributed.processes import Processes, join_processes
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from training.run.run_state import RunState
from training.steps import StepSettings
from training.trainer import RunOptions, Trainer

SMALL = [
    *("hidden_dim=16", "num_layers=2", "latent_dim=8", "disc_channels=(4,4,4,4,4,4,8,8,8)", "init_ball_radius=0"),
    *("num_steps_coarse=6", "num_steps_surface=3", "num_steps_fine=2", "batch_size=2", "img_size=8", "topk_v=0.5"),
]
CPU = torch.device("cpu")
LATE = 5_000  # a step at which top-k drops images and the field is held to a ball
HELD = ("init_ball_radius=0.08", f"ball_hold_steps={2 * LATE}")
TOTAL_BATCH = 8
DEADLINE = 300  # seconds, for a machine that is busy with other things; nothing here takes as long
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch", "train", "eval_metrics"])


def small_curriculum(*more: str) -> Curriculum:
    return CURRICULUMS["SYNTH_TINY"].with_overrides([*SMALL, "topk_interval=100", *more])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def arguments(photos: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--curriculum", "SYNTH_TINY", "--dataset_path", str(photos), "--output_dir", str(output), "--device", "cpu"),
        *("--no-cache", "--no-use_logger", "--log_interval", "1", "--sample_interval", "0", *more, "--set", *SMALL),
    ]


# -- ranks in processes of their own --------------------------------------------------------------------------------


def _as_rank(function: Callable, rank: int, world_size: int, port: int, variables: dict, output: str, args: tuple) -> None:
    """Set up a script as torchrun does: the environment, and stdout and stderr in a file."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", **variables,
    )  # fmt: skip
    torch.set_num_threads(1)
    sys.argv = ["train.py"]
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    run_script(functools.partial(function, *args))


class Ranks:
    """``function(*args)`` in ``world_size`` processes; a store outlives each of them, as torchrun's does."""

    def __init__(self, function: Callable, world_size: int, folder: Path, *args: object, **variables: str) -> None:
        self._store = torch.distributed.TCPStore("127.0.0.1", 0, world_size, True, wait_for_workers=False)
        variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"output_{rank}" for rank in range(world_size)]
        self.processes = [
            FORK.Process(target=_as_rank, args=(function, rank, world_size, self._store.port, variables, str(output), args))
            for rank, output in enumerate(self.outputs)
        ]
        for process in self.processes:
            process.start()

    def finish(self) -> list[int]:
        """Exit statuses, -N if signal N ended a process."""
        deadline = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in alive:
            self.processes[rank].kill()
        assert not alive, f"ranks {alive} did not end: {self.texts()}"
        return [process.exitcode for process in self.processes]

    def texts(self) -> list[str]:
        return [path.read_text(errors="replace") if path.exists() else "" for path in self.outputs]


def run_ranks(function: Callable, world_size: int, folder: Path, *args: object, **variables: str) -> None:
    ranks = Ranks(function, world_size, folder, *args, **variables)
    assert ranks.finish() == [0] * world_size, ranks.texts()


# -- the same gradient, the same metrics ----------------------------------------------------------------------------


@functools.cache
def fitted_state() -> RunState:
    from small_models import fit_colored_ball

    state = RunState(small_curriculum(), seed=3, device=CPU, amp_dtype=None)
    fit_colored_ball(state.generator, num_steps=60)  # so that rays hit and the normal loss has a say
    return state


LOSSES = {"non_saturating": (), "relativistic": ("gan_loss=relativistic", "r2_lambda=0.5")}


def gradients_and_scalars(weights: dict, processes: Processes, batch_split: int, loss: str) -> dict[str, torch.Tensor]:
    """The gradients of the trainer's step, as seen by the optimizers, and its log, for a batch of 8."""
    more = ("augment_target=0.6", "share_images=True", *LOSSES[loss])
    state = RunState(small_curriculum(*HELD, *more), seed=3, device=CPU, amp_dtype=None)
    state.step, state.augment_p, state.is_held = LATE, torch.tensor(0.5), True
    state.generator.load_state_dict(weights)
    trainer = Trainer(state, RunOptions(Path(), ""), processes)
    settings = StepSettings.at(state.curriculum, LATE)
    assert settings.topk_fraction < 1 and settings.lambda_ball_hold > 0
    kept: dict[str, torch.Tensor] = {}
    finish = trainer._finish

    def keep(optimizer, scaler, network, results):
        name = "D" if network is state.discriminator else "G"
        kept[name] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        return finish(optimizer, scaler, network, results)

    trainer._finish = keep
    batch = TOTAL_BATCH // processes.world_size
    stage = dataclasses.replace(state.curriculum.stage_at(LATE), batch_size=batch, batch_split=batch_split)
    real = torch.rand(TOTAL_BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = trainer._step(real.split(batch)[processes.rank], stage)
    logged = processes.mean(own)
    return {**kept, **{f"own {k}": v for k, v in own.items()}, **{f"logged {k}": v for k, v in logged.items()}}


def _save_gradients(weights: dict, folder: str, loss: str) -> None:
    processes = join_processes(CPU)
    for batch_split in (1, 2):
        result = gradients_and_scalars(weights, processes, batch_split, loss)
        torch.save(result, f"{folder}/{processes.world_size}_{processes.rank}_{batch_split}.pt")
    processes.close()


@pytest.fixture(scope="module", params=LOSSES)
def gradients(request, tmp_path_factory) -> dict[tuple[int, int, int], dict[str, torch.Tensor]]:
    """By (number of processes, rank, batch_split); (1, 0, 1) is one process with the whole batch."""
    folder = tmp_path_factory.mktemp("gradients")
    weights = fitted_state().generator.state_dict()
    found = {(1, 0, 1): gradients_and_scalars(weights, Processes(0, 1, CPU), 1, request.param)}
    for world_size in (2, 4):
        run_ranks(_save_gradients, world_size, folder / str(world_size), weights, str(folder), request.param)
        for rank in range(world_size):
            for batch_split in (1, 2):
                found[world_size, rank, batch_split] = torch.load(folder / f"{world_size}_{rank}_{batch_split}.pt")
    return found


@pytest.mark.parametrize("batch_split", [1, 2])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_give_the_gradient_of_one(gradients, world_size, batch_split):
    for rank in range(world_size):
        for network in "DG":
            value, expected = gradients[world_size, rank, batch_split][network], gradients[1, 0, 1][network]
            assert float((value - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_log_has_means_over_processes(gradients, world_size, request):
    whole, part = gradients[1, 0, 1], gradients[world_size, 0, 1]
    names = [name.removeprefix("logged ") for name in whole if name.startswith("logged ")]
    assert {"D/r1", "D/pose", "G/gan", "G/opacity_prior", "G/normal", "G/ball_hold", "G/hit_rate", "G/grad_norm"} <= set(names)
    assert ("D/r2" in names) == (request.node.callspec.params["gradients"] == "relativistic")
    for name in names:
        assert float(part[f"logged {name}"]) == pytest.approx(float(whole[f"logged {name}"]), rel=2e-5, abs=1e-6), name
    assert float(part["own D/r1"]) != pytest.approx(float(whole["logged D/r1"]), rel=1e-4)  # not rank 0's own


def _count_exchanged(folder: str) -> None:
    processes = join_processes(CPU)
    state = RunState(small_curriculum(), seed=3, device=CPU, amp_dtype=None)
    trainer = Trainer(state, RunOptions(Path(), ""), processes)
    real = torch.rand(2, 3, 8, 8) * 2 - 1
    found = []
    for step in (10, LATE):  # D is fading in, then not: other parameters take part
        stage = dataclasses.replace(state.curriculum.stage_at(step), batch_split=1 + len(found) % 2)
        state.step = step
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            trainer._step(real, stage)
        events = [event for event in profile.events() if event.name == "gloo:all_reduce"]
        found.append([sum(math.prod(event.input_shapes[0]) for event in events), len(events)])
    Path(folder, str(processes.rank)).write_text(json.dumps(found))
    processes.close()


def test_each_gradient_is_exchanged_once_per_batch(tmp_path):
    run_ranks(_count_exchanged, 2, tmp_path, str(tmp_path))
    state = RunState(small_curriculum(), seed=3, device=CPU, amp_dtype=None)
    size_G = sum(p.numel() for p in state.generator.parameters())
    expected = []
    for step in (10, LATE):
        fade_alpha = StepSettings.at(state.curriculum, step).fade_alpha
        state.discriminator.zero_grad(set_to_none=True)
        sum(output.sum() for output in state.discriminator(torch.rand(1, 3, 8, 8), fade_alpha)).backward()
        used = [p for p in state.discriminator.parameters() if p.grad is not None]
        expected.append([size_G + sum(p.numel() for p in used), 2])  # D's gradients in one exchange, G's in another
    assert expected[0] > expected[1]
    for rank in range(2):
        assert json.loads((tmp_path / str(rank)).read_text()) == expected


def _average(folder: str) -> None:
    processes = join_processes(CPU)
    weights = [torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3)]
    weights[0].grad = torch.arange(6.0).view(3, 2).t() * (processes.rank + 1)  # not in the order of its memory
    weights[2].grad = torch.full((2, 3), math.nan if processes.rank else 1.0)
    processes.average_gradients(weights)
    torch.save([weight.grad for weight in weights], f"{folder}/{processes.rank}.pt")
    processes.close()


def test_gradients_are_averaged_where_there_are_any_and_nan_in_one_process_is_nan_in_all(tmp_path):
    run_ranks(_average, 2, tmp_path, str(tmp_path))
    for rank in range(2):
        first, none, bad = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(first, 1.5 * torch.arange(6.0).view(3, 2).t()) and none is None and bad.isnan().all()


# -- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "batch"), [(2, 3), (4, 2), (4, 5)])
def test_shards_are_disjoint_cover_the_set_and_change_each_epoch(world_size, batch):
    num, per_step = 37, world_size * batch
    read = []
    for step in range(3 * num):
        parts = [batch_at(num, step * per_step, batch, 7, rank, world_size)[0].tolist() for rank in range(world_size)]
        together = [index for part in parts for index in part]
        assert together == batch_at(num, step * per_step, per_step, 7)[0].tolist()
        read += together
    epochs = [read[start : start + num] for start in range(0, 3 * num, num)]
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)  # each image once: no rank reads another's
    assert epochs[0] != epochs[1] != epochs[2]


def _train_on_own_photos(command: list[str], photos: str, place: str) -> None:
    folder = Path(place, f"photos_{os.environ['RANK']}")
    shutil.copytree(photos, folder)
    if os.environ["RANK"] == "1":
        next(folder.glob("*.png")).unlink()
    command[command.index("--dataset_path") + 1] = str(folder)
    train_rank(command)


def test_processes_that_see_other_images_are_refused(photos, tmp_path):
    command = arguments(photos, tmp_path / "out", "--max_steps", "2")
    ranks = Ranks(_train_on_own_photos, 2, tmp_path, command, str(photos), str(tmp_path))
    assert ranks.finish() == [2, 2], ranks.texts()
    num = len(list(photos.glob("*.png")))
    assert f"has {num - 1} images for rank 1 on " in ranks.texts()[1] and f"but {num} for rank 0" in ranks.texts()[1]
    assert not list((tmp_path / "out").glob("checkpoint_*"))


# -- peers that die -------------------------------------------------------------------------------------------------


def train_rank(command: list[str]) -> None:
    from train import main

    main(command)


def wait_for(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def num_logged(output: Path) -> int:
    path = output / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_when_the_main_process_is_killed_the_others_exit_with_one_line(photos, tmp_path):
    output, victim = tmp_path / "out", 0
    command = arguments(photos, output, "--model_save_interval", "2")
    ranks = Ranks(train_rank, 4, tmp_path, command, GOF_PEER_TIMEOUT="20")
    wait_for(lambda: num_logged(output) >= 3, ranks.texts)
    started = time.monotonic()
    ranks.processes[victim].kill()
    statuses = ranks.finish()
    assert statuses == [-signal.SIGKILL if rank == victim else PeerLost.exit_status for rank in range(4)]
    assert time.monotonic() - started < 20 + 60  # the timeout, and a busy machine
    for rank in set(range(4)) - {victim}:
        lines = [line for line in ranks.texts()[rank].splitlines() if "error" in line and "gloo/transport" not in line[:80]]
        assert len(lines) == 1 and "run the same command again" in lines[0], ranks.texts()[rank]
    newest = max(output.glob("checkpoint_*.pt"))
    assert load_training_checkpoint(newest)["step"] >= 2  # what is there is whole


def _wait_at_barrier(folder: str) -> None:
    processes = join_processes(CPU)
    Path(folder, f"pid_{processes.rank}").write_text(str(os.getpid()))
    with processes.handle_failures():
        if processes.is_main:
            time.sleep(6)  # slow, as when it decodes a large set: twice the timeout, and no reason for the others to go
        processes.barrier()
        Path(folder, f"met_{processes.rank}").touch()
        if processes.is_main:
            os.kill(os.getpid(), signal.SIGSTOP)  # alive for the system, and yet no peer any more
        processes.barrier()


def test_a_slow_peer_is_waited_for_and_a_frozen_one_is_not(tmp_path):
    ranks = Ranks(_wait_at_barrier, 3, tmp_path, str(tmp_path), GOF_PEER_TIMEOUT="3")
    wait_for(lambda: not any(process.is_alive() for process in ranks.processes[1:]), ranks.texts)
    ranks.processes[0].kill()
    assert ranks.finish() == [-signal.SIGKILL, PeerLost.exit_status, PeerLost.exit_status], ranks.texts()
    assert all((tmp_path / f"met_{rank}").exists() for rank in range(3)), ranks.texts()
    for text in ranks.texts()[1:]:
        assert "lost rank 0 on" in text and "no heartbeat for 3 s" in text


def _join_after_a_stale_meeting(folder: str) -> None:
    """The store still holds what the processes of an earlier attempt wrote."""
    for attempt in range(2):
        processes = join_processes(CPU)
        values = processes.mean({"rank": torch.tensor(float(processes.rank + attempt))})
        Path(folder, f"{attempt}_{processes.rank}").write_text(str(float(values["rank"])))
        processes.close()
        if processes.rank == 0:
            time.sleep(1)  # the others are back first, and must not take the old rank 0 for the new


def test_restarted_processes_do_not_connect_to_their_predecessors(tmp_path):
    run_ranks(_join_after_a_stale_meeting, 3, tmp_path, str(tmp_path))
    for rank in range(3):
        assert [(tmp_path / f"{attempt}_{rank}").read_text() for attempt in range(2)] == ["1.0", "2.0"]


@pytest.mark.parametrize("text", ["soon", "0", "nan", "inf", "-5"])
def test_an_impossible_timeout_is_named(text, monkeypatch):
    monkeypatch.setenv("GOF_PEER_TIMEOUT", text)
    with pytest.raises(UserError, match="GOF_PEER_TIMEOUT"):
        join_processes(CPU)


# -- who writes, and what comes of it -------------------------------------------------------------------------------


def _train_apart(command: list[str], folder: str) -> None:
    command[command.index("--output_dir") + 1] = f"{folder}/{os.environ['RANK']}"
    train_rank(command)


def test_only_the_main_process_writes(photos, tmp_path):
    more = ("--max_steps", "4", "--model_save_interval", "2", "--eval_freq", "3", "--sample_interval", "4")
    run_ranks(_train_apart, 2, tmp_path, arguments(photos, tmp_path, *more), str(tmp_path))
    written = {path.name for path in (tmp_path / "0").iterdir()}
    assert {"checkpoint_0000004.pt", "generator.safetensors", "log.jsonl", "run.json", "samples"} <= written
    assert list((tmp_path / "1").iterdir()) == []


def pids_of(output: Path, variable: str = "", script: str = "train.py") -> list[int]:
    """Processes that run ``script`` for this output folder, with ``variable`` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(output) in words and words[1:].count(script) and (not variable or variable in environment):
                found.append(int(entry.name))
    return found


def worker(output: Path, rank: int) -> int:
    """The process id of a rank under torchrun (whose own command line has -m, its module, and the script)."""
    (pid,) = [pid for pid in pids_of(output, f"RANK={rank}") if b"torch.distributed.run" not in _command_line(pid)]
    return pid


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_run_with_a_killed_worker_on_another_host_ends_with_the_same_bytes(photos, tmp_path):
    reason = virtual_hosts.why_impossible()
    if reason:
        pytest.skip(reason)
    output, undisturbed = tmp_path / "hosts", tmp_path / "undisturbed"
    more = ("--max_steps", "18", "--model_save_interval", "2")
    commands = [
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max_restarts=2"),
            *("--rdzv_backend=c10d", f"--rdzv_endpoint={virtual_hosts.address(0)}:29400", f"--rdzv_conf=is_host={1 - host}"),
            *(f"--local_addr={virtual_hosts.address(host)}", "train.py", *arguments(photos, output, *more)),
        ]
        for host in range(2)
    ]
    variables = {"OMP_NUM_THREADS": "1", "GOF_PEER_TIMEOUT": "20"}
    hosts = virtual_hosts.VirtualHosts(commands, Path.cwd(), variables)
    wait_for(lambda: num_logged(output) >= 3)
    os.kill(worker(output, 1), signal.SIGKILL)
    results = hosts.finish(DEADLINE)
    errors = "\n".join(result.errors for result in results)
    assert [result.status for result in results] == [0, 0], errors
    assert "resuming from" in errors and "run the same command again" in errors
    run_ranks(train_rank, 2, tmp_path / "ranks", arguments(photos, undisturbed, *more))
    name = "checkpoint_0000018.pt"
    assert (output / name).read_bytes() == (undisturbed / name).read_bytes()


def test_torchrun_resumes_on_two_processes(photos, tmp_path, repo):
    more = ("batch_split=2", "topk_interval=1")
    run_ranks(train_rank, 2, tmp_path, [*arguments(photos, tmp_path / "out", "--max_steps", "2"), *more])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    command = [*launcher, *arguments(photos, tmp_path / "out", "--max_steps", "3"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=DEADLINE, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    state = load_training_checkpoint(tmp_path / "out" / "checkpoint_0000003.pt")
    assert state["images_seen"] == 3 * 2 * 2  # steps x processes x batch
    assert "resuming from" in result.stderr and result.stdout.count("stopped at step 3") == 1


# -- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(generator: str, photos: str, folder: str) -> None:
    import cal_weighted_var
    import eval_metrics

    common = [generator, "--device", "cpu", "--image_size", "16", "--output_json"]
    wanted = ["--dataset_path", photos, "--dataset", "Images", "--num_images", "11", "--batch_size", "2", "--metrics", "swd"]
    eval_metrics.main([*common, f"{folder}/scores.json", *wanted])
    cal_weighted_var.main([*common, f"{folder}/variance.json", "--seeds_end", "5"])


def test_scores_do_not_depend_on_the_number_of_processes(photos, tmp_path, tiny_generator_path):
    generator, world_size = tiny_generator_path, 2
    folders = [tmp_path / "alone", tmp_path / "together"]
    run_ranks(_evaluate, 1, folders[0], str(generator), str(photos), str(folders[0]))
    run_ranks(_evaluate, world_size, folders[1], str(generator), str(photos), str(folders[1]))
    for name in ("scores.json", "variance.json"):
        alone, together = (json.loads((folder / name).read_text()) for folder in folders)
        assert alone["metrics"] == together["metrics"]
        assert alone.get("per_seed_1e4") == together.get("per_seed_1e4")
    outputs = [(folders[1] / f"output_{rank}").read_text() for rank in range(world_size)]
    assert "swd" in outputs[0] and not any(outputs[1:])


def _images(generator: str, folder: str) -> None:
    from checkpoints.loading import load_generator
    from metrics.sampling import generated_images

    processes = join_processes(CPU)
    images = generated_images(load_generator(generator), 7, 16, batch_size=2, processes=processes)
    assert (images is None) == (not processes.is_main)
    if images is not None:
        torch.save(images, f"{folder}/images.pt")
    processes.close()


def test_images_are_those_of_one_process_in_their_order(tmp_path):
    from checkpoints.files import save_inference

    generator = tmp_path / "generator.safetensors"
    save_inference(generator, fitted_state().generator, step=0)
    found = []
    for world_size in (1, 3):
        run_ranks(_images, world_size, tmp_path / str(world_size), str(generator), str(tmp_path / str(world_size)))
        found.append(torch.load(tmp_path / str(world_size) / "images.pt"))
    assert torch.equal(*found)
    assert len({image.numpy().tobytes() for image in found[0]}) == 7  # all different, so that an exchange would show


def _share(folder: str) -> None:
    processes = join_processes(CPU)
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, float(processes.rank + 1))
    processes.broadcast(layer.state_dict().values())
    torch.save(layer.state_dict(), f"{folder}/{processes.rank}.pt")
    processes.close()


def test_tensors_of_the_main_process_reach_all_processes(tmp_path):
    run_ranks(_share, 2, tmp_path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first) and (second["weight"] == 1).all()


# -- launchers ------------------------------------------------------------------------------------------------------

# Stand-ins for the programs of a cluster. Everything else is real: the launchers, torchrun, training.
SRUN = """#!{python}
# Runs the command once per node, here; a SIGUSR1 reaches every process of the step, as Slurm's does.
import os, signal, subprocess, sys
from pathlib import Path

command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
step = [
    subprocess.Popen(command, env=dict(os.environ, SLURM_NODEID=str(node)), start_new_session=True)
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
]

def below(pid):
    for task in Path(f"/proc/{{pid}}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from below(child)

def warn(*_):
    for part in step:
        for pid in [part.pid, *below(part.pid)]:
            os.kill(pid, signal.SIGUSR1)

signal.signal(signal.SIGUSR1, warn)
Path(os.environ["STEP_PID"]).write_text(str(os.getpid()))
sys.exit(max(part.wait() for part in step))
"""
SCONTROL = """#!/bin/bash
case "$1" in
show) printf '127.0.0.1\\nlocalhost\\n' ;;
requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""
SSH = """#!/bin/bash
# ssh [-o X]... HOST COMMAND, run here.
while [ "$1" = -o ]; do shift 2; done
echo "$1" >>"$HOSTS_REACHED"
if [ "$1" = broken ]; then sleep 1; exit 7; fi
exec bash -c "$2"
"""


@pytest.fixture
def cluster(tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a launcher, with the stand-ins on its PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL, "ssh": SSH}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(Path(sys.prefix)),
        "OMP_NUM_THREADS": "1",
        "PROCESSES": "1",
        "MASTER_PORT": str(port),
        "GOF_PEER_TIMEOUT": "20",
        "REQUEUED": str(tmp_path / "requeued"),
        "STEP_PID": str(tmp_path / "step_pid"),
        "HOSTS_REACHED": str(tmp_path / "hosts_reached"),
    }
    yield environment


@pytest.fixture
def ready_environment() -> None:
    """The launchers install requirements.txt, but a test must not install anything."""
    mark = Path(sys.prefix) / ".gof-requirements"
    if not mark.exists() or mark.read_bytes() != Path("requirements.txt").read_bytes():
        pytest.skip("auto_bash/setup.sh has not run for this environment (auto_bash/test.sh does it)")


def launch(script: str, *words: str, env: dict[str, str], log: Path) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(["bash", f"auto_bash/{script}", *words], env=env, stdout=file, stderr=subprocess.STDOUT)


def test_a_slurm_job_whose_time_is_up_saves_and_requeues_itself(photos, tmp_path, repo, monkeypatch, cluster, ready_environment):
    monkeypatch.chdir(repo)
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["SYNTH_TINY", str(photos), str(output), *arguments(photos, output, "--model_save_interval", "0")[6:]]
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_SUBMIT_DIR": str(repo)}
    job = launch("slurm.sh", *words, env={**cluster, **slurm}, log=log)
    wait_for(lambda: num_logged(output) >= 3 or job.poll() is not None, log.read_text)
    assert list(output.glob("checkpoint_*.pt")) == []
    os.kill(int((tmp_path / "step_pid").read_text()), signal.SIGUSR1)
    assert job.wait(DEADLINE) == 128 + signal.SIGUSR1, log.read_text()
    assert (tmp_path / "requeued").read_text() == "4711\n"
    (checkpoint,) = output.glob("checkpoint_*.pt")
    step = load_training_checkpoint(checkpoint)["step"]
    assert step >= 3 and pids_of(output) == []
    run_ranks(train_rank, 2, tmp_path / "ranks", arguments(photos, output, "--max_steps", str(step + 1)))
    assert load_training_checkpoint(output / f"checkpoint_{step + 1:07d}.pt")["images_seen"] == (step + 1) * 2 * 2


def test_ssh_trains_on_all_machines(photos, tmp_path, repo, monkeypatch, cluster, ready_environment):
    monkeypatch.chdir(repo)
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["SYNTH_TINY", str(photos), str(output), *arguments(photos, output, "--max_steps", "3")[6:]]
    job = launch("ssh.sh", "127.0.0.1 localhost", *words, env=cluster, log=log)
    assert job.wait(DEADLINE) == 0, log.read_text()
    assert sorted((tmp_path / "hosts_reached").read_text().split()) == ["127.0.0.1", "localhost"]
    assert load_training_checkpoint(output / "checkpoint_0000003.pt")["images_seen"] == 3 * 2 * 2


def test_ssh_stops_all_machines_when_one_fails(photos, tmp_path, repo, monkeypatch, cluster, ready_environment):
    monkeypatch.chdir(repo)
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["SYNTH_TINY", str(photos), str(output), *arguments(photos, output)[6:]]
    job = launch("ssh.sh", "127.0.0.1 broken", *words, env=cluster, log=log)
    assert job.wait(DEADLINE) == 7, log.read_text()  # and not after the hours for which the other would wait
    assert "broken failed first, with status 7" in log.read_text()
    wait_for(lambda: pids_of(output) == [], log.read_text)


@pytest.mark.parametrize(("script", "words"), [("slurm.sh", ["CATS"]), ("slurm.sh", ["CATS", "a", "b"]), ("ssh.sh", ["host"])])
def test_a_launcher_used_wrongly_says_how(script, words, repo):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    result = subprocess.run(["bash", f"auto_bash/{script}", *words], cwd=repo, env=variables, capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and script in result.stderr


def test_launchers_pass_shellcheck(repo):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = ["auto_bash/_node.sh", "auto_bash/slurm.sh", "auto_bash/ssh.sh"]
    result = subprocess.run(["shellcheck", "-x", "-s", "bash", *scripts], cwd=repo, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
