"""The work of ``kvcompress bench plot`` and ``kvcompress bench report``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from kvcompress.commands.failures import CommandError


def write_plots(rows: Path, folder: Path) -> None:
    """Draws the rows of a file.

    Raises:
        ValueError: the file holds no rows that can be drawn together.
        CommandError: the folder cannot be written.
    """
    from kvcompress.bench.sweep.pictures import draw_all
    from kvcompress.bench.sweep.rows_file import read_rows
    from kvcompress.bench.sweep.summary import summarise

    summary = summarise(read_rows(rows))
    _tell(folder, lambda: draw_all(summary, folder))


def write_pages(rows: Path, folder: Path) -> None:
    """Writes the rows of a file up.

    Raises:
        ValueError: the file holds no rows that can be told together.
        CommandError: the folder cannot be written.
    """
    from kvcompress.bench.sweep.pages import write_report
    from kvcompress.bench.sweep.rows_file import read_rows
    from kvcompress.bench.sweep.summary import summarise

    summary = summarise(read_rows(rows))
    _tell(folder, lambda: write_report(summary, folder))


def _tell(folder: Path, write: Callable[[], Iterable[Path]]) -> None:
    try:
        for path in write():
            typer.echo(f"written: {path}")
    except OSError as error:
        raise CommandError(f"--out must be a folder that can be written; got {folder} ({error.strerror}).") from error
