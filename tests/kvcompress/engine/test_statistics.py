"""What a cache tells of its prefill."""

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import (
    Cake,
    CompressedCache,
    make_policy,
)
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    SHORT,
    forward,
    left_padded,
    prompt,
)
from tests.kvcompress.engine.policies import SMALL, WINDOW


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_statistics_have_their_shapes_and_types(name: str) -> None:
    model = shared_model(name)
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = CompressedCache(model, Cake(**SMALL), keep_statistics=True)
    forward(model, cache, ids, mask)
    for layer in cache.compressed_layers:
        found = cache.statistics(layer.layer_idx)
        heads = model.config.num_key_value_heads
        assert (found.budget.shape, found.budget.dtype) == ((3,), torch.int64)
        for values in (found.entropy, found.variance, found.preference):
            assert values is not None
            assert (values.shape, values.dtype) == ((3,), torch.float32)
        assert found.token_scores is not None
        assert (found.token_scores.shape, found.token_scores.dtype) == ((3, heads, LONG - WINDOW), torch.float32)
        assert float(found.entropy[2]) == 0.0  # a row within its window has nothing to score
        assert bool((found.token_scores >= 0).all())


def test_statistics_without_scores_and_without_attention(llama: PreTrainedModel) -> None:
    plain = CompressedCache(llama, Cake(**SMALL))
    blind = CompressedCache(llama, make_policy("random", **SMALL), keep_statistics=True)
    for cache in (plain, blind):
        forward(llama, cache, prompt(LONG))
    assert plain.statistics(0).token_scores is None
    found = blind.statistics(0)
    assert (found.entropy, found.variance, found.preference) == (None, None, None)
    assert found.token_scores is not None


def test_budgets_follow_the_preference(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    forward(llama, cache, prompt(400))
    found = [cache.statistics(index) for index in range(4)]
    preference = torch.stack([entry.preference for entry in found]).double().flatten()
    share = preference / preference.sum() * 4 * (40 - WINDOW)
    budgets = torch.stack([entry.budget for entry in found]).flatten()
    assert int(budgets.sum()) == 4 * (40 - WINDOW)
    assert float((budgets - share).abs().max()) < 4  # a divisor method strays by less than one seat per layer
