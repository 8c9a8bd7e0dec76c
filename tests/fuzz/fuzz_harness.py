"""Try cases in a separate process (fuzz_worker.py) and count the outcomes.

A case passes if it ends as :mod:`fuzz_worker` allows, within the target's memory and time. Time is what the process computed,
and, where it waits for something, the number of polls in which it did nothing: a busy machine must not fail a test.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz_worker import Case, Outcome

POLL_SECONDS = 0.25
DIED = "died"
IDLE_POLLS = 60  # without computing anything: it waits for what never comes
START_SECONDS = 120
# What one case may take: MB above what the process had before, and seconds of computing until it counts as hanging.
MEMORY_MB = {"checkpoint": 128, "image": 1536, "curriculum": 64, "mesh": 256, "report": 128, "command": 512}
DEADLINE_SECONDS = {"checkpoint": 20, "image": 30, "curriculum": 10, "mesh": 30, "report": 10, "command": 120}


@dataclass
class Count:
    """The outcomes of a target's cases."""

    cases: int = 0
    refused: int = 0
    failures: int = 0
    peak_mb: float = 0.0
    cpu_seconds: float = 0.0
    slowest_seconds: float = 0.0


class CaseFailed(AssertionError):
    """A case caused a violation."""


class Worker:
    """One process, started when first needed, and again after it died."""

    def __init__(self, targets: str = "fuzz_targets") -> None:
        self.targets = targets
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Connection | None = None
        self.sandbox: Path | None = None
        self.counts: dict[str, Count] = {}

    def start(self) -> None:
        self.sandbox = Path(tempfile.mkdtemp(prefix="gof_fuzz_"))
        self.channel, theirs = multiprocessing.Pipe()
        script = Path(__file__).with_name("fuzz_worker.py")
        command = [sys.executable, str(script), str(self.sandbox), str(theirs.fileno()), self.targets]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.errors = (self.sandbox / "stderr").open("w+b")
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stderr=self.errors)
        theirs.close()
        if self._receive(START_SECONDS) != "ready":
            said = self._last_words()
            self.stop()
            raise RuntimeError(f"the process for cases did not start: {said}")

    def _receive(self, seconds: float) -> Outcome | str | None:
        """Return the next message; None if the process computes for too long or waits forever; DIED if it died."""
        started, idle, before = self._computed(), 0, 0.0
        try:
            while idle < IDLE_POLLS and before - started < seconds:
                if self.channel.poll(POLL_SECONDS):
                    return self.channel.recv()
                now = self._computed()
                idle = idle + 1 if now == before else 0
                before = now
        except (EOFError, ConnectionError):
            return DIED
        return None

    def _computed(self) -> float:
        """Seconds of processor time so far. A stopped process (T) counts as computing."""
        with contextlib.suppress(OSError), open(f"/proc/{self.process.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            return ticks / os.sysconf("SC_CLK_TCK") + (time.monotonic() * 1e-9 if fields[0] in "Tt" else 0)
        return 0.0

    def _last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-1500:]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.channel.close()
            self.errors.close()
            shutil.rmtree(self.sandbox, ignore_errors=True)
            self.process = None

    def attempt(self, case: Case) -> Outcome:
        """Return the outcome of one case, of kind ``failed`` if the process died or hung."""
        if self.process is None:
            self.start()
        kind = case.target.split(".")[0]
        count = self.counts.setdefault(case.target, Count())
        count.cases += 1
        self.channel.send(case)
        outcome = self._receive(DEADLINE_SECONDS[kind])
        if outcome is None:
            outcome = Outcome(
                "failed", f"no end: {DEADLINE_SECONDS[kind]} s of computing, or {IDLE_POLLS * POLL_SECONDS:.0f} s of waiting"
            )
            self.stop()
        elif outcome == DIED:
            outcome = Outcome("failed", f"the process died ({self.process.wait()}): {self._last_words()}")
            self.stop()
        count.peak_mb = max(count.peak_mb, outcome.peak_mb)
        count.cpu_seconds += outcome.cpu_seconds
        count.slowest_seconds = max(count.slowest_seconds, outcome.cpu_seconds)
        if outcome.kind != "failed" and outcome.peak_mb > MEMORY_MB[kind]:
            outcome = Outcome("failed", f"took {outcome.peak_mb:.0f} MB, more than {MEMORY_MB[kind]}", outcome.peak_mb)
        count.refused += outcome.kind == "refused"
        count.failures += outcome.kind == "failed"
        return outcome

    def check(self, case: Case) -> Outcome:
        """Like :meth:`attempt`, but raise CaseFailed for a case that failed."""
        outcome = self.attempt(case)
        if outcome.kind == "failed":
            kept = Path(tempfile.gettempdir()) / f"gof_fuzz_{case.target}.json"
            kept.write_text(case.to_json())  # the last one that fails is the smallest
            raise CaseFailed(f"{outcome.detail}\n{case.target} with {case.files.keys()}; python tests/fuzz/run.py --case {kept}")
        return outcome


WORKER = Worker()
atexit.register(WORKER.stop)
