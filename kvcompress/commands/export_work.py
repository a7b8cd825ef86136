"""The work of ``kvcompress export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import typer

from kvcompress.commands.analyze_run import choose_samples
from kvcompress.commands.failures import CommandError
from kvcompress.commands.folders import check_writable
from kvcompress.commands.result_files import print_json
from kvcompress.commands.summary import size

if TYPE_CHECKING:
    from kvcompress.analysis.summary.export import Format

SCHEMA: Final = "kvcompress.export/1"
_FORMATS: Final = ("npz", "csv", "pickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    folder: Path
    form: str
    sample: str
    out: Path | None
    force: bool
    as_json: bool


def run_export(request: Request) -> None:
    """Writes the chosen samples and tells where they are.

    Raises:
        CommandError: an unknown format or sample, or a file that is there already or cannot be written; of all but the
            last nothing has been written.
        ValueError: a sample that is damaged, or has nothing of what the format is made of.
    """
    from kvcompress.analysis.summary.export import export_paths, export_sample
    from kvcompress.analysis.summary.reader import read_sample

    if request.form not in _FORMATS:
        raise CommandError(f"--format must be one of {', '.join(_FORMATS)}; got {request.form!r}")
    form, out = cast("Format", request.form), request.out or request.folder
    samples = [read_sample(request.folder, index) for index in choose_samples(request.folder, request.sample)]
    wanted = [path for sample in samples for path in export_paths(sample, form, out)]
    check_writable(out, option="--out")
    there = [str(path) for path in wanted if path.exists()]
    if there and not request.force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise CommandError(f"{there[0]}{more} would be overwritten. Give --force, or another --out.")
    written: list[Path] = []
    for sample in samples:
        try:
            written += export_sample(sample, form, out)
        except OSError as error:
            raise CommandError(f"--out must be a folder that can be written; {out}: {error.strerror}") from error
    if request.as_json:
        numbers = [sample.index for sample in samples]
        print_json({"schema": SCHEMA, "format": form, "samples": numbers, "written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(f"written: {path} ({size(path.stat().st_size)})")
