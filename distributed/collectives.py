"""What all processes of a run must agree on before any of them goes on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from common.errors import UserError
from distributed.processes import Processes


def all_or_none(processes: Processes, action: Callable[[], None], only_main: bool = False) -> None:
    """``action`` in every process, or in the main one alone; where it raises UserError in one, all raise."""
    failure = None
    if processes.is_main or not only_main:
        try:
            action()
        except UserError as error:
            failure = error
    if processes.any(failure is not None):
        raise failure or UserError("another process of this run had to stop; it says why")


def text_of_main(processes: Processes, text: str) -> str:
    """The main process's ``text``, in every process."""
    if processes.world_size == 1:
        return text
    data = text.encode() if processes.is_main else b""
    size = torch.tensor(len(data), device=processes.device)
    dist.broadcast(size, src=0)
    content = torch.zeros(int(size), dtype=torch.uint8, device=processes.device)
    if data:
        content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(content, src=0)
    return bytes(content.tolist()).decode()
