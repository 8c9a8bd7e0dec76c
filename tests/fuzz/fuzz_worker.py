"""The process that tries untrusted input, monitors what each case does, and may die.

Started by fuzz_harness.py with a sandbox folder, the number of a pipe, and the module of the targets. Per case it lays the
case's files into ``input/``, makes ``work/`` the current folder, runs the target, and answers with an :class:`Outcome`.
Watched are:

- tracebacks: anything but success, a UserError, or exit status 0 or 2 with one line that says why;
- code run, processes, network, writing: Python's audit events (PEP 578), which also see what an unpickler imports;
- writing, again: the listings of ``input/`` and ``home/`` before and after, and the names that appeared in ``work/``;
- memory: the rise of the process's peak resident memory during the case, which the kernel records.

What kills or stops the process (a crash in a decoder, an endless loop) is seen by the harness.
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import importlib
import io
import json
import os
import shutil
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# What lies in a case's folder under a name: bytes of a file, or ("folder",), ("link", target), ("fifo",), ("holes", size).
Entry = bytes | tuple[Any, ...]
WRITING_EVENTS = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.mkfifo"), (0,)),
    **{"os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "shutil.rmtree": (0,), "shutil.move": (0, 1)},
}
PROGRAM_EVENTS = frozenset(
    ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
    + ("pickle.find_class", "socket.connect", "socket.bind", "urllib.Request", "webbrowser.open")
)
ANYWHERE = "*"  # in Case.may_write: the output folder is work/ itself
STARTERS = {"visualization.videos", "imageio_ffmpeg._utils", "ctypes.util"}  # start the video encoder; look for OpenGL


@dataclass(frozen=True)
class Case:
    """``target``: a name in TARGETS of the targets' module; ``arguments``: its arguments after the folder, plain values."""

    target: str
    files: dict[str, Entry] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    may_write: tuple[str, ...] = ()  # names in work/ that may appear

    def to_json(self) -> str:
        """Return text that :meth:`from_json` reads, to store a failing case."""

        def plain(value: Any) -> Any:
            return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

        arguments = json.loads(json.dumps(self.arguments, default=plain))
        files = {name: plain(entry) for name, entry in self.files.items()}
        return json.dumps({"target": self.target, "files": files, "arguments": arguments, "may_write": self.may_write})

    @classmethod
    def from_json(cls, text: str) -> Case:
        def restore(pairs: dict[str, Any]) -> Any:
            return base64.b64decode(pairs["base64"]) if set(pairs) == {"base64"} else pairs

        known = json.loads(text, object_hook=restore)
        files = {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in known["files"].items()}
        return cls(known["target"], files, tuple(known["arguments"]), tuple(known["may_write"]))


@dataclass(frozen=True)
class Outcome:
    """``kind``: ok, refused (a UserError, or exit status 2), or failed; ``detail``: the message, or the violation."""

    kind: str
    detail: str = ""
    peak_mb: float = 0.0
    cpu_seconds: float = 0.0


def _callers() -> set[str]:
    """Return the modules of all functions on the call stack."""
    found, frame = set(), sys._getframe(2)
    while frame is not None:
        found.add(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return found


class Watch:
    """Collects the violations of a case. An audit hook stays for the life of its process."""

    def __init__(self, sandbox: Path) -> None:
        self.allowed = [os.path.realpath(sandbox / name) + os.sep for name in ("work", "cache", "tmp")]
        self.violations: list[str] = []
        self.is_on = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or (mode is None and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes:
                self.check_place(event, path)
        elif event in WRITING_EVENTS:
            for position in WRITING_EVENTS[event]:
                self.check_place(event, arguments[position])
        elif event in PROGRAM_EVENTS or (event == "subprocess.Popen" and not STARTERS & _callers()):
            self.violations.append(f"{event}{arguments!r}"[:300])
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")) in ("<string>", "<stdin>", ""):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller not in ("dataclasses", "collections", "timeit", "six") and "importlib" not in caller:
                self.violations.append(f"exec of text, by {caller}")

    def check_place(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))
        if real != os.devnull and not (real + os.sep).startswith(tuple(self.allowed)):
            self.violations.append(f"{event} of {real!r}"[:300])

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.violations.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def lay_out(folder: Path, files: dict[str, Entry]) -> None:
    """Put ``files`` into ``folder``. Names may contain bytes that are not UTF-8 (as surrogates), but stay inside the folder."""
    for name, entry in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, bytes):
            path.write_bytes(entry)
        elif entry[0] == "folder":
            path.mkdir(exist_ok=True)
        elif entry[0] == "link":
            path.symlink_to(entry[1])
        elif entry[0] == "fifo":
            os.mkfifo(path)
        elif entry[0] == "holes":  # a file of that many bytes that takes no room on the disk
            with path.open("wb") as file:
                file.truncate(entry[1])


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Names below ``folder`` with mode, size and time; links are not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            status = os.lstat(path)
            found[path] = (status.st_mode, 0 if stat.S_ISDIR(status.st_mode) else status.st_size, status.st_mtime_ns)
    return found


def _memory_kb(name: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) for line in status if line.startswith(name)), 0)


def reset_peak() -> int:
    """Reset the recording of peak memory, and return the resident memory, kB."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _memory_kb("VmRSS:")


def try_case(case: Case, target: Callable[..., None], sandbox: Path, watch: Watch) -> Outcome:
    for name in ("input", "work", "tmp"):
        shutil.rmtree(sandbox / name, ignore_errors=True)
        (sandbox / name).mkdir()
    lay_out(sandbox / "input", case.files)
    os.chdir(sandbox / "work")
    before = {name: listing(sandbox / name) for name in ("input", "home")}
    resident, started = reset_peak(), time.process_time()
    with watch.watching():
        kind, detail = run_target(target, sandbox / "input", case.arguments)
    seconds = time.process_time() - started
    peak = max(0, _memory_kb("VmHWM:") - resident) / 1024
    problems = list(watch.violations)
    for name, old in before.items():
        if (new := listing(sandbox / name)) != old:
            problems.append(f"changed in {name}/: {sorted(set(old.items()) ^ set(new.items()))[:3]!r}")
    appeared = {name.name for name in (sandbox / "work").iterdir()} - set(case.may_write)
    if appeared and ANYWHERE not in case.may_write:
        problems.append(f"written beside the output folder: {sorted(appeared)[:5]!r}")
    os.chdir(sandbox)
    if problems:
        kind, detail = "failed", "; ".join(problems) + (f"\n{detail}" if kind == "failed" else "")
    return Outcome(kind, detail, peak, seconds)


def run_target(target: Callable[..., None], folder: Path, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """Call the target with captured standard streams, and return how it ended."""
    refusal = sys.modules["common.errors"].UserError if "common.errors" in sys.modules else ()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")]
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            target(folder, *arguments)
        return "ok", ""
    except refusal as error:
        text = str(error)
        return ("failed", f"a message of several lines: {text!r}") if "\n" in text or not text else ("refused", text)
    except SystemExit as end:
        streams[1].flush()
        said = streams[1].buffer.getvalue().decode(errors="replace").rstrip("\n")
        last = said.split("\n")[-1].split("\r")[-1]
        if "Traceback" in said or end.code not in (0, None, 2):
            return "failed", f"exit status {end.code}: {said[-2000:]}"
        if end.code == 2 and ": error: " not in last:
            return "failed", f"exit status 2 without a reason: {said[-500:]!r}"
        return ("refused", last) if end.code == 2 else ("ok", "")
    except BaseException:
        return "failed", traceback.format_exc(limit=-12)


def main() -> None:
    sandbox, channel = Path(sys.argv[1]), Connection(int(sys.argv[2]))
    sys.dont_write_bytecode = True
    faulthandler.enable()
    for name in ("home", "cache"):
        (sandbox / name).mkdir(exist_ok=True)
    os.environ |= {"HOME": str(sandbox / "home"), "GOF_CACHE": str(sandbox / "cache"), "TMPDIR": str(sandbox / "tmp")}
    os.environ |= {"TORCH_HOME": str(sandbox / "home" / "torch"), "PYOPENGL_PLATFORM": "egl"}
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parent.parent), str(here)]
    known = importlib.import_module(sys.argv[3])
    known.prepare(sandbox)
    watch = Watch(sandbox)
    channel.send("ready")
    while (case := channel.recv()) is not None:
        channel.send(try_case(case, known.TARGETS[case.target], sandbox, watch))


if __name__ == "__main__":
    import fuzz_worker  # so that what is sent belongs to a module that both processes know

    fuzz_worker.main()
