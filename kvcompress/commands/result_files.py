"""Files that a command writes: never over what is there unless told to, and whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcompress.commands.failures import CommandError
from kvcompress.commands.folders import check_writable


def claim(folder: Path, names: Sequence[str], *, force: bool) -> list[Path]:
    """Paths of files to be written, checked before the work begins.

    Args:
        folder: where they go; writing makes it if it is not there.
        names: their names.
        force: whether files of these names may be overwritten.

    Raises:
        CommandError: one is there already, or the folder cannot be written.
    """
    paths = [folder / name for name in names]
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise CommandError(f"{', '.join(there)} is there already; give --force to overwrite, or another --output-dir")
    check_writable(folder)
    return paths


def write_text(path: Path, text: str) -> None:
    """Writes a file.

    Raises:
        CommandError: it cannot be written.
    """
    from kvcompress.analysis.files import replace_text

    try:
        replace_text(path, text)
    except OSError as error:
        raise CommandError(
            f"--output-dir must be a folder that can be written; got {path.parent} ({error.strerror})"
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file.

    Raises:
        CommandError: it cannot be written.
    """
    write_text(path, json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n")


def print_json(content: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout and nothing else."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
