"""``kvcompress generate``: text with a compressed cache, and what that saved."""

from __future__ import annotations

from kvcompress.commands import options


def generate(
    model: options.Model = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    policy: options.PolicyName = "cake",
    cache_size: options.CacheSize = None,
    compression_ratio: options.CompressionRatio = None,
    window_size: options.WindowSize = None,
    sink_tokens: options.SinkTokens = None,
    tau1: options.Tau1 = None,
    tau2: options.Tau2 = None,
    gamma: options.Gamma = None,
    preset: options.Preset = None,
    base: options.Base = None,
    floor: options.Floor = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    compare_full: options.CompareFull = False,
    as_json: options.AsJson = False,
) -> None:
    """Generate text with a compressed KV cache, and tell what that saved.

    The text is streamed to stdout; bytes, speed and the tokens kept per layer follow it.
    """
    from kvcompress.commands.choice import PolicyChoice
    from kvcompress.commands.generation import Request, run_request
    from kvcompress.commands.prompts import read_prompt

    sizes = {"cache_size": cache_size, "compression_ratio": compression_ratio, "window_size": window_size}
    weights = {"sink_tokens": sink_tokens, "tau1": tau1, "tau2": tau2, "gamma": gamma, "base": base, "floor": floor}
    request = Request(
        prompt=read_prompt(prompt, prompt_file),
        choice=PolicyChoice(policy, sizes | weights, preset=preset, seed=seed),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        compare_full=compare_full,
    )
    run_request(request, model=model, device=device, dtype=dtype, as_json=as_json)
