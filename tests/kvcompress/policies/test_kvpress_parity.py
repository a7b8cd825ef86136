"""Policies against goldens of kvpress 0.5.5 (float32, CPU, a prompt of 300 tokens): scores, and equal kept sets.

Where we keep other tokens on purpose (docs/policies.md), the kept set is what the golden's own scores say under our
rule.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress import (
    TOVA,
    AdaKV,
    CompressedCache,
    Knorm,
    ObservedAttention,
    Policy,
    PyramidKV,
    SnapKV,
    StreamingLLM,
)
from kvcompress.engine.cache_argument import cache_argument

DATA = Path(__file__).parents[2] / "data"
GOLDENS = DATA / "kvpress_parity"
KEPT = {(row["press"], row["ratio"]): row["kept"] for row in json.loads((GOLDENS / "index.json").read_text())}
LAYERS, TOKENS = 4, 300
LONG = [0.5, 0.75]  # kvpress keeps 29 of 300 at 0.9, fewer than a window of 32: no cache size of ours means that
ALL = [*LONG, 0.9]


@cache
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(DATA / "cake_parity" / "models" / "m4x4_l4", dtype=torch.float32).eval()


def golden(press: str, ratio: float) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"m4x4_l4_{press}_r{ratio}.npz") as archive:
        return dict(archive)


def prefill(policy: Policy, ids: np.ndarray) -> CompressedCache:
    compressed = CompressedCache(model(), policy, keep_statistics=True)
    with torch.no_grad():
        model()(torch.from_numpy(ids), **cache_argument(compressed))
    return compressed


def kept_sets(compressed: CompressedCache, layer: int) -> list[set[int]]:
    """Positions that each head keeps."""
    return [{int(p) for p in row if p >= 0} for row in compressed.kept_positions(layer)[0]]


def golden_sets(goldens: dict[str, np.ndarray], layer: int) -> list[set[int]]:
    if f"kept_L{layer}" in goldens:
        return [{int(p) for p in row} for row in goldens[f"kept_L{layer}"][0]]
    return [set(np.flatnonzero(row).tolist()) for row in goldens[f"kept_mask_L{layer}"][0]]


def assert_scores_agree(compressed: CompressedCache, goldens: dict[str, np.ndarray], layer: int) -> None:
    scores = compressed.statistics(layer).token_scores.numpy()
    np.testing.assert_allclose(scores, goldens[f"scores_L{layer}"][..., : scores.shape[-1]], rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("press", "ratio", "make"),
    [
        *[("snapkv_w32", ratio, lambda size: SnapKV(cache_size=size, window_size=32)) for ratio in LONG],
        *[("tova", ratio, lambda size: TOVA(cache_size=size)) for ratio in ALL],
        *[("streaming", ratio, lambda size: StreamingLLM(cache_size=size)) for ratio in ALL],
        # kvpress's pyramid falls to the window alone; ours falls to 1 / beta of the average beyond the window.
        ("pyramidkv_w32", 0.5, lambda size: PyramidKV(cache_size=size, window_size=32, beta=1e12)),
        ("pyramidkv_w8", 0.5, lambda size: PyramidKV(cache_size=size, window_size=8, beta=1e12)),
        # Here kvpress's pyramid has silently become flat, which is SnapKV.
        ("pyramidkv_w32", 0.75, lambda size: SnapKV(cache_size=size, window_size=32)),
        ("pyramidkv_w8", 0.75, lambda size: SnapKV(cache_size=size, window_size=8)),
        ("pyramidkv_w8", 0.9, lambda size: SnapKV(cache_size=size, window_size=8)),
        # kvpress counts the window's tokens in its floor per head: 30 and 15 of 32, so that nothing is left of it.
        *[
            ("adakv_snapkv_w32", ratio, lambda size: AdaKV(base=SnapKV(cache_size=size, window_size=32), floor=0.0))
            for ratio in LONG
        ],
    ],
)  # fmt: skip
def test_keeps_what_kvpress_keeps(press, ratio, make) -> None:
    goldens = golden(press, ratio)
    size = sum(len(s) for layer in range(LAYERS) for s in golden_sets(goldens, layer)) // (LAYERS * 4)
    compressed = prefill(make(size), goldens["input_ids"])
    for layer in range(LAYERS):
        if press != "streaming":  # there the scores are places, not numbers to compare
            assert_scores_agree(compressed, goldens, layer)
        assert kept_sets(compressed, layer) == golden_sets(goldens, layer), f"layer {layer}"


@pytest.mark.parametrize("ratio", ALL)
@pytest.mark.parametrize(("press", "kind"), [("knorm", Knorm), ("observed", ObservedAttention)])
def test_keeps_what_kvpress_keeps_and_the_last_token(press, kind, ratio) -> None:
    """Without a window kvpress may evict the very token that asks; ours always stays, in the place of the last one."""
    goldens = golden(press, ratio)
    size = KEPT[press, ratio][0]
    compressed = prefill(kind(cache_size=size), goldens["input_ids"])
    for layer in range(LAYERS):
        assert_scores_agree(compressed, goldens, layer)
        scores = torch.from_numpy(goldens[f"scores_L{layer}"])[0]
        for head, theirs in enumerate(golden_sets(goldens, layer)):
            ours = kept_sets(compressed, layer)[head]
            wanted = theirs
            if TOKENS - 1 not in theirs:
                worst = min(theirs, key=scores[head].__getitem__)
                wanted = {*theirs - {worst}, TOKENS - 1}
            # The same word twice has the same norm in the first layer: of equal scores, ours keeps the earlier.
            assert sorted(scores[head, list(ours)].tolist()) == sorted(scores[head, list(wanted)].tolist())


def test_adaptive_heads_free_what_kvpress_masks() -> None:
    """kvpress masks what AdaKV evicts and holds it all the same; here rows are as long as what they keep."""
    ids = golden("adakv_snapkv_w32", 0.5)["input_ids"]
    equal = prefill(SnapKV(cache_size=150, window_size=32), ids).report()
    compressed = prefill(AdaKV(base=SnapKV(cache_size=150, window_size=32)), ids)
    adaptive = compressed.report()
    assert adaptive.num_bytes == equal.num_bytes < adaptive.full_bytes
    assert any(len({len(kept) for kept in kept_sets(compressed, layer)}) > 1 for layer in range(LAYERS)), "heads differ"
