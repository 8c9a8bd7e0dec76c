"""Simulate several hosts on one machine: network namespaces with their own addresses, joined by a bridge.

All namespaces are nested in one that is created for the call and removed at its end. Needs Linux with ip and unshare, and
either root or a kernel that permits user namespaces.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "10.77.0."
SETUP = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link set lo up
ip link add bridge0 type bridge
ip link set bridge0 up
for i in $(seq 1 "$NUM_HOSTS"); do
  ip netns add "host$i"
  ip link add "port$i" type veth peer name eth0 netns "host$i"
  ip link set "port$i" master bridge0 up
  ip -n "host$i" addr add "$PREFIX$i/24" dev eth0
  ip -n "host$i" link set eth0 up
  ip -n "host$i" link set lo up
done
"""
RUN = """
for i in $(seq 1 "$NUM_HOSTS"); do
  (set +e
   nsenter --net="/run/netns/host$i" bash "$FOLDER/command$i" >"$FOLDER/output$i" 2>"$FOLDER/errors$i"
   echo $? >"$FOLDER/status$i"
   ip netns exec "host$i" cat /sys/class/net/eth0/statistics/tx_bytes >"$FOLDER/sent$i") &
done
wait
"""


@dataclass(frozen=True)
class HostResult:
    """Result of a host's command. ``bytes_sent``: by its network interface, including headers; None if unknown."""

    status: int
    output: str
    errors: str
    bytes_sent: int | None


def address(host: int) -> str:
    """Return the IP address of host 0, 1, ..."""
    return f"{PREFIX}{host + 1}"


def _unshare() -> list[str]:
    own_users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own_users, "--net", "--mount", "--propagation", "private", "bash", "-c"]


@cache
def why_impossible() -> str | None:
    """Return why virtual hosts are not available on this machine, or None if they are."""
    missing = [name for name in ("unshare", "ip", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"virtual hosts need {', '.join(missing)}"
    variables = {**os.environ, "NUM_HOSTS": "1", "PREFIX": PREFIX}
    tried = subprocess.run([*_unshare(), SETUP], env=variables, capture_output=True, text=True)
    return f"network namespaces are not permitted here: {tried.stderr.strip()[-200:]}" if tried.returncode else None


class VirtualHosts:
    """Runs ``commands[i]`` on host i in the folder ``cwd``; :meth:`finish` waits for all of them."""

    def __init__(self, commands: Sequence[Sequence[str]], cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="virtual_hosts_")
        folder = Path(self._folder.name)
        for i, command in enumerate(commands, 1):
            (folder / f"command{i}").write_text(f"exec {shlex.join(command)}\n")
        self._num = len(commands)
        variables = {"NUM_HOSTS": str(self._num), "PREFIX": PREFIX, "FOLDER": self._folder.name}
        self._process = subprocess.Popen(
            [*_unshare(), SETUP + RUN], cwd=cwd, env={**os.environ, **(env or {}), **variables}, start_new_session=True
        )

    def finish(self, timeout: float) -> list[HostResult]:
        """Wait for all commands. On timeout, kill all processes and raise subprocess.TimeoutExpired."""
        try:
            self._process.wait(timeout)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            results = [self._result(i) for i in range(1, self._num + 1)]
            self._folder.cleanup()
        return results

    def _result(self, i: int) -> HostResult:
        read = {name: Path(self._folder.name) / f"{name}{i}" for name in ("status", "output", "errors", "sent")}
        text = {name: path.read_text(errors="replace") if path.exists() else "" for name, path in read.items()}
        sent = text["sent"].strip()
        return HostResult(int(text["status"] or -1), text["output"], text["errors"], int(sent) if sent else None)
