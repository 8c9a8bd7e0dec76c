"""Messages about input that is nearly right: one line, with the correct fix."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.arguments import ArgumentParser
from common.errors import UserError
from common.files import read_small_text
from dataset import check
from settings.registry import CURRICULUMS, get_curriculum


def test_a_pattern_that_the_shell_expanded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    parser = ArgumentParser("")
    parser.add_argument("--check")
    for surplus, told in (([str(tmp_path / "b.jpg"), str(tmp_path / "c.jpg")], "2 unexpected names"), (["--sizes"], "--sizes")):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(["--check", str(tmp_path / "a.jpg"), *surplus])
        errors = capsys.readouterr().err
        assert end.value.code == 2 and told in errors and errors.count("\n") == 1
        assert ("Quote it" in errors) == (len(surplus) == 2)


def test_settings_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(CURRICULUMS["CATS"].to_dict()), encoding="utf-8-sig")
    assert (tmp_path / "mine.json").read_bytes().startswith(b"\xef\xbb\xbf")
    assert get_curriculum(str(tmp_path / "mine.json")) == CURRICULUMS["CATS"]
    (tmp_path / "utf16.json").write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_small_text(tmp_path / "utf16.json")


def test_a_table_with_names_of_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name in ("a\nb.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken\n1 left out.png").write_bytes(b"x")
    (tmp_path / "photos" / "notes\n.txt").write_bytes(b"x")
    check(str(tmp_path / "photos"), "Images", 8, tmp_path / "sheet.png")
    lines = capsys.readouterr().out.splitlines()
    broken = "photos/broken 1 left out.png: it is not an image in a supported format; remove it, or convert it to PNG"
    assert any(line.endswith(broken) for line in lines)
    assert any(" = " in line and "a b.png" in line for line in lines)
    assert all(line.startswith((str(tmp_path), "  ")) for line in lines)


@pytest.mark.parametrize("script", ["render_video.py", "train.py"])
def test_an_interrupt_while_torch_is_imported(repo: Path, script: str) -> None:
    """Without special handling, there would be a traceback of forty lines."""
    start = [sys.executable, "-c", STARTER, script]
    with subprocess.Popen(start, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "importing\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT and errors == ""


# The script as Python starts it, with an import of torch that takes until the signal comes.
STARTER = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            import time
            time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
