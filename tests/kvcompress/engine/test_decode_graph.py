"""The captured decode step: the numbers of a step that is not captured, and never a stale graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import CompressedCache
from kvcompress.engine.cache_argument import cache_argument
from tests.kvcompress.engine.architectures import build, needs_sharing
from tests.kvcompress.engine.graphs import (
    POLICIES,
    STEPS,
    MakeCapturing,
    check_same_state,
    decode,
    graph_cache,
    padded_run,
    plain,
)
from tests.kvcompress.engine.helpers import LONG, MEDIUM, SHORT, forward, greedy, left_padded, prompt


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(("llama", policy) for policy in POLICIES),
        pytest.param("gemma4-sharing", "cake", marks=needs_sharing),
        *(
            (name, "cake")
            for name in (
                "mistral-sliding",
                "gpt-oss",
                "gemma4",
                "falcon-h1",
                "nemotron-h",
                "qwen3-next",
            )
        ),
    ],
)
def test_replays_equal_steps_without_a_graph(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    rows = [prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)]
    expected_cache = plain(model, POLICIES[policy], compress_sliding=True)
    expected = padded_run(model, expected_cache, rows)
    cache, stand_in = graph_cache(model, POLICIES[policy], monkeypatch, compress_sliding=True)
    assert torch.equal(padded_run(model, cache, rows), expected)
    check_same_state(cache, expected_cache)
    assert stand_in.counts == (1, 1, STEPS - 1)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_generate_over_several_turns(own_llama: PreTrainedModel, make: MakeCapturing, options: dict[str, Any]) -> None:
    cache, stand_in = make()

    def turns(cache: CompressedCache) -> torch.Tensor:
        torch.manual_seed(3)
        ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 4)])
        for turn in range(2):
            tokens = greedy(own_llama, cache, ids, mask, STEPS, **options)
            ids = torch.cat([tokens, torch.cat([prompt(9, turn), prompt(9, turn + 5)])], dim=1)
            mask = torch.cat([mask, mask.new_ones(2, STEPS + 9)], dim=1)
        return ids

    expected_cache = plain(own_llama)
    assert torch.equal(turns(cache), turns(expected_cache))
    check_same_state(cache, expected_cache)
    assert stand_in.counts == (2, 2, 2 * (STEPS - 2))  # a turn's first token comes from its prefill


def test_two_caches_of_one_model_alternate(own_llama: PreTrainedModel, make: MakeCapturing) -> None:
    made, references = [make(), make()], [plain(own_llama), plain(own_llama)]
    for index in range(2):
        forward(own_llama, made[index][0], prompt(LONG, index))
        forward(own_llama, references[index], prompt(LONG, index))
    for step in range(6):
        for index in range(2):
            found = decode(own_llama, made[index][0], step, 1)
            assert torch.equal(found, decode(own_llama, references[index], step, 1))
    assert [stand_in.counts for _, stand_in in made] == [(1, 1, 5)] * 2


@pytest.mark.parametrize("extra", [{}, {"logits_to_keep": 1}, {"return_dict": False}], ids=str)
def test_what_is_returned_is_the_callers_own(
    own_llama: PreTrainedModel, make: MakeCapturing, extra: dict[str, Any]
) -> None:
    cache, stand_in = make()
    reference = plain(own_llama)
    for each in (cache, reference):
        forward(own_llama, each, prompt(LONG))
    found, expected = [], []
    with torch.no_grad():
        for step in range(5):
            found.append(own_llama(prompt(1, step), **cache_argument(cache), **extra))  # the token by position
            expected.append(own_llama(prompt(1, step), **cache_argument(reference), **extra))
    assert stand_in.replays == 4
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        assert torch.equal(one[0], other[0])
        assert one[1] is cache


def _continue(model: PreTrainedModel, cache: CompressedCache) -> None:
    forward(model, cache, prompt(9, 7))


def _start_over(model: PreTrainedModel, cache: CompressedCache) -> None:
    cache.reset()
    forward(model, cache, prompt(MEDIUM, 8))


def _start_over_with_more_rows(model: PreTrainedModel, cache: CompressedCache) -> None:
    cache.reset()
    forward(model, cache, torch.cat([prompt(MEDIUM, 8), prompt(MEDIUM, 9)]))


def _select_rows(model: PreTrainedModel, cache: CompressedCache) -> None:
    """The same row in new tensors."""
    cache.batch_select_indices(torch.tensor([0]))


def _repeat_rows_of_the_layers(model: PreTrainedModel, cache: CompressedCache) -> None:
    for layer in cache.layers:
        layer.batch_repeat_interleave(2)


def _move_weights(model: PreTrainedModel, cache: CompressedCache) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data.clone() * 2


def _replace_a_weight_and_keep_the_old_one(model: PreTrainedModel, cache: CompressedCache) -> None:
    model.old_weight = [model.lm_head.weight]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)


def _wrap_a_layer(model: PreTrainedModel, cache: CompressedCache) -> None:
    """As an adapter does: all weights that there were stay where they are."""
    inner = model.model.layers[0].mlp.down_proj
    model.model.layers[0].mlp.down_proj = torch.nn.Sequential(inner, torch.nn.Tanh())


def _add_a_bias(model: PreTrainedModel, cache: CompressedCache) -> None:
    model.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(torch.ones(32))


def _load_weights(model: PreTrainedModel, cache: CompressedCache) -> None:
    """In place, so that the graph still serves."""
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)


CHANGES = [
    _continue,
    _start_over,
    _start_over_with_more_rows,
    _select_rows,
    _repeat_rows_of_the_layers,
    _move_weights,
    _replace_a_weight_and_keep_the_old_one,
    _wrap_a_layer,
    _add_a_bias,
    _load_weights,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_steps(make: MakeCapturing, own_llama: PreTrainedModel, change: Any) -> None:
    other_llama = build("llama")
    cache, stand_in = make()
    reference = plain(other_llama)
    for model, each in ((own_llama, cache), (other_llama, reference)):
        forward(model, each, prompt(LONG))
        decode(model, each, 1, 5)
        change(model, each)
    assert torch.equal(decode(own_llama, cache, 2, 5), decode(other_llama, reference, 2, 5))
    check_same_state(cache, reference)
    assert stand_in.counts == ((1, 1, 9) if change is _load_weights else (2, 2, 8))
    assert stand_in.releases == stand_in.captures - 1


def test_other_inputs_are_captured_anew(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    cache, stand_in = make()
    reference = plain(own_llama)
    for given in (1, 2, 3):
        for each in (cache, reference):
            if given == 1:
                forward(own_llama, each, prompt(LONG))
        logits = []
        for each in (cache, reference):
            seen = LONG + 3 * (given - 1)
            extra = {} if given == 2 else {"position_ids": torch.tensor([[seen]])}
            with torch.no_grad():
                logits.append(
                    [
                        own_llama(
                            input_ids=prompt(1, step),
                            **cache_argument(each),
                            **{name: value + step for name, value in extra.items()},
                        ).logits
                        for step in range(3)
                    ]
                )
        for found, expected in zip(*logits, strict=True):
            assert torch.equal(found, expected)
    assert stand_in.counts == (3, 3, 6)


def test_reset_and_a_prefill_free_the_graph(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    cache, stand_in = make()
    for free in (
        cache.reset,
        lambda: forward(own_llama, cache, prompt(3)),
        lambda: own_llama.model(prompt(3), **cache_argument(cache)),
    ):
        if cache.get_seq_length() == 0:
            forward(own_llama, cache, prompt(LONG))
        decode(own_llama, cache, 0, 3)
        assert cache.decode_graph is not None
        assert cache.decode_graph.captured
        before = stand_in.releases
        free()
        assert not cache.decode_graph.captured
        assert stand_in.releases == before + 1
        cache.reset()
        forward(own_llama, cache, prompt(LONG))


def test_a_copied_cache_captures_for_itself(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    cache, _ = make()
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    other = copy.deepcopy(cache)
    assert other.decode_graph is not None
    assert not other.decode_graph.captured
    assert torch.equal(decode(own_llama, cache, 1, 1), decode(own_llama, other, 1, 1))
    check_same_state(cache, other)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("name", ["llama", "llama-eager", "mistral-sliding-eager"])
def test_a_step_makes_no_mask(name: str, captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads it, and making one for eager attention copies a number to the device, which no capture allows.

    Nor can all be made from the one token that the engine speaks of: Gemma 4 looks positions up in it.
    """
    model, policy = build(name), POLICIES["cake"]
    cache = graph_cache(model, policy, monkeypatch)[0] if captured else CompressedCache(model, policy)
    masks: list[Any] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    forward(model, cache, prompt(LONG))
    decode(model, cache, 0, 3)
    assert masks[1:] == [None] * (4 if captured else 3)  # a capture runs the step's Python once more
