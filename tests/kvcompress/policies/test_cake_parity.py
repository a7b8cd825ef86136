"""CakeReference against goldens that the authors' own code made (float32, CPU, batch of one).

Exact means exact: budgets, kept sets and the order of storage, at every decode step. The goldens come from one
processor, though, and another rounds sums otherwise: there two scores that are equal but for rounding may change
places, and what follows is not compared.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress import CakeReference, CompressedCache
from kvcompress.engine import update
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.layer import CompressedLayer

DATA = Path(__file__).parents[2] / "data" / "cake_parity"
ROUNDING = 2e-5  # relative, of a score
CASES = json.loads((DATA / "index.json").read_text())


@cache
def model(name: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(DATA / "models" / name, dtype=torch.float32).eval()


class Run:
    """A case, teacher-forced on the golden tokens.

    Attributes:
        cache: after prefill and all decode steps.
        logits: ``[batch, vocabulary]`` of prefill and of each decode step.
        kept: of each of them and each layer, positions ``[batch, kv_heads, kept]`` in storage order.
        sorted_by: of each decode step and each layer that evicts in it, what its tokens before the window were sorted
            by: ``[kv_heads, tokens]`` in storage order.
    """

    def __init__(self, case: dict, golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
        decoder = model(case["model"])
        policy = CakeReference(
            cache_size=case["cache_size"], window_size=case["window"],
            tau1=case["tau1"], tau2=case["tau2"], gamma=case["gamma"],
        )  # fmt: skip
        layers = decoder.config.num_hidden_layers
        every = 1 if case["cascading"] else layers
        self.cache = CompressedCache(decoder, policy, keep_statistics=True, cascade_every=every)
        self.logits, self.kept, self.sorted_by = [], [], []
        self._listen(monkeypatch)
        inputs, tokens = (torch.from_numpy(golden[name]).long() for name in ("input_ids", "tokens"))
        with torch.no_grad():
            for step in range(tokens.shape[1]):
                if step:
                    self.sorted_by.append({})
                self.logits.append(decoder(inputs, **cache_argument(self.cache)).logits[:, -1].numpy())
                self.kept.append([self.cache.kept_positions(layer).numpy() for layer in range(layers)])
                inputs = tokens[:, step : step + 1]

    def _listen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reorder, select = update._reorder, update.select_as_torch

        def heard(policy: Any, layer: CompressedLayer, *rest: Any) -> None:
            def keep(scores: torch.Tensor, k: int) -> torch.Tensor:
                self.sorted_by[-1][layer.layer_idx] = scores.numpy()
                return select(scores, k)

            monkeypatch.setattr(update, "select_as_torch", keep)
            reorder(policy, layer, *rest)

        monkeypatch.setattr(update, "_reorder", heard)


def is_the_same(found: np.ndarray, wanted: np.ndarray, window: int, scores: np.ndarray, held: np.ndarray) -> bool:
    """Whether what is kept is exactly what is wanted; if not, checks that scores which tie within rounding explain it.

    Args:
        found: int64 ``[kv_heads, kept]``, positions in storage order: the chosen ones, best first, then the window.
        wanted: likewise.
        window: tokens of the window.
        scores: ``[kv_heads, tokens]``, by which tokens before the window were chosen.
        held: int64 ``[kv_heads, tokens]``, their positions.
    """
    if np.array_equal(found, wanted):
        return True
    np.testing.assert_array_equal(found[:, -window:], wanted[:, -window:])
    assert found.shape == wanted.shape
    for score, candidates, best in zip(scores, held, wanted[:, :-window].tolist(), strict=True):
        of = dict(zip(candidates.tolist(), score.tolist(), strict=True))
        assert set(best) <= of.keys()
        values = np.array([of.pop(position) for position in best])
        assert (values[1:] <= values[:-1] * (1 + ROUNDING)).all()
        assert max(of.values(), default=0.0) <= values.min(initial=np.inf) * (1 + ROUNDING)
    return False


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_reproduces_the_authors_code(case, monkeypatch) -> None:
    with np.load(DATA / f"{case['name']}.npz") as archive:
        golden = dict(archive)
    run = Run(case, golden, monkeypatch)
    layers, window = range(len(golden["pref_scores"])), case["window"]
    found = [run.cache.statistics(layer) for layer in layers]
    np.testing.assert_allclose([float(each.preference[0]) for each in found], golden["pref_scores"], rtol=1e-4)
    assert [int(each.budget[0]) for each in found] == golden["final_budget"].tolist()
    # Beyond these steps the original itself changes with noise of one unit in the last place of its weights.
    stable = case["stability"]["layer_stable_steps"] if case["stability"] else [23] * len(layers)
    exact = 23  # steps up to which all layers so far are exactly the original's
    for layer in layers:
        exact = min(exact, max(stable[layer], 0))
        scores = found[layer].token_scores.numpy()
        np.testing.assert_allclose(scores, golden[f"evict_scores_L{layer}"], rtol=1e-4)
        places = np.broadcast_to(np.arange(scores.shape[-1]), scores[0].shape)
        wanted = golden[f"prefill_kept_L{layer}"][0]
        if not is_the_same(run.kept[0][layer][0], wanted, window, scores[0], places):
            exact = 0
        for step in range(exact):
            wanted = golden[f"dec_kept_L{layer}"][step, 0]
            wanted = wanted[:, : int((wanted[0] >= 0).sum())]
            sorted_by = run.sorted_by[step].get(layer, np.zeros((len(wanted), 0)))  # empty where nothing was sorted
            held = run.kept[step][layer][0, :, : sorted_by.shape[-1]]
            if not is_the_same(run.kept[step + 1][layer][0], wanted, window, sorted_by, held):
                exact = step
                break
    np.testing.assert_allclose(
        np.stack(run.logits[: exact + 1], 1), golden["logits"][:, : exact + 1], rtol=1e-3, atol=1e-3
    )
