"""The notebook of the tour runs from top to bottom, shortened by TOUR_MINUTES, and is committed with its outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAX_BYTES = 1_500_000
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}})
client.execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.fixture
def notebook(repo: Path) -> Path:
    return repo / "notebooks" / "tour.ipynb"


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def num_images(path: Path) -> int:
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_is_committed_with_its_outputs(notebook: Path) -> None:
    assert notebook.stat().st_size < MAX_BYTES
    assert num_images(notebook) >= 5
    errors = [output for cell in code_cells(notebook) for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors
    printed = "".join("".join(output.get("text", "")) for cell in code_cells(notebook) for output in cell["outputs"])
    steps = re.findall(r"^step (\d+)$", printed, re.MULTILINE)
    assert len(steps) == 1 and int(steps[0]) > 100  # it was run with all of its training


def test_it_runs_from_top_to_bottom(notebook: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    environment = os.environ | {"TOUR_MINUTES": "0.1", "TOUR_OUTPUT": str(tmp_path / "tour")}
    arguments = [str(notebook), str(notebook.parent), str(tmp_path / "ran.ipynb")]
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert num_images(tmp_path / "ran.ipynb") >= 5
