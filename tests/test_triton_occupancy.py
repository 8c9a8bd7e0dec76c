"""The fused occupancy kernel: its results in Triton's interpreter, and its compilation for an H100."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from generators.generator import ImplicitGenerator3d
from settings.registry import CURRICULUMS
from siren.backends import fused

pytest.importorskip("triton", reason="Triton is not installed here")
MAX_SHARED = 227 * 1024  # bytes that a program may take on compute capability 9.0


def test_results_in_the_interpreter(repo):
    """All of tests/triton_interpreted.py, in a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/triton_interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("GOF_TRITON", None)
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 20


@pytest.mark.parametrize(("width", "dtype"), [*((width, "fp16") for width in fused.WIDTHS), (256, "bf16")])
def test_compiles_for_an_h100(width, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    try:
        import triton_compiled

        triton_compiled.require_tools()
    except (ImportError, OSError) as error:
        pytest.skip(f"Triton cannot compile ahead of time here: {error}")
    resources = triton_compiled.compile_kernel(width, dtype)
    assert resources.shared <= MAX_SHARED
    assert resources.registers <= 255 and resources.spilled == 0
    assert resources.instructions["HGMMA"] > 0, "products must run on the matrix units of a Hopper GPU"
    assert resources.instructions["HMMA"] == 0
    if width < 256:
        assert resources.instructions["LDGSTS"] > 0, "weights must be fetched ahead, without passing through registers"


@torch.no_grad()
def test_the_plain_path_is_used_on_a_cpu_and_when_the_kernel_is_off(monkeypatch):
    before = torch.get_float32_matmul_precision()
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"])
    field = generator.field(generator.film(torch.randn(1, 64)))
    try:
        torch.set_float32_matmul_precision("high")
        field.occupancy_logits(torch.zeros(1, 5, 3))
        monkeypatch.setattr(fused, "INTERPRETED", True)
        monkeypatch.setattr(fused, "ENABLED", False)
        field.occupancy_logits(torch.zeros(1, 5, 3))
    finally:
        torch.set_float32_matmul_precision(before)
    assert not field._packed


def test_fields_load_without_triton(repo):
    """Importing it takes a while, and PyTorch for CPUs comes without it."""
    code = """
import importlib, sys
import siren.field, siren.backends.fused
assert "siren.backends.triton_occupancy" not in sys.modules
sys.modules["triton"] = None
assert not importlib.reload(siren.backends.fused).ENABLED
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
