"""The cache as an object: copies, reset, batch operations."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    SHORT,
    STEPS,
    difference,
    forward,
    greedy,
    left_padded,
    prompt,
    teacher_forced,
)
from tests.kvcompress.engine.policies import (
    ALL_POLICIES,
    every_pair,
    new_cache,
)


@every_pair(ALL_POLICIES)
def test_deepcopy_continues_identically_and_independently(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    teacher_forced(model, cache, prompt(LONG), prompt(3, 1))
    twin = copy.deepcopy(cache)
    assert twin._config.target is cache._config.target
    continued = forward(model, cache, prompt(4, 2))
    forward(model, cache, prompt(5, 3))  # the original goes on
    forward(model, cache, prompt(1, 4))
    assert torch.equal(forward(model, twin, prompt(4, 2)), continued)


@every_pair(ALL_POLICIES)
def test_reset_cache_equals_a_new_one(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT)])
    greedy(model, cache, ids, mask)
    cache.reset()
    assert all(layer.store is None for layer in cache.compressed_layers)
    assert cache.get_seq_length() == 0
    assert torch.equal(
        teacher_forced(model, cache, prompt(LONG), prompt(STEPS, 1)),
        teacher_forced(model, new_cache(model, policy), prompt(LONG), prompt(STEPS, 1)),
    )


@every_pair(ALL_POLICIES)
@pytest.mark.parametrize("how", ["select", "mask", "repeat", "reorder"])
def test_batch_operations_give_each_row_its_own_future(model: PreTrainedModel, policy: str, how: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    forced = torch.cat([prompt(STEPS, 10 + i) for i in range(3)])
    whole = new_cache(model, policy, keep_statistics=True)
    teacher_forced(model, whole, ids, forced, mask)
    cache = copy.deepcopy(whole)
    entries = {"select": [2, 0], "mask": [0, 2], "repeat": [0, 0, 1, 1, 2, 2], "reorder": [1, 1, 0]}[how]
    {
        "select": lambda: cache.batch_select_indices(torch.tensor(entries)),
        "mask": lambda: cache.batch_select_indices(torch.tensor([True, False, True])),
        "repeat": lambda: cache.batch_repeat_interleave(2),
        "reorder": lambda: cache.reorder_cache(torch.tensor(entries)),
    }[how]()
    mask = torch.cat([mask, mask.new_ones(3, STEPS)], dim=1)
    for block in (1, 4, 1):
        mask = torch.cat([mask, mask.new_ones(3, block)], dim=1)
        tokens = torch.cat([prompt(block, 30 + i) for i in range(3)])
        got, expected = forward(model, cache, tokens[entries], mask[entries]), forward(model, whole, tokens, mask)
        assert difference(got, expected[entries]) <= NO_EVICTION
    assert cache.statistics(cache.compressed_layers[0].layer_idx).budget.shape == (len(entries),)
