"""A metric script as one process or as several that torchrun started, which share its images or seeds out.

    torchrun --standalone --nproc_per_node=8 eval_metrics.py generator.safetensors --dataset_path photos/

Whatever one process would compute for an image, the process that has it computes: the result is the same.
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
    """Join the processes of this script, and set ``args.device`` to this one's device. All but the main one are silent.

    Raises UserError for an impossible --device, PeerLost where another process was lost.
    """
    processes = join_processes(resolve_device(args.device), backend="gloo")  # what is exchanged lies in main memory
    args.device = str(processes.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.together())
        if not processes.is_main:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield processes
        processes.close(wait=False)
