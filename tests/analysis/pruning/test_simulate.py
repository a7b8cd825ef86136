"""Importance against plain formulas, and pruning curves of real models."""

from math import exp
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.fidelity.fidelity import fidelity
from kvcompress.analysis.fidelity.teacher_forcing import text_windows
from kvcompress.analysis.pruning.edited_cache import Edited, EditedCache, PromptStates
from kvcompress.analysis.pruning.importance import prompt_importance
from kvcompress.analysis.pruning.simulate import PruningSimulation
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.bench.testbed.tasks import make_example
from tests.tolerances import assert_close

CONTEXT = 24


def test_importance_is_attention_and_energy(model: Any, windows: torch.Tensor) -> None:
    prompt = windows[0, :CONTEXT]
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            attentions = model(input_ids=prompt[None], output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    Conversation(model, cache).feed([prompt.tolist()])
    window = CONTEXT // 2  # the shorter of half the prompt and 16
    for entry in prompt_importance(model, prompt.tolist()):
        keys, values = cache.layers[entry.layer].keys[0], cache.layers[entry.layer].values[0]
        observed = attentions[entry.layer][0, :, -window:, :-window].unflatten(0, (2, 2)).mean((1, 2))  # [K, T - W]
        torch.testing.assert_close(entry.tokens[:, :-window], observed, atol=1e-6, rtol=1e-5)
        assert bool((entry.tokens[:, -window:] == torch.inf).all())
        wanted = (observed * values.norm(dim=-1)[:, :-window]).mean(1)
        torch.testing.assert_close(entry.heads, wanted, atol=1e-6, rtol=1e-5)
        assert_close(entry.key_dimensions, keys.square().mean(1))
        assert_close(entry.value_dimensions, values.square().mean(1))
        assert entry.whole == pytest.approx(float(entry.heads.mean()))


@pytest.mark.parametrize("what", ["layers", "heads", "dimensions", "tokens"])
def test_nothing_dropped_changes_nothing_and_everything_much(what: Any, model: Any, windows: torch.Tensor) -> None:
    simulation = PruningSimulation(model, windows, context=CONTEXT)
    none, all_ = simulation.point(what, 0.0), simulation.point(what, 1.0)
    assert none.kl < 1e-12
    assert none.top1 == 1
    assert none.perplexity == pytest.approx(none.full_perplexity, rel=1e-9)
    assert (none.dropped, none.kv_bytes) == (0, none.full_bytes)
    assert (all_.dropped, all_.kv_bytes) == (all_.units, 0)
    assert all_.kl > 0.05
    assert none.full_bytes == 3 * 2 * CONTEXT * (8 + 8) * 8  # L, K, T, both head dimensions, bytes of float64
    assert none.full_perplexity == all_.full_perplexity
    assert none.to_json()["ratio"] == 0.0


def test_perplexity_is_the_model_s_own(model: Any, windows: torch.Tensor) -> None:
    with torch.inference_mode():
        logs = model(input_ids=windows, use_cache=False).logits.log_softmax(-1)[:, CONTEXT:-1]
    loss = -logs.gather(-1, windows[:, CONTEXT + 1 :, None]).mean()
    point = PruningSimulation(model, windows, context=CONTEXT).point("heads", 0.5)
    assert point.full_perplexity == pytest.approx(exp(float(loss)), rel=1e-9)


def test_a_curve_has_every_point_once(model: Any, windows: torch.Tensor) -> None:
    ticks: list[int] = []
    curve = PruningSimulation(model, windows[:1], context=CONTEXT).curve(
        ("layers", "tokens"), (0.3, 0.6), ("least_important", "random"), seed=4, advance=lambda: ticks.append(1)
    )
    assert [(point.what, point.order, point.seed, point.ratio) for point in curve] == [
        (what, order, 4 if order == "random" else None, ratio)
        for what in ("layers", "tokens")
        for order in ("least_important", "random")
        for ratio in (0.3, 0.6)
    ]
    assert len(ticks) == len(curve)


def test_on_the_embedded_model_important_tokens_matter_more_than_random_ones() -> None:
    model, tokenizer = load_testbed()
    prompt = make_example("needle_8", 400).prompt
    windows = text_windows(tokenizer, prompt, context=192, steps=32, most=1)
    simulation = PruningSimulation(model, windows, context=192)
    for ratio in (0.5, 0.75):
        assert simulation.point("tokens", ratio).kl < simulation.point("tokens", ratio, "random").kl


def test_leaving_one_out_scores_heads_by_what_is_lost(model: Any, windows: torch.Tensor) -> None:
    ticks: list[int] = []
    simulation = PruningSimulation(
        model, windows[:1], context=CONTEXT, leave_one_out=True, advance=lambda: ticks.append(1)
    )
    assert len(ticks) == 6
    prompt = windows[:1, :CONTEXT]
    cheap = prompt_importance(model, prompt[0].tolist())
    for entry, before in zip(simulation.importance[0], cheap, strict=True):
        assert torch.equal(entry.tokens, before.tokens)
        for head in range(2):

            def without(states: PromptStates, layer: int = entry.layer, head: int = head) -> Edited:
                keep = torch.ones_like(states.positions, dtype=torch.bool)
                keep[:, head] = states.layer != layer
                return Edited(keys=states.keys, values=states.values, keep=keep)

            direct = fidelity(model, lambda edit=without: EditedCache(model, edit), prompt, context=18, chunk=99)
            assert float(entry.heads[head]) == pytest.approx(direct.kl, rel=1e-9)
    with pytest.raises(ValueError, match="prompt must have at least 8 tokens"):
        PruningSimulation(model, windows, context=7, leave_one_out=True)


def test_on_the_embedded_model_left_out_heads_are_better_judges_than_energy() -> None:
    model, tokenizer = load_testbed()
    windows = text_windows(tokenizer, make_example("needle_8", 400).prompt, context=192, steps=32, most=1)
    cheap = PruningSimulation(model, windows, context=192).point("heads", 0.5)
    measured = PruningSimulation(model, windows, context=192, leave_one_out=True).point("heads", 0.5)
    assert measured.kl < cheap.kl


def test_bad_requests_are_refused(model: Any, windows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="context at least 2 and steps at least 1"):
        PruningSimulation(model, windows, context=windows.shape[1] - 1)
    with pytest.raises(ValueError, match="prompt must have at least 2 tokens"):
        prompt_importance(model, [3])
