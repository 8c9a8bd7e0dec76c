"""Shared fixtures. The repository root is on the path, as for scripts run from it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or max(1, min(2, os.cpu_count() or 1))))
# Files that take a minute or more, longest first, so that parallel workers do not end with one of them.
LONG_FILES = ("distributed", "soak", "training", "tour", "inversion", "survival", "outward_start", "metrics", "web")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of LONG_FILES to the front."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def published_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with published files (tests/reference/published_files.py), which tests must not change."""
    from reference.published_files import write_published_files

    return write_published_files(tmp_path_factory.mktemp("published") / "BFM")


@pytest.fixture(scope="session")
def cats_zip() -> Path:
    """Real photos of cat faces, which are not part of the project: shared/data/cats64.zip beside the checkout."""
    path = REPO.parent / "shared" / "data" / "cats64.zip"
    if not path.is_file():
        pytest.skip("no shared/data/cats64.zip beside this checkout")
    return path


@pytest.fixture(scope="session")
def tiny_generator_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inference file whose fields are colored balls of radius 0.07 (tests/small_models.py)."""
    import small_models

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # fitted once for all workers
        folder = folder.parent
    path = folder / "tiny.safetensors"
    with (folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if path.exists() else small_models.save_generator(small_models.make_tiny_generator(), path)


@pytest.fixture(scope="session")
def empty_generator_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inference file whose fields have no surface."""
    import small_models

    return small_models.save_generator(
        small_models.make_empty_generator(), tmp_path_factory.mktemp("empty") / "empty.safetensors"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MB for a test to fill."""
    place = tmp_path / "small_disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
