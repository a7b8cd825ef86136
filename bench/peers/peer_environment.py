"""The environment of a peer: made once, from a list that names every package of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import venv
from pathlib import Path
from typing import Final

import kvcompress
from kvcompress.bench.results_file import PROJECT

REQUIREMENTS: Final = Path(__file__).resolve().parent / "kvpress-requirements.txt"
FOLDER: Final = PROJECT / ".venv" / "peers" / "kvpress"  # what git ignores
PACKAGE: Final = Path(kvcompress.__file__).resolve().parent


def peer_python(folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> Path:
    """The interpreter of the peer's environment, which is made where it is missing or of another list.

    Args:
        folder: where it is, or shall be.
        requirements: its packages, all of them.

    Raises:
        RuntimeError: pip cannot install them; the message is pip's.
    """
    python, stamp = folder / "bin" / "python", folder / ".ready"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
        # Without dependencies: the list is complete, and whatever else a package asks for (CUDA) stays away.
        _run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--requirement", str(requirements)])
        stamp.write_text(wanted, encoding="utf-8")
    return python


def peer_variables(folder: Path = FOLDER) -> dict[str, str]:
    """Environment variables with which that interpreter finds this package, and nothing else of our environment.

    Args:
        folder: the peer's environment; a link to the package is put into it.
    """
    place = folder / "package"
    place.mkdir(parents=True, exist_ok=True)
    link = place / PACKAGE.name
    if not (link.is_symlink() and link.resolve() == PACKAGE):
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE, target_is_directory=True)
    return {**os.environ, "PYTHONPATH": str(place)}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(
            f"the environment of kvpress cannot be made: {lines[-1] if lines else 'pip failed without a word'}. It "
            "needs Python 3.11 or newer and a package index; where that has no CPU build of torch, add PyTorch's own "
            "with PIP_EXTRA_INDEX_URL."
        )
