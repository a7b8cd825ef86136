"""``make aot``: compiles every Triton kernel ahead of time for every target.

An operation has a Triton kernel when its folder holds ``kernel.py``. As long as there is none, there is nothing to
compile, and the check says so.
"""

from __future__ import annotations

import sys
from pathlib import Path


def kernel_files() -> list[Path]:
    """The ``kernel.py`` files of all operations."""
    return sorted(Path(__file__).parent.glob("*/kernel.py"))


def main() -> int:
    """Runs the check.

    Returns:
        0 where there is nothing to compile; 1 where kernels exist that this check cannot compile.
    """
    found = kernel_files()
    if not found:
        sys.stdout.write("aot: no operation has a Triton kernel yet; nothing to compile\n")
        return 0
    names = ", ".join(path.parent.name for path in found)
    sys.stderr.write(f"aot: there are kernels ({names}), and this check has no configurations for them\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
