"""What the guards read: the files of the project, and its modules with their imports."""

import ast
import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("kernels", "analysis", "bench")  # folders at the top that kvcompress links to
NOT_OURS = {".git", ".venv", "build", "dist", "node_modules"}


def _is_cache(name: str) -> bool:
    return name == "__pycache__" or name.endswith((".egg-info", "_cache")) or name in {".hypothesis", ".benchmarks"}


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Return every file of the project: what git tracks or would add; without git, what lies in the tree."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and (ROOT / ".git").exists():
        paths = {ROOT / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name}
    else:
        paths = set()
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in NOT_OURS and not _is_cache(name)]
            paths.update(Path(folder) / name for name in names)
    return tuple(sorted(path for path in paths if path.is_file() and not path.is_symlink()))


@functools.cache
def library_sources() -> dict[str, Path]:
    """Return {module name: file} of everything that is installed, each file under its real path."""
    sources = {}
    for path in project_files():
        relative = path.relative_to(ROOT)
        if path.suffix != ".py" or relative.parts[0] not in ("kvcompress", *LINKED):
            continue
        parts = list(relative.with_suffix("").parts)
        if parts[0] != "kvcompress":
            parts.insert(0, "kvcompress")
        if parts[-1] == "__init__":
            parts.pop()
        sources[".".join(parts)] = path
    return sources


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """Return `file:line` relative to the root, for messages."""
    line = getattr(node, "lineno", None)
    return f"{path.relative_to(ROOT)}:{line}" if line else str(path.relative_to(ROOT))
