"""Count the bytes that processes exchange in a training step, and compare them with the lower bound.

    python benchmarks/communication.py [--json communication.json]      # a few minutes on 2 cores

Each process runs on its own virtual host (virtual_hosts.py) and trains with the full networks of the published curriculum
BFM. It reads the kernel's count of bytes sent by its network interface, which includes headers, acknowledgments, top-k and
heartbeats. There are few samples per ray and one image per sub-batch, since the traffic does not depend on them.

The lower bound: in an all-reduce of B bytes over n processes, each process sends at least 2 (n - 1) / n B bytes (a ring
attains this), and a step needs one all-reduce of G's gradients and one of D's, whatever batch_split is. The last table
estimates the scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as if run from the repository's root

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import virtual_hosts
from common.arguments import ArgumentParser
from common.errors import UserError
from common.program import run_script
from discriminators.progressive import ProgressiveEncoderDiscriminator
from distributed.processes import join_processes
from generators.generator import ImplicitGenerator3d
from settings.curriculum import Curriculum
from settings.registry import CURRICULUMS
from training.options import RunOptions
from training.run.run_state import RunState
from training.trainer import Trainer

REPO = Path(__file__).resolve().parent.parent
MB = 1e6
LATE = 4000  # a step of the first stage at which top-k excludes images
NUM_STEPS = 3
PORT = 29400
LINKS = {"NVLink, 300 GB/s": 300e9, "InfiniBand, 400 Gb/s per GPU": 50e9, "Ethernet, 25 Gb/s per GPU": 3.125e9}
STEP_SECONDS = (0.05, 0.2)


def curriculum(batch_split: int) -> Curriculum:
    """Return BFM at 32 px, with little computation per image."""
    few = ["num_steps_coarse=3", "num_steps_surface=2", "num_steps_fine=1", "n_secant_steps=1", "init_ball_radius=0"]
    return CURRICULUMS["BFM"].with_overrides([*few, f"batch_size={batch_split}", f"batch_split={batch_split}", "img_size=32"])


def sent_bytes() -> int:
    """Return the number of bytes that this host's interface has sent so far."""
    (line,) = [line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("eth0:")]
    return int(line.split(":")[1].split()[8])


def all_reduces(trainer: Trainer, real: torch.Tensor) -> int:
    """Count the all-reduces of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        take_step(trainer, real)
    return sum(event.count for event in profile.key_averages() if event.key.endswith(":all_reduce"))


def take_step(trainer: Trainer, real: torch.Tensor) -> None:
    trainer._step(real, trainer.curriculum.stage_at(trainer.state.step))
    trainer.state.step += 1


def rank_main(folder: Path) -> None:
    """Run one process, and write its counts to ``folder`` as JSON."""
    torch.set_num_threads(1)
    processes = join_processes(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for batch_split in (1, 2):
        state = RunState(curriculum(batch_split), seed=0, device=processes.device, amp_dtype=None)
        state.step = LATE
        trainer = Trainer(state, RunOptions(Path(), ""), processes)
        real = torch.rand(batch_split, 3, 32, 32) * 2 - 1
        take_step(trainer, real)
        counts = []
        for _ in range(NUM_STEPS):
            dist.barrier()
            before = sent_bytes()
            take_step(trainer, real)
            dist.barrier()
            counts.append(sent_bytes() - before)
        rows.append({"batch_split": batch_split, "sent": counts, "all_reduces": all_reduces(trainer, real)})
    (folder / f"{processes.world_size}_{processes.rank}.json").write_text(json.dumps(rows))
    processes.close()


def gradient_bytes() -> dict[str, int]:
    """Return the bytes of the gradients of G, of all of D, and of D's active blocks during the fade-in at each image size."""
    c = CURRICULUMS["BFM"]
    with torch.device("meta"):  # counting needs no values
        G, D = ImplicitGenerator3d(c), ProgressiveEncoderDiscriminator(c)
        sizes = {"G": _bytes(G.parameters()), "D, all blocks": _bytes(D.parameters())}
        for size in (32, 64, 128):
            D.zero_grad(set_to_none=True)
            output = D(torch.zeros(1, 3, size, size), 0.5)
            (output.score.sum() + output.pose.sum()).backward()
            sizes[f"D, {size} px"] = _bytes(p for p in D.parameters() if p.grad is not None)
    return sizes


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def measure(world_size: int, folder: Path) -> list[list[dict[str, Any]]]:
    """Run ``world_size`` processes and return what each one wrote. Raises UserError if one fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--rank_folder", str(folder)]
    commands = [["env", f"RANK={rank}", f"WORLD_SIZE={world_size}", "LOCAL_WORLD_SIZE=1", *command] for rank in range(world_size)]
    variables = {"MASTER_ADDR": virtual_hosts.address(0), "MASTER_PORT": str(PORT), "OMP_NUM_THREADS": "1"}
    results = virtual_hosts.VirtualHosts(commands, REPO, variables).finish(timeout=900)
    for rank, result in enumerate(results):
        if result.status:
            raise UserError(f"process {rank} of {world_size} ended with status {result.status}: {result.errors[-500:]}")
    return [json.loads((folder / f"{world_size}_{rank}.json").read_text()) for rank in range(world_size)]


def volume_row(world_size: int, found: list[list[dict[str, Any]]], i: int, gradients: int) -> dict[str, Any]:
    least = 2 * (world_size - 1) / world_size * gradients
    sent = [sum(part[i]["sent"]) / NUM_STEPS for part in found]
    return {
        "processes": world_size,
        "batch_split": found[0][i]["batch_split"],
        "all_reduces": found[0][i]["all_reduces"],
        "least_bytes": least,
        "sent_bytes": sum(sent) / len(sent),
        "ratio": sum(sent) / len(sent) / least,
    }


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def print_tables(report: dict[str, Any]) -> None:
    sizes = report["gradient_bytes"]
    print("Bytes of gradients (float32): " + ", ".join(f"{name} {size / MB:.1f} MB" for name, size in sizes.items()) + "\n")
    rows = []
    for row in report["volume"]:
        megabytes = [f"{row[name] / MB:.2f}" for name in ("least_bytes", "sent_bytes")]
        rows.append([row["processes"], row["batch_split"], row["all_reduces"], *megabytes, f"{row['ratio']:.3f}"])
    print_table(["processes", "batch_split", "all-reduces", "least, MB per process", "sent, MB", "ratio"], rows)
    rows = []
    for name, rate in LINKS.items():
        exchange = 2 * (sizes["G"] + sizes["D, 32 px"]) / rate
        rows.append([name, f"{1000 * exchange:.2f}", *(f"{t / (t + exchange):.1%}" for t in STEP_SECONDS)])
    print_table(["link", "exchange, ms", *(f"efficiency at {1000 * t:g} ms per step" for t in STEP_SECONDS)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    import tempfile

    parser = ArgumentParser(__doc__)
    parser.add_argument("--json", type=Path, help="write all results as JSON")
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4], help="numbers of processes, one run each")
    parser.add_argument("--rank_folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank_folder:
        os.environ.setdefault("GOF_PEER_TIMEOUT", "300")
        return rank_main(args.rank_folder)
    reason = virtual_hosts.why_impossible()
    if reason:
        raise UserError(f"virtual hosts are not available: {reason}; run this as root, or enable user namespaces")
    sizes = gradient_bytes()
    gradients = sizes["G"] + sizes["D, 32 px"]
    report: dict[str, Any] = {"gradient_bytes": sizes, "volume": []}
    with tempfile.TemporaryDirectory() as folder:
        for world_size in args.processes:
            found = measure(world_size, Path(folder))
            report["volume"] += [volume_row(world_size, found, i, gradients) for i in range(len(found[0]))]
    print_tables(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
