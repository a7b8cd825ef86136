"""The files that ``kvcompress diffusion generate`` and ``analyze`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvcompress.commands.failures import CommandError

if TYPE_CHECKING:
    from kvcompress.bench.workloads.diffusion_lm.history import History


def draw(history: History, folder: Path) -> list[Path]:
    """Draws all pictures of a history into a folder.

    Raises:
        CommandError: they cannot be written.
    """
    from kvcompress.analysis.plots.saving import save_png
    from kvcompress.bench.workloads.diffusion_lm.pictures import PICTURES

    try:
        return [save_png(make(history), folder / f"{name}.png") for name, make in PICTURES.items()]
    except OSError as error:
        raise CommandError(f"{folder} cannot be written ({error.strerror}). Give another --output-dir.") from error


def write_page(capture: Path, out: Path, *, force: bool) -> Path:
    """Writes the page of a capture, with the pictures in its folder.

    Args:
        capture: folder of the capture.
        out: folder of the page.
        force: whether a page that is there is replaced.

    Raises:
        CommandError: it cannot be written.
    """
    from kvcompress.analysis.report.write import FILE_NAME, write_report

    try:
        return write_report(capture, out / FILE_NAME, force=force, embed_plots=True)
    except OSError as error:
        raise CommandError(f"{out / FILE_NAME} cannot be written ({error}). Give another --output-dir.") from error
