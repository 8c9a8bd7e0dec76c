"""Heartbeats: how each process of a run knows that the others are alive.

A collective operation cannot tell a slow peer from a dead one: the main process may decode images for an hour while the
others wait for it. So collectives wait for hours, and heartbeats go through the store that torchrun keeps for every run. A
process that hears nothing from a peer for the timeout prints one line and exits with the status of :class:`PeerLost`;
torchrun may then restart all of them. Time is counted in heartbeats, not by a clock, so suspending a machine loses nobody.
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
JOINING = 300.0  # seconds between the starts of processes, beyond the timeout
MEETING_TURN = 0.1  # seconds
TURNS_OF_SILENCE = 20  # heartbeats per timeout
ENDED, FAILED = b"ended", b"failed"
REMEDY = "start the same command again to resume from the last checkpoint"


class PeerLost(UserError):
    """Another process of the run was lost; nothing is wrong with this one."""

    exit_status = 5


def peer_timeout() -> float:
    """Seconds without a heartbeat after which a peer counts as lost: GOF_PEER_TIMEOUT, or 300. Raises UserError."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE}={text!r} is not a number of seconds of at least 1")
    return seconds


def meet(store: dist.Store, rank: int, world_size: int, patience: float) -> str:
    """Wait for ``world_size`` processes; return a name that this set of processes, and no earlier one, agrees on.

    The store outlives processes that torchrun has replaced, and still holds their addresses. So each process contributes a
    random number, and rank 0 continues once all have accepted the same list of them. Raises PeerLost after ``patience``
    seconds.
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
    """Heartbeats of ``rank`` in ``store``; ends this process when one of ``world_size`` peers is silent for ``timeout`` s.

    One thread talks to the store, where it may block; the other only counts. ``close`` ends both and tells the others not to
    wait for this process.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        self._store = dist.PrefixStore("signs_of_life", store.clone())  # its own connection, which others do not block
        self._store.set_timeout(timedelta(seconds=timeout))
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._turn = timeout / TURNS_OF_SILENCE
        self._heard = [b""] * world_size
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]
        for thread in self._threads:
            thread.start()

    def close(self, failed: bool = False) -> None:
        """Announce that this process ends, or that it has ``failed``."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._turn)
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            self._store.set(str(self._rank), FAILED if failed else ENDED)

    def has_failed(self) -> int | None:
        """The first peer that announced a failure, if any."""
        return next((rank for rank, sign in enumerate(self._heard) if sign == FAILED), None)

    def _talk(self) -> None:
        host = socket.gethostname()
        names = [str(rank) for rank in range(self._world_size)]
        count = 0
        while not self._closing.is_set():
            count += 1
            with contextlib.suppress(RuntimeError):  # a missed heartbeat is counted
                self._store.set(str(self._rank), f"{count} {host}")
                self._heard = self._store.multi_get(names)
            self._closing.wait(self._turn)

    def _watch(self) -> None:
        last, silent_turns = self._heard, [0] * self._world_size
        while not self._closing.wait(self._turn):
            heard = self._heard
            for rank, sign in enumerate(heard):
                is_silent = sign == last[rank] and sign not in (ENDED, FAILED) and rank != self._rank
                silent_turns[rank] = silent_turns[rank] + 1 if is_silent else 0
            last = heard
            lost = [rank for rank, turns in enumerate(silent_turns) if turns >= TURNS_OF_SILENCE]
            if lost and not self._closing.is_set():
                self._leave([f"rank {rank} on {heard[rank].decode().partition(' ')[2] or '?'}" for rank in lost])

    def _leave(self, lost: list[str]) -> None:
        names = ", ".join(lost[:4]) + (" and others" if len(lost) > 4 else "")
        what = f"lost {names}: no sign of life for {self._timeout:g} s ({TIMEOUT_VARIABLE})"
        line = f"{os.path.basename(sys.argv[0])}: error: rank {self._rank}: {what}; {REMEDY}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(PeerLost.exit_status)  # the main thread may be inside a call that never returns
