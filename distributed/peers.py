"""Whether the other processes of a run are alive: each shows a sign of life, each watches the others'.

A collective operation cannot tell a peer that is slow from one that is gone: the main process may decode images for an hour
while the others wait for it. So the wait is long, and life is proved apart from it, through the store that torchrun keeps
for every run. A process that hears nothing from a peer for the timeout says so in one line and ends with the status of
:class:`PeerLost`; torchrun may then start all of them anew. Time is counted in turns of the watch, not by a clock: a machine
that was suspended, and its processes with it, has lost nobody.
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
JOINING = 300.0  # seconds that processes may start apart, beyond the timeout
MEETING_TURN = 0.1  # seconds
TURNS_OF_SILENCE = 20  # of the watch in one timeout
ENDED, FAILED = b"ended", b"failed"
REMEDY = "start the same command again, and the run goes on from its last checkpoint"


class PeerLost(UserError):
    """Another process of the run is gone; nothing is wrong with this one."""

    exit_status = 5


def peer_timeout() -> float:
    """Seconds without a sign of life after which a peer counts as lost: GOF_PEER_TIMEOUT, or 300. Raises UserError."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text!r} is not a number of seconds of at least 1")
    return seconds


def meet(store: dist.Store, rank: int, world_size: int, patience: float) -> str:
    """Wait until ``world_size`` processes are there; a name that these, and none before them, have in common.

    The store may hold what processes wrote that torchrun has replaced since, addresses among them: whoever believed it
    would wait for the dead. So each brings a random number of its own, and rank 0 goes on when all have agreed to one list
    of them. Raises PeerLost after ``patience`` seconds.
    """
    own = secrets.token_hex(8)
    store.set(f"here/{rank}", own)
    offer = ""
    for _ in range(math.ceil(patience / MEETING_TURN)):
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
        time.sleep(MEETING_TURN)
    else:
        raise PeerLost(f"rank {rank}: the {world_size} processes of this run did not come together in {patience:g} s; {REMEDY}")
    return hashlib.sha256(offer.encode()).hexdigest()[:16]


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


class PeerWatch:
    """Shows life for ``rank`` in ``store``, and ends this process when one of ``world_size`` was silent for ``timeout`` s.

    Two threads: one talks to the store, where it may get stuck, the other only counts. ``close`` ends both and tells the
    others that this process is not to be waited for.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self._store = dist.PrefixStore("signs_of_life", store.clone())  # blocked calls of others do not hold it up
        self._store.set_timeout(timedelta(seconds=timeout))
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._turn = timeout / TURNS_OF_SILENCE
        self._heard: list[bytes] = []
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]
        for thread in self._threads:
            thread.start()

    def close(self, failed: bool = False) -> None:
        """This process ends, or ``failed``, of its own accord."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._turn)
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            self._store.set(str(self._rank), FAILED if failed else ENDED)

    def has_failed(self) -> int | None:
        """The first peer that said so, if any."""
        return next((rank for rank, sign in enumerate(self._heard) if sign == FAILED), None)

    def _talk(self) -> None:
        host = socket.gethostname()
        names = [str(rank) for rank in range(self._world_size)]
        count = 0
        while not self._closing.is_set():
            count += 1
            with contextlib.suppress(RuntimeError):  # what is not heard is counted
                self._store.set(str(self._rank), f"{count} {host}")
                self._heard = self._store.multi_get(names)
            self._closing.wait(self._turn)

    def _watch(self) -> None:
        last: list[bytes] = []
        silent_turns = [0] * self._world_size
        while not self._closing.wait(self._turn):
            heard = self._heard
            for rank in range(self._world_size):
                is_silent = heard[rank : rank + 1] == last[rank : rank + 1]
                has_left = heard[rank : rank + 1] in ([ENDED], [FAILED])
                silent_turns[rank] = silent_turns[rank] + 1 if is_silent and not has_left else 0
            last = heard
            lost = [rank for rank, turns in enumerate(silent_turns) if turns >= TURNS_OF_SILENCE and rank != self._rank]
            if lost and not self._closing.is_set():
                self._leave(lost, heard)

    def _leave(self, lost: list[int], heard: list[bytes]) -> None:
        hosts = [heard[rank].split()[-1].decode(errors="replace") if heard else "?" for rank in lost]
        names = ", ".join(f"rank {rank} on {host}" for rank, host in list(zip(lost, hosts, strict=True))[:4])
        what = f"lost {names}{' and others' if len(lost) > 4 else ''}: no sign of life for {self._timeout:g} s"
        line = f"{os.path.basename(sys.argv[0])}: error: rank {self._rank}: {what} ({TIMEOUT_VARIABLE}); {REMEDY}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(PeerLost.exit_status)  # the main thread may be inside a call that never returns
