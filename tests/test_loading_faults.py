"""Images whose disk, cache or decoder fails while they are read."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dying_worker
from dataset import BatchStream, ImageDataset
from loading.decoding import CRASHED, _in_parallel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of one gray each: 0, 10, 20, 30."""
    place = tmp_path / "images"
    place.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(place / f"{i}.png")
    return place


def grays(data: ImageDataset) -> list[int]:
    return data.gather(torch.arange(len(data)))[:, 0, 0, 0].tolist()


def test_a_cache_truncated_while_in_use_is_decoded_again(folder, tmp_path, capsys):
    data = ImageDataset(folder, 8, cache_dir=tmp_path / "cache")
    assert grays(data) == [0, 10, 20, 30]
    os.truncate(next((tmp_path / "cache").glob("*.npy")), 300)  # memory mapped to it would end the process
    assert grays(data) == [0, 10, 20, 30] == grays(pickle.loads(pickle.dumps(data)))
    assert capsys.readouterr().err.count("can no longer be read") == 1


def test_an_image_missing_from_cache_and_disk_is_replaced_and_named(folder, tmp_path, capsys):
    data = ImageDataset(folder, 8, cache_dir=tmp_path / "cache")
    os.truncate(next((tmp_path / "cache").glob("*.npy")), 0)
    (folder / "1.png").unlink()
    (folder / "3.png").write_bytes(b"broken")
    for _ in range(2):
        assert grays(data) == [0, 20, 20, 0]
    errors = capsys.readouterr().err
    assert errors.count("1.png is missing or unreadable") == 1 and errors.count("3.png is missing or unreadable (2 so far)") == 1
    for path in folder.iterdir():
        path.unlink()
    with BatchStream(data, 2) as stream, pytest.raises(OSError, match=r"no image of .*images can be read any longer"):
        next(stream)


def test_a_full_cache_disk_falls_back_to_memory(folder, small_disk, capsys):
    data = ImageDataset(folder, 512, cache_dir=small_disk)  # 3 MB on a disk of 2
    assert grays(data) == [0, 10, 20, 30]
    assert "No space left on device); decoding into memory" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []


def test_partial_files_of_killed_writers_are_removed_and_of_running_ones_kept(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    abandoned, living = cache / ".unfinished_a.npy", cache / ".unfinished_b.npy"
    for path in (abandoned, living):
        path.write_bytes(b"half")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ImageDataset(folder, 8, cache_dir=cache)
        assert living.exists() and not abandoned.exists()


def test_a_killed_worker_loses_no_image(tmp_path, capsys):
    blocks = [range(0, 4), range(4, 8), range(8, 10)]
    work = partial(dying_worker.work, once=str(tmp_path / "died"))
    assert [list(part) for part in _in_parallel(work, blocks, 2)] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    assert capsys.readouterr().err.count("a decoding process died") >= 1


def test_an_image_that_kills_every_process_is_the_only_one_lost():
    blocks = [range(4, 7), range(7, 9)]
    assert [list(part) for part in _in_parallel(partial(dying_worker.work), blocks, 2)] == [[8, CRASHED, 12], [14, 16]]


# A decoding that takes seconds in two processes: says when it has begun.
DECODES = """
import signal, sys
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    from common.program import run_script
    from loading.decoding import decode_all
    from loading.files import DatasetSpec, find_images
    def main():
        for i, _ in enumerate(decode_all(find_images(sys.argv[1]), DatasetSpec(None, None, ""), 256, 2)):
            if i == 0:
                print("begun", flush=True)
    run_script(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(repo: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A terminal's Ctrl-C goes to all processes: one line on stderr, no traceback of a worker, and none is left."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(image, format="JPEG")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for i in range(3000):
            archive.writestr(f"{i}.jpg", image.getvalue())
    (tmp_path / "decodes.py").write_text(DECODES)
    command = [sys.executable, str(tmp_path / "decodes.py"), str(tmp_path / "photos.zip")]
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        errors = process.communicate(timeout=120)[1]  # returns when no process has the pipe open
    assert process.returncode == -number
    if number == signal.SIGINT:
        lines = errors.replace("\r", "\n").splitlines()
        assert [line for line in lines if line and not line.startswith("decoding")] == ["decodes.py: interrupted"]
