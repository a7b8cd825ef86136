"""Prompts in several blocks: chunked prefill, later turns, padding that is longer than a block."""

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, SnapKV, make_policy
from kvcompress.engine.linear_states import linear_states
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    PADDED_ROWS,
    SHORT,
    STEPS,
    difference,
    forward,
    full_cache,
    greedy,
    kept,
    left_padded,
    prompt,
)
from tests.kvcompress.engine.policies import (
    EVICTING_POLICIES,
    NO_EVICTION_POLICIES,
    WINDOW,
    every_pair,
    new_cache,
)


@every_pair(NO_EVICTION_POLICIES)
@pytest.mark.parametrize("chunk", [1, 7, LONG - 1, LONG])
def test_chunked_prefill_equals_unchunked_without_eviction(model: PreTrainedModel, policy: str, chunk: int) -> None:
    expected = greedy(model, full_cache(model), prompt(LONG))
    got = greedy(model, new_cache(model, policy), prompt(LONG), prefill_chunk_size=chunk)
    torch.testing.assert_close(got, expected)


@every_pair(EVICTING_POLICIES)
@pytest.mark.parametrize("chunk", [7, 32])
def test_chunked_prefill_with_eviction_keeps_the_window(model: PreTrainedModel, policy: str, chunk: int) -> None:
    cache = new_cache(model, policy)
    got = greedy(model, cache, prompt(LONG), prefill_chunk_size=chunk)
    assert got.shape[1] == LONG + STEPS
    assert cache.get_seq_length() == LONG + STEPS - 1  # generate never feeds the last token back
    for layer in cache.compressed_layers:
        for head in kept(cache, layer.layer_idx):
            assert sorted(head)[-WINDOW:] == list(range(LONG + STEPS - 1 - WINDOW, LONG + STEPS - 1))


@every_pair(["full", *EVICTING_POLICIES])
def test_blocks_of_a_padded_batch_equal_rows_alone(model: PreTrainedModel, policy: str) -> None:
    rows = [prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)]
    ids, mask = left_padded(rows)
    blocks = [slice(0, 50), slice(50, 75), slice(75, LONG)]  # the short rows' first blocks are nothing but padding
    batch = new_cache(model, policy)
    logits = [forward(model, batch, ids[:, block], mask[:, : block.stop]) for block in blocks][-1]
    tokens = torch.cat([prompt(1, 20 + i) for i in range(3)])
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
        step = forward(model, batch, tokens, mask)
    for i, row in enumerate(rows):
        padding = LONG - row.shape[1]
        alone = new_cache(model, policy)
        for block in blocks:
            if block.stop > padding:
                part = row[:, max(block.start - padding, 0) : block.stop - padding]
                last = forward(model, alone, part)
        assert difference(logits[i, -1:], last[0, -1:]) <= PADDED_ROWS
        for _ in range(STEPS):
            last = forward(model, alone, tokens[i : i + 1])
        assert difference(step[i, -1:], last[0, -1:]) <= PADDED_ROWS
        for layer in alone.compressed_layers:
            assert kept(batch, layer.layer_idx, i, padding) == kept(alone, layer.layer_idx)


def test_random_keeps_the_same_tokens_in_one_block_and_in_many() -> None:
    model = shared_model("mistral-sliding")  # whose row starts leave the window
    one, many = (CompressedCache(model, make_policy("random", cache_size=16, window_size=WINDOW)) for _ in range(2))
    forward(model, one, prompt(LONG))
    for block in prompt(LONG).split(30, dim=1):
        forward(model, many, block)
    newest = range(LONG - 24, LONG)
    for layer in one.compressed_layers:
        for a, b in zip(kept(one, layer.layer_idx), kept(many, layer.layer_idx), strict=True):
            assert set(b) <= set(newest)
            assert a[-WINDOW:] == b[-WINDOW:]
    scores = [policy_scores(model, cut) for cut in (0, 30)]
    torch.testing.assert_close(scores[0], scores[1])


def policy_scores(model: PreTrainedModel, cut: int) -> torch.Tensor:
    """Stored scores by position of a sliding layer that keeps all, its prompt given in two blocks."""
    cache = CompressedCache(model, make_policy("random", cache_size=200, window_size=WINDOW))
    for block in prompt(LONG).tensor_split([cut] if cut else [], dim=1):
        forward(model, cache, block)
    store = cache.layer(0).store
    assert store is not None
    order = store.slots.positions.argsort()
    valid = (store.slots.positions[order] >= LONG - 24) & (store.slots.positions[order] < LONG - WINDOW)
    return store.slots.scores[order][valid]


@every_pair(NO_EVICTION_POLICIES)
def test_padded_batch_given_token_by_token(model: PreTrainedModel, policy: str) -> None:
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT, 2)])
    caches = (full_cache(model), new_cache(model, policy))
    for i in range(MEDIUM):
        logits = [forward(model, cache, ids[:, i : i + 1], mask[:, : i + 1]) for cache in caches]
    # Linear attention takes padding that comes alone for a token: what such a row says depends on what nobody reads.
    rows = slice(1) if any(linear_states(layer) for layer in caches[1].layers) else slice(None)
    assert difference(logits[1][rows], logits[0][rows]) <= NO_EVICTION
    for layer in caches[1].compressed_layers:
        assert min(kept(caches[1], layer.layer_idx, 1)[0]) >= MEDIUM - SHORT


@every_pair(NO_EVICTION_POLICIES)
def test_second_turn_without_eviction_equals_fresh_cache(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    conversation = torch.cat([greedy(model, cache, prompt(LONG)), prompt(20, 5)], dim=1)
    expected = greedy(model, full_cache(model), conversation)
    torch.testing.assert_close(greedy(model, cache, conversation), expected)


@every_pair(NO_EVICTION_POLICIES)
def test_second_turn_of_a_padded_batch_equals_fresh_cache(model: PreTrainedModel, policy: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = new_cache(model, policy)
    first = greedy(model, cache, ids, mask)
    conversation = torch.cat([first, torch.cat([prompt(20, 5 + i) for i in range(3)])], dim=1)
    mask = torch.cat([mask, mask.new_ones(3, conversation.shape[1] - mask.shape[1])], dim=1)
    expected = greedy(model, full_cache(model), conversation, mask)
    torch.testing.assert_close(greedy(model, cache, conversation, mask), expected)


@every_pair(EVICTING_POLICIES)
def test_second_turn_with_eviction_keeps_positions_absolute(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    conversation = torch.cat([greedy(model, cache, prompt(LONG)), prompt(20, 5)], dim=1)
    before = {layer.layer_idx: kept(cache, layer.layer_idx) for layer in cache.compressed_layers}
    result = greedy(model, cache, conversation)
    seen = result.shape[1] - 1
    assert cache.get_seq_length() == seen
    for index, heads in before.items():
        for old, new in zip(heads, kept(cache, index), strict=True):
            assert {position for position in new if position < LONG + STEPS - 1} <= set(old)
            assert sorted(new)[-WINDOW:] == list(range(seen - WINDOW, seen))


def test_compression_ratio_counts_evicted_tokens_in_later_turns(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, SnapKV(compression_ratio=0.5, window_size=WINDOW))
    for turn in range(1, 4):
        forward(llama, cache, prompt(60, turn))
        assert [len(head) for head in kept(cache, 0)] == [30 * turn] * 2


def test_compression_ratio_is_that_of_each_row(llama: PreTrainedModel) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = CompressedCache(llama, Cake(compression_ratio=0.5, window_size=WINDOW))
    forward(llama, cache, ids, mask)
    counts = [sum(len(kept(cache, layer.layer_idx, row)[0]) for layer in cache.compressed_layers) for row in range(3)]
    assert counts == [LONG // 2 * 4, MEDIUM // 2 * 4, SHORT * 4]  # no row loses its window


def test_compression_ratio_with_sliding_layers_is_exact() -> None:
    model = shared_model("gemma3")
    cache = CompressedCache(model, Cake(compression_ratio=0.75, window_size=4), compress_sliding=True)
    forward(model, cache, prompt(200))
    assert sum(len(kept(cache, layer.layer_idx)[0]) for layer in cache.compressed_layers) == 200
