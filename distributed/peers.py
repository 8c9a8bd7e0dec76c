"""Heartbeats that detect lost processes of a run.

A collective operation cannot distinguish a slow peer from a dead one: the main process may decode images for an hour while
the others wait. So collectives have a timeout of hours, and heartbeats go through the store that torchrun keeps for every
run. A process that receives no heartbeat from a peer for the peer timeout prints one line and exits with the status of
:class:`PeerLost`. torchrun may then restart all processes. Time is counted in heartbeats, not by a clock, so that suspending
a machine does not count as a loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from common.errors import UserError

TIMEOUT_VARIABLE = "GOF_PEER_TIMEOUT"
DEFAULT_TIMEOUT = 300.0  # seconds
JOIN_GRACE = 300.0  # seconds that processes may start apart, in addition to the timeout
POLL_INTERVAL = 0.1  # seconds
HEARTBEATS_PER_TIMEOUT = 20
ENDED, FAILED = b"ended", b"failed"
REMEDY = "run the same command again to resume from the last checkpoint"


class PeerLost(UserError):
    """Another process of the run was lost. This process has no error of its own."""

    exit_status = 5


def peer_timeout() -> float:
    """Return the seconds without a heartbeat after which a peer is lost: GOF_PEER_TIMEOUT, or 300. Raises UserError."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text!r} is invalid; set it to a number of seconds, 1 or more")
    return seconds


def agree_on_name(store: dist.Store, rank: int, world_size: int, timeout: float) -> str:
    """Wait for ``world_size`` processes, and return a group name that is unique to them.

    The store outlives processes that torchrun has replaced, and still holds their addresses. So each process contributes a
    random number, and rank 0 continues when all have accepted the same list of numbers. Raises PeerLost after ``timeout``
    seconds.
    """
    own = secrets.token_hex(8)
    store.set(f"here/{rank}", own)
    offer = ""
    for _ in range(math.ceil(timeout / POLL_INTERVAL)):
        if rank == 0:
            here = [own, *(_read(store, f"here/{peer}") for peer in range(1, world_size))]
            if all(here) and offer != ",".join(here):
                offer = ",".join(here)
                store.set("offer", offer)
            if offer and all(_read(store, f"accepted/{peer}") == offer for peer in range(1, world_size)):
                store.set("agreed", offer)
                break
        else:
            newest = _read(store, "offer")
            if newest != offer and newest.count(",") == world_size - 1 and newest.split(",")[rank] == own:
                offer = newest
                store.set(f"accepted/{rank}", offer)
            if offer and _read(store, "agreed") == offer:
                break
        time.sleep(POLL_INTERVAL)
    else:
        raise PeerLost(f"rank {rank}: not all {world_size} processes of this run started within {timeout:g} s; {REMEDY}")
    return hashlib.sha256(offer.encode()).hexdigest()[:16]


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


class PeerWatch:
    """Send heartbeats of ``rank`` through ``store``, and exit if one of ``world_size`` peers sends none for ``timeout`` s.

    One thread accesses the store, where it may block. The other only counts. ``close`` ends both, and announces to the peers
    that no more heartbeats follow.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self._store = dist.PrefixStore("heartbeats", store.clone())  # a separate connection, so that nothing else blocks it
        self._store.set_timeout(timedelta(seconds=timeout))
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._interval = timeout / HEARTBEATS_PER_TIMEOUT
        self._received = [b""] * world_size
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange_heartbeats, self._count_missed)]
        for thread in self._threads:
            thread.start()

    def close(self, failed: bool = False) -> None:
        """Announce that this process ends, or that it has ``failed``."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._interval)
        with contextlib.suppress(RuntimeError):  # the store's host may be down
            self._store.set(str(self._rank), FAILED if failed else ENDED)

    def has_failed(self) -> int | None:
        """Return the rank of the first peer that announced a failure, or None."""
        return next((rank for rank, heartbeat in enumerate(self._received) if heartbeat == FAILED), None)

    def _exchange_heartbeats(self) -> None:
        host = socket.gethostname()
        names = [str(rank) for rank in range(self._world_size)]
        count = 0
        while not self._closing.is_set():
            count += 1
            with contextlib.suppress(RuntimeError):  # counts as a missed heartbeat
                self._store.set(str(self._rank), f"{count} {host}")
                self._received = self._store.multi_get(names)
            self._closing.wait(self._interval)

    def _count_missed(self) -> None:
        last, num_missed = self._received, [0] * self._world_size
        while not self._closing.wait(self._interval):
            received = self._received
            for rank, heartbeat in enumerate(received):
                is_missed = heartbeat == last[rank] and heartbeat not in (ENDED, FAILED) and rank != self._rank
                num_missed[rank] = num_missed[rank] + 1 if is_missed else 0
            last = received
            lost = [rank for rank, num in enumerate(num_missed) if num >= HEARTBEATS_PER_TIMEOUT]
            if lost and not self._closing.is_set():
                self._exit([f"rank {rank} on {received[rank].decode().partition(' ')[2] or '?'}" for rank in lost])

    def _exit(self, lost: list[str]) -> None:
        names = ", ".join(lost[:4]) + (" and others" if len(lost) > 4 else "")
        what = f"lost {names}: no heartbeat for {self._timeout:g} s ({TIMEOUT_VARIABLE})"
        line = f"{os.path.basename(sys.argv[0])}: error: rank {self._rank}: {what}; {REMEDY}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(PeerLost.exit_status)  # the main thread may be inside a call that never returns
