"""The Triton kernels: their results in Triton's interpreter, and their compilation for an H100."""

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


@pytest.mark.parametrize(("file", "num_tests"), [("triton_occupancy_interpreted.py", 20), ("triton_lookup_interpreted.py", 15)])
def test_results_in_the_interpreter(repo, file, num_tests):
    """All of the file, in a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("GOF_TRITON", None)
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= num_tests


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """tests/triton_compiled.py, with an empty cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    try:
        import triton_compiled

        triton_compiled.require_tools()
    except (ImportError, OSError) as error:
        pytest.skip(f"Triton cannot compile ahead of time here: {error}")
    return triton_compiled


@pytest.mark.parametrize(("width", "dtype"), [*((width, "fp16") for width in fused.WIDTHS), (256, "bf16")])
def test_occupancy_compiles_for_an_h100(compiled, width, dtype):
    resources = compiled.compile_occupancy(width, dtype)
    assert resources.shared <= MAX_SHARED
    assert resources.registers <= 255 and resources.spilled == 0
    assert resources.instructions["HGMMA"] > 0, "products must run on the matrix units of a Hopper GPU"
    assert resources.instructions["HMMA"] == 0
    if width < 256:
        assert resources.instructions["LDGSTS"] > 0, "weights must be fetched ahead, without passing through registers"


@pytest.mark.parametrize(
    ("is_backward", "num_channels", "hidden_dim", "is_product"),
    [(False, 16, 32, False), (False, 32, 64, True), (True, 16, 32, False), (True, 32, 32, True), (True, 32, 64, True)],
)
def test_lookup_compiles_for_an_h100(compiled, is_backward, num_channels, hidden_dim, is_product):
    resources = compiled.compile_lookup(is_backward, num_channels, hidden_dim, True, is_product)
    assert resources.spilled == 0
    assert resources.instructions["LDG.E.128"] >= 12, "four channels of a texel must be read at once"
    if (num_channels, hidden_dim) == (16, 32):
        assert resources.registers <= 168, "three programs must fit on a multiprocessor"
        assert 3 * resources.shared <= MAX_SHARED
    if is_backward:
        added = [name for name in resources.instructions if name.startswith("REDG.")]
        assert added and all("F32x4" in name for name in added), "four gradients must be added at once"


@torch.no_grad()
def test_the_plain_path_is_used_on_a_cpu_and_when_the_kernel_is_off(monkeypatch):
    before = torch.get_float32_matmul_precision()
    generator = ImplicitGenerator3d(CURRICULUMS["SYNTH_TINY"])
    field = generator.field_of_latents(torch.randn(1, 64))
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
import siren.field, siren.backends.fused, triplane.lookup
assert not {"triton", "siren.backends.triton_occupancy", "triplane.triton_lookup"} & set(sys.modules)
sys.modules["triton"] = None
assert not importlib.reload(siren.backends.fused).ENABLED
assert not importlib.reload(triplane.gpu_lookup).ENABLED
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
