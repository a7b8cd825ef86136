"""``kvcompress demo``: what compression keeps and loses, on the embedded model."""

from __future__ import annotations

from kvcompress.commands import options


def demo(
    seed: options.ExampleSeed = 0,
    examples: options.Examples = 8,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Ask the embedded model about long texts: full cache, CAKE, and StreamingLLM.

    A few facts are hidden in 1024 tokens of filler text, and one of them is asked. Takes well under a minute
    on a laptop.
    """
    from kvcompress.commands.demonstration import run_demo

    run_demo(seed=seed, examples=examples, device=device, dtype=dtype, as_json=as_json)
