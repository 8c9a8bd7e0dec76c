"""A run in one or several processes, launched by ``torchrun``, with PyTorch's collectives (NCCL on GPUs, gloo on CPUs).

docs/distributed.md describes launching, failures, and the data exchanged between processes.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from distributed.peers import JOIN_GRACE, REMEDY, PeerLost, PeerWatch, agree_on_name, peer_timeout

WAIT = timedelta(hours=12)  # timeout of collectives: a live peer may decode a large data set or compute a metric meanwhile
SIOCGIFADDR = 0x8915
MAX_TEXT_BYTES = 16_384  # two paths

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them: its ``rank``, ``world_size``, and its ``device``."""

    rank: int
    world_size: int
    device: torch.device
    watch: PeerWatch | None = None

    @property
    def is_main(self) -> bool:
        """True for rank 0, the only process that writes."""
        return self.rank == 0

    @property
    def is_first_on_machine(self) -> bool:
        """True for the process that does the work needed once per machine."""
        return self.is_main or os.environ.get("LOCAL_RANK", "0") == "0"

    def all_or_none(self, action: Callable[[], Result], only_main: bool = False) -> Result | None:
        """Run ``action`` in every process, or only in the main one, and return its result.

        If one process raises UserError, all do.
        """
        result, failure = None, None
        if self.is_main or not only_main:
            try:
                result = action()
            except UserError as error:
                failure = error
        if self.any(failure is not None):
            raise failure or UserError("another process of this run failed; see its error message")
        return result

    def broadcast_text(self, text: str) -> str:
        """Return the main process's ``text``, of at most MAX_TEXT_BYTES, in every process."""
        if self.world_size == 1:
            return text
        data = text.encode().ljust(MAX_TEXT_BYTES, b"\0") if self.is_main else bytes(MAX_TEXT_BYTES)
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        dist.broadcast(content, src=0)
        return bytes(content.tolist()).rstrip(b"\0").decode()

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is True in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of each scalar () over processes, in one all-reduce."""
        if self.world_size == 1 or not scalars:
            return scalars
        values = torch.stack([value.float() for value in scalars.values()])
        dist.all_reduce(values)
        return dict(zip(scalars, (values / self.world_size).unbind(), strict=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace existing gradients of ``parameters`` by their means over processes, in one all-reduce.

        Every process must have gradients of the same parameters, in the same order.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world_size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Gather each process's ``rows`` (N, ...) on the CPU of the main process. N may differ. Elsewhere an empty list."""
        if self.world_size == 1:
            return [rows]
        device = self.device if dist.get_backend() == "nccl" else torch.device("cpu")
        counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=device))
        padded = rows.new_zeros(int(max(counts)), *rows.shape[1:], device=device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts] if self.is_main else None
        dist.gather(padded, parts)
        return [part[: int(count)].cpu() for part, count in zip(parts or [], counts, strict=False)]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with the main process's values, as separately computed ones may differ by rounding."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def handle_failures(self) -> Iterator[None]:
        """Handle failures in this context: raise PeerLost for a lost peer, and announce other errors to the peers."""
        try:
            yield
        except BaseException as error:
            lost = self.world_size > 1 and _is_lost_peer_error(error)
            failed_peer = self.watch.has_failed() if self.watch else None
            if self.watch:
                self.watch.close(failed=not lost)
            if not lost:
                raise
            why = " ".join(str(error).split())[:200]
            what = f"rank {failed_peer} failed (see its error)" if failed_peer is not None else f"lost a peer ({why})"
            raise PeerLost(f"rank {self.rank}: {what}; {REMEDY}") from None

    def close(self, wait: bool = True) -> None:
        """Leave the process group. With ``wait``, all leave together, since torchrun kills the others when one fails."""
        if wait:
            self.barrier()
        if self.watch:
            self.watch.close()
        if self.world_size > 1:
            dist.destroy_process_group()


def join_processes(device: torch.device, port: int | None = None, backend: str | None = None) -> Processes:
    """Join the process group that torchrun describes in the environment. Without torchrun, the group has one process.

    ``port``: port on the first machine, if torchrun does not set it. ``backend``: None for NCCL on GPUs and gloo on CPUs.
    Raises UserError for an invalid GOF_PEER_TIMEOUT, and PeerLost if the other processes do not join.
    """
    world_size, timeout = int(os.environ.get("WORLD_SIZE", "1")), peer_timeout()
    if world_size == 1:
        return Processes(0, 1, device)
    if port is not None:
        os.environ.setdefault("MASTER_PORT", str(port))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    if backend == "gloo" and int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) < world_size:
        _choose_interface(os.environ["MASTER_ADDR"])
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=WAIT))
        store = dist.PrefixStore(agree_on_name(store, rank, world_size, timeout + JOIN_GRACE), store)
        watch = PeerWatch(store, rank, world_size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=WAIT)
    except RuntimeError as error:  # DistError too
        why = " ".join(str(error).split())[:200]
        raise PeerLost(f"cannot join the other processes at {os.environ.get('MASTER_ADDR')} ({why}); {REMEDY}") from None
    return Processes(rank, world_size, device, watch)


def _is_lost_peer_error(error: BaseException) -> bool:
    """Return whether ``error`` means that a collective failed. Not all such errors have their own class."""
    matches = re.search(r"gloo|NCCL|[Pp]eer|[Tt]imed out", str(error)) is not None
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and matches)


def _choose_interface(first_machine: str) -> None:
    """Make gloo use the network interface that reaches the first machine, unless the user sets one.

    By default it uses the address of the host name, which is 127.0.1.1 on many systems and reaches no other machine.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):  # unknown host: joining reports it
        probe.connect((first_machine, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                if socket.inet_ntoa(reply[20:24]) == own and not own.startswith("127."):
                    os.environ["GLOO_SOCKET_IFNAME"] = name
