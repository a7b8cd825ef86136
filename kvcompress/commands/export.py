"""``kvcompress export``: a capture in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import analysis_options, options

_Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="npz: all tensors, for numpy. csv: tables of events, attention, tokens and evictions; texts that a "
        "spreadsheet would run as a formula (= + - @ first) get an apostrophe. pickle: the raw attention as an earlier "
        "tool stored it, {layer: {'shape', 'tensor'}}; only written: nothing here reads a pickle, since that can run "
        "code.",
        show_default=False,
    ),
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write into. Default: the capture's own.", show_default=False),
]


def export(
    folder: analysis_options.CaptureFolder,
    form: _Format,
    sample: analysis_options.SampleChoice = "all",
    out: _Out = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a capture as npz, CSV or pickle."""
    from kvcompress.commands.export_work import Request, run_export

    run_export(Request(folder=folder, form=form, sample=sample, out=out, force=force, as_json=as_json))
