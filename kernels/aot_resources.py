"""What a compiled kernel needs, read from its machine code: registers, shared memory, stack.

The figures come from the binary itself, by ``cuobjdump`` for CUDA and from the metadata that LLVM writes for AMD.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one program of a compiled kernel needs.

    Attributes:
        registers: per thread (AMD: vector registers).
        shared: bytes of shared memory.
        stack: bytes of memory per thread for what registers do not hold.
        spills: CUDA: bytes of local memory; AMD: spilled vector registers.
    """

    registers: int
    shared: int
    stack: int
    spills: int


def resources_of(kernel: Any) -> Resources:
    """Reads the resources of a compiled kernel.

    Raises:
        RuntimeError: the figures cannot be found in what the tools printed.
    """
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        return Resources(
            registers=_figure(r"\.vgpr_count:\s+(\d+)", text),
            shared=int(kernel.metadata.shared),
            stack=_figure(r"\.private_segment_fixed_size:\s+(\d+)", text),
            spills=_figure(r"\.vgpr_spill_count:\s+(\d+)", text),
        )
    text = _cuobjdump(kernel.asm["cubin"])
    return Resources(
        registers=_figure(r"\bREG:(\d+)", text),
        shared=int(kernel.metadata.shared),
        stack=_figure(r"\bSTACK:(\d+)", text),
        spills=_figure(r"\bLOCAL:(\d+)", text),
    )


def _cuobjdump(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _figure(pattern: str, text: str) -> int:
    """The largest match: a binary may hold several functions."""
    figures = [int(figure) for figure in re.findall(pattern, text)]
    if not figures:
        raise RuntimeError(f"no figure matches {pattern!r} in the description of the binary: {text[-300:]!r}")
    return max(figures)
