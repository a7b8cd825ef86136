"""Pooling: merged tokens are the weighted means of their group, by plain loops in float64, and attended as such."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.pruning.edited_cache import EditedCache, PromptStates
from kvcompress.analysis.pruning.importance import prompt_importance
from kvcompress.analysis.recommend.pooling import Pooling, pooling_for
from kvcompress.engine.cache_argument import cache_argument
from tests.tolerances import assert_close


def states_of(tokens: int, recent: int, seed: int = 0) -> PromptStates:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, 2, tokens, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = torch.rand(1, 2, tokens, generator=generator)
    scores[..., tokens - recent :] = torch.nan
    positions = torch.arange(tokens).expand(1, 2, tokens)
    return PromptStates(layer=0, keys=keys, values=values, positions=positions, scores=scores)


@given(st.integers(1, 40), st.integers(2, 7), st.integers(0, 3), st.integers(1, 5))
def test_groups_become_their_weighted_means(tokens: int, group: int, sinks: int, recent: int) -> None:
    recent = min(recent, tokens)
    states = states_of(tokens, recent)
    edited = Pooling(group_size=group, sink_tokens=sinks, recent_tokens=recent)(states)
    assert states.scores is not None
    kept = torch.ones(1, 2, tokens, dtype=torch.bool) if edited.keep is None else edited.keep
    for head in range(2):
        wanted_places = [*range(min(sinks, tokens)), *range(max(tokens - recent, 0), tokens)]
        for start in range(sinks, tokens - recent, group):
            places = list(range(start, min(start + group, tokens - recent)))
            wanted_places.append(places[-1])
            weights = states.scores[0, head, places].double()
            for got, given_states in ((edited.keys, states.keys), (edited.values, states.values)):
                mean = (given_states[0, head, places] * weights[:, None]).sum(0) / weights.sum()
                assert_close(got[0, head, places[-1]], mean, torch.float32)
        assert sorted(set(wanted_places)) == kept[0, head].nonzero().flatten().tolist()
    untouched = [*range(min(sinks, tokens)), *range(max(tokens - recent, 0), tokens)]
    assert torch.equal(edited.keys[:, :, untouched], states.keys[:, :, untouched])


def test_a_group_without_attention_is_merged_evenly() -> None:
    states = states_of(8, 2)
    assert states.scores is not None
    states.scores[..., :6] = 0
    edited = Pooling(group_size=3, sink_tokens=0, recent_tokens=2)(states)
    assert_close(edited.keys[0, :, 2], states.keys[0, :, :3].mean(1))


def test_a_pooled_cache_is_attended_as_transformers_would(model: Any) -> None:
    ids = torch.randint(50, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt, rest = ids[:32], ids[32:]
    pooling = Pooling(group_size=3, sink_tokens=2, recent_tokens=6)
    seen: dict[int, PromptStates] = {}

    def noted(states: PromptStates) -> Any:
        seen[states.layer] = states
        return pooling(states)

    cache = EditedCache(model, noted, observers=6)
    talk = Conversation(model, cache)
    talk.feed([prompt])
    # Scores are the mean attention of the last six tokens, as the importance of tokens is of the last sixteen.
    importance = prompt_importance(model, prompt)[0].tokens
    scores = seen[0].scores
    assert scores is not None
    assert bool(scores[0, :, -6:].isnan().all())
    assert scores[0, :, :-6].shape == importance[:, :-6].shape
    # The same by hand: transformers' cache holding merged tokens only, at the positions that follow.
    reference = DynamicCache(config=model.config)
    Conversation(model, reference).feed([prompt])
    for index, layer in enumerate(reference.layers):
        edited = pooling(seen[index])
        assert edited.keep is not None
        held = edited.keep[0, 0]
        layer.keys, layer.values = edited.keys[:, :, held], edited.values[:, :, held]
    positions = torch.arange(32, 40)[None]
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([rest]), **cache_argument(reference), position_ids=positions).logits
    assert_close(talk.feed([rest], all_logits=True), wanted)
    held = cache.kept_positions(1)
    assert held.shape[-1] == 2 + 6 + 8 + len(rest)


@given(st.integers(1, 600), st.integers(1, 600))
def test_groups_bring_a_prompt_down_to_its_size(prompt_tokens: int, cache_size: int) -> None:
    pooling = pooling_for(prompt_tokens, cache_size)
    if pooling is None:
        return
    middle = prompt_tokens - pooling.sink_tokens - pooling.recent_tokens
    kept = pooling.sink_tokens + pooling.recent_tokens + -(-middle // pooling.group_size)
    assert kept <= cache_size < prompt_tokens


def test_bad_requests_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        Pooling(group_size=1)
    with pytest.raises(ValueError, match=r"Make the cache with Pooling\.cache\(model\)"):
        Conversation(model, EditedCache(model, Pooling(group_size=2))).feed([[1, 2, 3]])
    with pytest.raises(ValueError, match="observers must be"):
        EditedCache(model, Pooling(group_size=2), observers=0)
