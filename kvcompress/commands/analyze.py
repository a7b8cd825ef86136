"""``kvcompress analyze``, ``generation`` and ``samples``: what a capture says, in tables and as JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, options

_Focus = Annotated[
    str | None,
    typer.Option(
        "--focus", help="Tell more about layers, heads, tokens or embeddings.", show_default=False, metavar="PART"
    ),
]


def analyze(
    folder: analysis_options.CaptureFolder,
    sample: analysis_options.SampleChoice = "0",
    focus: _Focus = None,
    output_dir: analysis_options.OutputDir = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Compute the metrics of a capture and write reports/analysis_report_sample_<i>.json.

    Attention by layer and head, compression, keys and values, influence of tokens, stages of the generation; a summary
    is printed.
    """
    from kvcompress.commands.analyze_run import Request, run_analyze

    run_analyze(Request(folder=folder, sample=sample, focus=focus, output_dir=output_dir, force=force, as_json=as_json))


def generation(
    folder: analysis_options.CaptureFolder,
    sample: analysis_options.SampleChoice = "0",
    as_json: options.AsJson = False,
) -> None:
    """Tell how attention changes over a generation: prompt, early, middle, late."""
    from kvcompress.commands.analyze_run import run_generation

    run_generation(folder, sample, as_json=as_json)


def samples(folder: analysis_options.CaptureFolder, as_json: options.AsJson = False) -> None:
    """List the samples of a capture: tokens, events, policy, bytes."""
    from kvcompress.commands.analyze_run import run_samples

    run_samples(folder, as_json=as_json)
