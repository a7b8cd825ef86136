"""``kvcompress recommend``: what to compress a captured text with, measured before it is recommended."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, options

_MEASURE = "Measurement"

_Sample = Annotated[int, typer.Option("--sample", min=0, help="Which sample of the capture.")]
_Model = Annotated[
    str | None,
    typer.Option(
        help="The model of the capture, to measure with: a folder, or its id on the Hugging Face hub. Without it, a "
        "capture of the embedded model is measured with that; others are not measured, which the files say.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
_NoMeasure = Annotated[
    bool,
    typer.Option(
        "--no-measure", help="Propose from the pattern alone, and say so in the files.", rich_help_panel=_MEASURE
    ),
]
_Tolerance = Annotated[
    float,
    typer.Option(min=0.0, help="Most KL(full || compressed) of the next token, in nats.", rich_help_panel=_MEASURE),
]
_LeastAgreement = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Least share of equal likeliest tokens, in [0, 1].", rich_help_panel=_MEASURE),
]
_Budgets = Annotated[
    str,
    typer.Option(help="Fractions of the prompt that are KEPT, with commas between.", rich_help_panel=_MEASURE),
]
_Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds of each chosen budget.", rich_help_panel=_MEASURE)]


def recommend(
    folder: analysis_options.CaptureFolder,
    sample: _Sample = 0,
    model: _Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    no_measure: _NoMeasure = False,
    tolerance: _Tolerance = 0.1,
    least_agreement: _LeastAgreement = 0.9,
    budgets: _Budgets = "0.75,0.5,0.375,0.25,0.125,0.0625",
    rounds: _Rounds = 5,
    output_dir: analysis_options.OutputDir = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the pattern of a capture, try strategies over budgets, and recommend the smallest cache within a tolerance.

    Every strategy is run on the capture's own tokens: fidelity, bytes, and speed side by side with the full cache.
    """
    from kvcompress.commands.recommend_run import Request, run_recommend

    request = Request(
        folder=folder,
        sample=sample,
        model=model,
        device=device,
        dtype=dtype,
        no_measure=no_measure,
        kl=tolerance,
        top1=least_agreement,
        budgets=budgets,
        rounds=rounds,
        output_dir=folder if output_dir is None else output_dir,
        force=force,
        as_json=as_json,
    )
    run_recommend(request)
