"""``kvcompress prune``: what dropping parts of a cache does to the predictions."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, capture_options, options, study_options

_What = Annotated[str, typer.Option(help="layers, heads, dimensions, tokens, with commas between.")]
_Ratios = Annotated[str, typer.Option(help="Fractions that are DROPPED, with commas between.")]
_Orders = Annotated[
    str,
    typer.Option(
        help="What goes first, with commas between: least_important (by attention and energy of the prompt), random, "
        "first, last (by index)."
    ),
]
_LeaveOneOut = Annotated[
    bool,
    typer.Option(
        "--leave-one-out",
        help="Score heads, and by them layers, by leaving each head out once, on the text itself, in place of its "
        "attention and energy: better, and two passes over the text for each head.",
    ),
]


def prune(
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    prompt: analysis_options.Prompt = None,
    prompt_file: options.PromptFile = None,
    use_wikitext: analysis_options.UseWikitext = False,
    wikitext_index: analysis_options.WikitextIndex = 0,
    what: _What = "layers,heads,dimensions,tokens",
    ratios: _Ratios = "0.1,0.3,0.5",
    orders: _Orders = "least_important,random",
    leave_one_out: _LeaveOneOut = False,
    seed: study_options.StudySeed = 0,
    sequence_length: study_options.SequenceLength = 256,
    steps: study_options.Steps = 64,
    output_dir: capture_options.OutputDir = capture_options.DEFAULT_FOLDER,
    force: analysis_options.Force = False,
    no_plots: study_options.NoPlots = False,
    as_json: options.AsJson = False,
) -> None:
    """Drop layers, heads, dimensions or tokens of a text's cache, and measure the predictions of what follows.

    KL(full || pruned), equal likeliest tokens, and perplexity, on the text itself.
    """
    from kvcompress.commands.prune_run import Request, run_prune
    from kvcompress.commands.studies import Source

    source = Source(
        model=model,
        device=device,
        dtype=dtype,
        prompt=prompt,
        prompt_file=prompt_file,
        use_wikitext=use_wikitext,
        wikitext_index=wikitext_index,
    )
    request = Request(
        what=what,
        ratios=ratios,
        orders=orders,
        leave_one_out=leave_one_out,
        seed=seed,
        sequence_length=sequence_length,
        steps=steps,
        output_dir=output_dir,
        force=force,
        plots=not no_plots,
        as_json=as_json,
    )
    run_prune(source, request)
