"""Sharding of a metric script's images or seeds over processes started by torchrun.

    torchrun --standalone --nproc_per_node=8 eval_metrics.py generator.safetensors --dataset_path photos/

Each image is processed exactly as in a single process, so the result is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator

from common.arguments import resolve_device
from distributed.processes import Processes, join_processes


@contextlib.contextmanager
def shared_work(args: argparse.Namespace) -> Iterator[Processes]:
    """Join the processes of this script, and set ``args.device`` to this process's device. Silence all but the main process.

    Raises UserError for an invalid --device, and PeerLost if another process is lost.
    """
    processes = join_processes(resolve_device(args.device), backend="gloo")  # exchanged tensors are in main memory
    args.device = str(processes.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.handle_failures())
        if not processes.is_main:
            devnull = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(devnull))
            stack.enter_context(contextlib.redirect_stderr(devnull))
        yield processes
        processes.close(wait=False)
