"""``kvcompress report``: a capture as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import analysis_options, options

_Out = Annotated[
    Path | None,
    typer.Option(help="The file. Default: report.html in the capture's folder.", show_default=False),
]
_EmbedPlots = Annotated[
    bool, typer.Option("--embed-plots", help="Make the pictures of the folder part of the page; else they are linked.")
]


def report(
    folder: analysis_options.CaptureFolder,
    sample: analysis_options.SampleChoice = "all",
    out: _Out = None,
    embed_plots: _EmbedPlots = False,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a capture up as one HTML page, which needs no network.

    It shows why each token was kept or evicted, what each head attends to, and what the layers hold over time.
    Recommendations and analysis reports in the folder become part of it.
    """
    from kvcompress.commands.report_page_run import Request, run_report

    run_report(Request(folder=folder, sample=sample, out=out, embed_plots=embed_plots, force=force, as_json=as_json))
