"""Ahead-of-time compilation of the Triton kernels, without a GPU, and statistics of the machine code."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siren.backends import triton_occupancy
from siren.backends.triton_occupancy import LaunchConfig
from triplane import triton_lookup

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """Per thread: ``registers``, ``spilled`` bytes; per program: ``shared`` bytes; ``instructions``: SASS, by name.

    An instruction counts under its full name and under the part before the first dot.
    """

    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]

    def only(self, names: tuple[str, ...]) -> Resources:
        """Return the same with only these instructions."""
        return self._replace(instructions=Counter({name: self.instructions[name] for name in names}))


def require_tools() -> None:
    """Raises FileNotFoundError if Triton was installed without its assembler and disassembler."""
    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        if not (TOOLS / tool).exists():
            raise FileNotFoundError(TOOLS / tool)


def compile_occupancy(width: int, dtype: str, capability: int = 90, config: LaunchConfig | None = None) -> Resources:
    """``dtype``: Triton's name, fp16 or bf16. Raises the errors of the compiler or the assembler."""
    config = config or triton_occupancy.CONFIGS[width]
    constants = {"WIDTH": width, "CHUNK": config.chunk, "BLOCK": config.block, "STAGES": config.num_stages}
    options = {"num_warps": config.num_warps, "enable_fp_fusion": True}
    types = {"hidden": f"*{dtype}", "num_points": "i32", "num_hidden": "i32"}
    return _compile(triton_occupancy._logits_kernel, constants, types, options, capability)


def compile_lookup(
    is_backward: bool, num_channels: int, hidden_dim: int, with_colors: bool, is_product: bool = False, capability: int = 90
) -> Resources:
    """Compile a lookup kernel for planes of 64 x 64 texels. Raises the errors of the compiler or the assembler."""
    constants = {"SIZE": 64, "CHANNELS": num_channels, "HIDDEN": hidden_dim}
    constants |= {"IS_PRODUCT": is_product, "WITH_COLORS": with_colors}
    options = {"num_warps": triton_lookup.NUM_WARPS, "num_stages": triton_lookup.NUM_STAGES}
    if not is_backward:
        constants |= {"BLOCK": triton_lookup.FORWARD_BLOCK}
        return _compile(triton_lookup._forward_kernel, constants, {"num_points": "i32"}, options, capability)
    block = triton_lookup.backward_block(num_channels, hidden_dim)
    constants |= {"BLOCK": block, "WITH_LOGITS": True}
    types = {"num_points": "i32", "num_rounds": "i32"}
    return _compile(triton_lookup._backward_kernel, constants, types, options, capability)


def _compile(
    kernel: triton.JITFunction, constants: dict[str, Any], types: dict[str, str], options: dict[str, Any], capability: int
) -> Resources:
    """``types``: of the arguments that are neither constants nor pointers to float32."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")},
    )
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
    opcodes = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Za-z0-9_.]*)", sass)
    return Resources(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=compiled.metadata.shared,
        instructions=Counter(opcodes) + Counter(name.split(".")[0] for name in opcodes if "." in name),
    )


if __name__ == "__main__":
    shown = ("HGMMA", "HMMA", "LDGSTS", "LDL", "STL", "MUFU", "REDG")
    for width in triton_occupancy.CONFIGS:
        for dtype in ("fp16", "bf16"):
            print("occupancy", width, dtype, compile_occupancy(width, dtype).only(shown))
    for is_backward in (False, True):
        for with_colors in (False, True):
            kind = "backward" if is_backward else "forward"
            resources = compile_lookup(is_backward, 16, 32, with_colors)
            print("lookup,", kind, "with colors" if with_colors else "without colors", resources.only(shown))
