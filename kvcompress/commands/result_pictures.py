"""Pictures of the results that a command has written."""

from __future__ import annotations

from pathlib import Path

from kvcompress.commands.failures import CommandError, warn


def check_pictures(folder: Path, results: str, *, force: bool) -> None:
    """Checks, before the work begins, that no picture of such results is there already.

    Args:
        folder: where the results go.
        results: ``"tucker"``, ``"similarity"`` or ``"pruning"``.
        force: whether pictures may be overwritten.

    Raises:
        CommandError: one is there.
    """
    from kvcompress.analysis.plots.result_views import RESULT_VIEWS

    patterns = [view.file.replace("{layer}", "*") for view in RESULT_VIEWS.values() if view.results == results]
    there = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise CommandError(f"{there[0]}{more} would be overwritten; give --force, another --output-dir, or --no-plots")


def draw_pictures(folder: Path, results: str) -> list[Path]:
    """Draws the results of a folder; says on stderr what cannot be drawn.

    Args:
        folder: where the results are, and the pictures go.
        results: ``"tucker"``, ``"similarity"`` or ``"pruning"``.

    Returns:
        The pictures.

    Raises:
        CommandError: they cannot be written.
    """
    from kvcompress.analysis.plots.jobs import Request, result_jobs
    from kvcompress.analysis.plots.problems import NothingToDrawError
    from kvcompress.analysis.plots.result_views import RESULT_VIEWS
    from kvcompress.analysis.plots.saving import save_png

    names = [name for name, view in RESULT_VIEWS.items() if view.results == results]
    written: list[Path] = []
    left_out: dict[str, str] = {}
    for job in result_jobs(folder, Request(names=names), folder, left_out):
        try:
            written.append(save_png(job.draw(), job.path))
        except NothingToDrawError as reason:
            left_out[job.name] = str(reason)
        except OSError as error:
            raise CommandError(
                f"--output-dir must be a folder that can be written; got {job.path.parent} ({error.strerror})"
            ) from error
    for name, reason_text in left_out.items():
        warn(f"{name} is not drawn: {reason_text}")
    return written
