"""``kvcompress capture``: records what a model attends to while it generates."""

from __future__ import annotations

from kvcompress.commands import analysis_options, capture_options, options


def capture(
    model: capture_options.Model = None,
    output_dir: capture_options.OutputDir = capture_options.DEFAULT_FOLDER,
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
    force: capture_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Record what a model attends to while it generates, at any length.

    A sample is a pair of files; no matrix of tokens by tokens is stored without --save-attention.
    The full cache is used unless --compress is given. `analyze`, `plot`, `report`, `recommend` go on from there.
    """
    given = locals()
    from kvcompress.commands.capture_request import capture_request
    from kvcompress.commands.capture_work import run_capture

    run_capture(capture_request(given), as_json=as_json)
