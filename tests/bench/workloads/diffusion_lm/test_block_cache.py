"""The block cache: what is computed, what it equals, and what is evicted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, RobertaConfig, RobertaForMaskedLM

from kvcompress.bench.workloads.diffusion_lm.block_attention import Call
from kvcompress.bench.workloads.diffusion_lm.block_cache import CacheSettings
from kvcompress.bench.workloads.diffusion_lm.layer_store import LayerStore
from kvcompress.bench.workloads.diffusion_lm.sampler import sample
from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings
from tests.tolerances import assert_close

MASK = 1
SETTINGS = SamplingSettings(gen_length=12, steps=12, block_length=4)


def test_refreshed_every_step_it_equals_the_uncached_sampler(model: PreTrainedModel, prompts: Tensor) -> None:
    plain = sample(model, prompts, SETTINGS, mask_id=MASK)
    cached = sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings(refresh_every=1))
    assert torch.equal(cached.ids, plain.ids)
    assert cached.tokens_computed == plain.tokens_computed == 12 * (11 + 12)


@pytest.mark.parametrize(("every", "refreshes"), [(None, 3), (1, 12), (2, 6), (3, 6), (9, 3)])
def test_positions_that_are_cached_are_not_computed(
    model: PreTrainedModel, prompts: Tensor, every: int | None, refreshes: int
) -> None:
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sampled = sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings(keep=0.5, refresh_every=every))
    handle.remove()
    assert sampled.cache is not None
    assert seen.count(23) == sampled.cache.refreshes == refreshes
    assert seen.count(4) == sampled.cache.block_passes == 12 - refreshes
    assert sum(seen) == sampled.tokens_computed


def test_a_block_pass_right_after_a_refresh_gives_the_same_logits(model: PreTrainedModel, prompts: Tensor) -> None:
    """Nothing has changed since, so what is stored is not stale yet."""
    from kvcompress.bench.workloads.diffusion_lm.block_cache import BlockCache

    canvas = torch.cat((prompts, torch.full((3, 12), MASK)), dim=1)
    block = slice(15, 19)
    with torch.inference_mode(), BlockCache(model, CacheSettings()) as cache:
        whole, computed = cache.logits(canvas, block, 0)
        again, computed_again = cache.logits(canvas, block, 1)
    assert (computed, computed_again) == (23, 4)
    assert_close(again, whole)


def test_the_model_gets_its_attention_back(model: PreTrainedModel, prompts: Tensor) -> None:
    before = model.config._attn_implementation
    sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings())
    assert model.config._attn_implementation == before

    class Broken:
        def before_step(self, step: int, block: int) -> None:
            raise RuntimeError("listener")

        def after_step(self, step: object) -> None:
            return

    with pytest.raises(RuntimeError, match="listener"):
        sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings(), listeners=[Broken()])
    assert model.config._attn_implementation == before


def random_call(tokens: int, seed: int, window: int | None = None) -> Call:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, tokens, 8, generator=generator)
    key, value = (torch.randn(2, 2, tokens, 8, generator=generator) for _ in range(2))
    return Call(query=query, key=key, value=value, mask=None, scaling=0.6, sliding_window=window)


def reference_mass(call: Call, block: slice) -> Tensor:
    """float64 [B, Hkv, T]."""
    key = call.key.double().repeat_interleave(2, dim=1)
    logits = 0.6 * call.query.double() @ key.transpose(2, 3)
    if call.sliding_window is not None:
        places = torch.arange(logits.shape[-1])
        far = (places[:, None] - places[None]).abs() >= call.sliding_window
        logits = logits.masked_fill(far, -torch.inf)
    p = logits.softmax(-1)[:, :, block].mean(2)  # [B, H, T]
    return p.unflatten(1, (2, 2)).mean(2)


@given(
    tokens=st.integers(9, 40),
    keep=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
    window=st.sampled_from([None, 5]),
)
def test_what_the_block_looked_at_least_is_evicted(tokens: int, keep: float, seed: int, window: int | None) -> None:
    call, block = random_call(tokens, seed, window), slice(3, 7)
    store = LayerStore.of_pass(call, block, keep)
    others = tokens - 4
    assert store.kept_tokens == max(1, round(keep * others))
    assert store.held_bytes == store.full_bytes(tokens) * (store.kept_tokens + 4) // tokens
    mass = reference_mass(call, block)
    assert_close(call.mass_of(block), mass, torch.float32)
    positions = store.positions.expand(2, 2, -1)
    for row in range(2):
        for head in range(2):
            held = positions[row, head].tolist()
            assert set(range(3, 7)) <= set(held)
            assert len(set(held)) == len(held) == store.kept_tokens + 4
            kept = sorted(set(held) - set(range(3, 7)))
            gone = sorted(set(range(tokens)) - set(held))
            if gone:
                least = float(mass[row, head, kept].min())
                assert float(mass[row, head, gone].max()) <= least + 1e-6
            # What is held is what was computed.
            for place, position in enumerate(held):
                assert torch.equal(store.keys[row, head, place], call.key[row, head, position])
                assert torch.equal(store.values[row, head, place], call.value[row, head, position])


@given(keep=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 99), window=st.sampled_from([None, 5]))
def test_a_block_attends_to_what_is_held_and_to_itself(keep: float, seed: int, window: int | None) -> None:
    block = slice(6, 10)
    first, later = random_call(20, seed, window), random_call(4, seed + 1000, window)
    store = LayerStore.of_pass(first, block, keep)
    output = store.attend(later)
    keys, values = first.key.double().clone(), first.value.double().clone()
    keys[:, :, block], values[:, :, block] = later.key.double(), later.value.double()
    places = torch.arange(20)
    positions = store.positions.expand(2, 2, -1)
    for row in range(2):
        for head in range(4):
            held = torch.zeros(20, dtype=torch.bool)
            held[positions[row, head // 2]] = True
            seen = held[None].expand(4, -1)
            if window is not None:
                seen = seen & ((places[block, None] - places[None]).abs() < window)
            logits = 0.6 * later.query[row, head].double() @ keys[row, head // 2].T
            p = logits.masked_fill(~seen, -torch.inf).softmax(-1)
            assert_close(output[row, :, head], p @ values[row, head // 2], torch.float32)


def test_eviction_saves_the_bytes_that_it_says(model: PreTrainedModel, prompts: Tensor) -> None:
    sampled = sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings(keep=0.5))
    assert sampled.cache is not None
    layers, heads, head_dim, rows = 2, 2, 8, 3
    per_token = 2 * layers * heads * head_dim * 4 * rows
    assert sampled.cache.full_bytes == 23 * per_token
    assert sampled.cache.kept_tokens == round(0.5 * 19)
    assert sampled.cache.held_bytes == (sampled.cache.kept_tokens + 4) * per_token


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]"):
        CacheSettings(keep=keep)


def test_refreshing_never_is_refused() -> None:
    with pytest.raises(ValueError, match="refresh_every must be at least 1"):
        CacheSettings(refresh_every=0)


def test_models_whose_positions_count_from_elsewhere_are_refused(prompts: Tensor) -> None:
    config = RobertaConfig(
        vocab_size=19, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = RobertaForMaskedLM(config).eval()
    assert not bool((sample(model, prompts, SETTINGS, mask_id=MASK).generated == MASK).any())
    with pytest.raises(ValueError, match="count from the padding's id"):
        sample(model, prompts, SETTINGS, mask_id=MASK, cache=CacheSettings())
