"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lets the caller write a temporary file beside ``path``, which then takes its name, flushed to disk.

    Nothing is at ``path`` but what was there before until the block has ended without an error.

    Args:
        path: the file to write; its folder is made where there is none.

    Yields:
        An empty temporary file of the same ending.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".partial{path.suffix}", dir=path.parent)
    partial = Path(name)
    try:
        os.fchmod(handle, path.stat().st_mode & 0o777 if path.exists() else 0o644)  # mkstemp's files are private
        os.close(handle)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
