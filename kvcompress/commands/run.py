"""``kvcompress run``: capture, metrics, plots and report in one go."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.commands import analysis_options, capture_options, options

_STAGES = "Stages"

_SkipCollection = Annotated[
    bool,
    typer.Option(
        "--skip-collection",
        help="Analyse the capture that is in --output-dir; options of model, text and policy are not looked at then, "
        "but for --model, --device and --dtype where something is measured.",
        rich_help_panel=_STAGES,
    ),
]
_SkipAnalysis = Annotated[bool, typer.Option("--skip-analysis", help="Capture only.", rich_help_panel=_STAGES)]
_AnalysisFocus = Annotated[
    str | None,
    typer.Option(
        help="Only the metrics and pictures of layers, heads, tokens or embeddings. Default: all.",
        show_default=False,
        rich_help_panel=_STAGES,
    ),
]
_LowRank = Annotated[
    bool,
    typer.Option(
        "--low-rank/--no-low-rank",
        help="Whether the model's cache of the first text is decomposed and compared too (tucker.json, "
        "similarity.json), as `kvcompress tucker` and `similarity` do.",
        rich_help_panel=_STAGES,
    ),
]
_Recommend = Annotated[
    bool,
    typer.Option(
        "--recommend",
        help="Try strategies over budgets on the first text and recommend the smallest cache within a tolerance, as "
        "`kvcompress recommend` does.",
        rich_help_panel=_STAGES,
    ),
]
_Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.", rich_help_panel="Output")]


def run(
    model: capture_options.Model = None,
    output_dir: capture_options.OutputDir = capture_options.DEFAULT_FOLDER,
    skip_collection: _SkipCollection = False,
    skip_analysis: _SkipAnalysis = False,
    analysis_focus: _AnalysisFocus = None,
    low_rank: _LowRank = True,
    recommend: _Recommend = False,
    prompt: analysis_options.Prompt = None,
    prompt_file: options.PromptFile = None,
    use_wikitext: analysis_options.UseWikitext = False,
    wikitext_index: analysis_options.WikitextIndex = 0,
    max_samples: analysis_options.MaxSamples = 1,
    max_length: analysis_options.MaxLength = None,
    max_new_tokens: options.MaxNewTokens = 32,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    compress: capture_options.Compress = False,
    policy: capture_options.PolicyName = None,
    cache_size: options.CacheSize = None,
    compression_ratio: options.CompressionRatio = None,
    window_size: options.WindowSize = None,
    sink_tokens: options.SinkTokens = None,
    tau1: options.Tau1 = None,
    tau2: options.Tau2 = None,
    gamma: options.Gamma = None,
    preset: capture_options.Preset = None,
    base: options.Base = None,
    floor: options.Floor = None,
    max_queries: capture_options.MaxQueries = 256,
    save_attention: capture_options.SaveAttention = False,
    save_layers: capture_options.SaveLayers = None,
    save_heads: capture_options.SaveHeads = None,
    save_max_tokens: capture_options.SaveMaxTokens = None,
    save_kv: capture_options.SaveKv = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    force: _Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Capture, compute metrics, decompose the cache, draw, and write a report, all into one folder.

    Start with report.html in that folder, which needs no network. Each stage is a command of its own too.
    """
    given = locals()
    from kvcompress.commands.capture_request import capture_request
    from kvcompress.commands.run_work import RunRequest, run_all

    request = RunRequest(
        capture=None if skip_collection else capture_request(given),
        output_dir=output_dir,
        analysis=not skip_analysis,
        focus=analysis_focus,
        low_rank=low_rank,
        recommend=recommend,
        model=model,
        device=device,
        dtype=dtype,
        force=force,
        as_json=as_json,
    )
    run_all(request)
