"""Soak test: kill training, fill its disk and damage its files; the result must equal an undisturbed run bit for bit.

    bash auto_bash/soak.sh [--quick] [--seed N] [--work_dir DIR]

It runs train.py as a user does: one process after another, each time the same command, which resumes. One line per event;
the last line is a JSON object. Exit status 0: the two runs are identical and nothing was lost; 1: otherwise (the work folder is
kept); 2: bad input. The same seed gives the same events in the same order; their timing is as exact as the machine's clock and
load allow.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common.arguments import ArgumentParser, positive_int, seed_number
from common.errors import UserError
from common.files import make_output_dir
from settings.curriculum import Curriculum
from settings.registry import get_curriculum
from soak.soak_files import DAMAGES, Audit, checkpoints_in, compare_runs, newest_step_in, read_log, temporaries_in
from tools.synthetic_heads import generate

REPO = Path(__file__).resolve().parents[2]
POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE_SECONDS = 300.0
END_MARGIN = 3  # checkpoint intervals that are left for the run's undisturbed end
NOT_SAVED = 3  # train.py's status where its last state could not be written
NETWORK = [  # small and quick; the wide blocks are those of sizes that are not reached: they only make checkpoints larger
    *("hidden_dim=32", "num_layers=3", "latent_dim=16", "disc_channels=(64,64,64,64,8,8,16,16,16)"),
    *("num_steps_coarse=6", "num_steps_surface=3", "num_steps_fine=2", "topk_v=0.5"),
]


class SoakError(Exception):
    """The soak test cannot continue, because train.py failed."""


@dataclass(frozen=True)
class Size:
    """The size of the test; intervals are steps between checkpoints, and between milestones."""

    num_kills: int
    num_corruptions: int
    num_full_disks: int
    num_steps: int
    interval: int = 8
    milestone_interval: int = 60
    num_images: int = 120
    ball_radius: float = 0.08


LONG = Size(num_kills=30, num_corruptions=10, num_full_disks=4, num_steps=960)
QUICK = Size(num_kills=9, num_corruptions=5, num_full_disks=2, num_steps=360)


@dataclass(frozen=True)
class Event:
    """The event that ends one process. moment: "step", "save" or "start-up"; with signal None the disk is full except for
    ``room`` of a checkpoint, and moment is "starved" (space is freed, then SIGTERM) or "stopped" (SIGTERM on the full disk).
    damage: a key of DAMAGES, applied to the newest checkpoint afterwards."""

    signal: signal.Signals | None
    moment: str = "step"
    twice: bool = False
    room: float = 0.0
    damage: str | None = None


def plan_events(size: Size, rng: random.Random) -> list[Event]:
    """Half of the kills are by SIGKILL, half of these during a save; the other signals share the rest, a third sent twice."""
    events = []
    for i in range(size.num_kills):
        if i % 2 == 0:
            events.append(Event(signal.SIGKILL, ("save", "step", "save", "start-up")[i // 2 % 4]))
        else:
            moment = ("step", "step", "save", "start-up", "step")[i // 2 % 5]
            events.append(Event(POLITE[i // 2 % 3], moment, twice=i // 2 % 3 == i // 6 % 3))
    rng.shuffle(events)
    for i in range(size.num_full_disks):
        events.insert(
            rng.randrange(2, size.num_kills * 2 // 3), Event(None, "stopped" if i % 4 == 3 else "starved", room=0.5 * (i % 2))
        )
    kinds = list(DAMAGES)
    places = [i for i, event in enumerate(events) if i > 1 and event.moment != "start-up"]
    for i, place in enumerate(sorted(rng.sample(places, size.num_corruptions))):
        events[place] = dataclasses.replace(events[place], damage=kinds[i % len(kinds)])
    return events


def soak_curriculum(size: Size) -> Curriculum:
    """Three stages, which change the image size, batch_split, the batch size and the learning rates."""
    rates = {"gen_lr": 1e-3, "disc_lr": 1e-3}
    stages = [
        {"start_step": 0, "batch_size": 4, "img_size": 8, **rates},
        {"start_step": size.num_steps // 3, "batch_size": 4, "img_size": 16, "batch_split": 2, **rates},
        {"start_step": size.num_steps * 2 // 3, "batch_size": 2, "img_size": 16, "gen_lr": 5e-4, "disc_lr": 1e-3},
    ]
    schedules = [f"end_step={size.num_steps}", f"fade_steps={size.num_steps // 6}", f"topk_interval={size.num_steps // 24}"]
    schedules.append(f"ball_hold_steps={size.num_steps // 2 if size.ball_radius else 0}")
    settings = [*NETWORK, *schedules, f"init_ball_radius={size.ball_radius}"]
    curriculum = get_curriculum("SYNTH_TINY").to_dict()
    return Curriculum.from_dict({**curriculum, "stages": stages, "end_step": size.num_steps}, "SOAK").with_overrides(settings)


# -- one process of train.py -------------------------------------------------------------------------------------------


class Training:
    """A process of train.py writing into ``folder``; what it prints is kept in ``record`` and in :attr:`text`."""

    def __init__(self, command: list[str], folder: Path, record: Path) -> None:
        self.folder = folder
        self._log = folder / "log.jsonl"
        self._last_line_before = self._last_line()
        self._chunks: list[bytes] = []
        self.process = subprocess.Popen(
            [*command, "--output_dir", str(folder)],
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # a pipe, not a file: a limit on files' sizes shall not hit it
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, args=(record,), daemon=True)
        self._reader.start()

    def _read(self, record: Path) -> None:
        with record.open("wb") as file:
            while chunk := self.process.stdout.read1(65536):
                self._chunks.append(chunk)
                file.write(chunk)
                file.flush()

    @property
    def text(self) -> str:
        return b"".join(self._chunks).decode(errors="replace")

    def _last_line(self) -> bytes:
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                return (file.read().rsplit(b"\n", 2) + [b"", b""])[1]
        except OSError:
            return b""

    @property
    def step(self) -> int | None:
        """Return the last step that this process logged, None before the first."""
        line = self._last_line()
        try:
            return None if line == self._last_line_before else int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            return None

    def is_at(self, step: int) -> bool:
        return (self.step or 0) >= step

    @property
    def resumed_step(self) -> int | None:
        """Return the step from which the process says it resumed."""
        found = re.search(r"resum\w+ from \S*checkpoint_(\d+)\.pt", self.text)
        return int(found[1]) if found else None

    def wait_until(self, condition: Callable[[], bool], what: str, or_ended: bool = False) -> None:
        """Wait for a condition. Raises SoakError on timeout, or if the process ends first (unless ``or_ended``)."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.process.poll() is not None and not condition():
                if or_ended:
                    return
                raise SoakError(f"train.py ended by itself, status {self.process.returncode}, before {what}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise SoakError(f"train.py runs, but after {PATIENCE_SECONDS:.0f} s there is not yet {what}: {self.last_words()}")
            time.sleep(0.004)

    def wait_for_writing(self, name: str) -> None:
        """Return as soon as a partial file of ``name...`` exists. Polls without pause, as it exists for only a millisecond."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        start = f".{name}"
        while not any(entry.name.startswith(start) for entry in os.scandir(self.folder)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SoakError(f"no file {start}... was written by train.py: {self.last_words()}")

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return False if the process has already ended."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True

    def wait(self) -> int:
        """Return the exit status. Raises SoakError if the process neither ends nor takes a step for a long time."""
        last_step, deadline = self.step, time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            if self.step != last_step:
                last_step, deadline = self.step, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise SoakError(f"train.py hangs: {PATIENCE_SECONDS:.0f} s without a step or its end: {self.last_words()}")
            time.sleep(0.02)
        self._reader.join(10)
        return self.process.returncode

    def last_words(self) -> str:
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.text) if line.strip()]
        return " | ".join(lines[-3:])[-500:] or "(it said nothing)"

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# -- a disk that can be filled -----------------------------------------------------------------------------------------


class Tmpfs:
    """``run`` moved to a small tmpfs, and back at the end."""

    def __init__(self, run: Path, room: int) -> None:
        self._home, self._mount = run, run.with_name("small_disk")
        self.folder = self._mount / run.name
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) + room
        self._mount.mkdir(exist_ok=True)
        mount_tmpfs(self._mount, size)
        shutil.copytree(run, self.folder)

    def fill(self, training: Training, room: int) -> None:
        """Leave ``room`` bytes free."""
        ballast = self._mount / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for block in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(block)) == block:
                        pass
                except OSError:
                    continue
            file.truncate(max(0, file.tell() - room))

    def empty(self, training: Training) -> None:
        (self._mount / "ballast").unlink()

    def close(self) -> None:
        shutil.rmtree(self._home)
        shutil.copytree(self.folder, self._home)
        subprocess.run(["umount", str(self._mount)], check=True)


class FileSizeLimit:
    """A substitute if nothing can be mounted: the kernel rejects writes beyond a file size (RLIMIT_FSIZE)."""

    def __init__(self, run: Path, room: int) -> None:
        self.folder = run

    def fill(self, training: Training, room: int) -> None:
        self._limit(training, room)

    def empty(self, training: Training) -> None:
        self._limit(training, resource.RLIM_INFINITY)

    def _limit(self, training: Training, size: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def close(self) -> None:
        pass


def mount_tmpfs(place: Path, size: int) -> None:
    """Raises OSError if that is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise OSError(result.stderr.strip() or "mount failed")


def find_disk(choice: str, work: Path) -> type[Tmpfs] | type[FileSizeLimit]:
    """Return the kind of full disk that this machine permits. Raises UserError if ``choice`` requires another."""
    if choice == "limit":
        return FileSizeLimit
    probe = work / "small_disk"
    probe.mkdir()
    try:
        mount_tmpfs(probe, 1 << 16)
    except OSError as error:
        if choice == "tmpfs":
            raise UserError(f"--disk tmpfs: {error}; use --disk limit") from None
        print(f"no tmpfs can be mounted here ({error}); a limit on the size of files (RLIMIT_FSIZE) stands in for the full disk")
        return FileSizeLimit
    subprocess.run(["umount", str(probe)], check=True)
    return Tmpfs


# -- the soak test -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """The content of the last line."""

    kills: int = 0
    corrupted: int = 0
    identical: bool = False
    full_disks: int = 0
    bytes_lost: int = 0
    steps_lost_to_kills: int = 0
    most_steps_lost_to_a_kill: int = 0
    steps_lost_to_full_disks: int = 0
    steps_lost_to_corruption: int = 0
    checkpoint_interval: int = 0
    steps: int = 0
    starts: int = 0
    checkpoints_compared: int = 0
    half_written_files: int = 0
    lines_logged_twice: int = 0
    torn_log_lines: int = 0
    full_disk_by: str = ""
    kills_by_signal: dict[str, int] = field(default_factory=dict)
    kills_by_moment: dict[str, int] = field(default_factory=dict)
    kills_by_status: dict[str, int] = field(default_factory=dict)
    full_disks_by_status: dict[str, int] = field(default_factory=dict)
    corruptions: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


class Soak:
    """One soak test in the folder ``work``; see :meth:`run`."""

    def __init__(self, work: Path, size: Size, seed: int, disk: str = "auto") -> None:
        self.work, self.size, self.seed = work, size, seed
        self.started = time.monotonic()
        self.disk = find_disk(disk, work)
        self.tally = Tally(checkpoint_interval=size.interval, steps=size.num_steps, seed=seed, full_disk_by=self.disk.__name__)
        self.reference, self.disturbed = work / "reference", work / "disturbed"
        self.audit = Audit(self.disturbed, size.milestone_interval)
        self.startup_seconds = self.step_seconds = 0.0
        self.reached = 0  # the last step that the disturbed run's last process logged
        self._starved: set[int] = set()  # steps that were taken while the disk was full
        self._unmentioned: str | None = None  # a damaged checkpoint that no process had to pass over yet
        for name in ("reference", "disturbed", "output"):
            (work / name).mkdir()

    def run(self, events: list[Event]) -> Tally:
        """Run the undisturbed and the disturbed run, and compare them. Problems are recorded in the tally."""
        try:
            self.prepare()
            self.train_undisturbed()
            for index, event in enumerate(events):
                rng = random.Random(f"{self.seed} {index}")  # an event's choices do not hang on what the ones before it met
                self.disturb(event, rng, num_left=len(events) - index)
            self.train_to_the_end()
            self.compare()
        except (SoakError, OSError, subprocess.SubprocessError) as error:  # the last line is JSON in any case
            self.problem(str(error))
        self.tally.identical = self.tally.identical and not self.tally.problems
        self.tally.seconds = round(time.monotonic() - self.started, 1)
        return self.tally

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def problem(self, text: str) -> None:
        self.tally.problems.append(text)
        self.say(f"PROBLEM: {text}")

    def prepare(self) -> None:
        size, heads = self.size, self.work / "heads"
        with redirect_stderr(io.StringIO()):  # a progress bar
            generate(heads, size.num_images, image_size=16, num_workers=1)
        curriculum = self.work / "soak.json"
        curriculum.write_text(json.dumps(soak_curriculum(size).to_dict(), indent=1))
        self.command = [
            *(sys.executable, "train.py", "--curriculum", str(curriculum), "--dataset_path", str(heads / "images")),
            *("--device", "cpu", "--no-cache", "--no-use_logger", "--log_interval", "1"),
            *("--model_save_interval", str(size.interval), "--milestone_interval", str(size.milestone_interval)),
            *("--sample_interval", str(size.num_steps // 4)),
        ]

    @contextmanager
    def training(self, folder: Path) -> Iterator[Training]:
        self.tally.starts += 1
        training = Training(self.command, folder, self.work / "output" / f"{self.tally.starts:03d}.txt")
        try:
            yield training
        finally:
            training.end()

    def train_undisturbed(self) -> None:
        began = time.monotonic()
        with self.training(self.reference) as training:
            training.wait_until(lambda: training.step is not None, "a first step")
            first = time.monotonic()
            if status := training.wait():
                raise SoakError(f"the undisturbed run ended with status {status}: {training.last_words()}")
        self.startup_seconds = min(first - began, 20.0)
        self.step_seconds = min((time.monotonic() - first) / self.size.num_steps, 0.2)
        self.checkpoint_bytes = checkpoints_in(self.reference)[-1].stat().st_size
        self.say(
            f"undisturbed: {self.size.num_steps} steps of {self.step_seconds * 1e3:.0f} ms after {self.startup_seconds:.1f} s;"
            f" a checkpoint of {self.checkpoint_bytes / 1e6:.1f} MB every {self.size.interval} steps"
        )

    # -- events --------------------------------------------------------------------------------------------------------

    def disturb(self, event: Event, rng: random.Random, num_left: int) -> None:
        """Run one process until ``event`` ends it, and inspect the result."""
        expected = self.audit.newest_step
        margin = END_MARGIN * self.size.interval * (2 if event.signal is None else 1)  # a starved run continues for a while
        last_allowed = self.size.num_steps - margin
        target = min(expected + rng.randint(1, max(2, 2 * (last_allowed - expected) // (num_left + 1))), last_allowed)
        if event.damage and len(self.audit.whole) < 2:
            target = max(target, expected + 2 * self.size.interval + 1)  # one is damaged, another must be there
        if expected >= last_allowed:
            raise SoakError("the run is near its end before all events took place; use more steps")
        happen = self.fill_disk if event.signal is None else self.kill
        told = happen(event, rng, target)
        if event.damage and len(self.audit.whole) < 2:
            self.problem(f"only {len(self.audit.whole)} whole checkpoints are there; the newest is not damaged")
        elif event.damage:
            told += self.damage(event.damage, rng)
        self.say(told)

    def kill(self, event: Event, rng: random.Random, target: int) -> str:
        number, moment = event.signal, event.moment
        half_written_before = temporaries_in(self.disturbed)
        with self.training(self.disturbed) as training:
            if moment == "start-up":
                moment_to_kill = time.monotonic() + rng.uniform(0, self.startup_seconds)
                while time.monotonic() < moment_to_kill and training.step is None:
                    time.sleep(0.004)
            else:
                training.wait_until(lambda: training.is_at(target), f"step {target}")
                time.sleep(rng.uniform(0, self.step_seconds))
            if moment == "save":
                training.wait_for_writing(rng.choice(["checkpoint", "checkpoint", "generator"]))
                time.sleep(rng.choice([0, 0, rng.uniform(0, 0.002)]))  # in the midst of it, or somewhat later
            if not training.send(number):
                raise SoakError(f"train.py ended before it was killed: {training.last_words()}")
            if event.twice:
                time.sleep(rng.uniform(0, self.step_seconds))
                training.send(number)
            status = training.wait()
        self.tally.kills += 1
        count(self.tally.kills_by_signal, number.name)
        count(self.tally.kills_by_moment, moment)
        count(self.tally.kills_by_status, str(status))
        left = temporaries_in(self.disturbed) - half_written_before
        self.tally.half_written_files += len(left)
        lost = self.examine(training)
        self.tally.steps_lost_to_kills += lost
        self.tally.most_steps_lost_to_a_kill = max(lost, self.tally.most_steps_lost_to_a_kill)
        self.check_status(event, status, lost, training)
        return (
            f"kill {self.tally.kills}: {number.name}{' twice' * event.twice} at {moment}, step {self.reached}, status {status}"
            f"{', a file half written' * bool(left)}; {self.audit.newest_step} is safe, {lost} steps lost"
        )

    def check_status(self, event: Event, status: int, lost: int, training: Training) -> None:
        """SIGKILL: -9. Other signals: 128 + N without loss; -N if the handlers were not installed, or no longer."""
        number = int(event.signal)
        if event.signal is signal.SIGKILL:
            allowed = [-number]
        elif event.twice or event.moment == "start-up":
            allowed = [128 + number, -number]
        else:
            allowed = [128 + number]
        if status not in allowed:
            self.problem(f"{event.signal.name} at {event.moment} ended with status {status}: {training.last_words()}")
        if lost > (0 if status == 128 + number else self.size.interval):
            self.problem(f"{event.signal.name} at {event.moment} cost {lost} steps, status {status}: {training.last_words()}")

    def fill_disk(self, event: Event, rng: random.Random, target: int) -> str:
        """Fill the disk during training, then free space. The process may continue or end, and intact files must remain."""
        disk = self.disk(self.disturbed, room=4 * self.checkpoint_bytes + (1 << 20))
        self.audit.folder = disk.folder
        try:
            with self.training(disk.folder) as training:
                training.wait_until(lambda: training.is_at(target), f"step {target}")
                room = int(event.room * self.checkpoint_bytes)
                disk.fill(training, room)
                complaint = re.compile("No space left|File too large|cannot write|disk")
                training.wait_until(lambda: complaint.search(training.text), "a word about the full disk", or_ended=True)
                time.sleep(rng.uniform(0, 2 * self.size.interval * self.step_seconds))
                if event.moment == "starved":
                    newest = newest_step_in(disk.folder)
                    disk.empty(training)
                    what = "a checkpoint after there was room again"
                    training.wait_until(lambda: newest_step_in(disk.folder) > newest, what, or_ended=True)
                training.send(signal.SIGTERM)
                status = training.wait()
            lost = self.examine(training)
        finally:
            disk.close()
            self.audit.folder = self.disturbed
        self._starved.update(range(target, self.reached + 1))
        self.tally.full_disks += 1
        count(self.tally.full_disks_by_status, str(status))
        self.tally.steps_lost_to_full_disks += lost
        allowed = 128 + signal.SIGTERM if event.moment == "starved" else NOT_SAVED
        if status != allowed:
            self.problem(f"a full disk ({event.moment}) ended train.py with status {status}: {training.last_words()}")
        if lost and status != NOT_SAVED:
            self.problem(f"a full disk cost {lost} steps: {training.last_words()}")
        return (
            f"full disk {self.tally.full_disks}: {room} bytes left at step {target}, {event.moment}, step {self.reached}, status"
            f" {status}; {self.audit.newest_step} is safe, {lost} steps lost"
        )

    def damage(self, kind: str, rng: random.Random) -> str:
        newest = self.audit.newest_step
        self._unmentioned = self.audit.damage_newest(kind, rng)
        lost = newest - self.audit.newest_step
        self.tally.corrupted += 1
        count(self.tally.corruptions, kind)
        self.tally.steps_lost_to_corruption += lost
        return f"; then {self._unmentioned} {kind}: {lost} more steps lost"

    def examine(self, training: Training) -> int:
        """Check the step from which the process resumed, and that all files are intact. Returns the number of lost steps."""
        expected, resumed = self.audit.newest_step, training.resumed_step
        if resumed is not None and resumed != expected:
            self.problem(f"train.py resumed from step {resumed}, but {expected} is whole: {training.text[:500]}")
        if resumed is None and training.step is not None and expected:
            self.problem(f"train.py started afresh, but step {expected} is whole: {training.text[:500]}")
        if resumed is not None and self._unmentioned:
            if not re.search(rf"{re.escape(self._unmentioned)}\W.*(damaged|broken|not whole)", training.text):
                self.problem(f"train.py did not say that {self._unmentioned} is damaged: {training.text[:500]}")
            self._unmentioned = None
        num_bytes, lost_files = self.audit.inspect()
        self.tally.bytes_lost += num_bytes
        for name in lost_files:
            self.problem(f"lost: {name}")
        self.reached = training.step if training.step is not None else expected
        return max(0, self.reached - self.audit.newest_step)

    # -- the end -------------------------------------------------------------------------------------------------------

    def train_to_the_end(self) -> None:
        with self.training(self.disturbed) as training:
            status = training.wait()
        self.examine(training)
        if status:
            raise SoakError(f"the disturbed run did not come to its end: status {status}: {training.last_words()}")
        if left := temporaries_in(self.disturbed):
            self.problem(f"{len(left)} half-written files were never removed, such as {min(left)}")

    def compare(self) -> None:
        num_bytes, differences = compare_runs(self.reference, self.disturbed, self._starved)
        self.tally.checkpoints_compared = len({p.name for p in checkpoints_in(self.reference)} & set(self.audit.whole))
        self.tally.bytes_lost += num_bytes
        for text in differences:
            self.problem(f"not the undisturbed run: {text}")
        self.tally.identical = not differences
        lines, self.tally.torn_log_lines = read_log(self.disturbed / "log.jsonl")
        num_lines = len((self.disturbed / "log.jsonl").read_text(errors="replace").splitlines())
        self.tally.lines_logged_twice = num_lines - self.tally.torn_log_lines - sum(len(variants) for variants in lines.values())
        if not differences:
            self.say("the last checkpoint, the generator, the log and the sample grids are the undisturbed run's, bit for bit")


def main() -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.num_kills} kills instead of {LONG.num_kills}")
    parser.add_argument("--seed", type=seed_number, default=0, help="another seed, other events")
    parser.add_argument("--kills", type=positive_int, help="how many, if not the form's own number (at least 8)")
    parser.add_argument("--work_dir", help="a new folder for everything, kept (default: a temporary one, kept after a failure)")
    parser.add_argument("--disk", choices=["auto", "tmpfs", "limit"], default="auto", help="how writing is made to fail")
    parser.add_argument("--called_from", default=".", help="the folder that --work_dir is relative to")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else LONG
    if arguments.kills is not None:
        size = dataclasses.replace(size, num_kills=arguments.kills, num_steps=30 * arguments.kills + 120)
        if arguments.kills < 8:
            raise UserError(f"--kills {arguments.kills}: use at least 8, so that each signal has its turn")
    if arguments.work_dir:
        work = make_output_dir(Path(arguments.called_from) / arguments.work_dir).resolve()
        if any(work.iterdir()):
            raise UserError(f"the folder {work} is not empty; name a new one with --work_dir")
    else:
        work = Path(tempfile.mkdtemp(prefix="gof_soak_"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would train.py
    soak = Soak(work, size, arguments.seed, arguments.disk)
    tally = soak.run(plan_events(size, random.Random(arguments.seed)))
    if tally.identical and not arguments.work_dir:
        shutil.rmtree(work)
    else:
        print(f"everything is kept in {work}")
    print(json.dumps(dataclasses.asdict(tally)))
    return 0 if tally.identical else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"soak.sh: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("soak.sh: interrupted; what it made so far is left where it is", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
