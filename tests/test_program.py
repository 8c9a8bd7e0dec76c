"""How scripts end: their messages and exit statuses, even if stderr cannot be written."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

FAILS = """
from common.errors import UserError
from common.program import run_script
def fail():
    raise UserError("no such thing")
UserError.exit_status = 4
run_script(fail)
"""
WAITS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from common.program import run_script
run_script(lambda: (print("ready", flush=True), time.sleep(60)))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_exit_status_does_not_depend_on_stderr(repo):
    said = subprocess.run([sys.executable, "-c", FAILS], cwd=repo, capture_output=True, text=True)
    with open("/dev/full", "w") as full:
        unsaid = subprocess.run([sys.executable, "-c", FAILS], cwd=repo, stderr=full)
    assert (said.returncode, unsaid.returncode) == (4, 4)
    assert said.stderr.endswith("error: no such thing\n") and said.stderr.count("\n") == 1


def test_an_interrupt_ends_a_script_as_its_signal_does_and_without_a_traceback(repo):
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT and errors.endswith("interrupted\n") and errors.count("\n") == 1
