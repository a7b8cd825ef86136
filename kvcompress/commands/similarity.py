"""``kvcompress similarity``: how alike the tokens, heads and layers of a cache are."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, capture_options, options, study_options

_MaxTokens = Annotated[
    int,
    typer.Option(min=1, help="Most tokens of a matrix, evenly spaced; means and redundancy are of all of them."),
]
_Thresholds = Annotated[str, typer.Option(help="Cosines above which a token counts as redundant, with commas between.")]


def similarity(
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    prompt: analysis_options.Prompt = None,
    prompt_file: options.PromptFile = None,
    use_wikitext: analysis_options.UseWikitext = False,
    wikitext_index: analysis_options.WikitextIndex = 0,
    sequence_length: study_options.SequenceLength = 512,
    max_tokens: _MaxTokens = 128,
    thresholds: _Thresholds = "0.9,0.95,0.99",
    layers: study_options.Layers = None,
    output_dir: capture_options.OutputDir = capture_options.DEFAULT_FOLDER,
    force: analysis_options.Force = False,
    no_plots: study_options.NoPlots = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare the keys and values of a text's cache: tokens, heads and layers (cosine, linear CKA), redundancy."""
    from kvcompress.commands.similarity_run import Request, run_similarity
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
        sequence_length=sequence_length,
        max_tokens=max_tokens,
        thresholds=thresholds,
        layers=layers,
        output_dir=output_dir,
        force=force,
        plots=not no_plots,
        as_json=as_json,
    )
    run_similarity(source, request)
