"""Ahead-of-time compilation of the fused occupancy kernel, without a GPU, and statistics of the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siren.backends.triton_occupancy import CONFIGS, LaunchConfig, _logits_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSORS = ("points", "first", "biases", "hidden", "final", "final_bias", "logits")


class Resources(NamedTuple):
    """Per thread: ``registers``, ``spilled`` bytes; per program: ``shared`` bytes; ``instructions``: SASS, by name."""

    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]


def require_tools() -> None:
    """Raises FileNotFoundError if Triton was installed without its assembler and disassembler."""
    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        if not (TOOLS / tool).exists():
            raise FileNotFoundError(TOOLS / tool)


def compile_kernel(width: int, dtype: str, capability: int = 90, config: LaunchConfig | None = None) -> Resources:
    """``dtype``: Triton's name, fp16 or bf16. Raises the errors of the compiler or the assembler."""
    config = config or CONFIGS[width]
    constants = {"WIDTH": width, "CHUNK": config.chunk, "BLOCK": config.block, "STAGES": config.num_stages}
    signature = {name: "*fp32" for name in TENSORS} | {"hidden": f"*{dtype}", "num_points": "i32", "num_hidden": "i32"}
    signature |= {name: "constexpr" for name in constants}
    names = list(signature)
    source = ASTSource(
        fn=_logits_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in TENSORS},
    )
    options = {"num_warps": config.num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([str(TOOLS / tool), option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    opcodes = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9]+)", sass)
    return Resources(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=compiled.metadata.shared,
        instructions={name: opcodes.count(name) for name in ("HGMMA", "HMMA", "LDGSTS", "LDL", "STL", "MUFU")},
    )


if __name__ == "__main__":
    for width in CONFIGS:
        for dtype in ("fp16", "bf16"):
            print(width, dtype, compile_kernel(width, dtype))
