"""Untrusted input, a few hundred cases, always the same ones; run.py tries thousands of new ones. See docs/fuzzing.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz_harness
import fuzz_kinds
import pytest
from fuzz_bytes import CANARIES, PAYLOAD, legacy_around, zip_around
from fuzz_harness import MEMORY_MB, WORKER, CaseFailed, Worker
from fuzz_worker import Case

NUM_CASES = {"command lines": 40, "generator files": 40, "published runs": 40, "training checkpoints": 40, "sets": 50}
OTHERWISE = 80


@pytest.mark.parametrize("kind", fuzz_kinds.CASES)
def test_cases(kind: str) -> None:
    fuzz_kinds.try_cases(kind, NUM_CASES.get(kind, OTHERWISE), WORKER.check, seed=None)


def test_every_canary_is_rejected() -> None:
    for name in CANARIES:
        for form in (zip_around, legacy_around):
            case = Case("checkpoint.torch_file", {"w.pth": form(b"\x80\x02" + name + PAYLOAD + b"\x85R.")}, ("w.pth",))
            outcome = WORKER.check(case)
            assert outcome.kind == "refused" and "refused" in outcome.detail


@pytest.fixture(scope="module")
def watched() -> Iterator[Worker]:
    worker = Worker("fuzz_misdeeds")
    yield worker
    worker.stop()


# What would prove nothing if it could not fail: each misdeed, done on purpose, must be noticed.


@pytest.mark.parametrize(
    ("deed", "noticed"),
    [
        ("open('../home/x', 'w').close()", "open of"),
        ("open('beside', 'w').close()", "written beside the output folder"),
        ("__import__('os').mkdir('../input/x')", "os.mkdir of"),
        ("__import__('os').system('true')", "os.system"),
        ("__import__('subprocess').run(['true'])", "subprocess.Popen"),
        ("__import__('pickle').loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
        ("eval('1 + 1')", "exec of text"),
        ("__import__('socket').socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("[][0]", "IndexError"),
        ("__import__('sys').exit(1)", "exit status 1"),
        ("__import__('sys').exit(2)", "without a reason"),
        ("bytearray(b'x' * (200 << 20))", "MB, more than"),
        ("__import__('os')._exit(0)", "the process died"),
        ("__import__('os').kill(__import__('os').getpid(), 11)", "the process died"),
        ("open('../input/pipe').read()", "of waiting"),
        ("sum(iter(int, 1))", "of computing"),
    ],
)
def test_violations_are_detected(deed: str, noticed: str, watched: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_harness, "IDLE_POLLS", 16)
    monkeypatch.setitem(fuzz_harness.DEADLINE_SECONDS, "checkpoint", 4)  # a busy machine takes its time
    with pytest.raises(CaseFailed, match=noticed):
        watched.check(Case("checkpoint.misdeed", {"pipe": ("fifo",)}, (deed,)))


def test_harmless_actions_are_not_reported(watched: Worker) -> None:
    case = Case("checkpoint.misdeed", {"a": b"x"}, ("open('out', 'w').write(open('../input/a').read())",), ("out",))
    assert watched.check(case).kind == "ok"


def test_valid_input_is_accepted() -> None:
    """Cases that are nearly all rejected at first would test little else."""
    for case in fuzz_kinds.sound_cases():
        outcome = WORKER.check(case)
        assert outcome.kind == "ok", (case.target, case.arguments, outcome.detail)
    assert set(MEMORY_MB) == {kind.split(".")[0] for kind in fuzz_kinds.TARGETS}


COMMANDS = [
    ["render_video.py", "hostile.pth", "--curriculum", "BFM"],
    ["dataset.py", "--check", "\udcff\udcfe", "--image_size", "99999999999999999999"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_as_a_user_runs_it(command: list[str], repo: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile.pth").write_bytes(zip_around(b"\x80\x02" + CANARIES[0] + b"X\x0c\x00\x00\x00touch canary\x85R."))
    environment = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(repo / command[0]), *command[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1 and ": error: " in said and not done.stdout, said
    assert {path.name for path in tmp_path.iterdir()} <= {"hostile.pth", "vids"}
