"""One process or many: PyTorch's own engine, as ``torchrun`` sets it up (DDP; NCCL on GPUs, gloo on CPUs)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=60)  # the others wait while the main process decodes a large set once


@dataclass(frozen=True)
class Processes:
    """This process's place among ``world_size``; ``device`` is its own."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Only this process writes."""
        return self.rank == 0

    def wrap(self, step: nn.Module, uses_all_parameters: bool) -> nn.Module:
        """A step whose gradients are averaged over processes; itself where there is one process."""
        if self.world_size == 1:
            return step
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(step, device_ids=ids, find_unused_parameters=not uses_all_parameters)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()


def join_processes(device: torch.device, port: int | None = None) -> Processes:
    """Join the group that torchrun describes in the environment; alone without one. ``port``: of the first machine."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Processes(0, 1, device)
    if port is not None:
        os.environ.setdefault("MASTER_PORT", str(port))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Processes(dist.get_rank(), world_size, device)
