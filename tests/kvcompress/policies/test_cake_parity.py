"""CakeReference against goldens that the authors' own code made (float32, CPU, batch of one).

Exact means exact: preferences, token scores, budgets, kept sets, the order of storage, logits, at every decode step.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress import CakeReference, CompressedCache

DATA = Path(__file__).parents[2] / "data" / "cake_parity"
CASES = json.loads((DATA / "index.json").read_text())


@cache
def model(name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(DATA / "models" / name, dtype=torch.float32).eval()


def run(case: dict, golden: dict[str, np.ndarray]) -> tuple[CompressedCache, list[np.ndarray], list[list[np.ndarray]]]:
    """Teacher-forces the golden tokens; returns the cache after prefill's statistics, logits and kept positions."""
    decoder = model(case["model"])
    policy = CakeReference(
        cache_size=case["cache_size"], window_size=case["window"],
        tau1=case["tau1"], tau2=case["tau2"], gamma=case["gamma"],
    )  # fmt: skip
    layers = decoder.config.num_hidden_layers
    every = 1 if case["cascading"] else layers
    cache = CompressedCache(decoder, policy, keep_statistics=True, cascade_every=every)
    tokens = torch.from_numpy(golden["tokens"]).long()
    logits, kept = [], []
    inputs = torch.from_numpy(golden["input_ids"]).long()
    with torch.no_grad():
        for step in range(tokens.shape[1]):
            logits.append(decoder(inputs, past_key_values=cache).logits[:, -1].numpy())
            kept.append([cache.kept_positions(layer).numpy() for layer in range(layers)])
            inputs = tokens[:, step : step + 1]
    return cache, logits, kept


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_reproduces_the_authors_code(case) -> None:
    with np.load(DATA / f"{case['name']}.npz") as archive:
        golden = dict(archive)
    cache, logits, kept = run(case, golden)
    layers = range(len(golden["pref_scores"]))
    preferences = [float(cache.statistics(layer).preference[0]) for layer in layers]
    np.testing.assert_allclose(preferences, golden["pref_scores"], rtol=1e-4)
    assert [int(cache.statistics(layer).budget[0]) for layer in layers] == golden["final_budget"].tolist()
    stable = case["stability"]["layer_stable_steps"] if case["stability"] else [23] * len(layers)
    for layer in layers:
        scores = cache.statistics(layer).token_scores.numpy()
        np.testing.assert_allclose(scores, golden[f"evict_scores_L{layer}"], rtol=1e-4)
        np.testing.assert_array_equal(kept[0][layer], golden[f"prefill_kept_L{layer}"])
        # Beyond these steps the original itself changes with noise of one unit in the last place of its weights.
        for step in range(min(stable[: layer + 1])):
            wanted = golden[f"dec_kept_L{layer}"][step]
            wanted = wanted[..., : int((wanted[0, 0] >= 0).sum())]
            np.testing.assert_array_equal(kept[step + 1][layer], wanted, err_msg=f"layer {layer} step {step}")
    if min(stable) >= 23:
        np.testing.assert_allclose(np.stack(logits, 1), golden["logits"], rtol=1e-3, atol=1e-3)
