"""``kvcompress tucker``: low-rank decompositions of a cache, and what they cost."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, capture_options, options, study_options

_RANKS = "Ranks"

_EmbeddingRank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rank of the embedding mode. Default: a quarter of the head's size.",
        show_default=False,
        rich_help_panel=_RANKS,
    ),
]
_TokenRank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rank of the token mode, at most heads times embedding rank. Default: a quarter of the tokens, as far as "
        "that goes.",
        show_default=False,
        rich_help_panel=_RANKS,
    ),
]
_HeadRank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rank of the head mode. Default: heads stay as they are.",
        show_default=False,
        rich_help_panel=_RANKS,
    ),
]
_NoSensitivity = Annotated[
    bool,
    typer.Option("--no-sensitivity", help="Leave out what each layer's low rank does to the next token."),
]


def tucker(
    model: options.Model = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    prompt: analysis_options.Prompt = None,
    prompt_file: options.PromptFile = None,
    use_wikitext: analysis_options.UseWikitext = False,
    wikitext_index: analysis_options.WikitextIndex = 0,
    sequence_length: study_options.SequenceLength = 256,
    embedding_rank: _EmbeddingRank = None,
    token_rank: _TokenRank = None,
    head_rank: _HeadRank = None,
    layers: study_options.Layers = None,
    no_sensitivity: _NoSensitivity = False,
    steps: study_options.Steps = 32,
    output_dir: capture_options.OutputDir = capture_options.DEFAULT_FOLDER,
    force: analysis_options.Force = False,
    no_plots: study_options.NoPlots = False,
    as_json: options.AsJson = False,
) -> None:
    """Decompose the keys and values of a text's cache (Tucker, with an SVD of equal bytes beside it).

    Errors by layer and over ranks; and, measured on the logits, what one layer's low-rank cache does to the next token.
    """
    from kvcompress.commands.studies import Source
    from kvcompress.commands.tucker_run import Request, run_tucker

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
        embedding_rank=embedding_rank,
        token_rank=token_rank,
        head_rank=head_rank,
        layers=layers,
        sensitivity=not no_sensitivity,
        steps=steps,
        output_dir=output_dir,
        force=force,
        plots=not no_plots,
        as_json=as_json,
    )
    run_tucker(source, request)
