"""The file of a sweep: a row a line, appended and on disk before the next cell starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from kvcompress.bench.sweep.row import FAMILY, Cell, Row, from_line, to_line

# Where there is no such module, two sweeps into one file are the user's to avoid.
fcntl: Any = import_module("fcntl") if os.name == "posix" else None

_BEGIN: Final = f'{{"schema": "{FAMILY}'.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRead:
    """What a file holds.

    Attributes:
        rows: by cell, in the file's order; of two rows of one cell the later one.
        whole_bytes: length of the file without a last line that was cut off.
        torn_bytes: length of that line: its writer was killed while it wrote.
    """

    rows: dict[Cell, Row]
    whole_bytes: int
    torn_bytes: int


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a sweep; a last line that was cut off is left out.

    Raises:
        ValueError: no such file, or one without rows, with a line that is no row, or of a newer version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Give the .jsonl file of a sweep.") from error
    rows = list(_parse(content, path).rows.values())
    if not rows:
        raise ValueError(f"{path} holds no rows. Run `kvcompress bench sweep --out {path}` first.")
    return rows


class RowsFile:
    """The file that a sweep writes, locked while it is open.

    Args:
        path: the file; it and its folder are made if they are not there.
        note: is told, in one line, that a last line which was cut off has been dropped.

    Raises:
        ValueError: the file cannot be written, is another sweep's at the moment, or holds something else.
    """

    def __init__(self, path: Path, note: Callable[[str], object]) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._lock()
            self._file.seek(0)
            found = _parse(self._file.read(), path)
        except BaseException:
            self._file.close()
            raise
        self.rows = found.rows
        if found.torn_bytes:
            self._file.truncate(found.whole_bytes)
            note(f"{path} ended in the middle of a row, which was dropped; its cell runs again")

    def append(self, row: Row) -> None:
        """Writes a row and waits until it is on disk."""
        self._file.write(to_line(row).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[row.cell] = row

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.rows:
            self.path.unlink(missing_ok=True)  # nothing has run
        self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with its process, however that ends
        except BlockingIOError as error:
            raise ValueError(f"{self.path} is being written by another sweep. Give another --out.") from error
        except OSError:
            return  # a file system without locks


def _open(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+b")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}. Give another --out.") from error


def _parse(content: bytes, path: Path) -> RowsRead:
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    # A file of another kind may end without a line break too: it must not lose its last line.
    if torn and not (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
        raise ValueError(f"{path} is not the file of a sweep: it ends in something else. Give another file.")
    rows: dict[Cell, Row] = {}
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            row = from_line(line.decode())
        except ValueError as error:  # UnicodeDecodeError too
            raise ValueError(f"{path}, line {number} {error}") from error
        rows[row.cell] = row
    return RowsRead(rows=rows, whole_bytes=whole, torn_bytes=len(torn))
