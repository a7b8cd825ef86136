"""What ``make aot`` compiles: one kernel with fixed compile-time arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

# Stated wherever a kernel is compiled, because its default changes between versions of Triton.
COMPILE_OPTIONS: Final[dict[str, Any]] = {"enable_fp_fusion": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One kernel as a launcher would compile it.

    Each operation's ``configurations.py`` has ``configurations(architecture)``, which yields these; it takes tiles and
    compile-time arguments from the functions that the launcher uses, so that what is checked is what runs.

    Attributes:
        operation: folder of ``kernels/``.
        kernel: the ``@triton.jit`` function.
        case: name of the case among those of the kernel, such as ``bf16-D128-G4-W32``.
        signature: type of every argument that is not compile-time, in the order of the kernel's arguments:
            ``"*bf16"``, ``"*fp32"``, ``"*i64"``, ``"*u8"``, ``"i32"``, ``"fp32"``, ...
        constants: the compile-time arguments.
        divisible: names of the arguments (pointers, strides) that are multiples of 16 in the aligned specialisation;
            in the other one none is.
        warps: warps per program.
        stages: depth of the software pipeline.
    """

    operation: str
    kernel: Any
    case: str
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    warps: int = 4
    stages: int = 2
