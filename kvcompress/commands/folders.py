"""Folders that a command is told to write into: checked before the work, made when there is something to write."""

from __future__ import annotations

import os
from pathlib import Path

from kvcompress.commands.failures import CommandError


def check_writable(folder: Path, option: str = "--output-dir") -> None:
    """Checks that a folder can be written, or made.

    Args:
        folder: the folder.
        option: that it was given to.

    Raises:
        CommandError: it cannot.
    """
    above = nearest_there(folder)
    if not above.is_dir():
        raise CommandError(f"{option} must be a folder that can be written; {above} is a file. Choose another.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommandError(f"{option} must be a folder that can be written; {above} cannot. Choose another.")


def nearest_there(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = Path(os.path.abspath(path))
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
