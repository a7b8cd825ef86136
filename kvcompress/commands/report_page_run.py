"""The work of ``kvcompress report``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from kvcompress.commands.analyze_run import choose_samples
from kvcompress.commands.failures import CommandError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked ``kvcompress report`` for."""

    folder: Path
    sample: str
    out: Path | None
    embed_plots: bool
    force: bool
    as_json: bool


def run_report(request: Request) -> None:
    """Writes the page and tells where it is.

    Raises:
        CommandError: an unknown sample, a file that is there already, or one that cannot be written.
        ValueError: a sample that is damaged.
    """
    from kvcompress.analysis.report.write import FILE_NAME, write_report

    chosen = choose_samples(request.folder, request.sample)
    path = request.out or request.folder / FILE_NAME
    if path.is_dir():
        raise CommandError(f"--out must be a file; {path} is a folder. Give {path / FILE_NAME}.")
    if path.exists() and not request.force:
        raise CommandError(f"{path} would be overwritten. Give --force, or another --out.")
    try:
        write_report(request.folder, path, chosen, force=request.force, embed_plots=request.embed_plots)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}. Give another --out.") from error
    size = path.stat().st_size
    if request.as_json:
        typer.echo(
            json.dumps({"schema": "kvcompress.report/1", "written": str(path), "bytes": size, "samples": chosen})
        )
    else:
        typer.echo(f"written: {path} ({size / 2**20:.1f} MiB, samples {', '.join(map(str, chosen))})")
