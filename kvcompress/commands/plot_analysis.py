"""``kvcompress plot``: pictures of a capture; ``kvcompress bench plot`` draws a sweep."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, options

_WHICH = "Which pictures"

_What = Annotated[
    str | None,
    typer.Option(
        help="Names of pictures with commas between, as attention_heatmap,eviction_timeline. Default: all of the "
        "comprehensive report. An unknown name is answered with those that there are.",
        show_default=False,
        rich_help_panel=_WHICH,
    ),
]
_Layer = Annotated[
    int | None,
    typer.Option(
        help="The layer of pictures that are of one layer. Default: all, of more than eight some.",
        show_default=False,
        rich_help_panel=_WHICH,
    ),
]
_Step = Annotated[
    int | None,
    typer.Option(
        help="The step (event of the capture, from 0). Default: the first; some where there is a picture per step.",
        show_default=False,
        rich_help_panel=_WHICH,
    ),
]
_Head = Annotated[
    int | None,
    typer.Option(help="The query head. Default: mean over heads.", show_default=False, rich_help_panel=_WHICH),
]


def plot(
    folder: analysis_options.CaptureFolder,
    sample: analysis_options.SampleChoice = "0",
    what: _What = None,
    layer: _Layer = None,
    step: _Step = None,
    head: _Head = None,
    output_dir: analysis_options.OutputDir = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw a capture: attention, compression, keys and values; PNG files and interactive HTML pages.

    Results of `kvcompress tucker`, `similarity` and `prune` in the folder are drawn too.
    """
    from kvcompress.commands.plot_analysis_run import Request, run_plot

    run_plot(
        Request(
            folder=folder,
            sample=sample,
            what=what,
            layer=layer,
            step=step,
            head=head,
            output_dir=output_dir,
            force=force,
            as_json=as_json,
        )
    )
